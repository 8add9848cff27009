"""`xsam data validate`: every record of a dataset taken as training would take it, and what is wrong with which."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.catalog import Dataset, data_root
from ..data.images import image_size, read_image
from ..data.masks import decode_rle
from ..data.mixture import _kind, key
from ..structures import BadSample, Sample, UserError
from ..tasks.base import Task
from .sources import Row, read

MANY = 20_000  # records; of more, `SOME` are taken unless the user says otherwise
SOME = 2_000
TITLES = ("row", "records", "published", "taken", "findings")
SAID = re.compile(r"; ((?:check|fetch|replace|give|delete|remove|put) .*)$")  # a reason that brings its remedy
MISSING = "No such file"
REMEDIES = (  # else: what a reason says, and what to do about it; the first that fits counts
    (MISSING, "fetch the images, or name the folder that they are in (--images for a file of your own)"),
    (r"category_id", "add the category to `categories`, or remove its annotations"),
    (r"has the value|label map", "write maps of one channel that hold classes and the ignored value only"),
    (r"empty|no pixel|no instance|without a pixel|covers no", "draw the mask anew, or remove its record"),
    (r"twice|not once|more than one|exactly once|not the only one|repeated", "give every record an id of its own"),
    (r"\bsize\b|\bis \(|runs|characters", "encode masks anew at the size of the image as it is stored (EXIF apart)"),
    (r"polygon|segmentation", "write polygons of three points or more, or an RLE"),
    (r"JSON", "correct the line, each has to be one JSON object"),
    (r"", "correct or remove the record"),
)


@dataclass(slots=True)
class Finding:
    """A kind of problem."""

    first: str
    remedy: str
    count: int = 1


@dataclass(slots=True)
class Report:
    """What is known of a row after it was looked at; `taken` is 0 where that was not possible."""

    row: Row
    records: int = 0
    taken: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, kind: str, text: str, remedy: str = "") -> None:
        """Count a problem. The remedy is found by its text where none is given."""
        if kind in self.findings:
            self.findings[kind].count += 1
            return
        said = None if MISSING in text else SAID.search(text)
        found = next(advice for pattern, advice in REMEDIES if re.search(pattern, kind))
        self.findings[kind] = Finding(text, remedy or (said[1] if said else found))


def validate(
    target: str, overrides: Sequence[str] = (), *, images: str = "", limit: int | None = None, full: bool = False
) -> int:
    """Look at all rows of `target` (see `sources.read`), print a table and the findings; 1 if there are any, else 0.

    Args:
        limit: most records of a row, evenly spread; 0 = all. Default: all, or `SOME` of more than `MANY`.
        full: decode every image, not only its header.

    Raises:
        UserError: nothing could be looked at.
    """
    found = read(target, overrides, images)
    reports = [check(row, limit, full) for row in found.rows]
    if found.dataset:
        reports.append(_check_files(found.dataset))
    if not any(report.taken for report in reports):
        first = next(
            (finding.first for report in reports for finding in report.findings.values()), f"{target}: no records"
        )
        raise UserError(first + (f"; {_remedy(found.dataset)}" if found.dataset else ""))
    print(table(reports))
    return int(any(report.findings for report in reports))


def check(row: Row, limit: int | None = None, full: bool = False) -> Report:
    """Take the samples of a row."""
    report = Report(row)
    changes = {"max_turns": 10**6} if row.node["type"].endswith(".ReferringSegmentation") else {}  # every expression
    try:
        task = row.build(**changes)
    except UserError as error:
        report.add("cannot be read", str(error))
        return report
    report.records = len(task)
    if row.published.number and not row.published.fits(len(task)):
        text = f"{row.name}: {len(task):,} records, published are {row.published}"
        report.add("another number of records", text, "check that the file is the right one, fetch it anew")
    names: set[str] = set()
    for index in tqdm(range(len(task)), desc=f"{row.name} ids", delay=2, leave=False):
        if (name := task.id(index)) in names:
            report.add("an id is not unique", f"{row.name}: {name}", "give every record an id of its own")
        names.add(name)
    chosen = spread(len(task), limit)
    for index in tqdm(chosen, desc=row.name, delay=2, leave=False):
        try:
            check_sample(_take(task, index, row), full)
        except BadSample as bad:
            report.add(_kind(f"{row.name}: {bad}")[1], str(bad))
    report.taken = len(chosen)
    return report


def spread(records: int, limit: int | None) -> list[int]:
    """Numbers of at most `limit` records, evenly spread from the first to the last."""
    if limit is None:
        limit = SOME if records > MANY else 0
    count = min(records, limit) if limit else records
    return np.linspace(0, records - 1, count).round().astype(int).tolist()


def _take(task: Task, index: int, row: Row) -> Sample:
    seed = key("validate", row.name, index) if row.node.get("train") else key("evaluate", task.id(index))
    return task.sample(index, np.random.default_rng(seed))


def check_sample(sample: Sample, full: bool) -> None:
    """Raises BadSample for an image that cannot be read or has another size than its masks, and for an empty mask."""
    measure: Callable[[str], tuple[int, ...]] = (lambda path: read_image(path).shape[:2]) if full else image_size
    names = {path for path in (sample.image, *(region.image for region in sample.regions)) if path}
    sizes = {path: measure(path) for path in names}
    if sample.masks.count:
        if sample.masks.ids.shape[1:] != sizes[sample.image]:
            raise BadSample(f"{sample.image}: is {sizes[sample.image]}, its masks are {sample.masks.ids.shape[1:]}")
        areas = np.bincount(sample.masks.ids.ravel() + 1, minlength=sample.masks.count + 1)[1:]
        if not areas.all():
            raise BadSample(f"{sample.id}: mask {areas.argmin()} is empty")
    for number, region in enumerate(sample.regions):
        size = sizes[region.image or sample.image]
        if tuple(region.mask["size"]) != size:
            raise BadSample(f"{sample.id}: region {number} has the size {region.mask['size']}, its image {size}")
        if not decode_rle(region.mask).any():
            raise BadSample(f"{sample.id}: region {number} is empty")


def _check_files(dataset: Dataset) -> Report:
    report = Report(Row("files", {}), len(dataset.files))
    for file in dataset.files:
        path = Path(data_root(), file)
        if not path.exists():
            report.add(f"{path} is missing", f"{path} is missing", _remedy(dataset))
    return report


def _remedy(dataset: Dataset) -> str:
    made = f"then run `xsam data prepare {dataset.prepare}`; " if dataset.prepare else ""
    return f"get it from {dataset.get}; {made}see docs/datasets.md"


def table(reports: Sequence[Report]) -> str:
    """The reports as text: a line for each row, then what was found."""
    rows = [TITLES]
    for report in reports:
        published = str(report.row.published) if report.row.published.number else "-"
        taken = f"{report.taken:,}" + (" spread" if 0 < report.taken < report.records else "")
        count = sum(finding.count for finding in report.findings.values())
        rows.append((report.row.name, f"{report.records:,}", published, taken, f"{count:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    for report in reports:
        for kind, finding in report.findings.items():
            lines += ["", f"{finding.count:,} x {report.row.name}: {kind}", f"    first:  {finding.first}"]
            lines += [f"    remedy: {finding.remedy}"]
    return "\n".join(lines if len(lines) > len(rows) else [*lines, "", "no findings"])
