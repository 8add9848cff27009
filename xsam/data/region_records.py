"""Instances with visual prompts: COCO-VGD and COCO-Interactive files, and prompts drawn for any COCO instances."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ..structures import RLE, BadSample, UserError
from .coco import Annotation, CocoInstances, CocoRecord, segment_row
from .index import stream_json_list, take
from .masks import CODE, encode_rle, has_size
from .mixture import key
from .records import Records, read_mask, take_flag, take_size
from .regions import BRUSH, KINDS, dilate, visual_prompts

log = logging.getLogger("xsam")

DRAWN: Mapping[str, str] = dict.fromkeys(KINDS, "")  # the prompts of an instance for which none are stored


class CocoVgd(Records):
    """A COCO-VGD file (X-SAM, arXiv 2508.04655): one record per image with an instance, in the order of the file. Or a
    COCO instances file: then prompts are drawn, always the same for the same annotation id. `scale` is the size of
    what is drawn, see `visual_prompts`. The `prompts` of an instance are the counts of an RLE by kind, without the
    empty ones; "" = drawn when asked for. Its area is not read."""

    _layout = ("annotations", "image_id", "{}_visual_prompt")  # keys of: instances, the image's id, a prompt
    _brush: Mapping[str, float] = {}  # radius that stored prompts still have to be drawn with

    def __init__(self, annotations: str | Path, images: str | Path, scale: float = 1.0) -> None:
        super().__init__([Path(annotations)], images, f"{type(self).__name__} 3", self._rows)
        self.scale, self.categories = scale, tuple(self._index.known)  # the categories that occur, crowds apart

    def __getitem__(self, index: int) -> CocoRecord:
        name, row = self.id(index), self._index[index]
        instances = tuple(Annotation(*values) for values in row["instances"])
        height, width = row["size"]
        return CocoRecord(str(self.images / row["image"]), name, height, width, instances, row["image"])

    def prompt(self, record: CocoRecord, instance: Annotation, kind: str) -> RLE:
        """One of the prompts that an instance has, not empty. Raises BadSample for a malformed one."""
        if not instance.prompts[kind]:
            return drawn_prompts(record.mask(instance), instance.id, self.scale, (kind,))[kind]
        rle = {"size": [record.height, record.width], "counts": instance.prompts[kind]}
        what = f"image {record.image_id}, annotation {instance.id}: {kind} prompt"
        stored = read_mask(rle, record.height, record.width, what)
        return encode_rle(dilate(stored, radius)) if (radius := self._brush.get(kind, 0) * self.scale) else rle

    def _rows(self) -> Iterator[tuple[str | None, Any]]:
        ids, annotations, categories, why = set[str](), set[int](), set[int](), "it has no instance"
        with self.path.open("rb") as file:
            listed = file.read(64).lstrip().startswith(b"[")
        records = self._listed() if listed else CocoInstances(self.path, self.images).tried()
        for number, (name, record) in enumerate(records):
            instances = [] if isinstance(record, BadSample) else record.annotations
            own, seen = {item.id for item in instances}, {item.category_id for item in instances if not item.is_crowd}
            what = f"{self.path}: image {name}"
            if name and name in ids:
                record = BadSample(f"{what}: is listed twice")
            elif len(own) < len(instances) or not annotations.isdisjoint(own):
                record = BadSample(f"{what}: an annotation id stands in the file twice")
            elif any(abs(category) >= 1 << 63 for category in seen):
                record = BadSample(f"{what}: category_id {max(seen, key=abs)} is too large")
            if isinstance(record, BadSample):
                why = str(record)
                yield name or f"record {number}", record
            elif not seen:
                continue  # an image without instances, or with crowds only, is no sample
            else:
                annotations |= own
                categories |= seen
                rows = [
                    (item.id, item.category_id, 0, item.is_crowd, item.segmentation, item.prompts if listed else DRAWN)
                    for item in instances
                ]
                yield name, {"image": record.file_name, "size": (record.height, record.width), "instances": rows}
            ids.add(name)
        if not annotations:
            raise UserError(f"{self.path}: none of its records can be used, the last: {why}")
        yield None, sorted(categories)

    def _listed(self) -> Iterator[tuple[str, CocoRecord | BadSample]]:
        """Image id (where it is known) and content of every record of a list, or why it cannot be used."""
        for number, record in enumerate(stream_json_list(self.path)):
            name, what = "", f"{self.path}: record {number}"
            try:
                info = take(record, "image_info", dict, what)
                name = str(take(info, self._layout[1], (int, str), what))
                yield name, self._record(record, info, name)
            except BadSample as bad:
                yield name, bad

    def _record(self, record: Any, info: dict[str, Any], name: str) -> CocoRecord:
        what, found = f"{self.path}: image {name}", []
        height, width = take_size(info, what)
        for item in take(record, self._layout[0], list, what):
            id = take(item, "id", int, what)
            about = f"{what}, annotation {id}"
            crowd = take_flag(item, "iscrowd", 0, about)
            segmentation = take(item, "segmentation", (list, dict), about)
            prompts = DRAWN if crowd else self._prompts(item, (height, width), about)
            found.append(Annotation(id, take(item, "category_id", int, about), 0, crowd, segmentation, prompts))
        return CocoRecord("", name, height, width, tuple(found), take(info, "file_name", str, what))

    def _prompts(self, annotation: dict[str, Any], size: tuple[int, int], what: str) -> Mapping[str, str]:
        """Counts of the prompts that are not empty, by kind."""
        if (vgd := self._layout[0] == "annotations") and "visual_prompts" not in annotation:
            return DRAWN
        annotation, prompts = take(annotation, "visual_prompts", dict, what) if vgd else annotation, {}
        for kind in KINDS:
            name, about = self._layout[2].format(kind), f"{what}, {kind} prompt"
            if annotation.get(name, 0) is None:  # no such prompt was found for the object
                continue
            counts = take(rle := take(annotation, name, dict, what), "counts", str, about)
            if not has_size(rle, *size):
                raise BadSample(f"{about}: its size is {str(rle.get('size'))[:40]}, the image's {list(size)}")
            # the area is fast but blind to damage: what has none is read with care, the rest when it is asked for
            if (CODE.fullmatch(counts) and coco_mask.area(rle)) or read_mask(rle, *size, about, empty=True).any():
                prompts[kind] = counts
        return prompts


class CocoInteractive(CocoVgd):
    """A COCO-Interactive file as PSALM writes it (arXiv 2403.14598): points and scribbles are one pixel wide in it and
    get their brush here. `scale` 0 leaves them as they are; otherwise as `CocoVgd`."""

    _layout = ("anns", "id", "{}_visual_prompt_mask")
    _brush = BRUSH


def drawn_prompts(mask: np.ndarray, annotation_id: int, scale: float, kinds: Sequence[str] = KINDS) -> dict[str, RLE]:
    """What `visual_prompts` draws for an object bool[H, W], by kind: the same each time for the same annotation."""
    rng = np.random.default_rng(key("prompt", annotation_id))
    return {kind: encode_rle(prompt) for kind, prompt in visual_prompts(mask, rng, kinds, scale).items()}


def vgd_record(info: dict[str, Any], annotations: Iterable[tuple[dict[str, Any], dict[str, RLE]]]) -> dict[str, Any]:
    """A record of a COCO-VGD file; `info` has the file_name, image_id, height and width of its image, and every
    annotation comes with its prompts by kind."""
    named = ((row, {f"{kind}_visual_prompt": rle for kind, rle in prompts.items()}) for row, prompts in annotations)
    rows = [row | {"bbox_mode": 1, "visual_prompts": prompts} for row, prompts in named]  # 1: x, y, width, height
    record = {"image_file": info["file_name"], "image_id": info["image_id"], "image_info": info}
    return record | {"image_size": [info["height"], info["width"]], "annotations": rows}


def write_vgd(instances: str | Path, images: str | Path, out: str | Path, scale: float = 1.0) -> None:
    """Make a COCO-VGD file from a COCO instances file: prompts of all kinds, the same that `CocoVgd` would draw. An
    interrupted run is continued, a finished one left alone. What cannot be used is left out with a warning."""
    out, data, done, written, end = Path(out), CocoInstances(instances, images), 0, 0, 0
    if out.exists():
        return
    with out.with_suffix(".partial").open("a+b") as file:
        file.seek(0)
        for line in islice(file, len(data)):  # one per image, empty where nothing of it is kept
            if line.endswith(b"\n"):
                done, written, end = done + 1, written + (line != b"\n"), end + len(line)
        file.truncate(end)
        for index in tqdm(range(done, len(data)), initial=done, total=len(data), desc=out.name, unit="image"):
            if record := _prompted(data, index, scale):
                file.write((b"," if written else b"[") + json.dumps(record, separators=(",", ":")).encode())
                written += 1
            file.write(b"\n")
        file.write(b"]\n" if written else b"[]\n")
    out.with_suffix(".partial").rename(out)


def _prompted(data: CocoInstances, index: int, scale: float) -> dict[str, Any]:
    """A record of a COCO-VGD file; empty where nothing of the image can be used."""
    try:
        record = data[index]
    except BadSample as bad:
        log.warning("left out: %s", bad)
        return {}
    annotations = []
    for instance in (instance for instance in record.annotations if not instance.is_crowd):
        try:
            mask = record.mask(instance)
        except BadSample as bad:
            log.warning("left out: %s", bad)
            continue
        row = segment_row(instance.id, instance.category_id, mask)
        row |= {"area": instance.area, "segmentation": instance.segmentation}
        annotations.append((row, drawn_prompts(mask, instance.id, scale)))
    image_id = int(record.image_id) if record.image_id.isdecimal() else record.image_id
    info = {"file_name": record.file_name, "image_id": image_id, "height": record.height, "width": record.width}
    return vgd_record(info, annotations) if annotations else {}
