"""COCO's files: panoptic segments and instances. The annotations lie in an index, a record is made when asked for."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..structures import BadSample, SegmentMap, UserError
from .images import image_size
from .index import REMEDY, Index, bad_row, take, take_text
from .masks import from_label_map, pack, read_panoptic_png, segmentation_mask

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # of an image: PIL reads no larger one
IMAGE_KEYS = ("id", "file_name", "height", "width")  # what is kept of each object in the file
SEGMENT_KEYS = ("id", "category_id", "area", "iscrowd")
INSTANCE_KEYS = (*SEGMENT_KEYS, "segmentation")
STRAY = "annotation number"  # sample id of an instance without an image


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
    area: float
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
    png: str  # path of its segments
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """An image with its instances, crowds included."""

    image: str  # path
    image_id: str
    height: int
    width: int
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class ImageSegments:
    """An image with the masks of its N segments: what every reader of segmentations gives, whatever its files are."""

    image: str  # path
    image_id: str
    masks: SegmentMap  # crowds included
    category_ids: tuple[int, ...]  # of each mask
    crowd: tuple[bool, ...]
    areas: tuple[float, ...] = ()  # as the file states them; empty: those of the masks


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
    except (ValueError, RecursionError) as error:
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


Row = tuple[str, dict[str, Any]]  # sample id and row of the index
Content = dict[str, Any]


class _CocoFile:
    """What both kinds of files have in common. The first row of the index holds the categories and all sample ids."""

    def __init__(
        self, annotations: str | Path, images: str | Path, rows: Callable[[str | Path, Content], Iterator[Row]]
    ) -> None:
        self.path, self.images = Path(annotations), require_folder(images)
        self._index = Index([annotations], f"{type(self).__name__} 1", lambda: _index_rows(annotations, rows))
        head = self._index[0]
        self.categories = [Category(*values) for values in head["categories"]]
        self._known = {category.id for category in self.categories}
        self._ids: np.ndarray = np.array(head["ids"], str)

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, index: int) -> str:
        """The image id of a record, unique in the file; made up where the record has none."""
        return str(self._ids[index])

    def _row(self, index: int) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """The row, its name in error messages, and the checked fields of its image."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, what = self._index[index + 1], f"{self.path}: image {self.id(index)}"
        height, width = take(row, "height", int, what, 1), take(row, "width", int, what, 1)
        if height * width > MAX_PIXELS:
            raise BadSample(f"{what}: {height} x {width} pixels are more than an image can have")
        path = str(self.images / take(row, "file_name", str, what))
        return row, what, {"image": path, "image_id": self.id(index), "height": height, "width": width}

    def _object(self, item: Any, image: dict[str, Any], what: str) -> dict[str, Any]:
        """The checked fields that a segment and an instance have in common."""
        number = take(item, "id", int, what)
        what = f"{what}, annotation {number}"
        category_id, area = take(item, "category_id", int, what), take(item, "area", (int, float), what, 0)
        if category_id not in self._known:
            raise BadSample(f"{what}: category_id {category_id} is not in the file's list of categories")
        if area > 1.1 * image["height"] * image["width"]:  # polygons may leave the image a little
            raise BadSample(f"{what}: 'area' is {str(area)[:40]}, more than the image has")
        return {"id": number, "category_id": category_id, "area": area, "is_crowd": _flag(item, "iscrowd", 0, what)}


def _index_rows(path: str | Path, rows: Callable[[str | Path, Content], Iterator[Row]]) -> Iterator[Any]:
    content = read_coco(path, "images", "annotations", "categories")
    categories = check_categories(path, content["categories"])
    found = list(rows(path, content))
    if found and not any("id" in row for _, row in found):
        raise UserError(f"{path}: none of its {len(found)} records can be used, the last: {found[-1][1]}")
    yield {"categories": categories, "ids": [name for name, _ in found]}
    for _, row in found:
        yield row


def check_categories(path: str | Path, rows: list[Any]) -> list[tuple[int, str, bool]]:
    """Id, name, and whether it is a thing, of each row; UserError where one cannot be asked for in a prompt."""
    categories = []
    for number, row in enumerate(rows):
        what = f"{path}: category number {number}"
        try:
            values = take(row, "id", int, what), take_text(row, "name", what), _flag(row, "isthing", 1, what)
            if not clean_name(values[1]).strip():
                raise BadSample(f"{what}: 'name' is {values[1]!r}")
        except BadSample as bad:
            raise UserError(f"{bad}; fetch or write the file anew") from None
        categories.append(values)
    twice = [id for id, count in Counter(id for id, *_ in categories).items() if count > 1]
    if twice:
        raise UserError(f"{path}: has more than one category {twice[0]}; fetch or write the file anew")
    return categories


def _panoptic_rows(path: str | Path, content: Content) -> Iterator[Row]:
    images, annotations = _images(content["images"]), content["annotations"]
    counts = Counter(str(_id(annotation, "image_id")) for annotation in annotations)
    for number, annotation in enumerate(annotations):
        image_id, what = _id(annotation, "image_id"), f"{path}: annotation number {number}"
        if image_id not in images:
            yield f"annotation number {number}", bad_row(f"{what}: image {image_id!r} is not once among the images")
        elif counts[str(image_id)] > 1:
            yield f"annotation number {number}", bad_row(f"{what}: image {image_id} has more than one annotation")
        else:
            segments = annotation.get("segments_info")
            if isinstance(segments, list):
                segments = [_only(segment, SEGMENT_KEYS) for segment in segments]
            row = {"png": annotation.get("file_name"), "segments_info": segments}
            yield str(image_id), _only(images[image_id], IMAGE_KEYS) | row


def _instance_rows(path: str | Path, content: Content) -> Iterator[Row]:
    images = _images(content["images"])
    of_image: dict[Any, list[Any]] = {image_id: [] for image_id in images}
    strays = []
    for number, annotation in enumerate(content["annotations"]):
        image_id = _id(annotation, "image_id")
        if image_id in images:
            of_image[image_id].append(_only(annotation, INSTANCE_KEYS))
        else:
            strays.append((number, image_id))
    for number, image in enumerate(content["images"]):
        image_id = _id(image, "id")
        if image_id in images:
            yield str(image_id), _only(image, IMAGE_KEYS) | {"annotations": of_image[image_id]}
        else:
            reason = f"{path}: image number {number}: its id {image_id!r} is missing, or not the only one"
            yield f"image number {number}", bad_row(reason)
    for number, image_id in strays:  # objects that no sample would ever show are reported, not dropped
        reason = f"{path}: annotation number {number}: image {image_id!r} is not once among the images"
        yield f"{STRAY} {number}", bad_row(reason)


def _images(images: list[Any]) -> dict[Any, Any]:
    """The images whose id is there and the only one, by id."""
    ids = [_id(image, "id") for image in images]
    counts = Counter(map(str, ids))
    return {id: image for id, image in zip(ids, images, strict=True) if id is not None and counts[str(id)] == 1}


def _id(record: Any, key: str) -> int | str | None:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _flag(record: dict[str, Any], key: str, default: int, what: str) -> bool:
    value = record.get(key, default)
    if value not in (0, 1):
        raise BadSample(f"{what}: {key!r} is {str(value)[:40]!r}")
    return bool(value)


def _only(record: Any, keys: tuple[str, ...]) -> Any:
    return {key: record[key] for key in keys if key in record} if isinstance(record, dict) else record


class CocoPanoptic(_CocoFile):
    """A panoptic JSON file with its folder of PNGs: one record per annotated image, in the order of the file.

    Raises UserError when the file or a folder is missing, or the file is not of this kind; taking a record raises
    BadSample with the image and what is wrong.
    """

    metrics: tuple[str, ...] = ("panoptic", "instance", "semantic")  # that it can be the truth of

    def __init__(self, annotations: str | Path, segments: str | Path, images: str | Path) -> None:
        super().__init__(annotations, images, _panoptic_rows)
        self.folder = require_folder(segments)

    def __getitem__(self, index: int) -> PanopticRecord:
        row, what, image = self._row(index)
        rows = take(row, "segments_info", list, what)
        segments = tuple(PanopticSegment(**self._object(segment, image, what)) for segment in rows)
        png = str(self.folder / take(row, "png", str, what))
        return PanopticRecord(**image, png=png, segments=segments)

    def label_map(self, index: int) -> np.ndarray:
        """int32[H, W] of segment ids, crowds included, 0 = void.

        Raises BadSample for a PNG that cannot be read, has another size than its image, or other ids than the file.
        """
        return self._map(self[index])

    def _map(self, record: PanopticRecord) -> np.ndarray:
        ids = read_panoptic_png(record.png)
        if ids.shape != (record.height, record.width):
            raise BadSample(f"{record.png}: is {ids.shape}, its image {(record.height, record.width)}")
        listed = [segment.id for segment in record.segments]
        if len(set(listed)) < len(listed):
            raise BadSample(f"{self.path}: image {record.image_id}: a segment id stands there twice")
        drawn = set(distinct(ids)) - {0}
        for id in sorted(drawn ^ set(listed)):
            problem = "is in the PNG but not in the file" if id in drawn else "has no pixel in its PNG"
            raise BadSample(f"{record.png}: segment {id} {problem}")
        return ids

    def segments(self, index: int) -> ImageSegments:
        """The image with its masks, none of which overlap. Raises BadSample as above."""
        record = self[index]
        found = record.segments
        return ImageSegments(
            image=record.image,
            image_id=record.image_id,
            masks=from_label_map(self._map(record), [segment.id for segment in found]),
            category_ids=tuple(segment.category_id for segment in found),
            crowd=tuple(segment.is_crowd for segment in found),
        )


class CocoInstances(_CocoFile):
    """An instances JSON file: one record per image, those without instances too, in the order of the file.

    Raises UserError when the file or the folder is missing, or the file is not of this kind; taking a record raises
    BadSample with the image and what is wrong.
    """

    metrics: tuple[str, ...] = ("instance",)

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        super().__init__(annotations, images, _instance_rows)
        self._order = np.argsort(self._ids)

    def __getitem__(self, index: int) -> InstanceRecord:
        row, what, image = self._row(index)
        instances = []
        for item in take(row, "annotations", list, what):
            fields = self._object(item, image, what)
            segmentation = take(item, "segmentation", (list, dict), f"{what}, annotation {fields['id']}")
            instances.append(Instance(segmentation=segmentation, **fields))
        if len({instance.id for instance in instances}) < len(instances):
            raise BadSample(f"{what}: an annotation id stands there twice")
        return InstanceRecord(**image, instances=tuple(instances))

    @property
    def strays(self) -> list[str]:
        """Ids of the records that stand for an instance without an image: `of_image` cannot show it."""
        return [id for id in self._ids.tolist() if id.startswith(STRAY)]

    def of_image(self, image_id: str) -> InstanceRecord:
        """The record of an image. Raises BadSample when the file does not have it."""
        place = int(np.searchsorted(self._ids, image_id, sorter=self._order))
        if place == len(self) or self.id(self._order[place]) != image_id:
            raise BadSample(f"{self.path}: has no image {image_id}")
        return self[int(self._order[place])]

    def segments(self, index: int) -> ImageSegments:
        """The image with its masks, which may overlap. Raises BadSample as above, also for a mask without a pixel."""
        record = self[index]
        size = image_size(record.image)
        if size != (record.height, record.width):
            raise BadSample(f"{record.image}: is {size}, {self.path} says {(record.height, record.width)}")
        masks = np.zeros((len(record.instances), record.height, record.width), bool)
        for mask, instance in zip(masks, record.instances, strict=True):
            mask[:] = annotation_mask(instance, record.height, record.width)
            if not mask.any():
                raise BadSample(f"{self.path}: image {record.image_id}, annotation {instance.id}: its mask is empty")
        return ImageSegments(
            image=record.image,
            image_id=record.image_id,
            masks=pack(masks),
            category_ids=tuple(instance.category_id for instance in record.instances),
            crowd=tuple(instance.is_crowd for instance in record.instances),
            areas=tuple(instance.area for instance in record.instances),
        )


def annotation_mask(instance: Instance, height: int, width: int) -> np.ndarray:
    """The mask of an instance, bool[H, W]. Raises BadSample with its id and what is wrong."""
    try:
        return segmentation_mask(instance.segmentation, height, width)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadSample(f"annotation {instance.id}: {error}") from None


def distinct(labels: np.ndarray) -> list[int]:
    """The values of a map int[H, W], sorted; a map has far fewer runs than pixels."""
    flat = labels.ravel()
    return np.unique(flat[np.append(True, flat[1:] != flat[:-1])]).tolist() if flat.size else []
