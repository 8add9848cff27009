"""From the connector's pyramid to pixel features: deformable encoder, one FPN level (Mask2Former, arXiv 2112.01527)."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .sampling import on_cpu, sample_levels


@lru_cache(maxsize=32)
def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sine-cosine position of every cell, float[height * width, channels]: y in the first half, x in the second.
    Coordinates count from 1 and are scaled to (0, 2 pi]; sine and cosine alternate; temperature 10000 (DETR,
    arXiv 2005.12872, as Mask2Former uses it)."""
    half = channels // 2
    period = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)

    def axis(size: int) -> Tensor:
        angle = torch.arange(1, size + 1, device=device)[:, None] / (size + 1e-6) * (2 * math.pi) / period
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)

    y, x = axis(height)[:, None].expand(-1, width, -1), axis(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


@lru_cache(maxsize=32)
def _cell_centres(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """float[S, 2], (x, y) in [0, 1] of the centre of every cell of every level."""
    axes = [[(torch.arange(n, device=device) + 0.5) / n for n in shape] for shape in shapes]
    return torch.cat([torch.cartesian_prod(rows, columns).flip(-1) for rows, columns in axes])


BAGS = 1 << 16  # queries of all heads; fewer are faster together on a CPU


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
        return self.output_proj(
            sample_levels(value, locations, weights, shapes, with_bags=on_cpu(value) and value[..., 0].numel() > BAGS)
        )


class PixelDecoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both post-norm."""

    def __init__(self, channels: int, num_heads: int, feedforward: int, num_levels: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(channels, num_heads, num_levels)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, feedforward), nn.Linear(feedforward, channels)
        self.final_layer_norm = nn.LayerNorm(channels)

    def forward(
        self, tokens: Tensor, positions: Tensor, references: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """float[B, S, C] -> float[B, S, C]; `positions` float[S, C], `references` float[S, 2]."""
        tokens = tokens + self.self_attn(tokens + positions, tokens, references, shapes)
        # Of what is inside nothing is kept: it is the largest part, and all but `fc2` is made again.
        return self.final_layer_norm(checkpoint(self._feed_forward, tokens, use_reentrant=False))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        tokens = self.self_attn_layer_norm(tokens)
        return tokens + self.fc2(self.fc1(tokens).relu_())


class PixelDecoder(nn.Module):
    """Mix three feature levels and make the mask features, at the finest level's resolution (1/8 in X-SAM).
    `in_channels` are those of the levels, finest first, as the connector gives them; all outputs have `channels`."""

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, depth: int = 6, num_heads: int = 8,
        feedforward: int = 1024,
    ) -> None:  # fmt: skip
        super().__init__()
        coarse_first, num_levels = in_channels[::-1], len(in_channels)
        projections = (nn.Sequential(nn.Conv2d(c, channels, 1), nn.GroupNorm(32, channels)) for c in coarse_first)
        self.input_projections = nn.ModuleList(projections)
        self.level_embed = nn.Parameter(torch.zeros(num_levels, channels))
        layers = (PixelDecoderLayer(channels, num_heads, feedforward, num_levels) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.lateral = nn.Sequential(nn.Conv2d(in_channels[0], channels, 1, bias=False), nn.GroupNorm(32, channels))
        self.output = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(32, channels), nn.ReLU()
        )
        self.mask_projection = nn.Conv2d(channels, channels, 1)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and not name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
                nn.init.xavier_uniform_(parameter)
        nn.init.zeros_(self.level_embed)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps float[I, c, h, w], finest first -> mask features float[I, C, h0, w0] at the finest resolution, and the
        decoded levels float[I, C, h, w], coarsest first."""
        maps = [projection(x) for projection, x in zip(self.input_projections, reversed(pyramid), strict=True)]
        shapes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        C, device = tokens.shape[-1], tokens.device
        pairs = zip(shapes, self.level_embed, strict=True)
        positions = torch.cat([sine_positions(*shape, C, device) + embed for shape, embed in pairs]).to(tokens.dtype)
        references = _cell_centres(shapes, device)
        for layer in self.layers:
            tokens = layer(tokens, positions, references, shapes)
        parts = tokens.split([h * w for h, w in shapes], dim=1)
        levels = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
        return self.mask_projection(self.output(self.lateral(pyramid[0]) + levels[-1])), levels
