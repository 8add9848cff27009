"""Panoptic quality (arXiv 1801.00868) with the rules of the COCO evaluation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..structures import UserError
from .base import Metric


@dataclass
class PanopticQuality(Metric):
    """PQ, SQ and RQ in percent over all categories, things (`_th`) and stuff (`_st`).

    A predicted and a true segment of the same category match if their IoU is above 0.5, the void of the ground truth
    taken out of the union. A prediction without a match is no error if more than half of it lies on void or on crowd
    regions of its own category. Categories without any segment do not count in the means."""

    categories: Mapping[int, bool]  # category id -> is it a thing
    totals: np.ndarray = field(init=False)  # float64[K, 4]: sum of IoU, TP, FP, FN of each category

    def __post_init__(self) -> None:
        self.totals = np.zeros((len(self.categories), 4))

    def update(self, pred: np.ndarray, pred_segments: Mapping[int, int], gt: np.ndarray, gt_segments: Mapping[int, int],
               crowd: Collection[int] = ()) -> None:  # fmt: skip
        """Count one image: two maps int[H, W] of segment ids, 0 = void, and the category of each id; `crowd` has the
        true ids that are crowd regions. Raises UserError for maps of different sizes, an id in a map without a
        category, a predicted segment without a pixel, or an unknown category."""
        if pred.shape != gt.shape:
            raise UserError(f"the predicted map is {pred.shape}, the true one {gt.shape}; sizes must be equal")
        gt_class, pred_class = self._classes(gt_segments, "true"), self._classes(pred_segments, "predicted")
        columns, gt, pred = len(pred_class), gt.ravel(), pred.ravel()
        changed = (gt[1:] != gt[:-1]) | (pred[1:] != pred[:-1])
        starts = np.flatnonzero(np.append(gt.size > 0, changed))  # of runs, which are far fewer than pixels
        pairs = _index(gt[starts], gt_segments, "true") * columns + _index(pred[starts], pred_segments, "predicted")
        counts = np.bincount(pairs, np.diff(starts, append=gt.size), len(gt_class) * columns)
        inter = counts.astype(np.int64).reshape(-1, columns)
        gt_area, pred_area = inter.sum(1), inter.sum(0)
        if not pred_area[1:].all():
            missing = list(pred_segments)[int(pred_area[1:].argmin())]
            raise UserError(f"predicted segment {missing} has no pixel in the map; take it off the list")

        same = gt_class[:, None] == pred_class  # row and column 0, void, have the class -1
        is_crowd = np.array([False] + [id in crowd for id in gt_segments])
        union = gt_area[:, None] + pred_area - inter - inter[0]
        match = same & (2 * inter > union) & ~is_crowd[:, None]
        match[0] = False
        rows, cols = match.nonzero()
        np.add.at(self.totals[:, 0], gt_class[rows], inter[rows, cols] / union[rows, cols])
        np.add.at(self.totals[:, 1], gt_class[rows], 1)

        ignored = inter[0] + (inter * (same & is_crowd[:, None])).sum(0)
        wrong = ~match.any(0) & (2 * ignored <= pred_area)
        missed = ~match.any(1) & ~is_crowd
        np.add.at(self.totals[:, 2], pred_class[1:][wrong[1:]], 1)
        np.add.at(self.totals[:, 3], gt_class[1:][missed[1:]], 1)

    def figures(self, counted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """`PQ SQ RQ`, the same with `_th` and `_st`, in percent; None for a group without segments."""
        thing = np.array(list(self.categories.values()), dtype=bool)
        seen = counted[""][:, 1:].any(1)
        metrics: dict[str, float | None] = {}
        for suffix, group in (("", seen), ("_th", seen & thing), ("_st", seen & ~thing)):
            means = _quality(counted[""][group]).mean(0).tolist() if group.any() else [None] * 3
            metrics |= zip((f"PQ{suffix}", f"SQ{suffix}", f"RQ{suffix}"), means, strict=True)
        return metrics

    def per_category(self) -> dict[int, dict[str, float | None]]:
        """`PQ SQ RQ` in percent and the counts `TP FP FN` of each category that has a segment."""
        names = ("PQ", "SQ", "RQ", "TP", "FP", "FN")
        values = np.concatenate([_quality(self.totals), self.totals[:, 1:]], 1)
        rows = zip(self.categories, values.tolist(), strict=True)
        return {id: dict(zip(names, row, strict=True)) for id, row in rows if any(row[3:])}

    def _classes(self, segments: Mapping[int, int], whose: str) -> np.ndarray:
        """int64[1 + N], row of `totals` of each segment; void, in front, has -1."""
        row = {id: number for number, id in enumerate(self.categories)}
        for id, category in segments.items():
            if category not in row:
                raise UserError(f"{whose} segment {id} has category {category}, which the categories do not list")
        return np.array([-1] + [row[category] for category in segments.values()])


def _index(ids: np.ndarray, segments: Mapping[int, int], whose: str) -> np.ndarray:
    """int64[n], the place of each id in `segments`, from 1; 0 = void."""
    table = np.zeros(max(int(ids.max(initial=0)), *segments, 0) + 1, np.int64)  # 0 = unknown
    table[[0, *segments]] = np.arange(1, len(segments) + 2)
    index = table[ids.clip(min=0)] - 1
    unknown = ids[(index < 0) | (ids < 0)]
    if unknown.size:
        raise UserError(f"id {unknown[0]} is in the {whose} map but not in its list of segments")
    return index


def _quality(totals: np.ndarray) -> np.ndarray:
    """float64[K, 3], PQ SQ RQ in percent; 0 where nothing was counted."""
    iou, tp, fp, fn = totals.T
    sq, rq = iou / np.maximum(tp, 1), tp / np.maximum(tp + (fp + fn) / 2, 0.5)
    return 100 * np.stack([sq * rq, sq, rq], 1)
