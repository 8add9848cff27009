"""`xsam benchmark`: ways to do the same, measured side by side. Images, masks and logits are made up.

`data`: how fast samples become batches, and what dense masks cost. `evaluation`: from logits to scores, ours against
transformers and a plain loop."""

import ctypes
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from .. import __version__
from .. import config as configs
from ..data.images import longest_side_size
from ..data.masks import decode_rle, encode_rle, pack, pad_ids, read_panoptic_png, resize_ids, write_panoptic_png
from ..data.mixture import Loader, Mixture
from ..data.postprocess import panoptic
from ..data.prompt import Processor
from ..data.shapes import train_tokenizer
from ..metrics.panoptic import PanopticQuality
from ..structures import RLE, ItemOutput, Sample, SegmentMap, Turn

SIZE = HEIGHT, WIDTH = 480, 640  # of all images
INSTANCES = {"generic": 20, "referring": 5, "chat": 0}  # that a sample of `Scenes` asks for
SEG_SIDE, VISION_SIDE = 1024, 384
WORKERS, SECONDS = 2, 3.0  # of loading, for every source
QUERIES, CLASSES, THINGS = 200, 133, 80
SEGMENTS = 20  # of a panoptic map, at most
GRID, FRAME = 96, 384  # sides of the mask logits, and of the frame that transformers' Mask2Former goes through
IMAGES, DISTINCT = 500, 20  # whose PQ is computed, and how many of them differ


def machine() -> str:
    """What a measurement runs on, for every report."""
    cpuinfo = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy", "pillow", "pycocotools"))
    return f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores; xsam {__version__}, {versions}"


def compare(work: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, dict[str, Any]]:
    """Ways to do the same, on one thread. They take turns, so that what else the machine does falls on all of them.

    Returns:
        By name `cpu_ms`, median of the rounds, `least_ms`, `less`, how many times the CPU time of the last way is that
        of this one, and `peak_mb`, memory taken beyond what the process held (None where the system does not tell)."""
    times: dict[str, list[float]] = {name: [] for name in work}
    rows: dict[str, dict[str, Any]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        for name, build in work.items():
            rows[name] = {"peak_mb": _peak(build)}  # untimed: what ran before left cold caches and gave memory back
            began = time.process_time()
            build()
            times[name].append(1e3 * (time.process_time() - began))
    torch.set_num_threads(threads)
    *_, last = times.values()
    for name, row in rows.items():
        median = float(np.median(times[name]))
        row |= {"cpu_ms": median, "least_ms": min(times[name]), "less": float(np.median(last)) / median}
    return rows


def _peak(build: Callable[[], Any]) -> float | None:
    """Memory, MB, that a call takes beyond what the process holds."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else memory that an earlier call freed would hide what this one takes
    reset.write_text("5")  # the highest size so far is forgotten
    held = status.read_text()
    build()
    before, after = (int(re.findall(r"VmHWM:\s+(\d+)", text)[0]) for text in (held, status.read_text()))
    return (after - before) / 1e3


def table(report: Mapping[str, Any]) -> str:
    """Any report as text: facts, and tables whose rows have the same columns."""
    lines = []
    for name, rows in report.items():
        if not isinstance(rows, Mapping):
            lines += [f"{name}: {rows}"]
            continue
        lines += ["", f"{name:36}" + "".join(f"{column:>19}" for column in next(iter(rows.values())))]
        for row, cells in rows.items():
            texts = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells.values())
            lines += [f"  {row:34}" + "".join(f"{text:>19}" for text in texts)]
    return "\n".join(lines)


def blob(rng: np.random.Generator) -> np.ndarray:
    """bool[HEIGHT, WIDTH], an ellipse of 30 to 120 pixels with a wavy outline."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    y, x, high, wide = rng.uniform((0, 0, 30, 30), (HEIGHT, WIDTH, 120, 120))
    return ((ys - y) / high) ** 2 + ((xs - x) / wide) ** 2 + 0.2 * np.sin(xs / 7 + y) + 0.2 * np.cos(ys / 5) < 1


class Scenes:
    """A source without a dataset: four JPEGs with 20 overlapping instances each.

    Args:
        folder: where the images are written.
        kind: "generic" asks for all instances in one question, "referring" for 5 in 5 turns, "chat" for none."""

    lengths = np.zeros(0, np.int64)

    def __init__(self, folder: str | Path, kind: str) -> None:
        self.kind, self.images = kind, [str(Path(folder, f"{number}.jpg")) for number in range(4)]
        rng = np.random.default_rng(0)
        self.rles = [[encode_rle(blob(rng)) for _ in range(INSTANCES["generic"])] for _ in self.images]
        ramp = 127 + 80 * np.sin(np.arange(WIDTH) / 17)[None, :, None]
        for image in self.images:
            pixels = ramp + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image, quality=90)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        phrases = [f"<p>the red circle {number}</p>" for number in range(INSTANCES[self.kind])]
        first, *more = {"generic": [f"Segment {', '.join(phrases)}."],
                        "referring": [f"Where is {phrase}?" for phrase in phrases],
                        "chat": ["What is there?"] * 5}[self.kind]  # fmt: skip
        answer = "It is <SEG>." if phrases else "A red circle to the left of a blue star, above a green square."
        asked = [decode_rle(rle) for rle in self.rles[index][: len(phrases)]]
        masks = pack(np.stack(asked)) if asked else SegmentMap()
        labels = np.arange(masks.count)
        return Sample(id=f"{self.kind} {index}", image=self.images[index], masks=masks, labels=labels,
                      turns=tuple(Turn(question, answer) for question in (f"<image>\n{first}", *more)),
                      mask_segs=labels % (1 + len(more)), shared_candidates=self.kind == "referring")  # fmt: skip


def data(config_path: str = "", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Speed of every source of a config's mixture, memory of a loading worker, and id maps against dense masks.

    Without a config: `Scenes` at the paper's sizes, 1024 and 384.

    Returns:
        `sources`: by name, `samples_per_second` and `cpu_ms` per sample of one process, from record to batch.
        `worker_mb`: memory that a worker has to itself, MB; None where the system does not tell.
        `targets`: `compare` of one image with 20 instances: `ours` builds its targets, `sample` does everything
        (image read and resized for both encoders, text, targets), `dense` builds `dense_masks` and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder))
        scenes = {kind: Scenes(folder, kind) for kind in INSTANCES}
        default = Processor(seg_size=SEG_SIDE, vision_size=VISION_SIDE, tokenizer=folder)
        mixture, processor = Mixture(sources=scenes), default
        if config_path:
            config = configs.load(config_path, overrides)
            mixture, processor = configs.build(config["mixture"]), configs.build(config["processor"])
        rles = scenes["generic"].rles[0]
        return {
            "machine": machine(),
            "sources": {name: _speed(Mixture(sources={name: mixture.sources[name]}), processor)
                        for name in mixture.names},
            "worker_mb": _worker_memory(mixture, processor),
            "targets": compare({"ours": lambda: targets(rles, SEG_SIDE),
                                "sample": lambda: default(scenes["generic"].sample(0, np.random.default_rng(0)), 0),
                                "dense": lambda: dense_masks(rles, SEG_SIDE)}),
        }  # fmt: skip


def targets(rles: Sequence[RLE], side: int) -> np.ndarray:
    """The id maps of instances in the frame as the loader makes them, int16[layers, side, side]."""
    masks = pack(np.stack([decode_rle(rle) for rle in rles]))
    height, width = longest_side_size(masks.ids.shape[1], masks.ids.shape[2], side)
    return pad_ids(resize_ids(masks.ids, height, width), side)


def dense_masks(rles: Sequence[RLE], side: int) -> Tensor:
    """The same as int64[N, side, side], the usual way: each is decoded, resized, padded and converted, all stacked."""
    masks = []
    for rle in rles:
        mask = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})
        height, width = longest_side_size(mask.shape[0], mask.shape[1], side)
        resized = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        masks.append(torch.from_numpy(np.pad(resized, ((0, side - height), (0, side - width)))).long())
    return torch.stack(masks)


_loader = partial(Loader, seed=0, batch_size=4, accumulation=1, rank=0, world_size=1, start_step=0, steps=10**6)


def _speed(mixture: Mixture, processor: Processor) -> dict[str, float]:
    batches = iter(_loader(mixture, processor, workers=0))
    next(batches)
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    while (wall := time.perf_counter() - began) < SECONDS or not samples:
        samples += sum(len(batch.ids) for batch in next(batches)[1])
    return {"samples_per_second": samples / wall, "cpu_ms": 1e3 * (time.process_time() - cpu) / samples}


def _worker_memory(mixture: Mixture, processor: Processor) -> int | None:
    """The largest private memory of two workers, MB, after some seconds of loading."""
    others = set(multiprocessing.active_children())
    batches = iter(_loader(mixture, processor, workers=WORKERS))
    began = time.perf_counter()
    while next(batches) and time.perf_counter() - began < SECONDS:
        pass
    files = [Path(f"/proc/{child.pid}/smaps_rollup") for child in set(multiprocessing.active_children()) - others]
    sizes = [re.findall(r"^Private_\w+: +(\d+) kB", file.read_text(), re.MULTILINE) for file in files if file.exists()]
    return max((sum(map(int, kilobytes)) // 1000 for kilobytes in sizes), default=None)


def scene(rng: np.random.Generator) -> tuple[np.ndarray, dict[int, int]]:
    """A panoptic map int32[HEIGHT, WIDTH] and the class of each id: four bands of stuff, things before them."""
    ids = np.repeat(np.arange(1, 5, dtype=np.int32), HEIGHT // 4)[:, None].repeat(WIDTH, 1)
    for id in range(5, SEGMENTS + 1):
        ids[blob(rng)] = id
    return ids, {id: id if id > 4 else THINGS + id for id in np.unique(ids).tolist()}


def answer(ids: np.ndarray, classes: Mapping[int, int]) -> ItemOutput:
    """The logits that a trained model would give. A mask has the soft and wavy outline of a segment; the first query of
    each segment has its class, all others mean nothing."""
    generator = torch.Generator().manual_seed(0)
    segment = np.resize(list(classes), QUERIES)
    inside = torch.from_numpy(resize_ids(ids[None], GRID, GRID) == segment[:, None, None]).float()
    waves = F.interpolate(torch.randn(1, QUERIES, 8, 8, generator=generator), (GRID, GRID), mode="bicubic")[0]
    logits = torch.randn(QUERIES, CLASSES + 1, generator=generator)
    logits[range(len(classes)), list(classes.values())] += 15
    logits[len(classes) :, -1] += 9
    return ItemOutput(mask_logits=16 * F.avg_pool2d(inside, 5, 1, 2) - 8 + waves, class_logits=logits, frame=FRAME,
                      seg_size=(FRAME, FRAME), image_size=SIZE)  # fmt: skip


def evaluation() -> dict[str, Any]:
    """CPU time and memory from logits to scores: ours, and transformers' function with a panoptic PNG on disk.

    Returns:
        `machine`, tables of `compare`, and `agreement`: for each table of panoptic maps how many segments there are,
        whether both ways give the same ids, classes and scores, and the percentage of pixels with another id."""
    from transformers import Mask2FormerImageProcessor

    (true, classes), theirs = scene(np.random.default_rng(0)), Mask2FormerImageProcessor()
    item, stuff = answer(true, classes), set(range(THINGS, CLASSES))
    masks = F.interpolate(item.mask_logits[None], SIZE, mode="bilinear")[0]
    sized = replace(item, mask_logits=F.pad(masks, (0, 0, 0, WIDTH - HEIGHT)), frame=WIDTH, seg_size=SIZE)

    def ours(item: ItemOutput) -> tuple[np.ndarray, list]:
        painted, segments = panoptic(item, stuff=stuff, score=0.5)
        by_metric([(painted.numpy(), {id: label for id, label, _ in segments}, true, classes)])
        return painted.numpy(), [(id, label, round(value, 6)) for id, label, value in segments]

    def usual(masks: Tensor) -> tuple[np.ndarray, list]:
        raw = SimpleNamespace(class_queries_logits=item.class_logits[None], masks_queries_logits=masks[None])
        (found,) = theirs.post_process_panoptic_segmentation(raw, 0.5, label_ids_to_fuse=stuff, target_sizes=[SIZE])
        with tempfile.TemporaryDirectory() as folder:
            write_panoptic_png(path := Path(folder) / "map.png", found["segmentation"].numpy())
            painted = read_panoptic_png(path)
        segments = [(row["id"], row["label_id"], row["score"]) for row in found["segments_info"]]
        by_metric([(painted, {id: label for id, label, _ in segments}, true, classes)])
        return painted, segments

    not_resized = patch.object(F, "interpolate", lambda masks, **_: masks)  # else to 384 x 384 whatever they are
    report: dict[str, Any] = {"machine": machine(), "agreement": {}}
    for name, new, old in (
        ("panoptic, PQ", lambda: ours(item), lambda: usual(item.mask_logits)),
        ("panoptic, PQ; not resized", lambda: ours(sized), lambda: not_resized(usual)(masks)),
    ):
        report[name] = compare({"ours": new, "usual": old})
        (ids, segments), (others, expected) = new(), old()
        different = 100 * float((ids != others).mean())
        report["agreement"][name] = {"segments": len(segments), "same": segments == expected, "% pixels": different}
    maps = scored_maps() * (IMAGES // DISTINCT)
    report[f"PQ of {IMAGES} images"] = compare({"ours": lambda: by_metric(maps), "usual": lambda: by_loop(maps)})
    return report


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
