import torch

from xsam.models.region_sampler import RegionSampler


def test_bilinear_between_cell_centres_then_maximum() -> None:
    features = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).view(1, 4, 1)  # 2 x 2 grid, row-major: 2 y + x
    points = torch.tensor([[[0.0, 0.0], [0.25, 0.5]], [[1.0, 1.0], [0.5, 0.0]]])
    out = RegionSampler()(features, points, torch.tensor([0, 0]))
    torch.testing.assert_close(out, torch.tensor([[1.25], [3.0]]))


def test_each_region_reads_its_own_image_and_each_channel_its_own_maximum() -> None:
    features = torch.zeros(3, 9, 2)
    features[0, 5] = torch.tensor([7.0, -1.0])  # row 1, column 2
    features[2, 6] = torch.tensor([4.0, 5.0])  # row 2, column 0
    points = torch.tensor([[[0.0, 1.0], [1.0, 0.5]]]).expand(3, 2, 2)
    out = RegionSampler()(features, points, torch.tensor([2, 0, 1]))
    assert out.tolist() == [[4.0, 5.0], [7.0, 0.0], [0.0, 0.0]]


def test_gradient_reaches_the_sampled_cells_only() -> None:
    features = torch.arange(4.0).view(1, 4, 1).requires_grad_()
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.5], [1.0, 0.5]]])  # a repeated point changes nothing
    RegionSampler()(features, points, torch.tensor([0])).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [0.0, 0.5, 0.0, 0.5]


def test_no_regions() -> None:
    out = RegionSampler()(torch.zeros(2, 4, 3), torch.zeros(0, 5, 2), torch.zeros(0, dtype=torch.long))
    assert out.shape == (0, 3)


def test_keeps_the_type_of_the_features() -> None:
    out = RegionSampler()(torch.ones(1, 4, 3, dtype=torch.bfloat16), torch.rand(2, 5, 2), torch.tensor([0, 0]))
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [[1.0] * 3] * 2
