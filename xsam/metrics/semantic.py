"""Mean intersection over union of label maps."""

from dataclasses import dataclass, field

import numpy as np

from ..structures import UserError

IGNORE = 255  # a pixel of the ground truth that does not count
NOTHING = -1  # a pixel for which nothing was predicted: wrong, and of no class


@dataclass
class SemanticIoU:
    """mIoU and pixel accuracy in percent, from one confusion matrix over all images."""

    num_classes: int
    confusion: np.ndarray = field(init=False)  # int64[K, K + 1], rows = truth, columns = prediction, NOTHING last

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.num_classes, self.num_classes + 1), np.int64)

    def update(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Count one image: two label maps int[H, W].

        Raises UserError if the sizes differ or a label is not below `num_classes` (IGNORE only in the truth, NOTHING
        only in the prediction).
        """
        if pred.shape != gt.shape:
            raise UserError(f"the predicted map is {pred.shape}, the true one {gt.shape}; sizes must be equal")
        valid = gt != IGNORE
        for whose, labels in (("predicted", pred[pred != NOTHING]), ("true", gt[valid])):
            if labels.size and not 0 <= labels.min() <= labels.max() < self.num_classes:
                wrong = labels.min() if labels.min() < 0 else labels.max()
                raise UserError(f"the {whose} map has label {wrong}; labels go from 0 to {self.num_classes - 1}")
        columns = np.where(pred == NOTHING, self.num_classes, pred)[valid]
        pairs = gt[valid].astype(np.int64) * (self.num_classes + 1) + columns
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def merge(self, other: "SemanticIoU") -> None:
        """Add what another process counted."""
        self.confusion += other.confusion

    def compute(self) -> dict[str, float | None]:
        """`mIoU` over the classes that the ground truth has, `mIoU_all` also over those that were predicted
        without being there (IoU 0), `pACC`; None if no pixel counts.
        """
        hit, truth, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion[:, :-1].sum(0)
        if not truth.any():
            return {"mIoU": None, "mIoU_all": None, "pACC": None}
        union = truth + predicted - hit
        iou = 100 * hit / np.maximum(union, 1)
        means = iou[truth > 0].mean(), iou[union > 0].mean(), 100 * hit.sum() / truth.sum()
        return dict(zip(("mIoU", "mIoU_all", "pACC"), map(float, means), strict=True))
