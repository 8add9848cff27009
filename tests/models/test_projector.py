import pytest
import torch

from xsam.models.projector import Projector, pixel_shuffle_columns_first, pixel_unshuffle
from xsam.structures import UserError


def test_unshuffle_order_is_row_column_channel() -> None:
    x = torch.arange(2 * 4 * 2).view(1, 2, 4, 2)  # cell (r, c) holds 8 r + 2 c and the next number
    assert pixel_unshuffle(x).tolist() == [[[[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]]]


def test_shuffle_order_is_column_row_channel() -> None:
    x = torch.arange(8).view(1, 1, 1, 8)  # (column offset, row offset, channel)
    assert pixel_shuffle_columns_first(x).tolist() == [[[[0, 1], [4, 5]], [[2, 3], [6, 7]]]]


def test_shuffles_are_not_inverse_but_transpose_each_block() -> None:
    x = torch.arange(16).view(1, 4, 4, 1)
    blocks = pixel_shuffle_columns_first(pixel_unshuffle(x))[0, :, :, 0]
    assert blocks[:2, :2].tolist() == x[0, :2, :2, 0].T.tolist()


def test_unshuffle_of_an_odd_grid_is_a_user_error() -> None:
    with pytest.raises(UserError, match="27 x 27"):
        pixel_unshuffle(torch.zeros(1, 27, 27, 2))


def test_projector_takes_tokens_or_maps() -> None:
    torch.manual_seed(0)
    tokens, folded = Projector(3, 5), Projector(3, 5, unshuffle=True)
    assert tokens.layers[0].in_features == 3
    assert folded.layers[0].in_features == 12
    x = torch.randn(2, 4, 6, 3)
    assert torch.equal(tokens(x).flatten(1, 2), tokens(x.view(2, 24, 3)))
    y = folded(x)
    assert y.shape == (2, 6, 5)
    expected = folded.layers(torch.cat([x[0, 2, 4], x[0, 2, 5], x[0, 3, 4], x[0, 3, 5]]))
    torch.testing.assert_close(y[0, 5], expected)


def test_projector_names() -> None:
    assert sorted(Projector(2, 2).state_dict()) == [
        "layers.0.bias",
        "layers.0.weight",
        "layers.2.bias",
        "layers.2.weight",
    ]
