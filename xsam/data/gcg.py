"""Grounded captions: GranD-f's training files in their three layouts, and the pairs of files of its val and test split
(GLaMM, arXiv 2311.03356)."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
        """bool[N, H, W]. Raises BadSample for an empty or malformed mask, and for an image that cannot be read where
        the file does not give its size."""
        size = (self.height, self.width) if self.height else image_size(self.image)
        rows = enumerate(self.segmentations)
        return np.stack([read_mask(item, *size, f"image {self.image_id}, mask {number}") for number, item in rows])


class _Captions(Records):
    def __getitem__(self, index: int) -> GroundedCaption:
        row = self._index[index]
        return GroundedCaption(
            image=str(self._images / row["image"]), image_id=row["id"], height=row["size"][0], width=row["size"][1],
            caption=row["caption"], segmentations=tuple(row["segmentations"]), labels=tuple(row["labels"]),
            spans=tuple((begin, end) for begin, end in row.get("spans", ())), owners=tuple(row.get("owners", ())),
        )  # fmt: skip


class GrandF(_Captions):
    """A training file of GranD-f: a sequence of captions, in the order of the file.

    Layouts: "grandf" (human annotated, and OpenPSG), "refcocog", "flickr". A phrase is taken where the file places it
    if it stands there, else at its next whole-word occurrence; a phrase that the caption does not contain is left out.
    Masks of one place are kept together. Of two places that overlap the one that begins first is kept, of two that
    begin together the longer. A caption of the flickr file without annotations is no record.

    Raises UserError for a missing or foreign file; asking for a record that cannot be used raises BadSample.
    """

    def __init__(self, annotations: str | Path, images: str | Path, layout: str) -> None:
        if layout not in _LAYOUTS:
            raise UserError(f"layout={layout!r} is unknown; GranD-f has {', '.join(_LAYOUTS)}")
        source, row = _LAYOUTS[layout]
        path = Path(annotations)
        super().__init__([path], images, f"grandf {layout} 1", lambda: usable(source(path), row))

    def id(self, index: int) -> str:
        """Number of the record: a file may have several captions of an image."""
        return str(index)


class GcgPairs(_Captions):
    """The val or test split, `*_gcg_coco_mask_gt.json` and `*_gcg_coco_caption_gt.json`: one record per image.

    The files do not say where a label stands in the caption. The image is the `file_name` of the mask file, which
    where there is none is the id with `.jpg`. Raises as `GrandF` does.
    """

    def __init__(self, masks: str | Path, captions: str | Path, images: str | Path) -> None:
        files = Path(masks), Path(captions)
        super().__init__(files, images, "gcg pairs 1", lambda: usable(_written(*files), _pair))


# ---------------------------------------------------------------- rows of the training files


def _row(record: Any, file: str, what: str, groundings: Iterable[Grounding]) -> dict[str, Any]:
    """The row of a caption; `file` is the key of its image. Raises BadSample when nothing of it is grounded."""
    caption = _caption(record, what)
    spans, owners, segmentations = _place(caption, groundings)
    if not spans:
        raise BadSample(f"{what}: no phrase with a mask stands in the caption")
    labels = [caption[slice(*spans[owner])] for owner in owners]
    image = take(record, file, str, what)
    about = {"id": Path(image).stem, "image": image, "size": _size(record, what), "caption": caption}
    return about | {"segmentations": segmentations, "labels": labels, "spans": spans, "owners": owners}


def _caption(record: Any, what: str) -> str:
    take_text(record, "caption", what)
    return record["caption"]  # not stripped: places are counted from its start


def _place(caption: str, groundings: Iterable[Grounding]) -> tuple[list[tuple[int, int]], list[int], list[Any]]:
    """Spans that do not overlap, and of each segmentation the span and itself, ordered by span."""
    found: dict[tuple[int, int], list[Any]] = {}
    for phrase, begin, segmentations in groundings:
        span = _find(caption, phrase.strip(), begin)
        if span and segmentations:
            found.setdefault(span, []).extend(segmentations)
    spans: list[tuple[int, int]] = []
    for begin, end in sorted(found, key=lambda span: (span[0], -span[1])):
        if not spans or begin >= spans[-1][1]:
            spans.append((begin, end))
    pairs = [(owner, item) for owner, span in enumerate(spans) for item in found[span]]
    return spans, [owner for owner, _ in pairs], [item for _, item in pairs]


def _find(caption: str, phrase: str, begin: int) -> tuple[int, int] | None:
    """Where a phrase stands, whatever the case: at `begin`, else the whole words nearest to it."""
    if not phrase:
        return None
    pattern = re.compile(re.escape(phrase), re.IGNORECASE)
    if begin >= 0 and (match := pattern.match(caption, begin)):
        return match.span()
    words = re.finditer(rf"(?<!\w){pattern.pattern}(?!\w)", caption, re.IGNORECASE)
    return min((match.span() for match in words), key=lambda span: abs(span[0] - begin), default=None)


def _size(image: dict[str, Any], what: str) -> tuple[int, int]:
    return take_size(image, what) if "height" in image or "width" in image else (0, 0)


def _grandf(record: Any, what: str) -> dict[str, Any]:
    caption, groundings = _caption(record, what), []
    for phrase, grounding in take(record, "groundings", dict, what).items():
        begin, _ = _interval(take(grounding, "token_positives", list, what), what)
        if begin >= len(caption):
            raise BadSample(f"{what}: a phrase begins at {begin}, the caption has {len(caption)} characters")
        groundings.append((phrase, begin, take(grounding, "rle_masks", list, what)))
    return _row(record, "file_name", what, groundings)


def _refcocog(record: Any, what: str) -> dict[str, Any]:
    if not isinstance(record, dict) or len(record) != 1:
        raise BadSample(f"{what}: is not an object with one key, the image")
    (record,) = record.values()
    groundings = [
        (take(ref, "sentence", str, what), 0, [take(ref, "segmentation", (list, dict), what)])
        for ref in take(record, "refs", list, what)
    ]
    return _row(record, "img_file_name", what, groundings)


def _flickr(record: tuple[Any, list[Any]], what: str) -> dict[str, Any]:
    image, annotations = record
    caption, groundings = _caption(image, what), []
    for annotation in annotations:
        mask = take(annotation, "sam_mask", dict, what)
        for interval in take(annotation, "tokens_positive", list, what):
            begin, end = _interval(interval, what)
            if not 0 <= begin < end <= len(caption):
                raise BadSample(f"{what}: the phrase {interval} is not inside the caption")
            groundings.append((caption[begin:end], begin, [mask]))
    return _row(image, "file_name", what, groundings)


def _listed(path: Path) -> Iterator[tuple[str, Any]]:
    return ((f"{path.name}, record {number}", record) for number, record in enumerate(stream_json_list(path)))


def _shown(path: Path) -> Iterator[tuple[str, Any]]:
    content = read_coco(path, "images", "annotations")
    groups = _by_image(path, content["images"], content["annotations"])
    rows = ((image, groups[image["id"]]) for image in content["images"])
    return ((f"{path.name}, image {image['id']}", (image, found)) for image, found in rows if found)


_LAYOUTS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Any]]], Callable[[Any, str], dict[str, Any]]]] = {
    "grandf": (_listed, _grandf),
    "refcocog": (_listed, _refcocog),
    "flickr": (_shown, _flickr),
}


def _interval(value: Any, what: str) -> tuple[int, int]:
    """[begin, end) of a phrase in a caption."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(place) is int for place in value):
        raise BadSample(f"{what}: the place of a phrase is {str(value)[:40]}, not two whole numbers")
    return value[0], value[1]


# ---------------------------------------------------------------- val and test


def _written(masks: Path, captions: Path) -> Iterator[tuple[str, Any]]:
    content, written = read_coco(masks, "images", "annotations"), read_coco(captions, "annotations")
    drawn = _by_image(masks, content["images"], content["annotations"])
    said = _by_image(captions, content["images"], written["annotations"])
    for image in content["images"]:
        yield f"{masks.name}, image {image['id']}", (image, drawn[image["id"]], said[image["id"]])


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
    return about | {"segmentations": segmentations, "labels": labels}


def _by_image(path: Path, images: list[Any], annotations: list[Any]) -> dict[int | str, list[Any]]:
    """Annotations by the id of their image. Raises UserError for ids that are missing, repeated or unknown."""
    groups: dict[int | str, list[Any]] = {}
    try:
        for number, image in enumerate(images):
            if (name := take(image, "id", (int, str), f"image {number}")) in groups:
                raise BadSample(f"image {number}: its id {name} is repeated")
            groups[name] = []
        for number, annotation in enumerate(annotations):
            owner = take(annotation, "image_id", (int, str), f"annotation {number}")
            if owner not in groups:
                raise BadSample(f"annotation {number}: image {owner} is not among the images")
            groups[owner].append(annotation)
    except BadSample as bad:
        raise UserError(f"{path}: {bad}; fetch the file anew") from None
    return groups
