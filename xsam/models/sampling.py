"""Bilinear samples of maps at places (x, y) in [0, 1], as `grid_sample(align_corners=False)` takes them, 0 outside."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def on_cpu(x: Tensor) -> bool:
    """Whether what is fastest on a CPU is meant. The fake tensors of `xsam doctor` stand for a GPU's, and torch.compile
    takes minutes for many small pieces."""
    return x.is_cpu and type(x) is Tensor and not torch.compiler.is_compiling()


def corners(places: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four cells around each place, in a map with two more cells on every side: row-major number and bilinear
    weight, as `grid_sample(align_corners=False)` multiplies them. Places far outside end in the added cells.

    places: float[.., 2], (x, y) in [0, 1] of the map. height, width: of the map itself."""
    x, y = places[..., 0] * width - 0.5, places[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    right, below = x - left, y - top
    column, row = left.int().clamp_(-2, width), top.int().clamp_(-2, height)
    first = (row + 2) * (width + 4) + column + 2
    for dy, along_y in enumerate((1 - below, below)):
        for dx, along_x in enumerate((1 - right, right)):
            yield first + (dy * (width + 4) + dx), along_x * along_y


def sample_ids(ids: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of masks that are held as id maps, without ever making the masks. Equals
    `grid_sample(mask, align_corners=False)` of the 0 / 1 masks with zeros outside, float32[N, P].

    ids: int16[layers, S, S], -1 = none. index: int64[N], the masks. points: float[P, 2] shared by the masks, or
    float[N, P, 2]; (x, y) in [0, 1]."""
    layers, index = F.pad(ids, (2, 2, 2, 2), value=-1).flatten(1), index.to(ids.dtype)[:, None]
    sampled = torch.zeros((len(index), points.shape[-2]), device=points.device)
    for cell, weight in corners(points.float(), *ids.shape[1:]):
        for layer in layers:  # a mask lives in one of them, so they add up
            sampled += weight * (layer.index_select(0, cell.flatten()).view_as(cell) == index)
    return sampled


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of C maps float[C, h, w] at float[P, 2], (x, y) in [0, 1]: float[P, C]. As `grid_sample`, but on
    a CPU many times as fast, as the values of a place stand side by side. Not for gradients of the maps."""
    rows = F.pad(maps, (2, 2, 2, 2)).flatten(1).T.contiguous()
    cells, weights = (torch.stack(parts, -1) for parts in zip(*corners(points, *maps.shape[1:]), strict=True))
    return F.embedding_bag(cells, rows, mode="sum", per_sample_weights=weights)


def sample_levels(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]], with_bags: bool
) -> Tensor:
    """Weighted sums of samples of V levels, float[B, S, A * c] (Deformable DETR, arXiv 2010.04159, eq. 3). The samples,
    V * P times as large as the maps, are never kept: they are made again in the backward pass. `with_bags` is the
    faster way on a CPU.

    value: float[B, S, A, c]. locations: float[B, S, A, V, P, 2], (x, y) in [0, 1]. weights: float[B, S, A, V, P]."""
    dtype = locations.dtype  # float32 in a bf16 model
    cells, places, weights = (  # [B * A, S, ..]
        each.transpose(1, 2).flatten(0, 1) for each in (value.to(dtype), locations, weights.to(dtype))
    )
    total = torch.zeros_like(cells)
    levels = cells.split([h * w for h, w in shapes], dim=1), places.unbind(2), weights.unbind(2), shapes
    for *maps, (h, w) in zip(*levels, strict=True):
        if with_bags:
            heads = zip(*maps, strict=True)
            total = total + torch.stack([checkpoint(_by_bag, *head, h, w, use_reentrant=False) for head in heads])
        else:
            total = total + checkpoint(_by_grid, *maps, h, w, use_reentrant=False)
    return total.unflatten(0, (len(value), -1)).transpose(1, 2).flatten(2).to(value.dtype)


def _by_grid(cells: Tensor, places: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """N maps: float[N, h * w, c], float[N, S, P, 2] and float[N, S, P] -> float[N, S, c]."""
    maps = cells.transpose(1, 2).unflatten(2, (height, width))
    sampled = F.grid_sample(maps, 2 * places - 1, align_corners=False)  # [N, c, S, P]
    return torch.einsum("ncsp,nsp->nsc", sampled, weights)


def _by_bag(cells: Tensor, places: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """One map: float[h * w, c], float[S, P, 2] and float[S, P] -> float[S, c]. What it needs fits the cache."""
    rows = F.pad(cells.unflatten(0, (height, width)), (0, 0, 2, 2, 2, 2)).flatten(0, 1)
    numbers, strengths = zip(*corners(places, height, width), strict=True)
    return _Bag.apply(rows, torch.cat(numbers, -1), torch.cat([weights * strength for strength in strengths], -1))


class _Bag(torch.autograd.Function):
    """Sums of weighted rows: `F.embedding_bag`, with a backward pass that sorts faster."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cells: Tensor, strengths: Tensor) -> Tensor:
        """float[N, c], int32[S, n], float[S, n] -> float[S, c]."""
        ctx.save_for_backward(rows, cells, strengths)
        return F.embedding_bag(cells, rows, mode="sum", per_sample_weights=strengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        rows, cells, strengths = ctx.saved_tensors
        grad, (S, n) = grad.contiguous(), cells.shape
        owner = torch.arange(S, dtype=torch.int32, device=grad.device).repeat_interleave(n)
        dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, rows, cells.flatten(), owner[::n] * n, owner, 0
        )
        # In the order of their cells, the queries of a cell are its bag.
        ordered, order = cells.flatten().sort(stable=True)
        numbers = torch.arange(len(rows), dtype=torch.int32, device=grad.device)
        bags, queries = torch.searchsorted(ordered, numbers, out_int32=True), owner.index_select(0, order)
        strengths = strengths.flatten().index_select(0, order)
        return F.embedding_bag(queries, grad, bags, mode="sum", per_sample_weights=strengths), None, dots.view(S, n)
