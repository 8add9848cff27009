"""Assign targets to queries: the Hungarian matching of Mask2Former, on a few sampled points."""

from collections.abc import Sequence
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
