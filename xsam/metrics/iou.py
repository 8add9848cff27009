"""IoU of one mask per expression: referring, generalised referring, reasoning, interactive segmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..structures import UserError
from .base import Metric, percent

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
EMPTY = np.zeros((0, 0), bool)


@dataclass
class ReferringIoU(Metric):
    """cIoU, gIoU, N_acc, T_acc and Pr@X in percent, and cIoU_KIND and Pr@0.5_KIND of each kind; an empty mask means "no
    target" or "nothing predicted".

    cIoU is the sum of intersections over the sum of unions, so large objects and false masks weigh more; gIoU is the
    mean of the samples' IoU, 1 where both masks are empty. There is no epsilon. The names and the no-target rules are
    those of gRefCOCO (arXiv 2306.00968)."""

    # samples, those with a target, intersection, union, IoU, targets found, absences seen, Pr@X
    totals: np.ndarray = field(default_factory=lambda: np.zeros(7 + len(THRESHOLDS)))
    kinds: dict[str, np.ndarray] = field(default_factory=dict)  # targets, intersection, union, Pr@0.5 of a kind

    def update(self, pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray = EMPTY, *, kind: str = "",
               failed: bool = False) -> None:  # fmt: skip
        """Count one sample, of a kind or of none: masks bool[H, W]; pixels in `ignore` (may be empty) count in neither.

        Where nothing was predicted because there was no usable answer at all (`failed`), that there is no target does
        not make it right. Raises UserError if the sizes differ."""
        for other in (pred, ignore) if ignore.size else (pred,):
            if other.shape != gt.shape:
                raise UserError(f"a mask is {other.shape}, the ground truth {gt.shape}; sizes must be equal")
        if ignore.size:
            pred, gt = pred & ~ignore, gt & ~ignore
        inter, union = np.count_nonzero(pred & gt), np.count_nonzero(pred | gt)
        target, predicted = bool(gt.any()), bool(pred.any())
        iou = inter / union if union else float(not failed)
        absent = not (target or predicted or failed)
        precise = [target and iou >= x for x in THRESHOLDS]
        sums = np.array([1, target, inter, union, iou, target and predicted, absent, *precise])
        self.merge(ReferringIoU(sums, {kind: sums[[1, 2, 3, 7]]} if kind else {}))

    def merge(self, other: "ReferringIoU") -> None:
        super().merge(other)
        self.kinds |= {kind: sums + self.kinds.get(kind, 0) for kind, sums in other.kinds.items()}

    def counted(self) -> dict[str, np.ndarray]:
        return {"": self.totals} | self.kinds

    def figures(self, counted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """`cIoU` and `gIoU` over all samples, `T_acc` (something predicted) and `Pr@X` (IoU >= X) over those with a
        target, `N_acc` (nothing predicted) over the rest, `cIoU_KIND` and `Pr@0.5_KIND` over those of a kind; None
        where there are none, cIoU also without any pixel."""
        samples, targets, inter, union, iou, found, refused, *precise = counted[""].tolist()
        shares = {"cIoU": percent(inter, union), "gIoU": percent(iou, samples),
                  "N_acc": percent(refused, samples - targets), "T_acc": percent(found, targets)}  # fmt: skip
        shares |= {f"Pr@{x}": percent(count, targets) for x, count in zip(THRESHOLDS, precise, strict=True)}
        for kind in sorted(counted.keys() - {""}):
            targets, inter, union, hits = counted[kind].tolist()
            shares |= {f"cIoU_{kind}": percent(inter, union), f"Pr@0.5_{kind}": percent(hits, targets)}
        return shares
