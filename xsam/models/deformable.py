"""Multi-scale deformable attention in plain torch (Deformable DETR, arXiv 2010.04159, eq. 3)."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Every token looks at a few learned places of every level, instead of at all places. Shape symbols: S = sum of
    h * w over the levels, A heads, V levels, P points."""

    def __init__(self, channels: int, num_heads: int = 8, num_levels: int = 3, num_points: int = 4) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(channels, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(channels, num_heads * num_levels * num_points)
        self.value_proj, self.output_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        # Head a starts looking in direction a of a circle, point p at p + 1 cells; all points are equally strong.
        for zero in (*self.sampling_offsets.parameters(), *self.attention_weights.parameters()):
            nn.init.zeros_(zero)
        angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        grid = directions[:, None, None, :] * torch.arange(1, num_points + 1)[:, None]  # [A, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, num_levels, -1, -1).flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, values: Tensor, references: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Gather from the levels, float[B, S, C].

        values: float[B, S, C], tokens, levels (h, w) of `shapes` one after the other, each row-major. queries: the same
        plus their positions. references: float[S, 2], (x, y) in [0, 1] of every query."""
        B, S, A, V, P = *queries.shape[:2], self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(values).view(B, S, A, -1)
        offsets = self.sampling_offsets(queries).view(B, S, A, V, P, 2)
        weights = self.attention_weights(queries).view(B, S, A, V * P).softmax(-1).view(B, S, A, V, P)
        sizes = torch.tensor([[w, h] for h, w in shapes], dtype=offsets.dtype, device=offsets.device)
        locations = references[:, None, None, None, :] + offsets / sizes[:, None]
        # The bag is the faster forward on a CPU, but its backward sorts all its indices.
        sample = sample_by_bag if value.device.type == "cpu" and not torch.is_grad_enabled() else sample_by_grid
        return self.output_proj(sample(value, locations, weights, shapes))


def sample_by_grid(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Weighted bilinear samples, float[B, S, A * c], one `grid_sample` a level; nothing outside the map.

    value: float[B, S, A, c]. locations: float[B, S, A, V, P, 2], (x, y) in [0, 1]. weights: float[B, S, A, V, P]."""
    B, S, A, c = value.shape
    grids = (2 * locations - 1).permute(0, 2, 1, 3, 4, 5).flatten(0, 1)  # [B * A, S, V, P, 2]
    weights = weights.permute(0, 2, 1, 3, 4).flatten(0, 1)  # [B * A, S, V, P]
    output = value.new_zeros(B * A, c, S)
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(B * A, c, *shapes[level])
        sampled = F.grid_sample(maps.float(), grids[:, :, level].float(), align_corners=False)  # [B * A, c, S, P]
        output = output + torch.einsum("ncsp,nsp->ncs", sampled.to(weights.dtype), weights[:, :, level])
    return output.view(B, A * c, S).transpose(1, 2)


def sample_by_bag(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The same sum as one `embedding_bag` of 4 * V * P weighted rows a query and head: no sample is ever stored. On a
    CPU about twice as fast forward as `sample_by_grid`; arguments and result are the same."""
    B, S, A, c = value.shape
    sizes = torch.tensor([[w, h] for h, w in shapes], device=value.device)[:, None]  # [V, 1, 2]
    starts = torch.tensor([0] + [h * w for h, w in shapes[:-1]], device=value.device).cumsum(0)[:, None]
    rows, strengths = [], []
    for cell, inside, along_x, along_y in corners(locations, sizes):
        strengths.append(torch.where(inside, weights * along_x * along_y, 0))
        rows.append(torch.where(inside, starts + cell, 0))
    head = torch.arange(B * A, device=value.device).view(B, 1, A, 1, 1, 1) * S
    indices, table = (torch.stack(rows, -1) + head).reshape(B * S * A, -1), value.transpose(1, 2).reshape(-1, c)
    bag_weights = torch.stack(strengths, -1).reshape(B * S * A, -1)  # float32 in a bf16 model, as the locations are
    bags = F.embedding_bag(indices, table.to(bag_weights.dtype), mode="sum", per_sample_weights=bag_weights)
    return bags.view(B, S, A * c).to(value.dtype)


def corners(places: Tensor, size: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The four cells around each place: row-major number, whether it is in the map, weights along x and along y, as
    `grid_sample(align_corners=False)` multiplies them.

    places: float[.., 2], (x, y) in [0, 1]. size: int64[.., 2], width and height of the maps."""
    position = places * size - 0.5
    corner = position.detach().floor()
    fraction, corner = position - corner, corner.long()
    for dx, dy in itertools.product((0, 1), (0, 1)):
        x, y = corner[..., 0] + dx, corner[..., 1] + dy
        inside = (x >= 0) & (x < size[..., 0]) & (y >= 0) & (y < size[..., 1])
        along_x, along_y = ((part if d else 1 - part) for part, d in zip(fraction.unbind(-1), (dx, dy), strict=True))
        yield y * size[..., 0] + x, inside, along_x, along_y
