"""Four shapes that the embedded world does not have, as somebody's own COCO instances: what fine-tuning must learn.

`python tests/engine/new_shapes.py data/own` writes `{train,val}.json` and the folders `{train,val}`.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from xsam.data import shapes
from xsam.data.masks import encode_rle, mask_box

NAMES = ("moon", "hourglass", "heart", "arrow")


def new_distance(shape: str, x: np.ndarray, y: np.ndarray, old=shapes.signed_distance) -> np.ndarray:
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
    """Scenes of six shapes, as the world's own are, of which four are new and annotated; images without one are left out."""
    with (
        mock.patch.object(shapes, "SHAPES", (*shapes.SHAPES[:2], *NAMES)),
        mock.patch.object(shapes, "_REACH", {**shapes._REACH, **dict.fromkeys(NAMES, 1.3)}),
        mock.patch.object(shapes, "signed_distance", new_distance),
    ):
        for split, count in (("train", train), ("val", val)):
            _write_split(root, split, count)


def _write_split(root: Path, split: str, count: int) -> None:
    (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations, index = [], [], 0
    while len(images) < count:
        scene = shapes.compose(7, split, index)
        index += 1
        new = [number for number, thing in enumerate(scene.things) if thing.shape in NAMES]
        if not new:
            continue
        Image.fromarray(shapes.render(scene)).save(root / split / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": 96, "width": 96})
        for number in new:
            x0, y0, x1, y1 = mask_box(scene.ids == number)
            annotations.append(
                {
                    "id": index * 10 + number, "image_id": index, "iscrowd": 0, "area": scene.things[number].area,
                    "category_id": NAMES.index(scene.things[number].shape) + 1,
                    "segmentation": encode_rle(scene.ids == number), "bbox": [x0, y0, x1 - x0, y1 - y0],
                }
            )  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    write(Path(sys.argv[1]), train=600, val=100)
