"""What a metric is: small sums that merge by addition, its figures, and their replicates for intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BYTES = 64 << 20  # of the parts that `resample` looks at together


def percent(part: float, whole: float) -> float | None:
    """None where there was nothing to measure."""
    return 100 * part / whole if whole else None


class Metric:
    """Figures in percent over the samples that `update` (whose arguments are each metric's own) has counted. One that
    needs more than sums over samples has its own `compute`, `merge` and `resample`."""

    totals: np.ndarray  # sums over samples

    def counted(self) -> Mapping[str, np.ndarray]:
        """What is added over images, by name; one that an image does not have is zero there."""
        return {"": self.totals}

    def figures(self, counted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Figures in percent, the most telling first; None where there was nothing to measure."""
        raise NotImplementedError

    def compute(self) -> dict[str, float | None]:
        """The `figures` of all that was counted."""
        return self.figures(self.counted())

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
        zeros = {name: 0 * row for part in parts for name, row in part.counted().items()}
        drawn = {name: np.zeros((len(weights), *zero.shape)) for name, zero in zeros.items()}
        step = max(1, BYTES // (8 * (len(weights) + sum(zero.size for zero in zeros.values()))))
        for some in (slice(start, start + step) for start in range(0, len(parts), step)):
            rows = [{**zeros, **part.counted()} for part in parts[some]]
            for name, total in drawn.items():
                total += np.tensordot(weights[:, some].astype(float), np.stack([row[name] for row in rows]), 1)
        return [parts[0].figures({name: total[r] for name, total in drawn.items()}) for r in range(len(weights))]
