"""From segmentation-encoder states to the feature pyramid of the pixel decoder (X-SAM, arXiv 2508.04655)."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..structures import UserError
from .projector import pixel_shuffle_columns_first, pixel_unshuffle


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of float[B, C, h, w]; statistics in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Connector(nn.Module):
    """One branch per level: three normalised convolutions without activations, then a pixel shuffle. Level i has
    `scales[i]` times the resolution of its input (a power of two) and `out_channels[i]` channels."""

    def __init__(
        self, in_channels: int, hidden_channels: int = 512, out_channels: Sequence[int] = (512, 1024, 2048),
        scales: Sequence[float] = (2, 1, 0.5),
    ) -> None:  # fmt: skip
        super().__init__()
        self.scales = tuple(scales)
        self.branches = nn.ModuleList()
        for channels, scale in zip(out_channels, scales, strict=True):
            if (unshuffled := int(channels * scale**2)) != channels * scale**2:
                problem = f"out_channels {channels} at scale {scale} is not a multiple of {scale**-2:g}"
                raise UserError(f"connector: {problem}")
            self.branches.append(nn.Sequential(
                nn.Conv2d(in_channels, hidden_channels, 1, bias=False), LayerNorm2d(hidden_channels, eps=1e-6),
                nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False),
                LayerNorm2d(hidden_channels, eps=1e-6),
                nn.Conv2d(hidden_channels, unshuffled, 1, bias=False), LayerNorm2d(unshuffled, eps=1e-6),
            ))  # fmt: skip

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """One float[B, h, w, C] per level -> float[B, out_channels[i], h * scales[i], w * scales[i]]."""
        levels = []
        for state, branch, scale in zip(states, self.branches, self.scales, strict=True):
            x = branch(state.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            if scale > 1:
                x = pixel_shuffle_columns_first(x, int(scale))
            elif scale < 1:
                x = pixel_unshuffle(x, int(1 / scale))
            levels.append(x.permute(0, 3, 1, 2))
        return levels
