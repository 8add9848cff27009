"""Somebody's own data: pictures of four shapes that the embedded world does not have, in three formats.

    python examples/own_data.py data/own              # 600 pictures to train on, 100 held out
    python examples/own_data.py data/own 60 20

writes for each SPLIT, `train` and `val`: `SPLIT/images/N.png`; the objects as COCO instances, `SPLIT.json`; as PNGs,
`SPLIT/masks/N.png` (classes, named by `SPLIT/classes.txt`) and `SPLIT/objects/N.png` (numbers); phrases for them,
`SPLIT.jsonl`. Other shapes in the pictures are not annotated.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from world import shapes
from xsam.data.coco import segment_row
from xsam.data.masks import encode_rle

NAMES = ("moon", "hourglass", "heart", "arrow")


def new_distance(shape: str, x: np.ndarray, y: np.ndarray, old=shapes.signed_distance) -> np.ndarray:
    """`shapes.signed_distance` of the new shapes, too."""
    if shape == "moon":
        return np.maximum(np.hypot(x, y) - 1, 0.75 - np.hypot(x - 0.75, y))
    if shape == "hourglass":
        return np.maximum((abs(x) - 0.8 * abs(y) - 0.3) / 1.28, abs(y) - 0.95)
    if shape == "heart":
        lobes = np.hypot(abs(x) - 0.42, y + 0.28) - 0.58
        return np.minimum(lobes, np.maximum(0.74 * abs(x) + 0.67 * y - 0.62, -0.28 - y))
    if shape == "arrow":
        head = np.maximum(0.71 * abs(x) - 0.71 * (y + 1), y - 0.1)
        return np.minimum(head, np.maximum(abs(x) - 0.42, abs(y - 0.4) - 0.6))
    return old(shape, x, y)


def write(root: Path, *, train: int, val: int) -> None:
    """Scenes of six shapes, as the world's own are, of which four are new; those without a new one are left out."""
    with (
        mock.patch.object(shapes, "SHAPES", (*shapes.SHAPES[:2], *NAMES)),
        mock.patch.object(shapes, "_REACH", {**shapes._REACH, **dict.fromkeys(NAMES, 1.3)}),
        mock.patch.object(shapes, "signed_distance", new_distance),
    ):
        for split, count in (("train", train), ("val", val)):
            _write_split(root, split, count)


def _write_split(root: Path, split: str, count: int) -> None:
    for folder in ("images", "masks", "objects"):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    (root / split / "classes.txt").write_text("\n".join(("background", *NAMES)))
    images, annotations, lines, index = [], [], [], 0
    while len(images) < count:
        scene = shapes.compose(7, split, index)
        index += 1
        new = [(number, thing) for number, thing in enumerate(scene.things) if thing.shape in NAMES]
        if not new:
            continue
        name, maps = f"{split}/images/{index}.png", np.zeros((2, *scene.ids.shape), np.uint8)
        Image.fromarray(shapes.render(scene)).save(root / name)
        images.append({"id": index, "file_name": name, "height": 96, "width": 96})
        for number, thing in new:
            mask = scene.ids == number
            maps[:, mask] = [[NAMES.index(thing.shape) + 1], [number + 1]]
            rle, row = encode_rle(mask), segment_row(index * 10 + number, NAMES.index(thing.shape) + 1, mask)
            annotations.append(row | {"image_id": index, "segmentation": rle})
            lines.append({"image": name, "text": f"the {thing.colour} {thing.shape}", "segmentation": rle})
        for folder, values in zip(("masks", "objects"), maps, strict=True):
            Image.fromarray(values).save(root / split / folder / f"{index}.png")
        absent = [shape for shape in NAMES if shape not in {thing.shape for _, thing in new}]
        lines += [{"image": name, "text": f"the {shape}", "segmentation": None} for shape in absent[:1]]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    (root / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    train, val = map(int, sys.argv[2:] or (600, 100))
    write(Path(sys.argv[1]), train=train, val=val)
