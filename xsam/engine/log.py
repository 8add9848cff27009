"""What a training run says about itself: progress on stderr, `log.jsonl` and TensorBoard in its folder."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from importlib.metadata import distributions
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .stages import Stage


class Log:
    """Log of one process (rank 0). Values are of the `stage.log_every` steps since the line before.

    A resumed run drops the lines and events of steps that it is about to repeat."""

    def __init__(self, work_dir: Path, stage: Stage, *, first: int, last: int) -> None:
        """The run makes steps `first` .. `last` - 1 of the stage."""
        from torch.utils.tensorboard import SummaryWriter

        path = work_dir / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last one of a killed run may be cut off
        path.write_text("".join(line for line in whole if json.loads(line)["step"] <= first))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(work_dir / "tensorboard"), purge_step=first + 1)
        self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())
        self._stage, self._first, self._last, self._peak = stage, first, last, stage.peak_tflops * 1e12
        self._flops: dict[str, FlopCounterMode] = {}  # of this process in a step of each source
        self._skipped = sum(int(step.name[5:]) < first for step in work_dir.glob("skipped/step_*"))
        self._restart()

    def _restart(self) -> None:
        self._sums: Any = Counter()  # of floats, which its type does not know
        self._losses: Any = Counter()
        self._sources: dict[str, list[float]] = defaultdict(list)
        self._steps = 0
        self._began = time.perf_counter()

    def counting(self, source: str) -> AbstractContextManager[Any]:
        """Around a step: counts the operations of the first one of every source, where the peak is known.

        Later ones are about as large, and counting takes time. What checkpointing computes again counts, too."""
        if not self._peak or source in self._flops:
            return nullcontext()
        self._flops[source] = FlopCounterMode(display=False)
        return self._flops[source]

    def step(
        self, step: int, source: str, losses: Mapping[str, float], *, lr: float, grad_norm: float, waited: float,
        images: float = 0, text_tokens: float = 0,
    ) -> None:  # fmt: skip
        """Note one finished step: its index, its loss terms, the seconds it waited for data, what it read on all ranks.

        One whose `grad_norm` is not finite was skipped; its losses are in no mean."""
        self._steps += 1
        flops = self._flops[source].get_total_flops() if self._peak else 0
        self._sums.update(waited=waited, images=images, tokens=text_tokens, flops=flops)
        if math.isfinite(grad_norm):
            self._sums.update(grad_norm=grad_norm)
            self._losses.update(losses)
            self._sources[source].append(sum(losses.values()))
        else:
            self._skipped += 1
        self._bar.update()
        if (step + 1) % self._stage.log_every == 0 or step + 1 == self._last or step == self._first:
            self._write(step + 1, lr)
            self._restart()

    def _write(self, step: int, lr: float) -> None:
        seconds = time.perf_counter() - self._began
        sums, updates = self._sums, sum(map(len, self._sources.values()))
        losses = {name: value / updates for name, value in self._losses.items()}
        sources = {name: sum(totals) / len(totals) for name, totals in sorted(self._sources.items())}
        # The most so far: allocated on the GPU of this process, else by itself.
        memory = torch.cuda.max_memory_allocated() or 1024 * getrusage(RUSAGE_SELF).ru_maxrss
        values = {
            "loss": sum(losses.values()) if updates else None,
            "lr": lr,
            "grad_norm": sums["grad_norm"] / updates if updates else None,
            "samples_per_second": self._stage.batch_size * self._steps / seconds,
            "images_per_second": sums["images"] / seconds,
            "tokens_per_second": sums["tokens"] / seconds,
            "data_wait_percent": 100 * sums["waited"] / seconds,
            "mfu_percent": 100 * sums["flops"] / seconds / self._peak if self._peak else None,
            "memory_gb": memory / 1e9,
            "skipped": self._skipped,
        }
        self._file.write(json.dumps({"step": step, **values, "losses": losses, "sources": sources}) + "\n")
        groups = {"losses/": losses, "sources/": sources}
        scalars = values | {prefix + name: value for prefix, group in groups.items() for name, value in group.items()}
        for name, scalar in scalars.items():
            if scalar is not None:
                self._board.add_scalar(name, scalar, step)
        # The terms of the decoder's inner outputs, named `..._0`, `..._1`, are in the file only.
        terms = " ".join(f"{name} {value:.3f}" for name, value in losses.items() if not name[-1].isdigit())
        text = (
            f"loss {sum(losses.values()):.4f} ({terms}) lr {lr:.2e} {values['samples_per_second']:.1f} samples/s"
            f" {values['data_wait_percent']:.0f}% waiting {memory / 1e9:.1f} GB {self._skipped} skipped"
        )
        if self._bar.disable:
            left = timedelta(seconds=round(seconds / self._steps * (self._last - step)))
            print(f"step {step}/{self._last} {text} left {left}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(text)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images uint8[H, W, 3] by name in TensorBoard."""
        for name, image in images.items():
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()


def note_start(work_dir: Path, seed: int, world_size: int) -> None:
    """Add a start or resumption of a run to `environment.jsonl`; with `config.json` that is all to run it again."""
    git = f"git -C {shlex.quote(str(Path(__file__).parent))}"
    failed, commit = subprocess.getstatusoutput(f"{git} rev-parse HEAD")  # fails outside of a working copy
    dirty = "" if failed else subprocess.getoutput(f"{git} status --porcelain")
    start = {
        "command": shlex.join(sys.argv), "seed": seed, "world_size": world_size,
        "git": None if failed else {"commit": commit, "dirty": bool(dirty)},
        "python": sys.version, "cuda": torch.version.cuda, "platform": platform.platform(), "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "packages": {package.name: package.version for package in distributions()},
    }  # fmt: skip
    with (work_dir / "environment.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")
