"""Visual prompts: from a drawn region to the points its feature is taken at."""

import numpy as np

from ..structures import BadSample


def sample_points(mask: np.ndarray, rng: np.random.Generator, count: int = 256) -> np.ndarray:
    """Places inside a region, for the region sampler.

    A region of more than `count` pixels gives a random subset of them, a smaller one all of them and random repeats.

    Args:
        mask: bool[S, S], the region in the segmentation frame.

    Returns:
        float32[count, 2], (x, y) of pixels over S, without a half-pixel offset.

    Raises:
        BadSample: the region is empty.
    """
    ys, xs = mask.nonzero()
    if len(ys) == 0:
        raise BadSample("a visual prompt covers no pixel of the image")
    if len(ys) > count:
        chosen = rng.permutation(len(ys))[:count]
    else:
        chosen = np.concatenate([np.arange(len(ys)), rng.integers(0, len(ys), count - len(ys))])
    height, width = mask.shape
    return np.stack([xs[chosen] / width, ys[chosen] / height], axis=1).astype(np.float32)
