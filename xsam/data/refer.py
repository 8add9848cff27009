"""RefCOCO, RefCOCO+ and RefCOCOg: sentences that refer to one object of an image."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import UserError
from .coco import REMEDY, Instance, annotation_mask, read_coco, require_folder


@dataclass(frozen=True, slots=True)
class ReferredObject:
    """One annotated object and the sentences that refer to it: lower case, each once, sorted."""

    image: str  # path
    image_id: str
    height: int
    width: int
    instance: Instance
    sentences: tuple[str, ...]
    kinds: tuple[str, ...]  # what sort of sentence each is, where its ref says so; else empty

    def mask(self) -> np.ndarray:
        """bool[H, W]. Raises ValueError with the annotation's id when it is malformed."""
        return annotation_mask(self.instance, self.height, self.width)


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers only: a pickle that names a class could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is more than plain data")


def _read_refs(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="latin1").load()  # the published files are Python 2's
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: refused: {error or 'not a pickle'}; fetch the file anew") from None
    keys = {"ann_id", "split", "sentences"}
    if not isinstance(refs, list) or not all(isinstance(ref, dict) and keys <= ref.keys() for ref in refs):
        raise UserError(f"{path}: not a list of refs with ann_id, split and sentences; fetch the file anew")
    return refs


class RefCoco:
    """One split of `refs(...).p`, with `instances.json`: a sequence of objects, in the order of the file.

    `by_image` groups their indices: a tuple for each image. Raises UserError when a file is missing or
    malformed, and for a split that the file does not have.
    """

    def __init__(self, refs: str | Path, instances: str | Path, images: str | Path, split: str) -> None:
        path, folder = Path(refs), require_folder(images)
        rows = _read_refs(path)
        splits = sorted({ref["split"] for ref in rows})
        if split not in splits:
            raise UserError(f"{path}: has no split {split!r}; there is: {', '.join(splits)}")
        content = read_coco(instances, "images", "annotations", "categories")
        self._images = {image["id"]: image for image in content["images"]}
        annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
        self._annotations: list[dict[str, Any]] = content["annotations"]
        self._folder = folder
        self._rows: list[tuple[dict[str, Any], dict[str, str]]] = []
        grouped: dict[Any, list[dict[str, Any]]] = {}
        for ref in rows:
            if ref["split"] == split:
                grouped.setdefault(ref["ann_id"], []).append(ref)
        of_image: dict[Any, list[int]] = {}
        for ann_id, group in grouped.items():
            annotation = annotations.get(ann_id)
            if annotation is None or annotation["image_id"] not in self._images:
                raise UserError(f"{instances}: lacks annotation {ann_id} of {path}; fetch both anew")
            sentences = {row["sent"].strip().lower(): ref.get("kind", "") for ref in group for row in ref["sentences"]}
            of_image.setdefault(annotation["image_id"], []).append(len(self._rows))
            self._rows.append((annotation, dict(sorted(sentences.items()))))
        self.by_image = [tuple(indices) for indices in of_image.values()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> ReferredObject:
        annotation, sentences = self._rows[index]
        image = self._images[annotation["image_id"]]
        return ReferredObject(
            image=str(self._folder / image["file_name"]),
            image_id=str(image["id"]),
            height=image["height"],
            width=image["width"],
            instance=_instance(annotation),
            sentences=tuple(sentences),
            kinds=tuple(sentences.values()),
        )

    def masks_by_image(self) -> dict[str, list[np.ndarray]]:
        """The masks bool[H, W] of all annotated objects of this split's images, referred to or not, by image id."""
        wanted = {annotation["image_id"] for annotation, _ in self._rows}
        masks: dict[str, list[np.ndarray]] = {str(image_id): [] for image_id in wanted}
        for annotation in self._annotations:
            if annotation["image_id"] in wanted:
                image = self._images[annotation["image_id"]]
                mask = annotation_mask(_instance(annotation), image["height"], image["width"])
                masks[str(image["id"])].append(mask)
        return masks


def _instance(annotation: dict[str, Any]) -> Instance:
    return Instance(
        annotation["id"],
        annotation["category_id"],
        annotation["segmentation"],
        annotation["area"],
        bool(annotation.get("iscrowd", 0)),
    )
