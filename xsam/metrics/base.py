"""What a metric is: small sums that merge by addition, its figures, and their replicates for intervals."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

BYTES = 64 << 20  # of the parts that `resample` looks at together


def percent(part: float, whole: float) -> float | None:
    """None where there was nothing to measure."""
    return 100 * part / whole if whole else None


class Metric(ABC):
    """Figures in percent over the samples that `update` (whose arguments are each metric's own) has counted."""

    totals: np.ndarray  # sums over samples; a metric that needs more than sums has its own `merge` and `resample`

    @abstractmethod
    def compute(self) -> dict[str, float | None]:
        """Figures in percent, the most telling first; None where there was nothing to measure."""

    def merge(self, other: Any) -> None:
        """Add what another metric counted: of another image, or other samples of the same one."""
        self.totals = self.totals + other.totals

    def per_category(self) -> dict[Any, dict[str, float | None]]:
        """Figures in percent by class id, for metrics that have classes."""
        return {}

    def headline(self) -> float | None:
        """The one figure by which samples are ranked, cheap."""
        return next(iter(self.compute().values()))

    @classmethod
    def resample(cls, parts: Sequence[Any], weights: np.ndarray) -> list[dict[str, float | None]]:
        """What `compute` would give if image n, whose metric is parts[n], had been counted weights[r, n] times, for
        every r. weights: int[R, N]."""
        replicate = copy.copy(parts[0])
        sums, results = np.zeros((len(weights), *replicate.totals.shape)), []
        step = max(1, BYTES // (8 * (len(weights) + replicate.totals.size)))
        for some in (slice(start, start + step) for start in range(0, len(parts), step)):
            sums += np.tensordot(weights[:, some].astype(float), np.stack([part.totals for part in parts[some]]), 1)
        for row in sums:
            replicate.totals = row
            results.append(replicate.compute())
        return results
