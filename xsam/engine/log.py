"""What a training run says about itself: progress on stderr, `log.jsonl` and TensorBoard in its folder."""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm


class Log:
    """Log of one process (rank 0). Values are means over the `every` steps since the line before.

    A resumed run drops the lines and events of steps that it is about to repeat.
    """

    def __init__(self, work_dir: Path, *, first: int, last: int, batch_size: int, every: int) -> None:
        """The run makes steps `first` .. `last` - 1 of `batch_size` samples each."""
        from torch.utils.tensorboard import SummaryWriter

        path = work_dir / "log.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= first]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(work_dir / "tensorboard"), purge_step=first + 1)
        self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty())
        self._first, self._last, self._batch_size, self._every = first, last, batch_size, every
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._began = time.perf_counter()

    def step(self, step: int, losses: Mapping[str, float], *, lr: float, grad_norm: float, waited: float) -> None:
        """Note one finished step: its index, its loss terms, and the seconds it waited for data."""
        self._steps += 1
        for name, value in losses.items():
            self._sums[name] += value
        self._sums["grad_norm"] += grad_norm
        self._sums["waited"] += waited
        self._bar.update()
        if (step + 1) % self._every == 0 or step + 1 == self._last or step == self._first:
            self._write(step + 1, list(losses), lr)
            self._restart()

    def _write(self, step: int, names: list[str], lr: float) -> None:
        seconds = (time.perf_counter() - self._began) / self._steps
        means = {name: value / self._steps for name, value in self._sums.items()}
        record = {
            "step": step,
            "loss": sum(means[name] for name in names),
            "lr": lr,
            "grad_norm": means["grad_norm"] if math.isfinite(means["grad_norm"]) else None,
            "samples_per_second": self._batch_size / seconds,
            "data_wait_percent": 100 * means["waited"] / seconds,
            "losses": {name: means[name] for name in names},
        }
        self._file.write(json.dumps(record) + "\n")
        for name in ("loss", "lr", "samples_per_second", "data_wait_percent"):
            self._board.add_scalar(name, record[name], step)
        self._board.add_scalar("grad_norm", means["grad_norm"], step)
        for name in names:
            self._board.add_scalar(f"losses/{name}", means[name], step)
        # The terms of the decoder's inner outputs, named `..._0`, `..._1`, are in the file only.
        terms = " ".join(f"{name} {means[name]:.3f}" for name in names if not name[-1].isdigit())
        text = f"loss {record['loss']:.4f} ({terms}) lr {lr:.2e} {self._batch_size / seconds:.1f} samples/s"
        if self._bar.disable:
            left = timedelta(seconds=round(seconds * (self._last - step)))
            print(f"step {step}/{self._last} {text} left {left}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()


def _lines(path: Path) -> list[str]:
    """Whole lines; one that a killed run left half-written is dropped."""
    if not path.exists():
        return []
    return [line.rstrip("\n") for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
