"""From the logits of one decoder item to masks at the size of the image. Tensors in and out, on any device. Class
probabilities are the softmax over K + 1 columns without the last."""

import math
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import ItemOutput

CHUNK = 8  # queries that stand at full size at the same time; bounds the memory, changes no result


def restore(output: ItemOutput, queries: Tensor) -> Tensor:
    """Mask logits of some queries, int64[n], at the size of the image, float32[n, H, W]: bilinear to the S x S frame,
    cut to the part that the image covers, bilinear to the image."""
    return _resize(_in_frame(output.mask_logits[queries], output), output.image_size)


def panoptic(
    output: ItemOutput, *, stuff: Collection[int], score: float = 0.0, mask: float = 0.5, overlap: float = 0.8
) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """One map without overlaps: int32[H, W] of segment ids, 0 = void, and its segments (id, class, score).

    A query takes part if its best class has a probability above `score`. Each pixel goes to the query with the largest
    probability x sigmoid(mask). A query becomes a segment if it wins more than `overlap` of the area where this product
    (as in the Mask2Former of transformers; not the sigmoid alone) reaches `mask`, else its pixels are void. Segments of
    one `stuff` class become one, with the best score."""
    scores, labels = _probabilities(output.class_logits).max(-1)
    # Only these can become segments, as no product exceeds its probability. The rivals can take pixels from them.
    kept = ((scores > score) & (scores >= mask)).nonzero()[:, 0]
    best = output.mask_logits.new_full(output.image_size, -1.0, dtype=torch.float32)
    winner = torch.zeros(output.image_size, dtype=torch.int64, device=output.mask_logits.device)
    areas = torch.zeros_like(kept)
    for part, logits in _restored(output, kept):
        weighted = logits.sigmoid_().mul_(scores[kept[part], None, None])
        _compete(best, winner, weighted, part.start)
        areas[part] = weighted.ge_(mask).sum(2).sum(1, dtype=torch.float64).long()  # exact, and fast
    highest = scores * output.mask_logits.flatten(1).amax(1).float().sigmoid()  # but for rounding
    rivals = ((scores > score) & (scores < mask) & (highest > 0.999 * best.min())).nonzero()[:, 0]
    for part, logits in _restored(output, rivals if len(kept) else kept):
        value = logits.sigmoid_().mul_(scores[rivals[part], None, None]).amax(0)
        winner.masked_fill_(value > best, len(kept))

    won = torch.bincount(winner.flatten(), minlength=len(kept) + 1)[:-1]
    ids = torch.zeros(len(kept) + 1, dtype=torch.int32)  # of each query; the last one is void
    segments: dict[tuple[int, int], tuple[int, int, float]] = {}  # by class, and query where it is a thing
    rows = zip(won.tolist(), areas.tolist(), labels[kept].tolist(), scores[kept].tolist(), strict=True)
    for query, (pixels, area, label, value) in enumerate(rows):
        if area and pixels > overlap * area:
            own = label, -1 if label in stuff else query
            id, _, highest_yet = segments.get(own, (len(segments) + 1, label, value))
            segments[own] = id, label, max(value, highest_yet)
            ids[query] = id
    return ids.to(winner.device).index_select(0, winner.flatten()).view_as(winner), list(segments.values())


def semantic(output: ItemOutput) -> Tensor:
    """The class index of every pixel, int64[H, W], without void: the sum over queries of probability x sigmoid(mask),
    made in the frame and resized to the image (or made at the image's size, where that is smaller), is compared."""
    weights = _probabilities(output.class_logits).T
    size = min(output.seg_size, output.image_size, key=math.prod)
    total, masks = weights.new_zeros(len(weights), math.prod(size)), weights.new_empty(4 * CHUNK, *size)
    for start in range(0, len(output.mask_logits), 4 * CHUNK):
        few = output.mask_logits[start : start + 4 * CHUNK]
        for part, logits in zip(masks.split(CHUNK), few.split(CHUNK), strict=False):
            part[: len(logits)] = _resize(_in_frame(logits, output).sigmoid(), size)
        total.addmm_(weights[:, start : start + len(few)], masks[: len(few)].flatten(1))
    best = total.new_full(output.image_size, -1.0)
    winner = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(total), CHUNK):
        _compete(best, winner, _resize(total[start : start + CHUNK].unflatten(1, size), output.image_size), start)
    return winner


def instances(
    output: ItemOutput, *, top: int | None = None, score: float = 0.0, without: Sequence[int] = ()
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks that may overlap: bool[n, H, W], class indices int64[n], scores float[n], boxes float[n, 4] as of `boxes`.

    The `top` (default: Q) most probable pairs of query and class, in no order; a query may stand for several classes,
    but not for those in `without`. A mask is logit > 0, its score the probability x the mean sigmoid inside the mask.
    Kept are masks that are not empty, with a score >= `score`."""
    probabilities = _probabilities(output.class_logits)
    probabilities = probabilities.index_fill(1, probabilities.new_tensor(without, dtype=torch.int64), -1.0)
    count = min(len(probabilities) if top is None else top, probabilities.numel())
    scores, pairs = probabilities.flatten().topk(count, sorted=False)
    queries, owner = (pairs // max(probabilities.shape[1], 1)).unique(return_inverse=True)
    masks = torch.zeros(len(queries), *output.image_size, dtype=torch.bool, device=output.mask_logits.device)
    quality = scores.new_zeros(len(queries))
    for part, logits in _restored(output, queries):
        inside = torch.gt(logits, 0, out=masks[part])
        quality[part] = logits.sigmoid_().mul_(inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores, tight = scores * quality[owner], boxes(masks)
    kept = ((scores >= score) & (tight[owner, 2] > 0)).nonzero()[:, 0]
    owner = owner[kept]
    return masks[owner], pairs[kept] % max(probabilities.shape[1], 1), scores[kept], tight[owner]


def best_mask(output: ItemOutput, *, column: int = 0) -> tuple[Tensor, float]:
    """The mask (sigmoid > 0.5, maybe empty) of the query that is most probable for one candidate, bool[H, W], and that
    probability."""
    value, query = _probabilities(output.class_logits)[:, column].max(0)
    return restore(output, query[None])[0].sigmoid() > 0.5, value.item()


def above_background(output: ItemOutput, *, column: int = 0) -> tuple[Tensor, float]:
    """Everything that one candidate means, bool[H, W], and its best probability: the union of the masks (sigmoid > 0.5)
    of all queries that are more probable for it than for the background. Nothing means that it is absent."""
    probabilities = output.class_logits.float().softmax(-1)
    queries = (probabilities[:, column] > probabilities[:, -1]).nonzero()[:, 0]
    union = torch.zeros(output.image_size, dtype=torch.bool, device=output.mask_logits.device)
    for _, logits in _restored(output, queries):
        union |= (logits.sigmoid() > 0.5).any(0)
    return union, probabilities[queries, column].max().item() if len(queries) else 0.0


def boxes(masks: Tensor) -> Tensor:
    """Tight boxes of bool[n, H, W]: float32[n, 4], (x0, y0, x1, y1) in pixels, maximum exclusive; zeros if empty."""
    sides = []
    for axis in (1, 2):  # columns (x), then rows (y)
        hit = masks.view(torch.uint8).amax(axis)
        first, last = hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)
        sides.append(torch.stack([first, last], 1) * hit.any(1, keepdim=True))
    return torch.stack(sides, 2).flatten(1).float()


def _probabilities(class_logits: Tensor) -> Tensor:
    return class_logits.float().softmax(-1)[:, :-1]


def _restored(output: ItemOutput, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for part in (slice(start, start + CHUNK) for start in range(0, len(queries), CHUNK)):
        yield part, restore(output, queries[part])


def _in_frame(mask_logits: Tensor, output: ItemOutput) -> Tensor:
    """Enlarged to the frame and cut to the image, float32[Q, seg_h, seg_w]."""
    (h, w), frame, (seg_h, seg_w) = mask_logits.shape[-2:], output.frame, output.seg_size
    size = frame, frame
    if frame % h == 0 and frame % w == 0:  # the scale stays the same without most of the padding
        mask_logits = mask_logits[:, : seg_h * h // frame + 2, : seg_w * w // frame + 2]
        size = mask_logits.shape[1] * frame // h, mask_logits.shape[2] * frame // w
    return _resize(mask_logits, size)[:, :seg_h, :seg_w]


def _compete(best: Tensor, winner: Tensor, values: Tensor, first: int) -> None:
    """Give map `first + n` the pixels where values[n] exceeds all before it, in place; of equal ones the first wins."""
    for number, value in enumerate(values, start=first):
        winner.masked_fill_(value > best, number)
        torch.maximum(best, value, out=best)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """float32[Q, *size]; the maps themselves where they have that size."""
    maps = maps.float()
    return maps if maps.shape[-2:] == size else F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
