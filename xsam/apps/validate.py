"""`xsam data validate`: every record of a dataset taken as training would take it, and what is wrong with which."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature

import numpy as np
from tqdm import tqdm

from ..config import resolve
from ..data.catalog import fits
from ..data.images import image_size, read_image
from ..data.masks import decode_rle
from ..data.mixture import key, kind
from ..structures import BadSample, Sample, UserError
from .sources import Row, read

MANY = 20_000  # records; of more, `SOME` are taken unless the user says otherwise
SOME = 2_000
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
    count: int = 0


@dataclass(slots=True)
class Report:
    """What is known of a row after it was looked at; `taken` is 0 where that was not possible."""

    row: Row
    records: int = 0
    taken: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, what: str, text: str, remedy: str = "") -> None:
        """Count a problem. The remedy is found by its text where none is given."""
        if not remedy:
            said = None if MISSING in text else SAID.search(text)
            remedy = said[1] if said else next(advice for pattern, advice in REMEDIES if re.search(pattern, what))
        self.findings.setdefault(what, Finding(text, remedy)).count += 1


def validate(
    target: str, overrides: Sequence[str] = (), *, images: str = "", limit: int | None = None, full: bool = False
) -> int:
    """Look at all rows of `target` (see `sources.read`), print a table and the findings; 1 if there are any, else 0.

    `limit` is how many records of a row are taken, evenly spread; 0 = all; default: all, or `SOME` of more than `MANY`.
    `full` decodes every image, not only its header. Raises UserError where nothing could be looked at."""
    found = read(target, overrides, images)
    source = found.dataset.remedy if found.dataset else ""
    reports = [check(row, limit, full, source) for row in found.rows]
    if not any(report.taken for report in reports):
        reasons = [finding.first for report in reports for finding in report.findings.values()]
        first = reasons[0] if reasons else f"{target}: no records"
        raise UserError(f"{first}; {source}" if source else first)
    print(table(reports))
    return int(any(report.findings for report in reports))


def check(row: Row, limit: int | None = None, full: bool = False, source: str = "") -> Report:
    """Take the samples of a row; `source` says how to get the files."""
    report = Report(row)
    changes = {"max_turns": 10**6} if "max_turns" in signature(resolve(row.node["type"])).parameters else {}
    try:
        task = row.build(**changes)  # every turn that a record has
    except UserError as error:
        report.add("cannot be read", str(error), source)
        return report
    report.records = len(task)
    if not fits(row.published, len(task)):
        text = f"{row.name}: {len(task):,} records, published are {row.published}"
        report.add("another number of records", text, "check that the file is the right one, fetch it anew")
    ids = [task.id(index) for index in tqdm(range(len(task)), desc=f"{row.name} ids", delay=2, leave=False)]
    names, times = np.unique(ids, return_counts=True)
    for name in np.repeat(names, times - 1):
        report.add("an id is not unique", f"{row.name}: {name}", "give every record an id of its own")
    chosen = spread(len(task), limit)
    for index in tqdm(chosen, desc=row.name, delay=2, leave=False):
        seed = key("validate", row.name, index) if row.node.get("train") else key("evaluate", ids[index])
        try:
            check_sample(task.sample(index, np.random.default_rng(seed)), full)
        except BadSample as bad:
            report.add(kind(f"{row.name}: {bad}")[1], str(bad))
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
    width = max(len(report.row.name) for report in reports)
    rows, notes = [f"{'row':{width}}   records  published         taken  findings"], []
    for report in reports:
        name, published = report.row.name, report.row.published.replace("?", "-")
        taken = f"{report.taken:,}" + (" spread" if 0 < report.taken < report.records else "")
        count = sum(finding.count for finding in report.findings.values())
        rows.append(f"{name:{width}}{report.records:>10,}{published:>11}{taken:>14}{count:>10,}")
        for what, found in report.findings.items():
            notes.append(f"\n{found.count:,} x {name}: {what}\n    first:  {found.first}\n    remedy: {found.remedy}")
    return "\n".join(rows + (notes or ["\nno findings"]))
