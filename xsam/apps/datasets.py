"""`xsam data prepare`: what a download lacks is made from what it has. `xsam data validate`: every record is taken as
training would take it, and what is wrong with which is said. What `xsam data` works on: `read`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from world.files import prepare as write_shapes

from .. import config as configs
from ..data import own
from ..data import prepare as converters
from ..data.catalog import DATASETS, Dataset, fits
from ..data.images import image_size, read_image
from ..data.masks import decode_rle
from ..data.mixture import key, kind
from ..data.records import read_json
from ..data.refer import GRefCoco, RefCoco
from ..data.region_records import write_vgd
from ..structures import BadSample, Sample, UserError
from ..tasks.base import build

PUBLISHED = {row: count for dataset in DATASETS.values() for row, count in dataset.rows.items()}
OWN = "configs/finetune/own_data.py"  # whose processor previews one's own data
Row = dict[str, Any]  # what `tasks.base.build` takes
Rows = dict[str, Row]  # by its name in an override, or by its file
MANY = 20_000  # records; of more, `SOME` are taken unless the user says otherwise
SOME = 2_000
SAID = re.compile(r"; ((?:check|fetch|replace|give|delete|remove|put) .*)$")  # a reason that brings its remedy
MISSING = "No such file"
# Else: what a reason says, and what to do about it; the first that fits counts.
REMEDIES: dict[str, str] = read_json(Path(__file__).with_name("remedies.json"))
REFER = {  # folder -> reader, file of refs, splits
    "refcoco": (RefCoco, "refs(unc).p", ("train", "val", "testA", "testB")),
    "refcoco+": (RefCoco, "refs(unc).p", ("train", "val", "testA", "testB")),
    "refcocog": (RefCoco, "refs(umd).p", ("train", "val", "test")),
    "grefcoco": (GRefCoco, "grefs(unc).json", ("train", "val", "testA", "testB")),
}


def read(target: str, overrides: Sequence[str] = (), images: str = "") -> tuple[Rows, dict[str, Any], str]:
    """What `target` is: its sources and benchmarks, the processor that they are for, and what to do where a file of
    theirs is missing, if that is known. Raises UserError where it is nothing, or its config does not load.

    Args:
        target: a name of the catalog; a config (`.py`, or a run folder); or one's own data, see `data.own.row`.
        overrides: of the config, or of the base config where `target` is none.
        images: folder of a file's images; default: the file's own."""
    path = Path(target)
    if target in DATASETS:
        return _of_dataset(DATASETS[target], overrides)
    if path.suffix == ".py" or path.name == "config.json" or (path / "config.json").is_file():
        config = configs.load(path, overrides)
        rows = _rows(config)
        if not rows or "processor" not in config:
            raise UserError(f"{path}: has no sources or benchmarks; give the config of a stage, and data=FILE")
        return rows, config["processor"], ""
    if not path.exists() and not path.suffix:
        raise UserError(f"{target}: no file or folder, nor a dataset; those are: {', '.join(DATASETS)}")
    return {target: own.row(target, images)}, configs.load(OWN, overrides)["processor"], ""


def _of_dataset(dataset: Dataset, overrides: Sequence[str]) -> tuple[Rows, dict[str, Any], str]:
    base = configs.load(f"{dataset.configs}3.py", overrides)
    paths = sorted(Path("configs/_base_/benchmarks").glob("*.py")) if dataset.rows else []
    found = Rows()
    for path in (*paths, Path(f"{dataset.configs}1.py"), Path(f"{dataset.configs}2.py")):
        found |= _rows(configs.load(path))
    found |= _rows(base)
    return {name: found[name] for name in dataset.rows or found}, base["processor"], dataset.remedy


def _rows(config: dict[str, Any]) -> Rows:
    nodes = {f"mixture.sources.{name}": node for name, node in config.get("mixture", {}).get("sources", {}).items()}
    nodes |= {f"benchmarks.{name}": node for name, node in config.get("benchmarks", {}).items()}
    for name, node in nodes.items():
        if not isinstance(node, dict) or not {"type", "data"} <= node.keys():
            raise UserError(f"{name}: needs a task as `type` and its reader as `data`")
    return nodes


@dataclass(slots=True)
class Finding:
    """A kind of problem."""

    first: str
    remedy: str
    count: int = 0


@dataclass(slots=True)
class Report:
    """What is known of a row after it was looked at; `taken` is 0 where that was not possible."""

    name: str  # of the row
    records: int = 0
    taken: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, what: str, text: str, remedy: str = "") -> None:
        """Count a problem. The remedy is found by its text where none is given."""
        if not remedy:
            said = None if MISSING in text else SAID.search(text)
            remedy = said[1] if said else next(advice for sign, advice in REMEDIES.items() if re.search(sign, what))
        self.findings.setdefault(what, Finding(text, remedy)).count += 1


def validate(
    target: str, overrides: Sequence[str] = (), *, images: str = "", limit: int | None = None, full: bool = False
) -> int:
    """Look at all rows of `target` (see `read`), print a table and the findings; 1 if there are any, else 0.

    `limit` is how many records of a row are taken, evenly spread; 0 = all; default: all, or `SOME` of more than `MANY`.
    `full` decodes every image, not only its header. Raises UserError where nothing could be looked at."""
    rows, _, source = read(target, overrides, images)
    reports = [check(name, row, limit, full, source) for name, row in rows.items()]
    if not any(report.taken for report in reports):
        reasons = [finding.first for report in reports for finding in report.findings.values()]
        first = reasons[0] if reasons else f"{target}: no records"
        raise UserError(f"{first}; {source}" if source else first)
    if target in rows:  # one's own
        task, reader = (name.split(".")[2:] for name in (rows[target]["type"], rows[target]["data"]["type"]))
        print(f"{target}: trains the task {task[0]}, read by {reader[-1]}\n")
    print(table(reports))
    return int(any(report.findings for report in reports))


def check(name: str, row: Row, limit: int | None = None, full: bool = False, source: str = "") -> Report:
    """Take the samples of a row; `source` says how to get the files."""
    report = Report(name)
    changes = {"max_turns": 10**6} if "max_turns" in signature(configs.resolve(row["type"])).parameters else {}
    try:
        task = build(row, **changes)  # every turn that a record has
    except UserError as error:
        report.add("cannot be read", str(error), source)
        return report
    report.records = len(task)
    if not fits(published := PUBLISHED.get(name, "?"), len(task)):
        text = f"{name}: {len(task):,} records, published are {published}"
        report.add("another number of records", text, "check that the file is the right one, fetch it anew")
    ids = [task.id(index) for index in tqdm(range(len(task)), desc=f"{name} ids", delay=2, leave=False)]
    names, times = np.unique(ids, return_counts=True)
    for twice in np.repeat(names, times - 1):
        report.add("an id is not unique", f"{name}: {twice}", "give every record an id of its own")
    chosen = spread(len(task), limit)
    for index in tqdm(chosen, desc=name, delay=2, leave=False):
        seed = key("validate", name, index) if row.get("train") else key("evaluate", ids[index])
        try:
            check_sample(task.sample(index, np.random.default_rng(seed)), full)
        except BadSample as bad:
            report.add(kind(f"{name}: {bad}")[1], str(bad))
    report.taken = len(chosen)
    return report


def spread(records: int, limit: int | None) -> list[int]:
    """Numbers of at most `limit` records, evenly spread from the first to the last."""
    if limit is None:
        limit = SOME if records > MANY else 0
    return np.linspace(0, records - 1, min(records, limit or records)).round().astype(int).tolist()


def check_sample(sample: Sample, full: bool) -> None:
    """Raises BadSample for an image that cannot be read or has another size than its masks, and for an empty mask."""
    paths = {path for path in (sample.image, *(region.image for region in sample.regions)) if path}
    sizes = {path: read_image(path).shape[:2] if full else image_size(path) for path in paths}
    masks = sample.masks
    if masks.count and masks.ids.shape[1:] != sizes[sample.image]:
        raise BadSample(f"{sample.image}: is {sizes[sample.image]}, its masks are {masks.ids.shape[1:]}")
    areas = np.bincount(masks.ids.ravel() + 1, minlength=masks.count + 1)[1:]
    if not areas.all():
        raise BadSample(f"{sample.id}: mask {areas.argmin()} is empty")
    for number, region in enumerate(sample.regions):
        size = sizes[region.image or sample.image]
        if tuple(region.mask["size"]) != size:
            raise BadSample(f"{sample.id}: region {number} has the size {region.mask['size']}, its image {size}")
        if not decode_rle(region.mask).any():
            raise BadSample(f"{sample.id}: region {number} is empty")


def table(reports: Sequence[Report]) -> str:
    """The reports as text: a line for each row, then what was found."""
    width = max(len(report.name) for report in reports)
    rows, notes = [f"{'row':{width}}   records  published         taken  findings"], []
    for report in reports:
        name, published = report.name, PUBLISHED.get(report.name, "-").replace("?", "-")
        taken = f"{report.taken:,}" + (" spread" if 0 < report.taken < report.records else "")
        count = sum(finding.count for finding in report.findings.values())
        rows.append(f"{name:{width}}{report.records:>10,}{published:>11}{taken:>14}{count:>10,}")
        for what, found in report.findings.items():
            notes.append(f"\n{found.count:,} x {name}: {what}\n    first:  {found.first}\n    remedy: {found.remedy}")
    return "\n".join(rows + (notes or ["\nno findings"]))


def prepare(name: str, root: Path | None = None) -> None:
    """Prepare the dataset `name` of `PREPARED` in `root` (default: below the data folder), as far as it is not yet.

    Raises UserError where a source file is missing or damaged; the message says where it comes from."""
    folder, run = PREPARED[name]
    root = root or configs.data_root() / folder
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
