"""COCO's files: panoptic segments and instances. The annotations lie in an index, a record is made when asked for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, SegmentMap, UserError
from .images import image_size
from .index import take, take_text
from .masks import from_label_map, mask_box, pack, read_panoptic_png
from .records import Records, by_id, read_json, read_mask, require_folder, take_flag, take_id, take_size

STRAY = "annotation number"  # sample id of an instance without an image


@dataclass(frozen=True, slots=True)
class Category:
    """A row of `categories`; the name as the file has it, see `clean_name`."""

    id: int
    name: str
    is_thing: bool


@dataclass(frozen=True, slots=True)
class Annotation:
    """A row of `segments_info`, or of `annotations` in an instance file."""

    id: int
    category_id: int
    area: float
    is_crowd: bool
    segmentation: Any = None  # of an instance: polygons, RLE or uncompressed RLE, for `CocoRecord.mask`
    prompts: Mapping[str, str] = field(default_factory=dict)  # see `region_records.CocoVgd`


@dataclass(frozen=True, slots=True)
class CocoRecord:
    """An image with its segments or instances, crowds included."""

    image: str  # path
    image_id: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    file_name: str  # of the image, as the file has it
    png: str = ""  # path of the panoptic segments

    def mask(self, instance: Annotation) -> np.ndarray:
        """bool[H, W]. Raises BadSample for a malformed or empty one."""
        what = f"image {self.image_id}, annotation {instance.id}"
        return read_mask(instance.segmentation, self.height, self.width, what)

    def having(self, *kinds: str) -> list[int]:
        """The instances that have a prompt of one of the kinds, by their places; crowds are not among them."""
        shown = ((i, item.prompts.keys()) for i, item in enumerate(self.annotations) if not item.is_crowd)
        return [i for i, stored in shown if not stored.isdisjoint(kinds)]


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


def read_coco(path: str | Path, *keys: str) -> dict[str, Any]:
    """Parse a JSON file of COCO's layout. Raises UserError, also when one of its lists is missing."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file, which is an object with {', '.join(keys)}")
    missing = [key for key in keys if not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path}: has no list {', '.join(missing)}; it is not a COCO file of this kind")
    return content


class _CocoFile(Records):
    """What both kinds of COCO's files have in common."""

    _key: str  # of the annotations in a row
    _folder: Path | None = None  # of panoptic PNGs

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        super().__init__([Path(annotations)], images, f"{type(self).__name__} 3", self._rows)
        self.categories = [Category(*values) for values in self._index.known]
        self._known = {category.id for category in self.categories}

    def _rows(self) -> Iterator[tuple[str | None, Any]]:
        content = read_coco(self.path, "images", "annotations", "categories")
        categories = check_categories(self.path, content["categories"])
        yield from self._named_rows(content)
        yield None, [astuple(category) for category in categories]

    def _named_rows(self, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError

    def __getitem__(self, index: int) -> CocoRecord:
        name = self.id(index)
        row, what = self._index[index], f"{self.path}: image {name}"
        height, width = take_size(row, what)
        file_name = take(row, "file_name", str, what)
        annotations = tuple(self._annotation(item, height * width, what) for item in take(row, self._key, list, what))
        if len({annotation.id for annotation in annotations}) < len(annotations):
            raise BadSample(f"{what}: an annotation id stands there twice")
        png = str(self._folder / take(row, "png", str, what)) if self._folder else ""
        return CocoRecord(str(self.images / file_name), name, height, width, annotations, file_name, png)

    def _annotation(self, item: Any, pixels: int, what: str) -> Annotation:
        number = take(item, "id", int, what)
        what = f"{what}, annotation {number}"
        category_id, area = take(item, "category_id", int, what), take(item, "area", (int, float), what, 0)
        if category_id not in self._known:
            raise BadSample(f"{what}: category_id {category_id} is not in the file's list of categories")
        if area > 1.1 * pixels:  # polygons may leave the image a little
            raise BadSample(f"{what}: 'area' is {str(area)[:40]}, more than the image has")
        segmentation = None if self._folder else take(item, "segmentation", (list, dict), what)
        return Annotation(number, category_id, area, take_flag(item, "iscrowd", 0, what), segmentation)


def _segments(record: CocoRecord, masks: SegmentMap, areas: tuple[float, ...] = ()) -> ImageSegments:
    category_ids = tuple(annotation.category_id for annotation in record.annotations)
    crowd = tuple(annotation.is_crowd for annotation in record.annotations)
    return ImageSegments(record.image, record.image_id, masks, category_ids, crowd, areas)


def check_categories(path: str | Path, rows: list[Any]) -> list[Category]:
    """The categories of a file; UserError where one cannot be asked for in a prompt."""
    found: dict[int, Category] = {}
    for number, row in enumerate(rows):
        what = f"{path}: category number {number}"
        try:
            id, name = take(row, "id", int, what), take_text(row, "name", what)
            if not clean_name(name).strip():
                raise BadSample(f"{what}: 'name' is {name!r}")
            if id in found:
                raise BadSample(f"{path}: has more than one category {id}")
            found[id] = Category(id, name, take_flag(row, "isthing", 1, what))
        except BadSample as bad:
            raise UserError(f"{bad}; fetch or write the file anew") from None
    return list(found.values())


class CocoPanoptic(_CocoFile):
    """A panoptic JSON file with its folder of PNGs: one record per annotated image, in the order of the file."""

    metrics: tuple[str, ...] = ("panoptic", "instance", "semantic")  # that it can be the truth of
    _key = "segments_info"

    def __init__(self, annotations: str | Path, segments: str | Path, images: str | Path) -> None:
        super().__init__(annotations, images)
        self._folder = require_folder(segments)

    def _named_rows(self, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        images, annotations = by_id(content["images"]), content["annotations"]
        counts = Counter(str(take_id(annotation, "image_id")) for annotation in annotations)
        for number, annotation in enumerate(annotations):
            image_id, name = take_id(annotation, "image_id"), f"annotation number {number}"
            if image_id not in images:
                yield name, BadSample(f"{self.path}: {name}: image {image_id!r} is not once among the images")
            elif counts[str(image_id)] > 1:
                yield name, BadSample(f"{self.path}: {name}: image {image_id} has more than one annotation")
            else:
                row = {"png": annotation.get("file_name"), "segments_info": annotation.get("segments_info")}
                yield str(image_id), images[image_id] | row

    def segments(self, index: int) -> ImageSegments:
        """The image with its masks, none of which overlap. Raises BadSample also where its PNG does not fit."""
        record = self[index]
        ids = read_panoptic_png(record.png)
        if ids.shape != (record.height, record.width):
            raise BadSample(f"{record.png}: is {ids.shape}, its image {(record.height, record.width)}")
        listed = [segment.id for segment in record.annotations]
        drawn = set(distinct(ids)) - {0}
        for id in sorted(drawn ^ set(listed)):
            problem = "is in the PNG but not in the file" if id in drawn else "has no pixel in its PNG"
            raise BadSample(f"{record.png}: segment {id} {problem}")
        return _segments(record, from_label_map(ids, listed))


class CocoInstances(_CocoFile):
    """An instances JSON file: one record per image, those without instances too, in the order of the file."""

    metrics: tuple[str, ...] = ("instance",)
    _key = "annotations"

    def _named_rows(self, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        shown: dict[Any, list[Any]] = {image_id: [] for image_id in by_id(content["images"])}
        strays = []  # objects that no sample would ever show are reported, not dropped
        for number, annotation in enumerate(content["annotations"]):
            image_id, name = take_id(annotation, "image_id"), f"{STRAY} {number}"
            if image_id in shown:
                shown[image_id].append(annotation)
            else:
                problem = f"{self.path}: {name}: image {image_id!r} is not once among the images"
                strays.append((name, BadSample(problem)))
        for number, image in enumerate(content["images"]):
            image_id, name = take_id(image, "id"), f"image number {number}"
            if image_id in shown:
                yield str(image_id), image | {"annotations": shown[image_id]}
            else:
                yield name, BadSample(f"{self.path}: {name}: its id {image_id!r} is missing, or not the only one")
        yield from strays

    @property
    def strays(self) -> list[str]:
        """Ids of the records that stand for an instance without an image: `of_image` cannot show it."""
        return [id for id in self._index.ids.tolist() if id.startswith(STRAY)]

    def of_image(self, image_id: str) -> CocoRecord:
        """The record of an image. Raises BadSample when the file does not have it."""
        places = np.flatnonzero(self._index.ids == image_id)
        if not len(places):
            raise BadSample(f"{self.path}: has no image {image_id}")
        return self[int(places[0])]

    def segments(self, index: int) -> ImageSegments:
        """The image with its masks, which may overlap. Raises BadSample also for a mask without a pixel."""
        record = self[index]
        height, width = image_size(record.image)
        if (height, width) != (record.height, record.width):
            raise BadSample(f"{record.image}: is {height, width}, {self.path} says {(record.height, record.width)}")
        what = f"{self.path}: image {record.image_id}, annotation"
        masks = [read_mask(item.segmentation, height, width, f"{what} {item.id}") for item in record.annotations]
        areas = tuple(item.area for item in record.annotations)
        return _segments(record, pack(np.array(masks, bool).reshape(-1, height, width)), areas)


def segment_row(id: int, category_id: int, mask: np.ndarray) -> dict[str, Any]:
    """What a file of COCO's layout says of a mask bool[H, W]; the box is x, y, width, height."""
    x0, y0, x1, y1 = mask_box(mask)
    box, area = [x0, y0, x1 - x0, y1 - y0], int(mask.sum())
    return {"id": id, "category_id": category_id, "area": area, "bbox": box, "iscrowd": 0}


def distinct(labels: np.ndarray) -> list[int]:
    """The values of a map int[H, W], sorted; a map has far fewer runs than pixels."""
    flat = labels.ravel()
    return np.unique(flat[np.append(True, flat[1:] != flat[:-1])]).tolist() if flat.size else []
