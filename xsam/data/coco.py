"""COCO's files: panoptic segments and instances. One object per file; records are made when asked for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, UserError
from .masks import read_panoptic_png, segmentation_mask

REMEDY = "`xsam data prepare shapes` writes the embedded world, data/README.md says where other datasets go"


@dataclass(frozen=True, slots=True)
class Category:
    """A row of `categories`; the name as the file has it, see `clean_name`."""

    id: int
    name: str
    is_thing: bool


@dataclass(frozen=True, slots=True)
class PanopticSegment:
    """A row of `segments_info`."""

    id: int
    category_id: int
    area: int
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class Instance:
    """A row of `annotations` of an instance file."""

    id: int
    category_id: int
    segmentation: Any  # polygons, RLE or uncompressed RLE, for `segmentation_mask`
    area: float
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class PanopticRecord:
    """An image with its panoptic segments, crowds included."""

    image: str  # path
    image_id: str
    height: int
    width: int
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """An image with its instances, crowds included."""

    image: str  # path
    image_id: str
    height: int
    width: int
    instances: tuple[Instance, ...]


def clean_name(name: str) -> str:
    """A category's name as words: "Floor-other-merged" -> "floor"."""
    for suffix in ("-merged", "-other", "-stuff"):
        name = name.replace(suffix, "")
    return name.replace("-", " ").lower()


def read_json(path: str | Path) -> Any:
    """Parse a JSON file. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch or write the file anew") from None


def require_folder(path: str | Path) -> Path:
    """The path of a folder. Raises UserError when there is none."""
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder; {REMEDY}")
    return Path(path)


def read_coco(path: str | Path, *keys: str) -> dict[str, Any]:
    """Parse a JSON file of COCO's layout. Raises UserError, also when one of its lists is missing."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file, which is an object with {', '.join(keys)}")
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path}: has no list {', '.join(missing)}; it is not a COCO file of this kind")
    return content


class _CocoFile:
    """What both kinds of files have in common: categories, and images found by id."""

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        self.path = Path(annotations)
        self.images = require_folder(images)
        content = read_coco(annotations, "images", "annotations", "categories")
        self.categories = [Category(c["id"], c["name"], bool(c.get("isthing", 1))) for c in content["categories"]]
        self._images = {image["id"]: image for image in content["images"]}
        self._annotations: list[dict[str, Any]] = content["annotations"]
        unknown = {a["image_id"] for a in self._annotations} - self._images.keys()
        if unknown:
            raise UserError(
                f"{self.path}: {len(unknown)} annotated images are not among its images, "
                f"such as {min(unknown, key=str)}; fetch or write the file anew"
            )


class CocoPanoptic(_CocoFile):
    """A panoptic JSON file with its folder of PNGs: one record per annotated image, in the order of the file.

    Raises UserError when the file or a folder is missing, or the file is not of this kind.
    """

    def __init__(self, annotations: str | Path, segments: str | Path, images: str | Path) -> None:
        super().__init__(annotations, images)
        self.segments = require_folder(segments)

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, index: int) -> PanopticRecord:
        annotation = self._annotations[index]
        image = self._images[annotation["image_id"]]
        segments = tuple(
            PanopticSegment(s["id"], s["category_id"], s["area"], bool(s.get("iscrowd", 0)))
            for s in annotation["segments_info"]
        )
        path = str(self.images / image["file_name"])
        return PanopticRecord(path, str(image["id"]), image["height"], image["width"], segments)

    def label_map(self, index: int) -> np.ndarray:
        """int32[H, W] of segment ids, crowds included, 0 = void. Raises BadSample for a bad PNG."""
        return read_panoptic_png(self.segments / self._annotations[index]["file_name"])


class CocoInstances(_CocoFile):
    """An instances JSON file: one record per image, those without instances too, in the order of the file.

    Raises UserError when the file or the folder is missing, or the file is not of this kind.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        super().__init__(annotations, images)
        self._order = list(self._images)
        self._place = {str(image_id): index for index, image_id in enumerate(self._order)}
        self._of_image: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in self._order}
        for annotation in self._annotations:
            self._of_image[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> InstanceRecord:
        image = self._images[self._order[index]]
        instances = tuple(
            Instance(a["id"], a["category_id"], a["segmentation"], a["area"], bool(a.get("iscrowd", 0)))
            for a in self._of_image[image["id"]]
        )
        path = str(self.images / image["file_name"])
        return InstanceRecord(path, str(image["id"]), image["height"], image["width"], instances)

    def of_image(self, image_id: str) -> InstanceRecord:
        """The record of an image. Raises KeyError when the file does not have it."""
        return self[self._place[image_id]]


def annotation_mask(instance: Instance, height: int, width: int) -> np.ndarray:
    """The mask of an instance, bool[H, W]. Raises BadSample with its id and what is wrong."""
    try:
        return segmentation_mask(instance.segmentation, height, width)
    except ValueError as error:
        raise BadSample(f"annotation {instance.id}: {error}") from None
