"""`xsam benchmark evaluation`: from an image to all its results, and their parts, ours beside transformers' functions
and a plain loop. The answers are made up."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerImageProcessor

from xsam.data.masks import resize_ids
from xsam.data.postprocess import instances, panoptic, semantic
from xsam.metrics.panoptic import PanopticQuality
from xsam.models.xsam import normalize
from xsam.structures import ItemOutput

from .baselines import SIZES, Sizes, Usual, made_up, segmentor
from .data import HEIGHT, SIZE, WIDTH, blob
from .measure import Run, compare, machine

CLASSES, THINGS = 133, 80
SEGMENTS = 20  # of a panoptic map, at most
IMAGES, DISTINCT = 500, 20  # whose PQ is computed, and how many of them differ


def scene(rng: np.random.Generator) -> tuple[np.ndarray, dict[int, int]]:
    """A panoptic map int32[HEIGHT, WIDTH] and the class of each id: four bands of stuff, things before them."""
    ids = np.repeat(np.arange(1, 5, dtype=np.int32), HEIGHT // 4)[:, None].repeat(WIDTH, 1)
    for id in range(5, SEGMENTS + 1):
        ids[blob(rng)] = id
    return ids, {id: id if id > 4 else THINGS + id for id in np.unique(ids).tolist()}


def answer(ids: np.ndarray, classes: Mapping[int, int], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """The logits that a trained model would give, of the `shape` (Q, h, w) and float[Q, K + 1]. A mask has the soft and
    wavy outline of a segment; the first query of each segment has its class, all others mean nothing."""
    generator, (queries, *size) = torch.Generator().manual_seed(0), shape
    segment = np.resize(list(classes), queries)
    inside = torch.from_numpy(resize_ids(ids[None], *size) == segment[:, None, None]).float()
    waves = F.interpolate(torch.randn(1, queries, 8, 8, generator=generator), size, mode="bicubic")[0]
    logits = torch.randn(queries, CLASSES + 1, generator=generator)
    logits[range(len(classes)), list(classes.values())] += 15
    logits[len(classes) :, -1] += 9
    return 16 * F.avg_pool2d(inside, 5, 1, 2) - 8 + waves, logits


def report(device: str = "cpu", sizes: Sizes = SIZES, rounds: int = 3) -> dict[str, Any]:
    """From logits to the results of each kind; from an image to all of them, where ours asks the model once and
    transformers once for each; from results to scores. Random weights find nothing: what they say is compared, but the
    results are made of an answer as of a trained model."""
    sizes, side = replace(sizes, classes=CLASSES), sizes.image // 8
    model, height = segmentor(sizes).to(device).eval(), side * HEIGHT // WIDTH  # the image is wide, its frame a square
    usual, seg_size = Usual(sizes, model).to(device).eval(), (8 * height, sizes.image)
    batch = replace(made_up(model, sizes, samples=1, targets=1), seg_sizes=torch.tensor([seg_size])).to(device)
    images = normalize(batch.seg_pixel_values, model.seg_encoder, batch.seg_sizes)
    masks, logits = answer(*scene(np.random.default_rng(0)), (sizes.queries, height, side))
    ours, theirs = _finishers(masks.to(device), logits.to(device), sizes.image)

    def one_pass() -> tuple[Tensor, Tensor]:
        output = model(batch)
        said = output.class_logits[-1], output.mask_logits(0)[None]
        for finish in ours.values():
            finish()
        return said

    def three_passes() -> tuple[Tensor, Tensor]:
        for finish in theirs.values():
            mask_logits, class_logits = usual(images)
            finish()
        return class_logits[-1], mask_logits[-1]

    found: dict[str, Any] = {"machine": machine(device)}
    maps = scored_maps() * (IMAGES // DISTINCT)
    pq = {"ours": lambda: torch.from_numpy(by_metric(maps)), "a loop": lambda: torch.from_numpy(by_loop(maps))}
    with torch.no_grad():
        for kind in ours:
            found[kind] = compare({"ours": ours[kind], "transformers": theirs[kind]}, device=device, rounds=rounds)
        together = {"ours, one pass": one_pass, "transformers, three": three_passes}
        found["image to all results"] = compare(together, device=device, rounds=rounds)
        found[f"PQ of {IMAGES} images"] = compare(pq, rounds=rounds)
    return found


def _finishers(masks: Tensor, logits: Tensor, frame: int) -> tuple[dict[str, Run], dict[str, Run]]:
    """Ours and transformers' functions by kind. Theirs know no padding: they get the image's part of the masks."""
    (_, height, side), stuff = masks.shape, set(range(THINGS, CLASSES))
    padded = F.pad(masks, (0, 0, 0, side - height), value=-8.0)
    item = ItemOutput(mask_logits=padded, class_logits=logits, frame=frame, seg_size=(frame * height // side, frame),
                      image_size=SIZE)  # fmt: skip
    raw = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    processor = Mask2FormerImageProcessor()
    fused, separate = {"label_ids_to_fuse": stuff}, {"return_binary_maps": True}
    return {
        "panoptic": partial(panoptic, item, stuff=stuff, score=0.5),
        "semantic": partial(semantic, item),
        "instance": partial(instances, item, score=0.5),
    }, {
        "panoptic": partial(processor.post_process_panoptic_segmentation, raw, target_sizes=[SIZE], **fused),
        "semantic": partial(processor.post_process_semantic_segmentation, raw, target_sizes=[SIZE]),
        "instance": partial(processor.post_process_instance_segmentation, raw, target_sizes=[SIZE], **separate),
    }


def scored_maps() -> list[Any]:
    """Arguments of `PanopticQuality.update` for DISTINCT images."""
    rng, maps = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        ids, classes = scene(rng)
        maps.append((np.roll(ids, (3, 5), (0, 1)), classes | {1: 7}, np.where(blob(rng), 0, ids), classes))
    return maps


def by_metric(maps: list[Any]) -> np.ndarray:
    metric = PanopticQuality({id: id < THINGS for id in range(CLASSES)})
    for arguments in maps:
        metric.update(*arguments)
    return metric.totals


def by_loop(maps: list[Any]) -> np.ndarray:
    """The same sums (without crowds), one predicted segment after the other."""
    totals = np.zeros((CLASSES, 4))
    for pred, pred_segments, gt, gt_segments in maps:
        missed, areas = dict(gt_segments), _counts(gt)
        for id, label in pred_segments.items():
            pixels = _counts(gt[pred == id])
            area, void = sum(pixels.values()), pixels.pop(0, 0)
            ious = {other: n / (area - void + areas[other] - n) for other, n in pixels.items()}
            matches = [other for other in pixels if gt_segments[other] == label and ious[other] > 0.5]
            for other in matches:  # one at most
                totals[label, :2] += ious[other], 1
                del missed[other]
            totals[label, 2] += not matches and 2 * void <= area
        for label in missed.values():
            totals[label, 3] += 1
    return totals


def _counts(ids: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
