"""The optimizer and its learning-rate schedule."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..structures import UserError

START_FACTOR = 1e-5  # of the learning rate, at the first step of the warm-up (official value)


def adamw(groups: list[dict[str, Any]], betas: Sequence[float]) -> torch.optim.AdamW:
    """AdamW on groups that carry their own `lr` and `weight_decay`; fused, on the CPU too."""
    return torch.optim.AdamW(groups, betas=(betas[0], betas[1]), fused=True)


def schedule(
    kind: str, steps: int, *, warmup: float = 0.03, milestones: Sequence[float] = (), gamma: float = 0.1
) -> Callable[[int], float]:
    """A function step -> factor of the learning rate, for steps 0 .. `steps` - 1.

    The first `warmup * steps` steps rise linearly from START_FACTOR, the last of them to 1. Then "cosine"
    falls to 0 over the rest of the steps; "multistep" multiplies by `gamma` at each of `milestones`, which
    are fractions of `steps` counted from the end of the warm-up, as mmengine's schedulers count them."""
    if kind not in ("cosine", "multistep"):
        raise UserError(f"config key stage.schedule.kind: {kind!r} is not known; give cosine or multistep")
    warm = round(warmup * steps)
    drops = [round(milestone * steps) for milestone in milestones]

    def factor(step: int) -> float:
        if step < warm - 1:
            return START_FACTOR + (1 - START_FACTOR) * step / (warm - 1)
        done = max(step - warm, 0)
        if kind == "cosine":
            return (1 + math.cos(math.pi * done / max(steps - warm, 1))) / 2
        return gamma ** sum(done >= drop for drop in drops)

    return factor
