"""COCO mask AP, computed by pycocotools."""

import contextlib
import io
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .base import BYTES, Metric

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass
class InstanceAP(Metric):
    """COCO average precision and recall of masks, in percent."""

    images: dict[Hashable, tuple[tuple[int, int], list[Any], list[Any]]] = field(default_factory=dict)
    _done: COCOeval | None = field(default=None, repr=False, compare=False)  # the evaluation of these images

    def update(self, image_id: int | str, size: tuple[int, int], gt: Sequence[Mapping[str, Any]],
               preds: Sequence[Mapping[str, Any]]) -> None:  # fmt: skip
        """Keep one image of `size` (H, W), or one question about it, under an id of its own.

        gt: `category` (int), `rle`, `crowd` (bool) and optionally `area`, which decides between APs, APm and APl
        (default: the area of the mask; COCO's files have the polygon's). preds: `category`, `rle`, `score`."""
        self.merge(InstanceAP({image_id: (size, list(gt), list(preds))}))

    def merge(self, other: "InstanceAP") -> None:
        assert not self.images.keys() & other.images.keys(), "an image was counted twice"
        self.images |= other.images
        self._done = None

    def compute(self) -> dict[str, float | None]:
        """COCO's twelve, `NAMES`, None where the ground truth has no such object."""
        return dict(zip(NAMES, map(_percent, self._accumulated().stats), strict=True))

    def per_category(self) -> dict[int, dict[str, float | None]]:
        """`AP` and `AP50` of each category of the ground truth, None where it has crowds of it only."""
        done = self._accumulated()
        precision = done.eval["precision"][..., 0, -1].mean(1)  # [T, K]: objects of all sizes, 100 predictions
        rows = zip(done.params.catIds, precision.mean(0), precision[0], strict=True)
        return {id: {"AP": _percent(ap), "AP50": _percent(ap50)} for id, ap, ap50 in rows}

    def headline(self) -> float | None:
        return self.resample([self], np.ones((1, 1), np.int64))[0]["AP"]

    @classmethod
    def resample(cls, parts: Sequence["InstanceAP"], weights: np.ndarray) -> list[dict[str, float | None]]:
        """As `Metric.resample`, of `AP AP50 AP75`. Exact but for predictions of one class with equal scores, whose
        order in a set of images, and with it COCO's AP, would depend on the ids of the copies."""
        whole, part_of = cls(), {id: number for number, part in enumerate(parts) for id in part.images}
        for part in parts:
            whole.merge(part)
        matched = whole._matched(["all"])
        drawn, rows = weights[:, [part_of[id] for id in whole._order()]], [row for row in matched.evalImgs if row]
        found, categories = np.zeros((len(weights), len(matched.params.iouThrs))), np.zeros(len(weights))
        for _, group in itertools.groupby(rows, lambda row: row["category_id"]):
            precision, there = _average_precision(list(group), drawn, matched.params.recThrs)
            found, categories = found + precision, categories + there
        means = 100 * found / np.maximum(categories, 1)[:, None]
        figures = np.stack([means.mean(1), means[:, 0], means[:, 5]], 1).tolist()  # thresholds 0.5, 0.55, ..
        known = (row if some else [None] * 3 for row, some in zip(figures, categories, strict=True))
        return [dict(zip(NAMES, row, strict=False)) for row in known]

    def _accumulated(self) -> COCOeval:
        if self._done is None:
            self._done = self._matched(["all", "small", "medium", "large"])
            with contextlib.redirect_stdout(io.StringIO()):
                self._done.accumulate()
                self._done.summarize()
        return self._done

    def _matched(self, areas: list[str]) -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            evaluation = COCOeval(*self._coco(), "segm")
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[: len(areas)], areas
            evaluation.evaluate()
        return evaluation

    def _order(self) -> list[Hashable]:
        """Ids in the order in which predictions with equal scores are taken: for numbers that of pycocotools."""
        return sorted(self.images, key=lambda id: (len(str(id)), str(id)))

    def _coco(self) -> tuple[COCO, COCO]:
        rows = [self.images[id] for id in self._order()]
        images = [{"id": number, "height": size[0], "width": size[1]} for number, (size, _, _) in enumerate(rows)]
        categories = [{"id": id} for id in sorted({item["category"] for _, gt, _ in rows for item in gt})]
        sides = COCO(), COCO()
        for coco, found in zip(sides, ([gt for _, gt, _ in rows], [preds for _, _, preds in rows]), strict=True):
            items = [_annotation(number, item) for number, some in enumerate(found) for item in some]
            annotations = [item | {"id": id} for id, item in enumerate(items, start=1)]  # 0 would be "no match"
            coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
            coco.createIndex()
        return sides


def _average_precision(rows: Sequence[Mapping[str, Any]], drawn: np.ndarray,
                       points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """What COCOeval.accumulate makes of R multisets of images: AP in [0, 1], float[R, T] by IoU threshold, and whether
    there is an object at all, bool[R]; without one AP is 0.

    Precision gets better, and recall changes, only where a prediction is right; so only these are looked at.

    rows: pycocotools' matches of one category, by image. drawn: int[R, N], how often each image is in the set. points:
    float[101], the recalls at which precision is sampled."""
    order = np.argsort(-np.concatenate([row["dtScores"] for row in rows]), kind="stable")
    images = np.array([row["image_id"] for row in rows])
    image = np.repeat(images, [len(row["dtScores"]) for row in rows])[order]
    counted = ~np.concatenate([row["dtIgnore"] for row in rows], 1)[:, order].astype(bool)
    right = (np.concatenate([row["dtMatches"] for row in rows], 1)[:, order] > 0) & counted
    truths = drawn[:, images] @ np.array([np.count_nonzero(row["gtIgnore"] == 0) for row in rows])
    found, step = np.zeros((len(drawn), len(right))), max(1, BYTES // 64 // max(1, len(order)))
    for some in (slice(start, start + step) for start in range(0, len(drawn), step)):
        copies = drawn[some, image].astype(np.int32)
        for threshold, hits in enumerate(right):
            true = copies[:, hits].cumsum(1)
            seen = (copies * counted[threshold]).cumsum(1)[:, hits]
            best = np.maximum.accumulate((true / np.maximum(seen, 1))[:, ::-1], 1)[:, ::-1]
            reached = np.searchsorted(points, true / np.maximum(truths[some], 1)[:, None], side="right")
            found[some, threshold] = (best * np.diff(reached, axis=1, prepend=0)).sum(1) / len(points)
    return found * (truths > 0)[:, None], truths > 0


def _percent(value: float) -> float | None:
    """pycocotools has -1 for None."""
    return 100 * float(value) if value >= 0 else None


def _annotation(image_id: int, item: Mapping[str, Any]) -> dict[str, Any]:
    area = item.get("area")
    return {"image_id": image_id, "category_id": item["category"], "segmentation": item["rle"],
            "area": float(coco_mask.area(item["rle"])) if area is None else area,
            "iscrowd": int(item.get("crowd", False)), "score": item.get("score")}  # fmt: skip
