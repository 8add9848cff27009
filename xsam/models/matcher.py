"""Assign targets to queries: the Hungarian matching of Mask2Former, on a few sampled points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Matches:
    """Matched pairs of one item, the same number in every layer; sorted by query."""

    queries: Tensor  # int64[L, M]
    targets: Tensor  # int64[L, M]


def corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four cells around points float[.., 2], (x, y) in [0, 1], of a map that has one more cell on all sides:
    row-major number and bilinear weight of each, as `grid_sample(align_corners=False)` multiplies them."""
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right, below = x - left, y - top
    first = top.int() * (width + 2) + left.int() + width + 3
    for dy, along_y in enumerate((1 - below, below)):
        for dx, along_x in enumerate((1 - right, right)):
            yield first + (dy * (width + 2) + dx), along_x * along_y


def sample_ids(ids: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of masks that are held as id maps, without ever making the masks. Equals
    `grid_sample(mask, align_corners=False)` of the 0 / 1 masks with zeros outside, float32[N, P].

    ids: int16[layers, S, S], -1 = none. index: int64[N], the masks. points: float[P, 2] shared by the masks, or
    float[N, P, 2]; (x, y) in [0, 1]."""
    layers, index = F.pad(ids, (1, 1, 1, 1), value=-1).flatten(1), index.to(ids.dtype)[:, None]
    sampled = torch.zeros((len(index), points.shape[-2]), device=points.device)
    for cell, weight in corners(points.float(), *ids.shape[1:]):
        for layer in layers:  # a mask lives in one of them, so they add up
            sampled += weight * (layer.index_select(0, cell.flatten()).view_as(cell) == index)
    return sampled


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of C maps float[C, h, w] at float[P, 2], (x, y) in [0, 1]: float[P, C]. As `grid_sample`, but on
    a CPU many times as fast, as the values of a place stand side by side. Not for gradients of the maps."""
    rows = F.pad(maps, (1, 1, 1, 1)).flatten(1).T.contiguous()
    cells, weights = (torch.stack(parts, -1) for parts in zip(*corners(points, *maps.shape[1:]), strict=True))
    return F.embedding_bag(cells, rows, mode="sum", per_sample_weights=weights)


class Matcher:
    """Cheapest one-to-one assignment under class, mask and dice costs (Mask2Former, arXiv 2112.01527, section 3.3)."""

    def __init__(self, class_weight: float = 2.0, mask_weight: float = 5.0, dice_weight: float = 5.0) -> None:
        self.class_weight, self.mask_weight, self.dice_weight = class_weight, mask_weight, dice_weight

    def costs(self, mask_logits: Tensor, targets: Tensor, class_probs: Tensor, labels: Tensor) -> Tensor:
        """Cost of every pair in every layer, float[L, Q, N].

        mask_logits: float[L, Q, P] at the sampled points. targets: float[N, P], the masks at the same points, or
        float[L, N, P]. class_probs: float[L, Q, K + 1]. labels: int64[N]."""
        points, targets_t = mask_logits.shape[-1], targets.transpose(-1, -2)
        # BCE(x, 1) t + BCE(x, 0) (1 - t) = softplus(x) - x t: one softplus and one matmul instead of two of each.
        mask_cost = (F.softplus(mask_logits).sum(-1, keepdim=True) - mask_logits @ targets_t) / points
        probs = mask_logits.sigmoid()
        total = probs.sum(-1, keepdim=True) + targets.sum(-1).unsqueeze(-2)
        dice_cost = 1 - (2 * (probs @ targets_t) + 1) / (total + 1)
        cost = self.mask_weight * mask_cost - self.class_weight * class_probs[..., labels]
        return (cost + self.dice_weight * dice_cost).clamp(-1e10, 1e10).nan_to_num(0)

    def assign(self, costs: Sequence[Tensor]) -> list[Matches]:
        """Solve all layers of all items after a single copy to the host. Takes float[L, Q, N] of each item."""
        on_host = torch.cat([cost.flatten(1) for cost in costs], 1).cpu()  # [L, sum of Q * N]
        pairs = []
        for cost, part in zip(costs, on_host.split([cost[0].numel() for cost in costs], 1), strict=True):
            solved = [linear_sum_assignment(table) for table in part.reshape(cost.shape).numpy()]
            pairs.append(torch.from_numpy(np.array(solved)).view(len(cost), 2, -1))
        parts = torch.cat(pairs, 2).to(costs[0].device).split([pair.shape[2] for pair in pairs], 2)
        return [Matches(*part.unbind(1)) for part in parts]
