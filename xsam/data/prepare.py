"""Files that a benchmark needs and no download has, written from those that are there.

Every function can be called again: what is finished stays, what is missing is made. A file appears under its name only
when it is complete. Raises UserError for what is not there or does not fit, BadSample for a damaged image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..structures import UserError
from .coco import Category, CocoPanoptic, distinct, segment_row
from .images import read_image
from .label_maps import read_names, read_values
from .masks import encode_rle, read_panoptic_png, write_panoptic_png
from .records import require_folder

ADE_SPLITS, COCO_SPLITS = {"training": "train", "validation": "val"}, ("train2017", "val2017")
THING = 256  # ADE20K segment ids: 1 + class of stuff, 1 + class + THING * n of the n-th instance of a thing
VOID = 255
# labelIds of the 19 evaluated classes of Cityscapes, in the order of their train ids
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def ade20k(root: str | Path) -> None:
    """`ade20k_panoptic_{train,val}{/,.json}` and `ade20k_instance_{train,val}.json` of the splits that `root` has.

    It holds `images/`, `annotations/` (0 = nothing, then the 150 classes) and `annotations_instance/` (red: one of the
    100 thing classes from 1, green: instance), each with `training/` and `validation/`. Stuff comes from
    `annotations/`, instances are painted over it, things without an instance are void; areas are of the result."""
    if not (present := [split for split in ADE_SPLITS if Path(root, "images", split).is_dir()]):
        raise UserError(f"{Path(root, 'images')}: has neither training/ nor validation/; put ADE20K's images there")
    for split in present:
        _ade_split(Path(root), split)


def _ade_split(root: Path, split: str) -> None:
    panoptic, instance = (root / f"ade20k_{kind}_{ADE_SPLITS[split]}.json" for kind in ("panoptic", "instance"))
    if panoptic.is_file() and instance.is_file():
        return
    maps = [require_folder(root / kind / split) for kind in ("annotations", "annotations_instance")]
    out, categories = root / panoptic.stem, read_names("ade20k")
    out.mkdir(exist_ok=True)
    images, segments, objects = list[Any](), list[Any](), list[Any]()
    for path in tqdm(sorted((root / "images" / split).glob("*.jpg")), desc=panoptic.stem):
        png = f"{path.stem}.png"
        if not (out / png).is_file():
            _save(out / png, _ade_ids(maps[0] / png, maps[1] / png, categories))
        ids = read_panoptic_png(out / png)  # holds all that the JSON files say
        rows = [segment_row(id, id % THING - 1, ids == id) for id in filter(None, distinct(ids))]
        images.append({"id": path.stem, "file_name": path.name, "height": ids.shape[0], "width": ids.shape[1]})
        segments.append({"image_id": path.stem, "file_name": png, "segments_info": rows})
        for row in rows:
            number, is_thing = row["category_id"], row["id"] >= THING
            if not 0 <= number < len(categories) or categories[number].is_thing != is_thing:
                what = f"{out / png}: segment {row['id']} was not written by this program"
                raise UserError(f"{what}; remove the folder of the file")
            if is_thing:
                shape = encode_rle(ids == row["id"])
                objects.append(row | {"id": len(objects) + 1, "image_id": path.stem, "segmentation": shape})
    listed = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories]
    things = (row for row in listed if row["isthing"])
    named = [row | {"name": c.name} for row, c in zip(things, read_names("ade20k_instance"), strict=True)]
    _save(panoptic, {"images": images, "annotations": segments, "categories": listed})
    _save(instance, {"images": images, "annotations": objects, "categories": named})


def _ade_ids(semantic_png: Path, instance_png: Path, categories: Sequence[Category]) -> np.ndarray:
    """The panoptic map int64[H, W] of an image."""
    stuff_id = np.array([0, *(0 if c.is_thing else c.id + 1 for c in categories)])  # of each value in the maps
    thing_id = np.array([0, *(c.id + 1 for c in categories if c.is_thing)])
    semantic = read_values(semantic_png)
    instance_class, instance, _ = read_image(instance_png).transpose(2, 0, 1).astype(np.int64)
    for path, values, table in ((semantic_png, semantic, stuff_id), (instance_png, instance_class, thing_id)):
        if values.max(initial=0) >= len(table):
            raise UserError(f"{path}: has class {values.max()} of {len(table) - 1}; it is not ADE20K's, fetch it anew")
    if semantic.shape != instance.shape:
        raise UserError(f"{instance_png}: is {instance.shape}, {semantic_png} is {semantic.shape}; fetch both anew")
    is_object = (instance_class > 0) & (instance > 0)
    return np.where(is_object, thing_id[instance_class] + THING * instance, stuff_id[semantic])


def coco_semantic(root: str | Path) -> None:
    """`annotations/panoptic_semseg_<split>/`: class numbers in the order of the file's categories, 255 = nothing.

    `root` holds `<split>/`, `annotations/panoptic_<split>.json` and `annotations/panoptic_<split>/`."""
    annotations = Path(root) / "annotations"
    if not (present := [split for split in COCO_SPLITS if (annotations / f"panoptic_{split}.json").is_file()]):
        raise UserError(f"{annotations}: has no panoptic_<split>.json of {', '.join(COCO_SPLITS)}; put COCO's there")
    for split in present:
        json_file, out = annotations / f"panoptic_{split}.json", annotations / f"panoptic_semseg_{split}"
        data = CocoPanoptic(json_file, annotations / f"panoptic_{split}", Path(root, split))
        column = {category.id: number for number, category in enumerate(data.categories)}
        out.mkdir(exist_ok=True)
        for index in tqdm(range(len(data)), desc=out.name):
            if not (path := out / Path(data[index].png).name).is_file():
                shown = data.segments(index)
                classes = np.array([*(column[id] for id in shown.category_ids), VOID], np.uint8)
                _save(path, classes[shown.masks.ids[0]])


def cityscapes(root: str | Path) -> None:
    """`*_gtFine_labelTrainIds.png` beside each `*_gtFine_labelIds.png` under `root/gtFine`: 19 classes, 255 = none."""
    if not (paths := sorted(require_folder(Path(root, "gtFine")).rglob("*_gtFine_labelIds.png"))):
        raise UserError(f"{Path(root, 'gtFine')}: has no *_gtFine_labelIds.png; put those of gtFine_trainvaltest there")
    table = np.full(256, VOID, np.uint8)
    table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    for path in tqdm(paths, desc="cityscapes"):
        if not (out := path.with_name(path.name.replace("labelIds", "labelTrainIds"))).is_file():
            values = read_values(path)
            if values.max(initial=0) >= len(table):
                raise UserError(f"{path}: has the value {values.max()}; it is not a map of labelIds, fetch it anew")
            _save(out, table[values])


def _save(path: Path, content: np.ndarray | dict[str, Any]) -> None:
    """JSON, or a map of panoptic ids or uint8 values as a PNG: there whole or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    if isinstance(content, dict):
        partial.write_text(json.dumps(content))
    elif content.dtype == np.uint8:
        Image.fromarray(content).save(partial)
    else:
        write_panoptic_png(partial, content)
    partial.rename(path)
