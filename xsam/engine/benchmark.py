"""What `xsam benchmark` measures. `data`: how fast samples become batches, and what dense masks would cost instead."""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from .. import config as configs
from ..data.images import longest_side_size
from ..data.masks import decode_rle, encode_rle, pad_ids, resize_ids
from ..data.masks import pack as pack_masks
from ..data.mixture import Loader, Mixture
from ..data.prompt import Processor
from ..data.shapes import train_tokenizer
from ..structures import RLE, Sample, SegmentMap, Turn

HEIGHT, WIDTH, INSTANCES, IMAGES = 480, 640, 20, 4
SEG_SIDE, VISION_SIDE = 1024, 384
WORKERS = 2
SECONDS = 3.0  # of loading, for every source


class Scenes:
    """A source without a dataset: a few JPEGs of 640 x 480, 20 overlapping instances each.

    Args:
        folder: where the images are written.
        kind: "generic" asks for all instances in one question, "referring" for 5 in 5 turns, "chat" for none.
    """

    lengths = np.zeros(0, np.int64)

    def __init__(self, folder: str | Path, kind: str) -> None:
        self.folder, self.kind = Path(folder), kind
        rng = np.random.default_rng(0)
        self.rles = [[encode_rle(_blob(rng)) for _ in range(INSTANCES)] for _ in range(IMAGES)]
        ramp = 127 + 80 * np.sin(np.arange(WIDTH) / 17)[None, :, None]
        for number in range(IMAGES):
            pixels = ramp + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(self._image(number), quality=90)

    def __len__(self) -> int:
        return IMAGES

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        if self.kind == "chat":
            turns = [Turn("What is there?", "A red circle to the left of a blue star, above a green square.")] * 5
            masks, segs = SegmentMap(), np.zeros(0, np.int64)
        else:
            count = INSTANCES if self.kind == "generic" else 5
            phrases = [f"<p>the red circle {number}</p>" for number in range(count)]
            masks = _id_maps(self.rles[index][:count])
            if self.kind == "generic":
                turns, segs = [Turn(f"Segment {', '.join(phrases)}.", "<SEG>.")], np.zeros(count, np.int64)
            else:
                turns, segs = [Turn(f"Where is {phrase}?", "It is <SEG>.") for phrase in phrases], np.arange(count)
        turns = [Turn(f"<image>\n{turns[0].question}", turns[0].answer), *turns[1:]]
        return Sample(
            id=f"{self.kind} {index}", image=self._image(index), turns=tuple(turns), masks=masks,
            labels=np.arange(masks.count), mask_segs=segs, shared_candidates=self.kind == "referring",
        )  # fmt: skip

    def _image(self, number: int) -> str:
        return str(self.folder / f"{number}.jpg")


def data(config_path: str = "", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Speed of every source of a config's mixture, memory of a loading worker, and id maps against dense masks.

    Without a config: `Scenes` at the paper's sizes, 1024 and 384.

    Returns:
        `sources`: by name, `samples_per_second` and `cpu_ms` per sample of one process, from record to batch.
        `worker_mb`: memory that a worker has to itself, MB; None where the system does not tell.
        `targets`: CPU time in ms of one image with 20 instances: `ours` builds its targets, `sample` does everything
        (image read and resized for both encoders, text, targets), `dense` builds `dense_masks` and nothing else.
    """
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder))
        scenes = {kind: Scenes(folder, kind) for kind in ("generic", "referring", "chat")}
        default = Processor(seg_size=SEG_SIDE, vision_size=VISION_SIDE, tokenizer=folder)
        mixture, processor = Mixture(sources=scenes), default
        if config_path:
            config = configs.load(config_path, overrides)
            mixture, processor = configs.build(config["mixture"]), configs.build(config["processor"])
        return {
            "sources": {name: _speed(Mixture(sources={name: mixture.sources[name]}), processor)
                        for name in mixture.names},
            "worker_mb": _worker_memory(mixture, processor),
            "targets": _against_dense(scenes["generic"], default),
        }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """The report of `data` as text."""
    rows = report["sources"].items()
    lines = [f"{name:24}{row['samples_per_second']:12.1f}{row['cpu_ms']:10.1f}" for name, row in rows]
    ours, sample, dense = (report["targets"][name] for name in ("ours", "sample", "dense"))
    return "\n".join([
        f"{'source':24}{'samples/s':>12}{'CPU ms':>10}", *lines, "",
        f"memory of a worker: {report['worker_mb'] or '?'} MB",
        f"CPU of {INSTANCES} instances at {SEG_SIDE} x {SEG_SIDE}: dense int64 masks {dense:.1f} ms; "
        f"id maps {ours:.1f} ms ({dense / ours:.1f}x less), the whole sample {sample:.1f} ms "
        f"({dense / sample:.1f}x less)",
    ])  # fmt: skip


def targets(rles: Sequence[RLE], side: int) -> np.ndarray:
    """The id maps of instances in the frame as the loader makes them, int16[layers, side, side]."""
    masks = _id_maps(rles)
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


def _id_maps(rles: Sequence[RLE]) -> SegmentMap:
    return pack_masks(np.stack([decode_rle(rle) for rle in rles]))


def _blob(rng: np.random.Generator) -> np.ndarray:
    """bool[HEIGHT, WIDTH], an ellipse of 30 to 120 pixels with a wavy outline."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    y, x, high, wide = rng.uniform((0, 0, 30, 30), (HEIGHT, WIDTH, 120, 120))
    return ((ys - y) / high) ** 2 + ((xs - x) / wide) ** 2 + 0.2 * np.sin(xs / 7 + y) + 0.2 * np.cos(ys / 5) < 1


def _loader(mixture: Mixture, processor: Processor, workers: int) -> Loader:
    return Loader(
        mixture, processor, seed=0, batch_size=4, accumulation=1, rank=0, world_size=1, start_step=0, steps=10**6,
        workers=workers,
    )  # fmt: skip


def _speed(mixture: Mixture, processor: Processor) -> dict[str, float]:
    batches = iter(_loader(mixture, processor, workers=0))
    next(batches)
    began, cpu, samples = time.perf_counter(), time.process_time(), 0
    while (wall := time.perf_counter() - began) < SECONDS or not samples:
        samples += sum(len(batch.ids) for batch in next(batches))
    return {"samples_per_second": samples / wall, "cpu_ms": 1e3 * (time.process_time() - cpu) / samples}


def _worker_memory(mixture: Mixture, processor: Processor) -> int | None:
    """The largest private memory of two workers, MB, after some seconds of loading."""
    others = set(multiprocessing.active_children())
    batches = iter(_loader(mixture, processor, WORKERS))
    began = time.perf_counter()
    while next(batches) and time.perf_counter() - began < SECONDS:
        pass
    files = [Path(f"/proc/{child.pid}/smaps_rollup") for child in set(multiprocessing.active_children()) - others]
    sizes = [re.findall(r"^Private_\w+: +(\d+) kB", file.read_text(), re.MULTILINE) for file in files if file.exists()]
    return max((sum(map(int, kilobytes)) // 1000 for kilobytes in sizes), default=None)


def _against_dense(scenes: Scenes, processor: Processor, rounds: int = 9) -> dict[str, float]:
    """Least CPU time of some rounds, ms: what else the machine does only adds to it. The three take turns."""
    work: dict[str, Callable[[int], Any]] = {
        "ours": lambda image: targets(scenes.rles[image], SEG_SIDE),
        "sample": lambda image: processor(scenes.sample(image, np.random.default_rng(0)), 0),
        "dense": lambda image: dense_masks(scenes.rles[image], SEG_SIDE),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name, build in work.items():
            build(number % IMAGES)  # untimed: what ran before it left cold caches and gave memory back
            began = time.process_time()
            build(number % IMAGES)
            times[name].append(1e3 * (time.process_time() - began))
    return {name: min(values) for name, values in times.items()}
