"""The losses: text, class, mask and dice, over all decoder outputs at once, on sampled points."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import IGNORE_INDEX, Batch, DecoderItems, ModelOutput, Target
from .matcher import Matcher
from .sampling import sample_ids, sample_maps

LIMIT = 2**23  # values of the largest temporary tensors; bounds the memory, changes no result


@dataclass(frozen=True, slots=True)
class Counts:
    """What the losses are divided by: sums over all ranks and accumulation steps, however these split a batch."""

    tokens: float  # supervised tokens
    masks: float  # targets
    class_weight: float  # sum of the class weights of all queries of one output

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.tokens + other.tokens, self.masks + other.masks, self.class_weight + other.class_weight)


@dataclass(frozen=True, slots=True)
class Draws:
    """Random points in [0, 1]^2, as arguments so that recorded draws can be replayed. M runs over the matched masks
    item by item, inside an item by query. Sharing points over the outputs is an expanded view."""

    matcher: Tensor  # float[L, D, P, 2]
    oversampled: Tensor  # float[L, M, 3P, 2], of which the 3P/4 with the least certain logits are kept
    uniform: Tensor  # float[L, M, P/4, 2]


class Criterion:
    """Mask2Former's losses with conditions as classes, plus next-token cross-entropy. All decoder outputs are matched
    and supervised in one pass; only matched masks are ever made.

    num_points: P, points per mask; 3P random ones are looked at, 3P/4 uncertain and P/4 uniform ones are kept. The
    outputs of an item share them unless `draws` says otherwise. no_object_weight: of queries without a target."""

    def __init__(
        self, num_points: int = 12544, no_object_weight: float = 0.1, class_weight: float = 2.0,
        mask_weight: float = 5.0, dice_weight: float = 5.0,
    ) -> None:  # fmt: skip
        self.num_points, self.no_object_weight = num_points, no_object_weight
        self.weights = {"cls": class_weight, "mask": mask_weight, "dice": dice_weight}
        self.matcher = Matcher(class_weight, mask_weight, dice_weight)

    def count(self, batch: Batch, num_queries: int) -> Counts:
        """What this batch adds to the global counts; known before any forward pass."""
        matched = sum(min(len(target.index), num_queries) for target in batch.items.targets)
        queries = num_queries * len(batch.items.targets)
        tokens = float((batch.labels[:, 1:] != IGNORE_INDEX).sum())
        masks = float(sum(len(target.index) for target in batch.items.targets))
        return Counts(tokens, masks, class_weight=matched + self.no_object_weight * (queries - matched))

    def __call__(self, output: ModelOutput, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        """Weighted losses of a batch; their sum is the training loss. `counts` are global: `self.count(batch, Q)` when
        this batch is all there is."""
        losses = {"text": self.text_loss(output, counts) + output.idle}
        if len(batch.items):
            losses |= {name: loss.sum() for name, loss in self.layer_losses(output, batch, counts).items()}
        return losses

    def text_loss(self, output: ModelOutput, counts: Counts) -> Tensor:
        """Cross-entropy in fp32 over the supervised tokens."""
        nll = F.cross_entropy(output.text_logits.float(), output.text_targets, reduction="sum")
        return nll / max(counts.tokens, 1)

    def layer_losses(
        self, output: ModelOutput, batch: Batch, counts: Counts, draws: Draws | None = None
    ) -> dict[str, Tensor]:
        """Weighted `cls`, `mask` and `dice` loss of every decoder output, float[L] each. Without recorded `draws` the
        points of an item are drawn from its key."""
        items, class_logits = batch.items, output.class_logits
        embeds, features = output.mask_embeds.float(), output.mask_features.float()
        L, D, Q, _ = embeds.shape
        draws = draws or self._draw(items, L, Q, embeds.device)
        # Unbound once: each `features[i]` would send back a gradient of the size of all images.
        images, queries = features.unbind(), embeds.unbind(1)
        of_items = [*zip(queries, [images[i] for i in items.image.tolist()], items.targets, strict=True)]
        with torch.no_grad():
            looked_at = zip(of_items, class_logits.softmax(-1).unbind(1), draws.matcher.unbind(1), strict=True)
            matches = self.matcher.assign([self._costs(*item, *rest) for item, *rest in looked_at])

        none = class_logits.shape[-1] - 1
        classes = torch.full((L, D, Q), none, device=embeds.device)
        mask_sum = dice_sum = 0 * embeds.sum((1, 2, 3))  # without any target they still belong to the graph
        start = 0
        for d, (match, (embed, maps, target)) in enumerate(zip(matches, of_items, strict=True)):
            M = match.queries.shape[1]
            classes[:, d].scatter_(1, match.queries, target.labels[match.targets])
            if M:
                selected = embed.gather(1, match.queries[..., None].expand(-1, -1, embed.shape[-1]))
                logits = torch.einsum("lmc,chw->lmhw", selected, maps)
                points = [p[:, start : start + M] for p in (draws.oversampled, draws.uniform)]
                few = _split(points[0][0].numel(), logits, target.index[match.targets], *points)
                mask, dice = zip(*(self._point_losses(target.ids, *part) for part in few), strict=True)
                mask_sum, dice_sum = mask_sum + torch.cat(mask), dice_sum + torch.cat(dice)
            start += M

        weight = torch.where(classes == none, self.no_object_weight, 1.0)
        nll = F.cross_entropy(class_logits.flatten(0, 2), classes.flatten(), reduction="none").view(L, D, Q)
        cls_sum, masks = (nll * weight).sum((1, 2)), max(counts.masks, 1)
        sums = {"cls": cls_sum / counts.class_weight, "mask": mask_sum / masks, "dice": dice_sum / masks}
        return {name: self.weights[name] * value for name, value in sums.items()}

    def _costs(self, embeds: Tensor, maps: Tensor, target: Target, probs: Tensor, points: Tensor) -> Tensor:
        """The matcher's costs of one item, float[L, Q, N], from its part of the output and points float[L, P, 2]. Mask
        logits are linear in the mask features, so these are sampled, not Q masks; once if the layers share points."""
        places, costs = points[:1] if points.stride(0) == 0 else points, []
        rows = (t.flatten(0, 1).chunk(len(places)) for t in (embeds, probs))
        for place, embed, prob in zip(places, *rows, strict=True):
            at, masks = sample_maps(maps, place).T, sample_ids(target.ids, target.index, place)
            few = _split(len(place), embed, prob)
            costs += [self.matcher.costs(e @ at, masks, p, target.labels) for e, p in few]
        return torch.cat(costs).view(*embeds.shape[:2], -1)

    def _point_losses(
        self, ids: Tensor, logits: Tensor, index: Tensor, oversampled: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """BCE and dice of some outputs of an item, float[l] each, summed over its matched masks: logits
        float[l, M, h, w], numbers int64[l, M]. Points as PointRend chooses them (arXiv 1912.08193)."""
        shape = index.shape
        logits, index, oversampled, uniform = (t.flatten(0, 1) for t in (logits, index, oversampled, uniform))
        with torch.no_grad():
            certainty = _sample(logits, oversampled).abs_()
            kept = certainty.topk(3 * self.num_points // 4, dim=1, largest=False, sorted=False).indices
            points = torch.cat([oversampled.gather(1, kept[..., None].expand(-1, -1, 2)), uniform], dim=1)
            targets = sample_ids(ids, index, points)
        x = _sample(logits, points)
        mask = F.binary_cross_entropy_with_logits(x, targets, reduction="none").mean(1)
        probs = x.sigmoid()
        dice = 1 - (2 * (probs * targets).sum(1) + 1) / (probs.sum(1) + targets.sum(1) + 1)
        return mask.view(shape).sum(1), dice.view(shape).sum(1)

    def _draw(self, items: DecoderItems, layers: int, queries: int, device: torch.device) -> Draws:
        """Points of every item from its own key, so that they do not depend on what else is in the batch."""
        generator, P = torch.Generator(device), self.num_points
        matcher, oversampled, uniform = [], [], []
        for key, target in zip(items.keys, items.targets, strict=True):
            generator.manual_seed(key)
            M = min(len(target.index), queries)
            matcher.append(torch.rand(1, P, 2, generator=generator, device=device))
            oversampled.append(torch.rand(M, 3 * P, 2, generator=generator, device=device))
            uniform.append(torch.rand(M, P - 3 * P // 4, 2, generator=generator, device=device))
        return Draws(*(torch.cat(p).expand(layers, -1, -1, -1) for p in (matcher, oversampled, uniform)))


def _split(values: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors, of as many rows as a temporary tensor with `values` for each may have within LIMIT."""
    return zip(*(tensor.split(max(1, LIMIT // values)) for tensor in tensors), strict=True)


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of N maps float[N, h, w] at float[N, P, 2], (x, y) in [0, 1]: float[N, P]; 0 outside."""
    return F.grid_sample(maps[:, None], (2 * points).sub_(1)[:, :, None], align_corners=False)[:, 0, :, 0]
