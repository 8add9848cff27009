"""Expressions that refer to something in an image: RefCOCO, RefCOCO+, RefCOCOg (one object each) and gRefCOCO (any
number of objects, or none)."""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, UserError
from .coco import read_coco
from .images import image_size
from .index import REMEDY, stream_json_list, take, take_text
from .records import Records, by_id, read_mask, take_id

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """Sentences that mean the same objects of an image, or that fit nothing in it."""

    id: str  # unique in its split
    sentences: tuple[str, ...]  # lower case, each once, sorted
    kinds: tuple[str, ...]  # what sort of sentence each is, where the file says so; else empty
    objects: tuple[int, ...]  # numbers among the image's objects; none = nothing in the image fits


@dataclass(frozen=True, slots=True)
class ReferredImage:
    """An image with its expressions."""

    image: str  # path
    image_id: str
    height: int
    width: int
    objects: tuple[tuple[str, Any], ...]  # name for messages and COCO segmentation of each, referred to or not
    expressions: tuple[Expression, ...]

    def masks(self, numbers: Sequence[int]) -> np.ndarray:
        """The masks of some objects, bool[N, H, W]. Raises BadSample where one is malformed or empty."""
        named = (self.objects[number] for number in numbers)
        masks = [read_mask(segmentation, self.height, self.width, name) for name, segmentation in named]
        return np.array(masks, bool).reshape(-1, self.height, self.width)


class Expressions(Records):
    """A sequence of images with expressions. The subclasses below, and `jsonl.JsonLines`, make the rows.

    A row is `{"image", "size": [H, W] or null, "objects": {name: segmentation}, "expressions":
    [[id, {sentence: kind}, names of objects]]}`; what is not checked when it is made is checked when it is asked for.
    """

    def __getitem__(self, index: int) -> ReferredImage:
        row, name = self._index[index], super().id(index)
        what = f"image {name}"
        path = str(self.images / take(row, "image", str, what))
        size = image_size(path)
        if row["size"] is not None and tuple(row["size"]) != size:
            raise BadSample(f"{what}: {path} is {size}, its annotations say {tuple(row['size'])}")
        place = {name: number for number, name in enumerate(row["objects"])}
        expressions = (
            Expression(id, tuple(sentences), tuple(sentences.values()), tuple(place[name] for name in meant))
            for id, sentences, meant in row["expressions"]
        )
        return ReferredImage(path, name, *size, tuple(row["objects"].items()), tuple(expressions))

    def questions(self) -> np.ndarray:
        """int64[N, 3], number of image, expression and sentence of every sentence; one for an image without a record
        that can be used, so that it is counted."""
        found: list[tuple[int, int, int]] = []
        for i in range(len(self)):
            expressions = self._expressions(i)
            found += [(i, e, s) for e, row in enumerate(expressions) for s in range(len(row[1]))] or [(i, 0, 0)]
        return np.array(found, np.int64).reshape(-1, 3)

    def id(self, index: int, expression: int = -1, sentence: int = 0) -> str:
        """A name for an image, or for a sentence of it, which is there even if the record cannot be used."""
        if expression < 0:
            return super().id(index)
        expressions = self._expressions(index)
        return f"{expressions[expression][0]}-{sentence}" if expressions else f"record {index}"

    def _expressions(self, index: int) -> list[Any]:
        try:
            return self._index[index]["expressions"]
        except BadSample:
            return []


class RefCoco(Expressions):
    """One split of `refs(...).p`, with `instances.json`: every image with the objects that are referred to."""

    def __init__(self, refs: str | Path, instances: str | Path, images: str | Path, split: str) -> None:
        self._files, self._split = (Path(refs), Path(instances)), split
        super().__init__(self._files, images, f"{type(self).__name__.lower()} 2 {split}", self._rows)

    def _refs(self) -> Iterable[Any]:
        path = self._files[0]
        try:
            with path.open("rb") as file:
                refs = _PlainUnpickler(file, encoding="latin1").load()  # the published files are Python 2's
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
        except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: refused: {error or 'not a pickle'}; fetch the file anew") from None
        if not isinstance(refs, list):
            raise UserError(f"{path}: not a list of refs; it is another kind of file")
        return refs

    def _meaning(self, ref: Json, number: int, what: str) -> tuple[str, list[int]]:
        """Name of the expression, which all refs to the object share, and the ids of what it means."""
        annotation = take(ref, "ann_id", int, what)
        return str(annotation), [annotation]

    def _rows(self) -> Iterator[tuple[str, Any]]:
        """A row for every image of the split, and a bad one for every ref that cannot be used."""
        path, instances = self._files
        content = read_coco(instances, "images", "annotations")
        images, annotations = by_id(content["images"]), by_id(content["annotations"])
        splits: set[str] = set()
        found: dict[int, dict[str, tuple[dict[str, str], list[str]]]] = {}  # image -> expression -> sentences, objects
        for number, ref in enumerate(self._refs()):
            what = f"ref {number} of {path.name}"
            try:
                splits.add(take(ref, "split", str, what))
                if ref["split"] != self._split:
                    continue
                image, (name, ids) = take(ref, "image_id", int, what), self._meaning(ref, number, what)
                _check_ids(image, ids, images, annotations, what)
                texts = [take_text(row, "sent", what).lower() for row in take(ref, "sentences", list, what)]
                if not texts:
                    raise BadSample(f"{what}: has no sentence")
                objects = [f"annotation {id}" for id in dict.fromkeys(ids)]
                sentences, _ = found.setdefault(image, {}).setdefault(name, ({}, objects))
                sentences.update(dict.fromkeys(texts, str(ref.get("kind", ""))))
            except BadSample as bad:
                yield "", bad
        if self._split not in splits:
            raise UserError(f"{path}: has no split {self._split!r}; there is: {', '.join(sorted(splits)) or 'none'}")
        shown: dict[Any, dict[str, Any]] = {image: {} for image in found}  # image -> object -> segmentation
        for id, annotation in annotations.items():
            if (owner := take_id(annotation, "image_id")) in shown:
                shown[owner][f"annotation {id}"] = annotation.get("segmentation")
        for image, expressions in found.items():
            info = images[image]
            row = {"image": info.get("file_name"), "size": [info.get("height"), info.get("width")]}
            said = [[name, dict(sorted(texts.items())), meant] for name, (texts, meant) in expressions.items()]
            yield str(image), row | {"objects": shown[image], "expressions": said}


class GRefCoco(RefCoco):
    """One split of `grefs(...).json`; every ref is an expression of its own, as its evaluation counts them."""

    def _refs(self) -> Iterable[Any]:
        return stream_json_list(self._files[0])

    def _meaning(self, ref: Json, number: int, what: str) -> tuple[str, list[int]]:
        ids = take(ref, "ann_id", list, what)
        absent = take(ref, "no_target", bool, what) if "no_target" in ref else ids == [-1]
        if absent != (ids in ([-1], [])):
            raise BadSample(f"{what}: 'no_target' is {absent}, 'ann_id' is {ids}")
        return str(number), [] if absent else ids


def _check_ids(image: int, ids: list[Any], images: dict[int, Any], annotations: dict[int, Any], what: str) -> None:
    if image not in images:
        raise BadSample(f"{what}: the instances do not have image {image} exactly once")
    for ann_id in ids:
        if type(ann_id) is not int or ann_id not in annotations:
            raise BadSample(f"{what}: the instances do not have annotation {ann_id} exactly once")
        if (owner := take_id(annotations[ann_id], "image_id")) != image:
            raise BadSample(f"{what}: annotation {ann_id} is on image {owner}, not {image}")


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers only: a pickle that names a class could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is more than plain data")
