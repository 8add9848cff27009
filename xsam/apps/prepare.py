"""`xsam data prepare`: what a download lacks is made from what it has, and its layout is checked."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..config import data_root
from ..data import prepare as converters
from ..data.catalog import DATASETS
from ..data.refer import GRefCoco, RefCoco
from ..data.region_records import write_vgd
from ..data.shapes_files import prepare as write_shapes
from ..structures import BadSample, UserError

REFER = {  # folder -> reader, file of refs, splits
    "refcoco": (RefCoco, "refs(unc).p", ("train", "val", "testA", "testB")),
    "refcoco+": (RefCoco, "refs(unc).p", ("train", "val", "testA", "testB")),
    "refcocog": (RefCoco, "refs(umd).p", ("train", "val", "test")),
    "grefcoco": (GRefCoco, "grefs(unc).json", ("train", "val", "testA", "testB")),
}


def prepare(name: str, root: Path | None = None) -> None:
    """Prepare the dataset `name` of `PREPARED` in `root` (default: below the data folder), as far as it is not yet.

    Raises UserError where a source file is missing or damaged; the message says where it comes from."""
    folder, run = PREPARED[name]
    root = root or data_root() / folder
    try:
        run(root)
    except (UserError, BadSample) as error:
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
        reader, refs, splits = REFER[name]
        for split in splits:
            data = reader(root / name / refs, root / name / "instances.json", root.parent / "coco/train2014", split)
            print(f"{name} {split}: {len(data):,} images, {len(data.questions()):,} sentences")
    print(f"not there: {', '.join(REFER.keys() - present) or 'none'}")


PREPARED: Mapping[str, tuple[str, Callable[[Path], None]]] = {  # name -> folder below the data folder, what is run
    "shapes": ("shapes", write_shapes),
    "ade20k": ("ade20k", converters.ade20k),
    "cityscapes": ("cityscapes", converters.cityscapes),
    "coco": ("coco", converters.coco_semantic),
    "refer": ("refer", refer),
    "vgd": ("coco", vgd),
}
