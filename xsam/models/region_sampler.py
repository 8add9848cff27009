"""The feature of a visual prompt: what the segmentation tokens say at the points of its mask."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class RegionSampler(nn.Module):
    """Bilinear samples of the segmentation tokens at P points, then the maximum over the points."""

    def forward(self, features: Tensor, points: Tensor, region_image: Tensor) -> Tensor:
        """One vector per region, float[R, C], sampled in float32.
        features: float[I, N, C], N = g * g tokens, row-major. points: float[R, P, 2], (x, y) in [0, 1], where 0 and 1
        are the centres of the outermost cells. region_image: int64[R]."""
        channels, side = features.shape[2], math.isqrt(features.shape[1])
        out = features.new_zeros(len(points), channels)
        for image in region_image.unique().tolist():
            rows = region_image == image
            grid = features[image].float().T.reshape(1, channels, side, side)
            values = F.grid_sample(grid, points[rows].float()[None] * 2 - 1, align_corners=True)  # [1, C, r, P]
            out[rows] = values[0].amax(-1).T.to(out.dtype)
        return out
