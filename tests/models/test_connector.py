import pytest
import torch
import torch.nn.functional as F

from xsam.models.connector import Connector, LayerNorm2d
from xsam.structures import UserError


def test_layer_norm_runs_over_channels() -> None:
    norm = LayerNorm2d(2, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[3.0, 0.0], [1.0, 4.0]]).view(1, 2, 1, 2)  # two pixels: (3, 1) and (0, 4)
    expected = torch.tensor([[1.0, -1.0], [-9.0, 11.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=0)


def test_levels_have_the_released_shapes() -> None:
    connector = Connector(1024)
    shapes = {name: tuple(value.shape) for name, value in connector.state_dict().items()}
    assert [shapes[f"branches.{i}.4.weight"] for i in range(3)] == [
        (2048, 512, 1, 1),
        (1024, 512, 1, 1),
        (512, 512, 1, 1),
    ]
    assert shapes["branches.0.0.weight"] == (512, 1024, 1, 1)
    assert shapes["branches.2.2.weight"] == (512, 512, 3, 3)
    assert shapes["branches.1.5.bias"] == (1024,)
    assert len(shapes) == 27  # no convolution has a bias


def test_resolution_and_order_of_each_level() -> None:
    torch.manual_seed(0)
    connector = Connector(6, 8, out_channels=(4, 8, 16), scales=(2, 1, 0.5))
    states = [torch.randn(2, 4, 4, 6) for _ in range(3)]
    up, same, down = connector(states)
    assert [tuple(x.shape) for x in (up, same, down)] == [(2, 4, 8, 8), (2, 8, 4, 4), (2, 16, 2, 2)]
    flat = [branch(state.permute(0, 3, 1, 2)) for branch, state in zip(connector.branches, states, strict=True)]
    torch.testing.assert_close(same, flat[1])
    torch.testing.assert_close(up[:, :, 3, 2], flat[0][:, 4:8, 1, 1])  # row 1, column 0 of the block: slot 0 * 2 + 1
    torch.testing.assert_close(down[:, 4:8, 1, 0], flat[2][:, :, 2, 1])  # slot 1 = row 0, column 1 of the block


def test_a_branch_is_linear_up_to_its_norms() -> None:
    torch.manual_seed(0)
    branch = Connector(3, 4, out_channels=(4,), scales=(1,)).branches[0]
    x = torch.randn(1, 3, 5, 5)
    y = x
    for conv in (0, 2, 4):
        y = F.conv2d(y, branch[conv].weight, padding=conv % 4 // 2)
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(branch(x), y)


def test_channels_that_do_not_fold_are_a_user_error() -> None:
    with pytest.raises(UserError, match="out_channels 6"):
        Connector(3, 4, out_channels=(6,), scales=(0.5,))
