import pytest
import torch
import torch.nn.functional as F

from xsam.models.pixel_decoder import DeformableAttention
from xsam.models.sampling import sample_levels

SHAPES = [(2, 3), (4, 6)]


def inputs(requires_grad: bool = False) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    S = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, S, 2, 5, generator=g, dtype=torch.float64)
    locations = torch.rand(2, S, 2, 2, 3, 2, generator=g, dtype=torch.float64) * 1.6 - 0.3  # some fall outside
    weights = torch.rand(2, S, 2, 2, 3, generator=g, dtype=torch.float64)
    return tuple(t.requires_grad_(requires_grad) for t in (value, locations, weights))


def loop(value, locations, weights):
    """One sample at a time, with grid_sample on a map of one head."""
    B, S, A, c = value.shape
    out = torch.zeros(B, S, A, c, dtype=value.dtype)
    starts = [0, SHAPES[0][0] * SHAPES[0][1]]
    for b in range(B):
        for a in range(A):
            for level, (h, w) in enumerate(SHAPES):
                part = value[b, starts[level] : starts[level] + h * w, a].T.reshape(1, c, h, w)
                grid = 2 * locations[b, :, a, level][None] - 1
                sampled = F.grid_sample(part, grid, align_corners=False)[0]  # [c, S, P]
                out[b, :, a] += torch.einsum("csp,sp->sc", sampled, weights[b, :, a, level])
    return out.flatten(2)


@pytest.mark.parametrize("with_bags", [True, False])
def test_both_formulations_equal_the_loop_with_gradients(with_bags):
    expected_inputs, ours = inputs(True), inputs(True)
    expected, out = loop(*expected_inputs), sample_levels(*ours, SHAPES, with_bags)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    for each in (expected, out):
        each.square().sum().backward()
    for a, b in zip(ours, expected_inputs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)


def test_starts_as_a_ring_of_equal_points():
    attention = DeformableAttention(16, num_heads=4, num_levels=2, num_points=2)
    bias = attention.sampling_offsets.bias.view(4, 2, 2, 2)
    torch.testing.assert_close(
        bias[:, 0, 0].detach(), torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(bias[:, :, 1], 2 * bias[:, :, 0])
