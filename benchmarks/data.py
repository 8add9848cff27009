"""`xsam benchmark data`: how fast samples become batches, and what dense masks cost. Images and masks are made up."""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from world.shapes import train_tokenizer
from xsam import config as configs
from xsam.data.images import longest_side_size
from xsam.data.masks import decode_rle, encode_rle, pack, pad_ids, resize_ids
from xsam.data.mixture import Loader, Mixture
from xsam.data.prompt import Processor
from xsam.structures import RLE, Sample, SegmentMap, Turn

from .measure import compare, machine

SIZE = HEIGHT, WIDTH = 480, 640  # of all images
INSTANCES = {"generic": 20, "referring": 5, "chat": 0}  # that a sample of `Scenes` asks for
SEG_SIDE, VISION_SIDE = 1024, 384
WORKERS, SECONDS = 2, 3.0  # of loading, for every source


def blob(rng: np.random.Generator) -> np.ndarray:
    """bool[HEIGHT, WIDTH], an ellipse of 30 to 120 pixels with a wavy outline."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    y, x, high, wide = rng.uniform((0, 0, 30, 30), (HEIGHT, WIDTH, 120, 120))
    return ((ys - y) / high) ** 2 + ((xs - x) / wide) ** 2 + 0.2 * np.sin(xs / 7 + y) + 0.2 * np.cos(ys / 5) < 1


class Scenes:
    """A source without a dataset: four JPEGs, written to `folder`, with 20 overlapping instances each. "generic" asks
    for all of them in one question, "referring" for 5 in 5 turns, "chat" for none."""

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


def report(config_path: str = "", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Speed of every source of a config's mixture, from record to batch in one process; memory that a loading worker
    has to itself, MB (None where the system does not tell); and the targets of one image as id maps, with everything
    else of its sample, and as dense masks. Without a config: `Scenes` at the paper's sizes, 1024 and 384."""
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
