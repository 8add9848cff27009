"""Image encoders: SAM's ViT, SigLIP, and any timm ViT in either role.

All take square, normalised float images of one fixed `image_size` and have `mean` and `std` (of pixels in 0..1),
`channels` and `gradient_checkpointing_enable()`. A vision encoder returns the tokens that the language model reads,
float[B, N, C]; a segmentation encoder returns channels-last maps float[B, h, w, C] by hidden-state index: 0 stands
before the first block, k after k blocks."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SamVisionConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.models.sam.modeling_sam import SAM_VISION_ATTENTION_CLASSES, SamVisionAttention, SamVisionLayer

from ..structures import UserError
from .sampling import on_cpu


class ResidualStem(nn.Module):
    """Patch embedding as a small residual CNN, float[B, 3, S, S] -> float[B, channels, S / patch, S / patch].
    A linear patch embedding needs large-scale pre-training before a ViT sees shapes; this one learns from a few
    thousand images. log2(patch_size) strided convolutions, each with a residual block; the width doubles each time."""

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 1 << steps or channels % patch_size:
            raise UserError(f"stem='residual' needs patch_size 2, 4, 8, ... dividing {channels}, not {patch_size}")
        widths = [3] + [channels >> (steps - 1 - i) for i in range(steps)]
        self.down = nn.ModuleList(_conv_norm(a, b, stride=2) for a, b in itertools.pairwise(widths))
        self.block = nn.ModuleList(nn.Sequential(_conv_norm(c, c), nn.GELU(), _conv_norm(c, c)) for c in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        for down, block in zip(self.down, self.block, strict=True):
            x = F.gelu(down(x))
            x = F.gelu(x + block(x))
        return x


def _conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(math.gcd(8, out_channels), out_channels))


class Encoder(nn.Module):
    """What all encoders share: the size check and activation checkpointing, block by block."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int
    image_size: int
    gradient_checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """Recompute every block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = True

    def _block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, *args, use_reentrant=False)
        return block(x, *args)

    def _check_size(self, images: Tensor) -> None:
        h, w = images.shape[-2:]
        if (h, w) != (self.image_size,) * 2:
            built = f"{type(self).__name__} was built for image_size={self.image_size}"
            raise UserError(f"{built} and got {h} x {w}; give the encoder and the images the same size")


# Scores of attention at a time on a CPU: without gradients so many that they stay in the cache; with them so many that
# malloc, from 32 MB on, gives each piece back at once.
SCORES = {False: 1 << 18, True: 1 << 23}


class SamAttention(SamVisionAttention):
    """Self-attention in square windows with decomposed relative positions (MViTv2, arXiv 2112.01526; SAM).
    score(i, j) = q_i k_j / sqrt(d) + q_i Rh[row_i - row_j] + q_i Rw[column_i - column_j]."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float[B, h, w, 3 * C], what `self.qkv` makes -> float[B, h, w, C]. A window has the side that the tables of
        positions are for. The last ones reach beyond the grid; keys there are those of zeros."""
        qkv, fill = (x.unflatten(-1, (3, self.num_attention_heads, -1)) for x in (
            hidden_states, self.qkv(hidden_states.new_zeros(self.qkv.in_features))
        ))  # fmt: skip
        position = torch.arange((len(self.rel_pos_h) + 1) // 2, device=qkv.device)
        offset = position[:, None] - position + len(position) - 1
        along = self.rel_pos_h[offset], self.rel_pos_w[offset]  # [side, side, d], by query and key
        scores = qkv[..., 0, :, 0].numel() * len(position) ** 2
        if on_cpu(qkv) and scores > SCORES[True]:
            heads = zip(qkv.unbind(4), fill.unbind(1), strict=True)
            attended = [checkpoint(_in_windows, attend_head, *head, *along, use_reentrant=False) for head in heads]
            return self.proj(torch.cat(attended, -1))
        return self.proj(_in_windows(attend_folded, qkv, fill, *along).flatten(3))


def _in_windows(attend: Callable[..., Tensor], qkv: Tensor, fill: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """float[B, h, w, 3, ..] -> float[B, h, w, ..]."""
    (b, h, w), side = qkv.shape[:3], len(along_h)
    qkv = torch.cat([qkv, fill.expand(b, h, -w % side, *fill.shape)], 2)
    qkv = torch.cat([qkv, fill.expand(b, -h % side, qkv.shape[2], *fill.shape)], 1)
    windows = qkv.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)  # [B, rows, columns, s, s, ..]
    attended = attend(windows.flatten(0, 2), along_h, along_w)
    return attended.unflatten(0, windows.shape[:3]).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :h, :w]


def attend_folded(qkv: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """float[N, s, s, 3, heads, d] -> float[N, s, s, heads, d]; along_h, along_w: float[s, s, d].

    The positions depend on the key only through its row and its column, so they are extra columns of q against one-hot
    columns of k: one fused attention, no bias of all pairs in memory."""
    q, k, v = qkv.permute(3, 0, 4, 1, 2, 5)  # [N, heads, s, s, d]
    s, d = q.shape[-2:]
    rows = torch.einsum("bnhwd,hkd->bnhwk", q, along_h)
    columns = torch.einsum("bnhwd,wkd->bnhwk", q, along_w)
    one_hot = torch.eye(s, dtype=q.dtype, device=q.device)
    query = torch.cat([q * d**-0.5, rows, columns], -1).flatten(2, 3)
    key = torch.cat([k, one_hot[:, None].expand_as(rows), one_hot.expand_as(columns)], -1).flatten(2, 3)
    value = F.pad(v, (0, 2 * s)).flatten(2, 3)  # the flash kernels want one width for all three
    out = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :d]
    return out.unflatten(2, (s, s)).permute(0, 2, 3, 1, 4)


def attend_head(qkv: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
    """The same of one head, float[N, s, s, 3, d] -> float[N, s, s, d], for a CPU, where a matrix product costs what its
    width says: with a bias, of a few lines of queries at a time."""
    (q, k, v), (n, s) = qkv.unbind(3), qkv.shape[:2]
    key, value, attended = k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None], []
    lines = max(1, SCORES[torch.is_grad_enabled()] // (n * s**3))
    for queries, along in zip(q.split(lines, 1), along_h.split(lines), strict=True):
        rows = torch.einsum("bhwd,hkd->bhwk", queries, along)
        columns = torch.einsum("bhwd,wkd->bhwk", queries, along_w)
        bias = (rows[..., None] + columns[..., None, :]).flatten(3).flatten(1, 2)
        out = F.scaled_dot_product_attention(queries.flatten(1, 2)[:, None], key, value, bias[:, None])
        attended.append(out.view_as(queries))
    return torch.cat(attended, 1)


SAM_VISION_ATTENTION_CLASSES["folded"] = SamAttention  # where transformers' layers look theirs up


class SamLayer(SamVisionLayer):
    """A block of SAM's encoder. Norms, windows and GELU are computed again in the backward pass: that is cheap, and
    what they make is more than a third of what would be kept."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float[B, h, w, C] -> the same shape."""
        x = hidden_states + self.attn(checkpoint(self._project, hidden_states, use_reentrant=False))
        return x + checkpoint(self._leave, checkpoint(self._enter, x, use_reentrant=False), use_reentrant=False)

    def _project(self, x: Tensor) -> Tensor:
        return self.attn.qkv(self.layer_norm1(x))

    def _enter(self, x: Tensor) -> Tensor:
        return self.mlp.lin1(self.layer_norm2(x))

    def _leave(self, x: Tensor) -> Tensor:
        return self.mlp.lin2(self.mlp.act(x))


class SamEncoder(Encoder):
    """The image encoder of Segment Anything (arXiv 2304.02643) without its neck; the defaults are SAM-L. Layers and
    names are those of transformers' SamVisionEncoder: the padding of the last windows is attended to."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

    def __init__(
        self, *, image_size: int = 1024, patch_size: int = 16, channels: int = 1024, depth: int = 24,
        num_heads: int = 16, mlp_ratio: float = 4.0, window_size: int = 14,
        global_blocks: Sequence[int] = (5, 11, 17, 23), stem: str = "patchify",
    ) -> None:  # fmt: skip
        super().__init__()
        self.image_size, self.channels, self.grid = image_size, channels, image_size // patch_size
        self.global_blocks = tuple(global_blocks)
        patchify = nn.Sequential(OrderedDict(projection=nn.Conv2d(3, channels, patch_size, stride=patch_size)))
        self.patch_embed = _stem(stem, channels, patch_size, patchify)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid, self.grid, channels))
        config = SamVisionConfig(
            hidden_size=channels, mlp_dim=int(channels * mlp_ratio), num_attention_heads=num_heads,
            image_size=image_size, patch_size=patch_size, attn_implementation="folded",
        )  # fmt: skip
        windows = [0 if i in self.global_blocks else window_size for i in range(depth)]  # 0 = attends everywhere
        self.layers = nn.ModuleList(SamLayer(config, window) for window in windows)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for linear in (module for module in self.layers.modules() if isinstance(module, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """float[B, 3, S, S] -> float[B, h, w, C] per hidden-state index; stops after the last of them.
        Raises UserError if S is not `image_size` or an index is beyond the depth."""
        self._check_size(images)
        _check_indices(indices, 0, len(self.layers))
        x = self.patch_embed(images).permute(0, 2, 3, 1) + self.pos_embed
        states = {0: x}
        for i, layer in enumerate(self.layers[: max(indices)], start=1):
            x = self._block(layer, x)
            if i in indices:
                states[i] = x
        return [states[i] for i in indices]


def _stem(kind: str, channels: int, patch_size: int, patchify: nn.Module) -> nn.Module:
    if kind not in ("patchify", "residual"):
        raise UserError(f"stem={kind!r}: there is 'patchify' and 'residual'")
    return ResidualStem(channels, patch_size) if kind == "residual" else patchify


def _check_indices(indices: Sequence[int], first: int, depth: int) -> None:
    if beyond := [index for index in indices if not first <= index <= depth]:
        raise UserError(f"hidden state {beyond[0]} was asked of an encoder that has {first} to {depth}")


def resize_positions(state: Mapping[str, Tensor], encoder: SamEncoder, prefix: str = "") -> dict[str, Tensor]:
    """The positions of a SAM state dict interpolated to the size of `encoder`: `pos_embed` (bilinear) and the
    relative-position tables of the global blocks (linear); `prefix` stands before each name."""
    name, side = f"{prefix}pos_embed", encoder.grid
    grid = F.interpolate(state[name].float().permute(0, 3, 1, 2), size=(side, side), mode="bilinear")
    resized = {name: grid.permute(0, 2, 3, 1).to(state[name].dtype)}
    for block, axis in itertools.product(encoder.global_blocks, "hw"):
        name = f"{prefix}layers.{block}.attn.rel_pos_{axis}"
        table = F.interpolate(state[name].float().T[None], size=2 * side - 1, mode="linear")
        resized[name] = table[0].T.to(state[name].dtype)
    return resized


def resize_grid(table: Tensor, cells: int) -> Tensor:
    """Positions float[N, C] of a square grid of N cells, interpolated to one of `cells` cells (bicubic)."""
    old, new = math.isqrt(len(table)), math.isqrt(cells)
    if old * old != len(table) or new * new != cells:
        raise UserError(f"{len(table)} positions cannot become {cells}: only square grids are resized")
    grid = F.interpolate(table.float().T.view(1, -1, old, old), size=(new, new), mode="bicubic", antialias=True)
    return grid[0].flatten(1).T.to(table.dtype)


class SiglipEncoder(Encoder):
    """SigLIP's vision tower up to its last layer but one; the defaults are so400m-patch14-384.
    X-SAM reads the output of layer `depth - 1` of `depth`: the last layer, final norm and pooling head are not built.
    Layers and names are those of transformers' SiglipVisionModel."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(
        self, *, image_size: int = 384, patch_size: int = 14, channels: int = 1152, depth: int = 27,
        num_heads: int = 16, mlp_channels: int = 4304, stem: str = "patchify",
    ) -> None:  # fmt: skip
        super().__init__()
        self.image_size, self.channels = image_size, channels
        tower = SiglipVisionModel(SiglipVisionConfig(
            hidden_size=channels, intermediate_size=mlp_channels, num_hidden_layers=depth - 1,
            num_attention_heads=num_heads, image_size=image_size, patch_size=patch_size, vision_use_head=False,
            attn_implementation="sdpa",
        ))  # fmt: skip
        self.embeddings, self.encoder = tower.embeddings, tower.encoder
        self.embeddings.patch_embedding = _stem(stem, channels, patch_size, self.embeddings.patch_embedding)

    def forward(self, images: Tensor) -> Tensor:
        """float[B, 3, s, s] -> float[B, N, C], row-major. Raises UserError if s is not `image_size`."""
        self._check_size(images)
        x = self.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        x = x + self.embeddings.position_embedding.weight
        for layer in self.encoder.layers:
            x = self._block(layer, x, None)
        return x


class TimmEncoder(Encoder):
    """A timm ViT cut after block `last`, without final norm and head; `overrides` go to timm.create_model. An unknown
    name raises UserError."""

    last: int  # -1 = the last

    def __init__(self, *, name: str, image_size: int, **overrides: Any) -> None:
        super().__init__()
        self.name, self.image_size, self.overrides = name, image_size, overrides
        self.vit = self._vit()
        pixels = self.vit.pretrained_cfg
        self.channels, self.mean, self.std = self.vit.embed_dim, pixels["mean"], pixels["std"]

    def pretrained(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This encoder's state dict from the weights that timm publishes, positions resampled to `image_size` by timm.
        Raises UserError if they do not fit."""
        try:
            vit = self._vit(pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": dict(tensors)})
        except RuntimeError as error:
            reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
            raise UserError(f"the weights of timm's {self.name} do not fit: {reason}") from None
        return {f"vit.{name}": tensor for name, tensor in vit.state_dict().items()}

    def gradient_checkpointing_enable(self) -> None:
        self.vit.set_grad_checkpointing(True)

    def _maps(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Outputs of blocks, float[B, C, h, w], in ascending order."""
        self._check_size(images)
        return self.vit.forward_intermediates(images, indices=list(blocks), stop_early=True, intermediates_only=True)

    def _vit(self, **options: Any) -> Any:
        import timm  # takes two seconds, and only configs that name a timm backbone need it

        if not timm.is_model(self.name):
            raise UserError(f"timm has no model {self.name!r}; timm.list_models('*vit*') lists them")
        vit = timm.create_model(self.name, img_size=self.image_size, **{**self.overrides, **options})
        if not (hasattr(vit, "blocks") and hasattr(vit, "forward_intermediates")):
            raise UserError(f"timm model {self.name!r} is not a plain ViT; choose a vit_*, samvit_* or eva*")
        vit.prune_intermediate_layers([self.last], prune_norm=True, prune_head=True)
        return vit


class TimmVisionEncoder(TimmEncoder):
    """A timm ViT as vision encoder: the patch tokens after the last block but one."""

    last = -2

    def forward(self, images: Tensor) -> Tensor:
        """float[B, 3, s, s] -> float[B, N, C], row-major. Raises UserError if s is not `image_size`."""
        return self._maps(images, [len(self.vit.blocks) - 1])[0].flatten(2).transpose(1, 2)


class TimmSegEncoder(TimmEncoder):
    """A timm ViT as segmentation encoder."""

    last = -1

    def forward(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """float[B, 3, S, S] -> float[B, h, w, C] per hidden-state index; stops after the last of them.
        Raises UserError if S is not `image_size` or an index is not in 1 .. depth (timm has no state 0)."""
        _check_indices(indices, 1, len(self.vit.blocks))
        kept = sorted(set(indices))
        states = dict(zip(kept, self._maps(images, [i - 1 for i in kept]), strict=True))
        return [states[i].permute(0, 2, 3, 1) for i in indices]
