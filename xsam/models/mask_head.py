"""Name the queries: by the conditions the language model was asked about, or by a fixed list in stage 1."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConditionClassifier(nn.Module):
    """Cosine similarity to the condition embeddings and to one learned background row, times a learned scale. Without
    `background` that row is zero, and what is similar to no condition is background."""

    def __init__(self, channels: int = 256, background: bool = True) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))  # as CLIP starts, arXiv 2103.00020
        self.background = nn.Parameter(torch.randn(1, channels) * background, requires_grad=background)

    def forward(self, states: Tensor, conditions: Tensor, valid: Tensor) -> Tensor:
        """Score queries float[L, D, Q, C] against conditions float[D, K, C], of which bool[D, K] are no padding:
        float32[L, D, Q, K + 1]; the last column is the background, padding is -1e9."""
        rows = torch.cat([conditions, self.background.expand(len(conditions), -1, -1).to(conditions.dtype)], dim=1)
        cosine = F.normalize(states.float(), dim=-1) @ F.normalize(rows.float(), dim=-1).transpose(1, 2)
        logits = (self.logit_scale.float().exp() * cosine).clamp(-500, 500)
        return logits.masked_fill(~F.pad(valid, (0, 1), value=True)[:, None], -1e9)


class ClosedSetClassifier(nn.Module):
    """A linear layer over a fixed list of classes; the last output is "no object"."""

    def __init__(self, channels: int = 256, num_classes: int = 133) -> None:
        super().__init__()
        self.predictor = nn.Linear(channels, num_classes + 1)

    def forward(self, states: Tensor, conditions: Tensor, valid: Tensor) -> Tensor:
        """float[L, D, Q, C] -> float32[L, D, Q, num_classes + 1]; there are no conditions to look at."""
        return self.predictor(states).float()
