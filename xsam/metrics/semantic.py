"""Mean intersection over union of label maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..structures import UserError
from .base import Metric

IGNORE = 255  # a pixel of the ground truth that does not count
NOTHING = -1  # a pixel for which nothing was predicted: wrong, and of no class


@dataclass
class SemanticIoU(Metric):
    """mIoU and pixel accuracy in percent, over the pixels of all images."""

    num_classes: int
    totals: np.ndarray = field(init=False)  # int64[3, K]: pixels of each class that are right, true, predicted

    def __post_init__(self) -> None:
        self.totals = np.zeros((3, self.num_classes), np.int64)

    def update(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Count one image: two label maps int[H, W]. Raises UserError if the sizes differ or a label is not below
        `num_classes` (IGNORE only in the truth, NOTHING only in the prediction)."""
        if pred.shape != gt.shape:
            raise UserError(f"the predicted map is {pred.shape}, the true one {gt.shape}; sizes must be equal")
        valid, something = gt != IGNORE, pred != NOTHING
        for whose, labels in (("predicted", pred[something]), ("true", gt[valid])):
            if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
                wrong = labels.min() if labels.min() < 0 else labels.max()
                raise UserError(f"the {whose} map has label {wrong}; labels go from 0 to {self.num_classes - 1}")
        counted = gt[valid & (pred == gt)], gt[valid], pred[valid & something]
        self.totals += np.stack([np.bincount(labels, minlength=self.num_classes) for labels in counted])

    def figures(self, counted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """`mIoU` over the classes that the ground truth has, `mIoU_all` also over those that were predicted without
        being there (IoU 0); `fwIoU`, IoU weighted by true pixels; `mACC` and `pACC`, the share of true pixels that are
        right by class and of all. None if no pixel counts."""
        names = ("mIoU", "mIoU_all", "fwIoU", "mACC", "pACC")
        hit, truth, predicted = counted[""]
        there, union = truth > 0, truth + predicted - hit
        if not there.any():
            return dict.fromkeys(names)
        iou, right, share = hit / np.maximum(union, 1), hit[there] / truth[there], truth / truth.sum()
        values = iou[there].mean(), iou[union > 0].mean(), iou @ share, right.mean(), hit.sum() / truth.sum()
        return {name: 100 * float(value) for name, value in zip(names, values, strict=True)}

    def per_category(self) -> dict[int, dict[str, float | None]]:
        """`IoU` in percent of each class that the ground truth has."""
        hit, truth, predicted = self.totals.tolist()
        sums = enumerate(zip(hit, truth, predicted, strict=True))
        return {label: {"IoU": 100 * h / (t + p - h)} for label, (h, t, p) in sums if t}
