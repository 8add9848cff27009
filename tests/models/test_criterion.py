import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from xsam.data.masks import pack
from xsam.models.criterion import Counts, Criterion, Draws
from xsam.models.sampling import sample_ids, sample_maps
from xsam.structures import Batch, DecoderItems, ModelOutput, Target

L, Q, C, P, S = 3, 7, 8, 64, 16


def masks(seed: int, count: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, S, S, generator=g) > 0.6  # they overlap


def batch_of(truths: list[torch.Tensor], labels: list[list[int]], columns: int) -> Batch:
    empty = torch.zeros(len(truths), 0, dtype=torch.long)
    targets = tuple(
        Target(torch.from_numpy(pack(t.numpy()).ids), torch.arange(len(t)), torch.tensor(label, dtype=torch.long))
        for t, label in zip(truths, labels, strict=True)
    )
    n = torch.arange(len(truths))
    items = DecoderItems(
        n, n, n, torch.zeros(len(truths), columns, dtype=torch.long), targets, tuple(range(len(truths)))
    )
    return Batch(
        ids=("x",) * len(truths), input_ids=empty, labels=empty, span_ids=empty, seg_ids=empty, lengths=n * 0, image_index=n,
        pixel_values=empty, seg_pixel_values=empty, seg_sizes=empty, region_points=empty, region_image=empty, items=items,
    )  # fmt: skip


def output_of(seed: int, items: int, columns: int) -> ModelOutput:
    g = torch.Generator().manual_seed(seed)
    leaf = [
        torch.randn(*s, generator=g, requires_grad=True)
        for s in ((L, items, Q, C), (items, C, 4, 4), (L, items, Q, columns + 1))
    ]
    return ModelOutput(
        text_logits=torch.zeros(0, 5), text_targets=torch.zeros(0, dtype=torch.long), mask_embeds=leaf[0], mask_features=leaf[1],
        class_logits=leaf[2], item_image=torch.arange(items), idle=torch.zeros(()),
    )  # fmt: skip


def plain_losses(
    output: ModelOutput, truths: list[torch.Tensor], labels: list[list[int]], draws: Draws
) -> dict[str, torch.Tensor]:
    """The losses written layer by layer and mask by mask over dense masks, as the Mask2Former paper states them."""

    def at(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(maps[:, None].float(), 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]

    total = {name: [] for name in ("cls", "mask", "dice")}
    for layer in range(L):
        start, mask_sum, dice_sum, nll_sum, weight_sum = 0, 0.0, 0.0, 0.0, 0.0
        for i, truth in enumerate(truths):
            logits = torch.einsum("qc,chw->qhw", output.mask_embeds[layer, i], output.mask_features[i])
            scores = output.class_logits[layer, i]
            points = draws.matcher[layer, i]
            x, t = at(logits, points.expand(Q, -1, -1)), at(truth, points.expand(len(truth), -1, -1))
            cost = torch.zeros(Q, len(truth))
            for q in range(Q):
                for n in range(len(truth)):
                    p = x[q].sigmoid()
                    dice = 1 - (2 * (p * t[n]).sum() + 1) / (p.sum() + t[n].sum() + 1)
                    bce = F.binary_cross_entropy_with_logits(x[q], t[n])
                    cost[q, n] = 5 * bce + 5 * dice - 2 * scores[q].softmax(-1)[labels[i][n]]
            rows, columns = linear_sum_assignment(cost.detach())
            classes = torch.full((Q,), scores.shape[-1] - 1)
            for m, (q, n) in enumerate(zip(rows, columns, strict=True)):
                classes[q] = labels[i][n]
                wide = draws.oversampled[layer, start + m][None]
                order = at(logits[q][None], wide)[0].abs().argsort()[: 3 * P // 4]
                chosen = torch.cat([wide[:, order], draws.uniform[layer, start + m][None]], dim=1)
                x_m, t_m = at(logits[q][None], chosen)[0], at(truth[n][None], chosen)[0]
                mask_sum = mask_sum + F.binary_cross_entropy_with_logits(x_m, t_m)
                dice_sum = dice_sum + 1 - (2 * (x_m.sigmoid() * t_m).sum() + 1) / (x_m.sigmoid().sum() + t_m.sum() + 1)
            start += len(rows)
            weight = torch.where(classes == scores.shape[-1] - 1, 0.1, 1.0)
            nll_sum = nll_sum + (F.cross_entropy(scores, classes, reduction="none") * weight).sum()
            weight_sum += weight.sum()
        count = sum(len(t) for t in truths)
        total["cls"].append(2 * nll_sum / weight_sum)
        total["mask"].append(5 * mask_sum / count)
        total["dice"].append(5 * dice_sum / count)
    return {name: torch.stack(values) for name, values in total.items()}


def test_sampled_id_maps_equal_sampled_masks():
    truth = masks(0, 5)
    points = torch.rand(33, 2, generator=torch.Generator().manual_seed(1))
    ids = torch.from_numpy(pack(truth.numpy()).ids)
    assert len(ids) > 1  # overlapping masks need layers
    dense = F.grid_sample(
        truth[:, None].float(), (2 * points[None, :, None] - 1).expand(5, -1, -1, -1), align_corners=False
    )
    torch.testing.assert_close(sample_ids(ids, torch.arange(5), points), dense[:, 0, :, 0])
    each = torch.rand(2, 9, 2, generator=torch.Generator().manual_seed(2))
    dense = F.grid_sample(truth[[3, 1], None].float(), 2 * each[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(sample_ids(ids, torch.tensor([3, 1]), each), dense)


def test_sampled_maps_equal_grid_sample():
    g = torch.Generator().manual_seed(0)
    maps, points = torch.randn(3, 5, 4, generator=g), torch.rand(33, 2, generator=g)
    points[:4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 1.0]])  # zeros lie beyond the edge
    expected = F.grid_sample(maps[None], 2 * points[None, None] - 1, align_corners=False)[0, :, 0]
    torch.testing.assert_close(sample_maps(maps, points), expected.T)
    ids = (maps > 0).any(0)[None].short() - 1
    expected = F.grid_sample((ids == 0)[None].float(), 2 * points[None, None] - 1, align_corners=False)[0, 0]
    torch.testing.assert_close(sample_ids(ids, torch.zeros(1, dtype=torch.long), points), expected)


@pytest.mark.parametrize(("shared", "limit"), [(True, 2**23), (False, 2**23), (True, 1), (False, 5 * 6 * P)])
def test_losses_and_gradients_equal_the_plain_formulation(shared, limit, monkeypatch):
    monkeypatch.setattr("xsam.models.criterion.LIMIT", limit)  # all at once, or a row at a time
    truths, labels, columns = [masks(0, 3), masks(1, 2)], [[2, 0, 1], [1, 1]], 4
    g = torch.Generator().manual_seed(3)
    layers = 1 if shared else L
    shapes = ((layers, 2, P, 2), (layers, 5, 3 * P, 2), (layers, 5, P // 4, 2))
    draws = Draws(*(torch.rand(*s, generator=g).expand(L, -1, -1, -1) for s in shapes))
    ours, plain = output_of(4, 2, columns), output_of(4, 2, columns)
    batch, criterion = batch_of(truths, labels, columns), Criterion(P)
    losses = criterion.layer_losses(ours, batch, criterion.count(batch, Q), draws)
    expected = plain_losses(plain, truths, labels, draws)
    for name in expected:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-6)
    sum(v.sum() for v in losses.values()).backward()
    sum(v.sum() for v in expected.values()).backward()
    for field in ("mask_embeds", "mask_features", "class_logits"):
        torch.testing.assert_close(getattr(ours, field).grad, getattr(plain, field).grad, rtol=1e-4, atol=1e-6)


def test_a_batch_is_the_sum_of_its_parts():
    """With global counts and keyed draws, two half batches give the loss of the whole."""
    truths, labels, columns = [masks(0, 3), masks(1, 2)], [[2, 0, 1], [1, 1]], 4
    criterion, output = Criterion(P), output_of(4, 2, columns)
    whole = batch_of(truths, labels, columns)
    counts = criterion.count(whole, Q)
    assert counts == Counts(tokens=0.0, masks=5.0, class_weight=pytest.approx(5 + 0.1 * 9))
    together = criterion(output, whole, counts)
    apart = dict.fromkeys(together, 0.0)
    for i in range(2):
        half = batch_of(truths[i : i + 1], labels[i : i + 1], columns)
        object.__setattr__(half.items, "keys", (i,))
        part = ModelOutput(
            text_logits=output.text_logits, text_targets=output.text_targets, mask_embeds=output.mask_embeds[:, i : i + 1],
            mask_features=output.mask_features[i : i + 1], class_logits=output.class_logits[:, i : i + 1], item_image=torch.zeros(1, dtype=torch.long), idle=output.idle,
        )  # fmt: skip
        for name, value in criterion(part, half, counts).items():
            apart[name] += value
    for name in together:
        torch.testing.assert_close(together[name], apart[name])


def test_an_item_without_targets_learns_to_say_nothing():
    criterion, output = Criterion(P), output_of(5, 1, 2)
    batch = batch_of([masks(0, 0)], [[]], 2)
    losses = criterion(output, batch, criterion.count(batch, Q))
    expected = 2 * F.cross_entropy(output.class_logits.flatten(0, 2), torch.full((L * Q,), 2)) * L
    assert losses["mask"] == losses["dice"] == 0
    torch.testing.assert_close(losses["cls"], expected)
