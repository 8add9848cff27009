"""Masked-attention decoder: queries look where their last mask was (Mask2Former, arXiv 2112.01527)."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pixel_decoder import sine_positions


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention float[D, Q, C] of projected queries float[D, Q, C] to keys and values float[D, N, C].

    bias: float[D, 1, Q, N], added to the scores of all heads: -inf where a query may not look. None: nothing."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention among the queries; positions enter queries and keys only."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """float[D, Q, C] -> float[D, Q, C]; `positions` float[Q, C]."""
        placed = x + positions
        return self.out_proj(attend(self.q_proj(placed), self.k_proj(placed), self.v_proj(x), self.num_heads))


class MaskedCrossAttention(nn.Module):
    """Multi-head attention from queries to pixels, restricted per query. The three projections are one tensor."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, spread: Callable[[Tensor], Tensor], bias: Tensor
    ) -> Tensor:
        """float[D, Q, C] from queries `x` float[D, Q, C], with their positions, to the pixels of their images.

        keys, values: float[I, N, C], projected once however many items share an image; `spread` leaves them so, and the
        queries of an image stand in a row, or copies them for every item. bias: float[G, 1, D * Q / G, N], G = I or D.
        """
        weights, (q_bias, _, v_bias) = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(*each) for each in zip((x, keys, values), weights, strict=True))
        k, v, q = spread(k), spread(v), (q + q_bias).view(len(bias), -1, q.shape[-1])
        # A constant added to all keys changes no softmax, and one added to all values goes through it unchanged.
        return self.out_proj(attend(q, k, v, self.num_heads, bias).view_as(x) + v_bias)


class MaskDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; post-norm."""

    def __init__(self, channels: int, num_heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross_attn = MaskedCrossAttention(channels, num_heads)
        self.cross_attn_layer_norm = nn.LayerNorm(channels)
        self.self_attn = SelfAttention(channels, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, feedforward), nn.Linear(feedforward, channels)
        self.final_layer_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor, *pixels: Any) -> Tensor:
        """float[D, Q, C] -> float[D, Q, C]; arguments as in the attentions, `pixels` those of the masked one."""
        x = self.cross_attn_layer_norm(x + self.cross_attn(x + positions, *pixels))
        x = self.self_attn_layer_norm(x + self.self_attn(x, positions))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class MaskDecoder(nn.Module):
    """Q learned queries, conditioned on a `<SEG>` embedding, become mask embeddings; every step is supervised: there
    are `depth` + 1 outputs, the first before any block."""

    def __init__(
        self, channels: int = 256, num_queries: int = 200, depth: int = 9, num_heads: int = 8, feedforward: int = 2048,
        num_levels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = (num_queries, num_queries, num_levels)
        learned = (nn.Parameter(torch.randn(size, channels) * 0.02) for size in sizes)
        self.query_features, self.query_positions, self.level_embed = learned
        self.layers = nn.ModuleList(MaskDecoderLayer(channels, num_heads, feedforward) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(channels)
        self.mask_embedder = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels),
        )  # fmt: skip
        for matrix in (parameter for parameter in self.layers.parameters() if parameter.dim() > 1):
            nn.init.xavier_uniform_(matrix)

    def forward(
        self, levels: Sequence[Tensor], mask_features: Tensor, item_image: Tensor, seg_embeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Normalised query states and mask embeddings of D items, both float[L, D, Q, C].

        levels: float[I, C, h, w], coarsest first; block l reads level l modulo their number. item_image: int64[D].
        mask_features: float[I, C, h0, w0]; mask logits are `mask_embeds @ mask_features`.
        seg_embeds: float[D, C], added to every query's content; zeros without language."""
        # Where all images have as many items, and these stand in order, no keys and values need to be copied.
        even = [image for image in range(len(mask_features)) for _ in range(len(item_image) // len(mask_features))]
        spread = (lambda t: t) if item_image.tolist() == even else (lambda t: t.index_select(0, item_image))
        inputs = []  # of every level: keys, values, mask features
        for level, embed in zip(levels, self.level_embed, strict=True):
            h, w = level.shape[-2:]
            value = level.flatten(2).transpose(1, 2).contiguous() + embed
            key = value + sine_positions(h, w, value.shape[-1], value.device).to(value.dtype)
            # Mask logits are linear in the mask features: the features are resized once, not Q logits each time.
            small = F.interpolate(mask_features.detach(), (h, w), mode="bilinear", align_corners=False)
            inputs.append((key, value, spread(small.flatten(2))))
        x = self.query_features + seg_embeds[:, None]
        states = [self.layer_norm(x)]
        embeds = [self.mask_embedder(states[0])]
        for layer, (key, value, features) in zip(self.layers, cycle(inputs), strict=False):
            with torch.no_grad():
                hidden = embeds[-1].view(len(features), -1, x.shape[-1]) @ features < 0  # a probability below one half
                hidden &= ~hidden.all(-1, keepdim=True)  # a query that sees nothing sees everything
                bias = x.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
            x = layer(x, self.query_positions, key, value, spread, bias[:, None])
            states.append(self.layer_norm(x))
            embeds.append(self.mask_embedder(states[-1]))
        return torch.stack(states), torch.stack(embeds)
