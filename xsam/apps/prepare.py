"""`xsam data prepare`: what a download lacks is made from what it has, and its layout is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data import prepare as converters
from ..data.catalog import DATASETS, data_root
from ..data.refer import GRefCoco, RefCoco
from ..data.region_records import write_vgd
from ..data.shapes_files import prepare as write_shapes
from ..structures import UserError

REFER = {  # folder -> file of refs, splits
    "refcoco": ("refs(unc).p", ("train", "val", "testA", "testB")),
    "refcoco+": ("refs(unc).p", ("train", "val", "testA", "testB")),
    "refcocog": ("refs(umd).p", ("train", "val", "test")),
    "grefcoco": ("grefs(unc).json", ("train", "val", "testA", "testB")),
}


def prepare(name: str, root: Path | None = None) -> None:
    """Prepare a dataset; what is done already is not done again.

    Args:
        name: one of `PREPARED`.
        root: its folder; default: below the data folder.

    Raises:
        UserError: a source file is missing or damaged; the message says where it comes from.
    """
    step = PREPARED[name]
    root = root or data_root() / step.folder
    try:
        step.run(root)
    except UserError as error:
        sources = "; ".join(dict.fromkeys(dataset.get for dataset in DATASETS.values() if dataset.prepare == name))
        raise UserError(f"{error}; it comes from {sources} (docs/datasets.md)") from None
    print(f"{root}: ready")


def vgd(root: Path) -> None:
    """`annotations/coco_vgdseg_{train,val}.json` from COCO's instances, where they are not there."""
    instances = {split: root / f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    present = [split for split, path in instances.items() if path.is_file()]
    if not present:
        raise UserError(f"{instances['train']}: no such file")
    for split in present:
        write_vgd(instances[split], root / f"{split}2017", root / f"annotations/coco_vgdseg_{split}.json")


def refer(root: Path) -> None:
    """Read every split of the datasets that are there, and print how many images and sentences it has."""
    present = [name for name in REFER if (root / name).is_dir()]
    if not present:
        raise UserError(f"{root}: has none of the folders {', '.join(REFER)}")
    for name in present:
        refs, splits = REFER[name]
        reader = GRefCoco if name == "grefcoco" else RefCoco
        for split in splits:
            images = root.parent / "coco/train2014"
            data = reader(root / name / refs, root / name / "instances.json", images, split)
            print(f"{name} {split}: {len(data):,} images, {len(data.questions()):,} sentences")
    print(f"not there: {', '.join(REFER.keys() - present) or 'none'}")


@dataclass(frozen=True, slots=True)
class Step:
    """How a dataset is prepared."""

    folder: str  # below the data folder
    run: Callable[[Path], None]


PREPARED: Mapping[str, Step] = {
    "shapes": Step("shapes", write_shapes),
    "ade20k": Step("ade20k", converters.ade20k),
    "cityscapes": Step("cityscapes", converters.cityscapes),
    "coco": Step("coco", converters.coco_semantic),
    "refer": Step("refer", refer),
    "vgd": Step("coco", vgd),
}
