"""95 % intervals over images: the percentile bootstrap (Efron, 1979)."""

import numpy as np
from numpy.typing import ArrayLike


def draws(images: int, seed: int, repeats: int = 1000) -> np.ndarray:
    """int16[1 + repeats, images], how often each image is in each replicate: as many as there are, with replacement.
    The first row has every image once, so the first replicate of a figure is the figure itself."""
    rng = np.random.default_rng(seed)
    rows = (np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(repeats))
    return np.stack([np.ones(images, np.int16), *(row.astype(np.int16) for row in rows)])


def interval(values: ArrayLike) -> tuple[float, float] | None:
    """Where the middle 95 % of the replicates are, moved so that their mean is at the first, the figure itself.

    Without the move the interval of an AP can lie beside the AP: a set that has images twice has a higher one.
    Replicates without a value (None, NaN) do not count; the result is None where the figure itself has none."""
    figure, *others = np.array(values, float)
    known = np.array(others)[~np.isnan(others)]
    if np.isnan(figure) or not known.size:
        return None
    low, high = np.percentile(known, [2.5, 97.5]) - known.mean() + figure
    return float(low), float(high)


def paired(first: ArrayLike, second: ArrayLike) -> tuple[float, float] | None:
    """Interval of second - first, two figures of the same images, from replicates of the same draws."""
    return interval(np.array(second, float) - np.array(first, float))
