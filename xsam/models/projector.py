"""From encoder features to language-model tokens, and back from its hidden states to conditions."""

from torch import Tensor, nn

from ..structures import UserError


def pixel_unshuffle(x: Tensor, factor: int = 2) -> Tensor:
    """float[B, h, w, C] -> float[B, h/f, w/f, f*f*C]: the cells of each f x f block side by side, row by row
    (nn.PixelUnshuffle puts the channel first). Raises UserError if f does not divide the grid."""
    _, h, w, _ = x.shape
    if h % factor or w % factor:
        raise UserError(f"a {h} x {w} feature grid does not fold by {factor}; change image_size")
    return x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).transpose(2, 3).flatten(3)


def pixel_shuffle_columns_first(x: Tensor, factor: int = 2) -> Tensor:
    """float[B, h, w, f*f*C] -> float[B, h*f, w*f, C]. The order is (column, row, channel): not the inverse of
    `pixel_unshuffle`; the released weights were trained so."""
    return x.unflatten(3, (factor, factor, -1)).permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)


class Projector(nn.Module):
    """Linear, GELU, Linear on every token; with `unshuffle` every 2 x 2 cells of a map become one token first."""

    def __init__(self, in_channels: int, out_channels: int, unshuffle: bool = False) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        first = nn.Linear(in_channels * 4 if unshuffle else in_channels, out_channels)
        self.layers = nn.Sequential(first, nn.GELU(), nn.Linear(out_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """float[.., C] -> float[.., out_channels]; with `unshuffle` float[B, h, w, C] -> float[B, N, ..], row-major."""
        return self.layers(pixel_unshuffle(x).flatten(1, 2) if self.unshuffle else x)
