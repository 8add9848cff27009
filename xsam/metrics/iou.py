"""IoU of one mask per expression: referring, generalised referring, reasoning, interactive segmentation."""

from dataclasses import dataclass, field

import numpy as np

from ..structures import UserError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
NOTHING_IGNORED = np.zeros((0, 0), bool)


@dataclass
class ReferringIoU:
    """cIoU, gIoU, N_acc, T_acc and Pr@X in percent; an empty mask means "no target" or "nothing predicted".

    cIoU is the sum of intersections over the sum of unions, so large objects and false masks weigh more; gIoU is the
    mean of the samples' IoU, 1 where both masks are empty. There is no epsilon. The names and the no-target rules are
    those of gRefCOCO (arXiv 2306.00968).
    """

    totals: np.ndarray = field(default_factory=lambda: np.zeros(7 + len(THRESHOLDS)))  # sums of what `_measure` returns

    def update(
        self, pred: np.ndarray, gt: np.ndarray, ignore: np.ndarray = NOTHING_IGNORED, *, failed: bool = False
    ) -> None:
        """Count one sample: masks bool[H, W]; pixels in `ignore` (may be empty) count in neither.

        Where nothing was predicted because there was no usable answer at all (`failed`), that there is no target does
        not make it right. Raises UserError if the sizes differ.
        """
        for other in (pred, ignore) if ignore.size else (pred,):
            if other.shape != gt.shape:
                raise UserError(f"a mask is {other.shape}, the ground truth {gt.shape}; sizes must be equal")
        if ignore.size:
            pred, gt = pred & ~ignore, gt & ~ignore
        self.totals += _measure(pred, gt, failed)

    def merge(self, other: "ReferringIoU") -> None:
        """Add what another process counted."""
        self.totals += other.totals

    def compute(self) -> dict[str, float | None]:
        """`cIoU` and `gIoU` over all samples, `T_acc` (something predicted) and `Pr@X` (IoU >= X) over those with a
        target, `N_acc` (nothing predicted) over the rest; None where there are none, cIoU also without any pixel."""
        samples, targets, inter, union, iou, found, refused, *precise = self.totals.tolist()
        return {
            "cIoU": _percent(inter, union), "gIoU": _percent(iou, samples),
            "N_acc": _percent(refused, samples - targets), "T_acc": _percent(found, targets),
        } | {f"Pr@{x}": _percent(count, targets) for x, count in zip(THRESHOLDS, precise, strict=True)}  # fmt: skip


@dataclass
class ReferringIoUByKind:
    """`ReferringIoU` over all samples, and the cIoU of each kind of sample beside it as `cIoU_KIND`."""

    kinds: dict[str, ReferringIoU] = field(default_factory=dict)

    def update(self, pred: np.ndarray, gt: np.ndarray, kind: str = "", *, failed: bool = False) -> None:
        """Count one sample of a kind, "" = of none; the rest as in `ReferringIoU.update`."""
        self.kinds.setdefault(kind, ReferringIoU()).update(pred, gt, failed=failed)

    def merge(self, other: "ReferringIoUByKind") -> None:
        """Add what another process counted."""
        for kind, metric in other.kinds.items():
            self.kinds.setdefault(kind, ReferringIoU()).merge(metric)

    def compute(self) -> dict[str, float | None]:
        """As `ReferringIoU.compute`, and `cIoU_KIND` for every named kind."""
        total = ReferringIoU()
        for metric in self.kinds.values():
            total.merge(metric)
        named = sorted(kind for kind in self.kinds if kind)
        return total.compute() | {f"cIoU_{kind}": self.kinds[kind].compute()["cIoU"] for kind in named}


def _measure(pred: np.ndarray, gt: np.ndarray, failed: bool) -> np.ndarray:
    """One sample's part: 1, has a target, intersection, union, IoU, target found, absence seen, Pr@X."""
    inter, union = np.count_nonzero(pred & gt), np.count_nonzero(pred | gt)
    target, predicted = bool(gt.any()), bool(pred.any())
    iou = inter / union if union else float(not failed)
    precise = [target and iou >= x for x in THRESHOLDS]
    return np.array([1, target, inter, union, iou, target and predicted, not (target or predicted or failed), *precise])


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None
