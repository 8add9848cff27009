"""Grounded captions: GranD-f's training files in their three layouts, and the pairs of files of its val and test split
(GLaMM, arXiv 2311.03356)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, UserError
from .coco import read_coco
from .images import image_size
from .index import stream_json_list, take, take_text
from .records import Records, read_mask, take_size, usable

Grounding = tuple[str, int, list[Any]]  # a phrase, where the file says that it begins, its segmentations


@dataclass(frozen=True, slots=True)
class GroundedCaption:
    """A caption and the masks of what it mentions."""

    image: str  # path
    image_id: int | str  # the val and test files' own; else the name of the image
    height: int  # 0 = the file does not say
    width: int
    caption: str
    segmentations: tuple[Any, ...]  # N, for `segmentation_mask`
    labels: tuple[str, ...]  # phrase of each; the val and test files may have fewer
    spans: tuple[tuple[int, int], ...] = ()  # phrases as [begin, end) of the caption, in order, apart; () = not known
    owners: tuple[int, ...] = ()  # span of each segmentation

    def masks(self) -> np.ndarray:
        """bool[N, H, W]. Raises BadSample for an empty or malformed mask, and for an image that has to be read."""
        size = (self.height, self.width) if self.height else image_size(self.image)
        rows = ((item, f"image {self.image_id}, mask {number}") for number, item in enumerate(self.segmentations))
        return np.stack([read_mask(item, *size, what) for item, what in rows])


class _Captions(Records):
    def __getitem__(self, index: int) -> GroundedCaption:
        row = self._index[index]
        image, (height, width) = str(self.images / row["image"]), row["size"]
        segmentations, labels, owners = (tuple(row.get(key, ())) for key in ("segmentations", "labels", "owners"))
        spans = tuple((begin, end) for begin, end in row.get("spans", ()))
        return GroundedCaption(image, row["id"], height, width, row["caption"], segmentations, labels, spans, owners)


class GrandF(_Captions):
    """A training file of GranD-f: a sequence of captions, in the order of the file.

    Layouts: "grandf" (human annotated, and OpenPSG), "refcocog", "flickr". A phrase is taken where the file places it
    if it stands there, else at its next whole-word occurrence; a phrase that the caption does not contain is left out.
    Masks of one place are kept together. Of two places that overlap the one that begins first is kept, of two that
    begin together the longer. A caption of the flickr file without annotations is no record."""

    def __init__(self, annotations: str | Path, images: str | Path, layout: str) -> None:
        if layout not in _LAYOUTS:
            raise UserError(f"layout={layout!r} is unknown; GranD-f has {', '.join(_LAYOUTS)}")
        path, row = Path(annotations), partial(_row, layout=layout)
        records = ((f"{path.name}, record {n}", record) for n, record in enumerate(stream_json_list(path)))
        if layout == "flickr":
            records = ((what, image | {"annotations": rows}) for what, (image, rows) in _by_image(path) if rows)
        super().__init__([path], images, f"grandf {layout} 1", lambda: usable(records, row))

    def id(self, index: int) -> str:
        """Number of the record: a file may have several captions of an image."""
        return str(index)


class GcgPairs(_Captions):
    """The val or test split, `*_gcg_coco_mask_gt.json` and `*_gcg_coco_caption_gt.json`: one record per image: its
    file is the `file_name` of the mask file, or the id with `.jpg`. Where a label stands in the caption is unknown."""

    def __init__(self, masks: str | Path, captions: str | Path, images: str | Path) -> None:
        files = Path(masks), Path(captions)
        super().__init__(files, images, "gcg pairs 1", lambda: usable(_by_image(*files), _pair))


def _row(record: Any, what: str, layout: str) -> dict[str, Any]:
    """The row of a caption. Raises BadSample when nothing of it is grounded."""
    if layout == "refcocog":
        if not isinstance(record, dict) or len(record) != 1:
            raise BadSample(f"{what}: is not an object with one key, the image")
        (record,) = record.values()
    caption, (file, groundings) = _caption(record, what), _LAYOUTS[layout]
    found: dict[tuple[int, int], list[Any]] = {}
    for phrase, begin, segmentations in groundings(record, what):
        if begin >= len(caption):
            raise BadSample(f"{what}: a phrase begins at {begin}, the caption has {len(caption)} characters")
        if (span := _find(caption, phrase.strip(), begin)) and segmentations:
            found.setdefault(span, []).extend(segmentations)
    if not found:
        raise BadSample(f"{what}: no phrase with a mask stands in the caption")
    spans: list[tuple[int, int]] = []
    for begin, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if not spans or begin >= spans[-1][1]:
            spans.append((begin, end))
    owners = [owner for owner, span in enumerate(spans) for _ in found[span]]
    labels = [caption[slice(*spans[owner])] for owner in owners]
    drawn = {"segmentations": [item for span in spans for item in found[span]], "spans": spans, "owners": owners}
    about = {"image": take(record, file, str, what), "size": _size(record, what), "caption": caption, "labels": labels}
    return {"id": Path(about["image"]).stem} | about | drawn


def _caption(record: Any, what: str) -> str:
    take_text(record, "caption", what)
    return record["caption"]  # not stripped: places are counted from its start


def _find(caption: str, phrase: str, begin: int) -> tuple[int, int] | None:
    """Where a phrase stands, whatever the case: at `begin`, else the whole words nearest to it."""
    pattern = re.compile(re.escape(phrase), re.IGNORECASE)
    if phrase and begin >= 0 and (match := pattern.match(caption, begin)):
        return match.span()
    words = re.finditer(rf"(?<!\w){pattern.pattern}(?!\w)", caption, re.IGNORECASE) if phrase else ()
    return min((match.span() for match in words), key=lambda span: abs(span[0] - begin), default=None)


def _size(image: dict[str, Any], what: str) -> tuple[int, int]:
    return take_size(image, what) if "height" in image or "width" in image else (0, 0)


def _grandf(record: Any, what: str) -> Iterator[Grounding]:
    for phrase, grounding in take(record, "groundings", dict, what).items():
        begin, _ = _interval(take(grounding, "token_positives", list, what), what)
        yield phrase, begin, take(grounding, "rle_masks", list, what)


def _refcocog(record: Any, what: str) -> Iterator[Grounding]:
    for ref in take(record, "refs", list, what):
        yield take(ref, "sentence", str, what), 0, [take(ref, "segmentation", (list, dict), what)]


def _flickr(record: Any, what: str) -> Iterator[Grounding]:
    for annotation in record["annotations"]:
        mask = take(annotation, "sam_mask", dict, what)
        for interval in take(annotation, "tokens_positive", list, what):
            begin, end = _interval(interval, what)
            if not 0 <= begin < end <= len(record["caption"]):
                raise BadSample(f"{what}: the phrase {interval} is not inside the caption")
            yield record["caption"][begin:end], begin, [mask]


# by layout: the key of a record's image, and its phrases with masks
_LAYOUTS: dict[str, tuple[str, Callable[[Any, str], Iterator[Grounding]]]] = {
    "grandf": ("file_name", _grandf), "refcocog": ("img_file_name", _refcocog), "flickr": ("file_name", _flickr),
}  # fmt: skip


def _interval(value: Any, what: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(place) is int for place in value):
        raise BadSample(f"{what}: the place of a phrase is {str(value)[:40]}, not two whole numbers")
    return value[0], value[1]


def _pair(record: tuple[dict[str, Any], list[Any], list[Any]], what: str) -> dict[str, Any]:
    image, annotations, captions = record
    if len(captions) != 1 or not annotations:
        raise BadSample(f"{what}: has {len(captions)} captions and {len(annotations)} masks")
    labels = take(captions[0], "labels", list, what)
    if not all(isinstance(label, str) for label in labels):
        raise BadSample(f"{what}: a label is not a text")
    file = take({"file_name": f"{image['id']}.jpg"} | image, "file_name", str, what)
    segmentations = [take(annotation, "segmentation", (list, dict), what) for annotation in annotations]
    about = {"id": image["id"], "image": file, "size": _size(image, what), "caption": _caption(captions[0], what)}
    return about | {"labels": labels, "segmentations": segmentations}


def _by_image(*paths: Path) -> Iterator[tuple[str, Any]]:
    """Each image of the first file with its annotations in every file, and its name in messages. Raises UserError for
    ids that are missing, repeated or unknown."""
    contents = [read_coco(paths[0], "images", "annotations"), *(read_coco(path, "annotations") for path in paths[1:])]
    groups: dict[int | str, tuple[Any, ...]] = {}
    try:
        for number, image in enumerate(contents[0]["images"]):
            what = f"{paths[0]}: image {number}"
            if (name := take(image, "id", (int, str), what)) in groups:
                raise BadSample(f"{what}: its id {name} is repeated")
            groups[name] = image, *([] for _ in paths)
        for place, content in enumerate(contents):
            for number, annotation in enumerate(content["annotations"]):
                what = f"{paths[place]}: annotation {number}"
                if (owner := take(annotation, "image_id", (int, str), what)) not in groups:
                    raise BadSample(f"{what}: image {owner} is not among the images")
                groups[owner][1 + place].append(annotation)
    except BadSample as bad:
        raise UserError(f"{bad}; fetch the file anew") from None
    yield from ((f"{paths[0].name}, image {name}", group) for name, group in groups.items())
