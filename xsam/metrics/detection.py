"""COCO mask AP, computed by pycocotools."""

import contextlib
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100")


@dataclass
class InstanceAP:
    """COCO average precision and recall of masks, in percent."""

    images: dict[Hashable, tuple[tuple[int, int], list[Any], list[Any]]] = field(default_factory=dict)

    def update(
        self,
        image_id: int | str,
        size: tuple[int, int],
        gt: Sequence[Mapping[str, Any]],
        preds: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep one image of `size` (H, W).

        gt: `category` (int), `rle`, `crowd` (bool) and optionally `area`, which decides between APs, APm and APl
        (default: the area of the mask; COCO's own files state that of the polygon). preds: `category`, `rle`, `score`.
        """
        assert image_id not in self.images, f"image {image_id} was counted before"
        self.images[image_id] = size, list(gt), list(preds)

    def merge(self, other: "InstanceAP") -> None:
        """Add the images of another process."""
        assert not self.images.keys() & other.images.keys(), "an image was counted twice"
        self.images |= other.images

    def compute(self) -> dict[str, float | None]:
        """`AP AP50 AP75 APs APm APl AR1 AR10 AR100`, None where the ground truth has no such object."""
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(*self._coco(), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = (100 * float(value) if value >= 0 else None for value in evaluation.stats[: len(NAMES)])
        return dict(zip(NAMES, values, strict=True))

    def _coco(self) -> tuple[COCO, COCO]:
        images = [{"id": id, "height": size[0], "width": size[1]} for id, (size, _, _) in self.images.items()]
        truths = [_annotation(id, item) for id, (_, gt, _) in self.images.items() for item in gt]
        preds = [_annotation(id, item) for id, (_, _, found) in self.images.items() for item in found]
        categories = [{"id": id} for id in sorted({item["category_id"] for item in truths})]
        sides = COCO(), COCO()
        for coco, annotations in zip(sides, (truths, preds), strict=True):
            for number, annotation in enumerate(annotations, start=1):  # pycocotools takes an id of 0 for "no match"
                annotation["id"] = number
            coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
            coco.createIndex()
        return sides


def _annotation(image_id: Hashable, item: Mapping[str, Any]) -> dict[str, Any]:
    area = item.get("area")
    return {
        "image_id": image_id, "category_id": item["category"], "segmentation": item["rle"],
        "area": float(coco_mask.area(item["rle"])) if area is None else area,
        "iscrowd": int(item.get("crowd", False)), "score": item.get("score"),
    }  # fmt: skip
