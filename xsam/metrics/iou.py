"""IoU of one mask per expression: referring, generalised referring, reasoning, interactive segmentation."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..structures import UserError
from .base import Metric, percent

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
EMPTY = np.zeros((0, 0), bool)


@dataclass
class ReferringIoU(Metric):
    """cIoU, gIoU, N_acc, T_acc and Pr@X in percent; an empty mask means "no target" or "nothing predicted".

    cIoU is the sum of intersections over the sum of unions, so large objects and false masks weigh more; gIoU is the
    mean of the samples' IoU, 1 where both masks are empty. There is no epsilon. The names and the no-target rules are
    those of gRefCOCO (arXiv 2306.00968)."""

    # samples, those with a target, intersection, union, IoU, targets found, absences seen, Pr@X
    totals: np.ndarray = field(default_factory=lambda: np.zeros(7 + len(THRESHOLDS)))

    def update(self, pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray = EMPTY, *, failed: bool = False) -> None:
        """Count one sample: masks bool[H, W]; pixels in `ignore` (may be empty) count in neither.

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
        self.totals += [1, target, inter, union, iou, target and predicted, absent, *precise]

    def compute(self) -> dict[str, float | None]:
        """`cIoU` and `gIoU` over all samples, `T_acc` (something predicted) and `Pr@X` (IoU >= X) over those with a
        target, `N_acc` (nothing predicted) over the rest; None where there are none, cIoU also without any pixel."""
        samples, targets, inter, union, iou, found, refused, *precise = self.totals.tolist()
        shares = {"cIoU": percent(inter, union), "gIoU": percent(iou, samples),
                  "N_acc": percent(refused, samples - targets), "T_acc": percent(found, targets)}  # fmt: skip
        return shares | {f"Pr@{x}": percent(count, targets) for x, count in zip(THRESHOLDS, precise, strict=True)}


@dataclass
class ReferringIoUByKind(Metric):
    """`ReferringIoU` over all samples, and the cIoU of each kind of sample beside it as `cIoU_KIND`."""

    kinds: dict[str, ReferringIoU] = field(default_factory=lambda: {"": ReferringIoU()})  # "" = all samples

    def update(self, pred: np.ndarray, gt: np.ndarray, kind: str = "", *, failed: bool = False) -> None:
        """Count one sample of a kind, "" = of none; the rest as in `ReferringIoU.update`."""
        sample = ReferringIoU()
        sample.update(pred, gt, failed=failed)
        for name in {"", kind}:
            self.kinds.setdefault(name, ReferringIoU()).merge(sample)

    def merge(self, other: "ReferringIoUByKind") -> None:
        for kind, metric in other.kinds.items():
            self.kinds.setdefault(kind, ReferringIoU()).merge(metric)

    def compute(self) -> dict[str, float | None]:
        """As `ReferringIoU.compute`, and `cIoU_KIND` for every named kind."""
        named = {f"cIoU_{kind}": metric.compute()["cIoU"] for kind, metric in sorted(self.kinds.items()) if kind}
        return self.kinds[""].compute() | named

    @classmethod
    def resample(cls, parts: Sequence["ReferringIoUByKind"], weights: np.ndarray) -> list[dict[str, float | None]]:
        results = ReferringIoU.resample([part.kinds[""] for part in parts], weights)
        for kind in sorted({kind for part in parts for kind in part.kinds} - {""}):
            alone = ReferringIoU.resample([part.kinds.get(kind, ReferringIoU()) for part in parts], weights)
            results = [row | {f"cIoU_{kind}": values["cIoU"]} for row, values in zip(results, alone, strict=True)]
        return results
