"""From the logits of one decoder item to masks at the size of the image. Tensors in and out, on any device.

All functions begin with an `ItemOutput`. Class probabilities are the softmax over K + 1 columns without the last.
"""

from collections.abc import Collection, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import ItemOutput

Size = tuple[int, int]

CHUNK = 8  # queries that stand at full size at the same time; bounds the memory, changes no result


def restore(mask_logits: Tensor, frame: int, seg_size: Size, image_size: Size) -> Tensor:
    """Mask logits at the size of the image, float32[Q, H, W]: bilinear to the S x S frame, cut to the part that the
    image covers, bilinear to the image."""
    return _resize(_in_frame(mask_logits, frame, seg_size), image_size)


def panoptic(
    output: ItemOutput, *, stuff: Collection[int], score: float = 0.0, mask: float = 0.5, overlap: float = 0.8
) -> tuple[Tensor, list[tuple[int, int, float]]]:
    """One map without overlaps: int32[H, W] of segment ids, 0 = void, and its segments (id, class, score).

    A query takes part if its best class has a probability above `score`. Each pixel goes to the query with the largest
    probability x sigmoid(mask). A query becomes a segment if it wins more than `overlap` of the area where this product
    (as in the Mask2Former of transformers; not the sigmoid alone) reaches `mask`, else its pixels are void. Segments of
    one `stuff` class become one, with the best score.
    """
    scores, labels = _probabilities(output.class_logits).max(-1)
    kept = (scores > score).nonzero()[:, 0]  # before the masks are enlarged: the others could not win a pixel
    scores, labels = scores[kept], labels[kept]
    best = output.mask_logits.new_full(output.image_size, -1.0, dtype=torch.float32)
    winner = torch.zeros(output.image_size, dtype=torch.int64, device=output.mask_logits.device)
    areas = torch.zeros_like(kept)
    for part, logits in _restored(output, kept):
        weighted = logits.sigmoid_().mul_(scores[part, None, None])
        areas[part] = (weighted >= mask).flatten(1).sum(1)
        value, index = weighted.max(0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, index + part.start, winner)

    won = torch.bincount(winner.flatten(), minlength=len(kept))[: len(kept)]
    ids = torch.zeros(max(len(kept), 1), dtype=torch.int32)  # of each query
    segments: list[tuple[int, int, float]] = []
    fused: dict[int, int] = {}  # stuff class -> its segment id
    rows = zip(won.tolist(), areas.tolist(), labels.tolist(), scores.tolist(), strict=True)
    for query, (pixels, area, label, value) in enumerate(rows):
        if area == 0 or pixels <= overlap * area:
            continue
        if label in fused:
            ids[query] = known = fused[label]
            segments[known - 1] = (known, label, max(value, segments[known - 1][2]))
            continue
        ids[query] = new = len(segments) + 1
        segments.append((new, label, value))
        if label in stuff:
            fused[label] = new
    return ids.to(winner.device)[winner], segments


def semantic(output: ItemOutput) -> Tensor:
    """The class index of every pixel, int64[H, W], without void: the sum over queries of probability x sigmoid(mask),
    made in the frame and resized to the image, is compared."""
    weights = _probabilities(output.class_logits).T
    total = weights.new_zeros(len(weights), output.seg_size[0] * output.seg_size[1])
    for start in range(0, len(output.mask_logits), CHUNK):
        part = slice(start, start + CHUNK)
        masks = _in_frame(output.mask_logits[part], output.frame, output.seg_size).sigmoid_()
        total.addmm_(weights[:, part], masks.flatten(1))
    return _resize(total.unflatten(1, output.seg_size), output.image_size).argmax(0)


def instances(
    output: ItemOutput, *, top: int | None = None, score: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masks that may overlap: bool[n, H, W], class indices int64[n], scores float[n], boxes float[n, 4].

    The `top` (default: Q) most probable pairs of query and class, in no order; a query may stand for several classes. A
    mask is logit > 0, its score the probability x the mean sigmoid inside the mask. Kept are masks that are not empty,
    with a score >= `score`. Boxes are (x0, y0, x1, y1) in pixels, the maximum exclusive.
    """
    probabilities = _probabilities(output.class_logits)
    count = min(len(probabilities) if top is None else top, probabilities.numel())
    scores, pairs = probabilities.flatten().topk(count, sorted=False)
    queries, owner = (pairs // max(probabilities.shape[1], 1)).unique(return_inverse=True)
    masks = torch.zeros(len(queries), *output.image_size, dtype=torch.bool, device=output.mask_logits.device)
    quality = scores.new_zeros(len(queries))
    for part, logits in _restored(output, queries):
        masks[part] = inside = logits > 0
        quality[part] = (logits.sigmoid_() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores = scores * quality[owner]
    kept = ((scores >= score) & masks.flatten(1).any(1)[owner]).nonzero()[:, 0]
    owner = owner[kept]
    return masks[owner], pairs[kept] % max(probabilities.shape[1], 1), scores[kept], boxes(masks)[owner]


def best_mask(output: ItemOutput, *, column: int = 0) -> tuple[Tensor, float]:
    """The mask of the query that is most probable for one candidate, bool[H, W], and that probability.

    A pixel belongs to the mask where sigmoid > 0.5; the mask may be empty, a query is always chosen.
    """
    value, query = _probabilities(output.class_logits)[:, column].max(0)
    logits = restore(output.mask_logits[query][None], output.frame, output.seg_size, output.image_size)[0]
    return logits.sigmoid() > 0.5, value.item()


def above_background(output: ItemOutput, *, column: int = 0) -> tuple[Tensor, float]:
    """Everything that one candidate means, bool[H, W], and its best probability: the union of the masks of all queries
    that are more probable for it than for the background (none of the candidates). Nothing means that it is absent.

    A pixel belongs to a mask where sigmoid > 0.5.
    """
    probabilities = output.class_logits.float().softmax(-1)
    queries = (probabilities[:, column] > probabilities[:, -1]).nonzero()[:, 0]
    union = torch.zeros(output.image_size, dtype=torch.bool, device=output.mask_logits.device)
    for _, logits in _restored(output, queries):
        union |= (logits.sigmoid() > 0.5).any(0)
    return union, probabilities[queries, column].max().item() if len(queries) else 0.0


def boxes(masks: Tensor) -> Tensor:
    """Tight boxes of bool[n, H, W]: float32[n, 4], (x0, y0, x1, y1), maximum exclusive; zeros if empty."""
    sides = []
    for axis in (1, 2):  # columns (x), then rows (y)
        hit = masks.any(axis).to(torch.uint8)
        first, last = hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)
        sides.append(torch.stack([first, last], 1) * hit.any(1, keepdim=True))
    x, y = sides
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).float()


def _probabilities(class_logits: Tensor) -> Tensor:
    return class_logits.float().softmax(-1)[:, :-1]


def _restored(output: ItemOutput, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(queries), CHUNK):
        part = slice(start, min(start + CHUNK, len(queries)))
        logits = output.mask_logits[queries[part]]
        yield part, restore(logits, output.frame, output.seg_size, output.image_size)


def _in_frame(mask_logits: Tensor, frame: int, seg_size: Size) -> Tensor:
    """Enlarged to the frame and cut to the image, float32[Q, seg_h, seg_w]."""
    h, w = mask_logits.shape[-2:]
    if frame % h == 0 and frame % w == 0:  # the scale stays the same without most of the padding
        h, w = min(h, seg_size[0] * h // frame + 2), min(w, seg_size[1] * w // frame + 2)
        size = h * frame // mask_logits.shape[-2], w * frame // mask_logits.shape[-1]
    else:
        size = frame, frame
    return _resize(mask_logits[:, :h, :w], size)[:, : seg_size[0], : seg_size[1]]


def _resize(maps: Tensor, size: Size) -> Tensor:
    return F.interpolate(maps[None].float(), size, mode="bilinear", align_corners=False)[0]
