"""Many sources, one stream: balanced resampling, batches of one source, keyed draws, any step reachable at once."""

import hashlib
import json
import logging
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..structures import BadSample, Batch, Encoded, Sample, UserError
from . import parcel
from .collate import collate

log = logging.getLogger("xsam")

ATTEMPTS = 100  # draws in place of one sample
GIVEN_UP = f"{ATTEMPTS} draws in a row cannot be used"
TOLERATED = 10  # bad samples that are not yet a share of anything


class Source(Protocol):
    """What a mixture draws from: a task over one dataset."""

    def __len__(self) -> int: ...
    def sample(self, index: int, rng: np.random.Generator) -> Sample: ...
    @property
    def lengths(self) -> np.ndarray: ...  # int64[N], how long each sample's text is, in any unit; empty = unknown


Encode = Callable[..., Encoded]  # (sample, key, shorten=True): a `data.prompt.Processor`


def key(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on all parts and on nothing else (no process, no rank, no worker)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def repeat_factors(sizes: Mapping[str, int], threshold: float) -> dict[str, float]:
    """r_d = max(1, sqrt(t / f_d)), f_d the share of source d (X-SAM, after LVIS, arXiv 1908.03195); t <= 0: all 1."""
    total = sum(sizes.values())
    return {name: max(1.0, (threshold * total / size) ** 0.5) if threshold > 0 else 1.0 for name, size in sizes.items()}


class Mixture:
    """The training stream as a pure function of (seed, step).

    Every global batch holds samples of one source only, so all ranks run the same graph; batches of all sources are
    shuffled together. What is less than a whole pass over a source is drawn anew each epoch from all of it. Where a
    source knows the lengths of its texts, those of a batch are alike.

    Args:
        sources: training tasks by name.
        threshold: t of the balanced resampling; 0 = every sample once.
        multipliers: a further factor of a source's samples in an epoch, on top of its repeat factor.
        caps: most samples of a source in an epoch, which then counts as no larger for the shares either.
        contrast: samples with shared candidates share them in groups of this many consecutive samples.
        bad_samples: largest tolerated share of draws that cannot be used, once there are more than 10; 0 = none at all.
    """

    length_chunk = 50  # batches of a source that are sorted by length at once: more would put rare lengths together

    def __init__(
        self, *, sources: Mapping[str, Source], threshold: float = 0.1, multipliers: Mapping[str, float] | None = None,
        caps: Mapping[str, int] | None = None, contrast: int = 4, bad_samples: float = 0.001,
    ) -> None:  # fmt: skip
        empty = [name for name, source in sources.items() if not len(source)]
        if empty or not sources:
            raise UserError(f"mixture.sources: {', '.join(empty) or 'give data=FILE'}: no samples to train on")
        multipliers, caps = multipliers or {}, caps or {}
        for option, values in {"multipliers": multipliers, "caps": caps}.items():
            for name, value in values.items():
                if name not in sources:
                    there = "give data=FILE" if name == "own" else f"there is: {', '.join(sources)}"
                    raise UserError(f"mixture.{option}: no source {name}; {there}")
                if not value > 0:
                    raise UserError(f"mixture.{option}.{name}={value}: give more than 0, or remove the source")
        self.sources, self.contrast, self.bad_samples = dict(sources), contrast, bad_samples
        self.names = sorted(self.sources)
        sizes = {name: min(len(source), caps.get(name, len(source))) for name, source in self.sources.items()}
        self.counts: dict[str, int] = {}  # samples of an epoch
        for name, factor in repeat_factors(sizes, threshold).items():
            wanted = sizes[name] * factor * multipliers.get(name, 1)
            self.counts[name] = max(1, int(min(wanted, caps.get(name, wanted))))

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches of one epoch; a source's last batch is completed with samples that the epoch has already."""
        return sum(-(-count // batch_size) for count in self.counts.values())

    def epoch(self, seed: int, epoch: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The plan of an epoch: source number int[steps] and sample indices int[steps, batch_size]."""
        rng = np.random.default_rng(key(seed, epoch, "plan"))
        owners, batches = [], []
        for number, name in enumerate(self.names):
            size, count, lengths = len(self.sources[name]), self.counts[name], self.sources[name].lengths
            passes = [rng.permutation(size) for _ in range(-(-count // size))]
            order = rng.permutation(np.resize(np.concatenate(passes)[:count], -(-count // batch_size) * batch_size))
            if len(lengths):
                chunks = np.arange(len(order)) // (batch_size * self.length_chunk)
                order = order[np.lexsort((lengths[order], chunks))]
            batches.append(order.reshape(-1, batch_size))
            owners.append(np.full(len(batches[-1]), number))
        shuffled = rng.permutation(sum(map(len, owners)))
        return np.concatenate(owners)[shuffled], np.concatenate(batches)[shuffled]

    def draw(self, name: str, index: int, place: tuple[int, ...], encode: Encode) -> tuple[list[Encoded], list[str]]:
        """One encoded sample, and why others of its source were refused before it; no sample where `ATTEMPTS` in a row
        were. `place` in the stream seeds all its draws."""
        source = self.sources[name]
        reasons: list[str] = []
        for attempt in range(ATTEMPTS):
            seed = key(*place, attempt)
            try:
                return [encode(source.sample(index, np.random.default_rng(seed)), seed, shorten=True)], reasons
            except BadSample as bad:
                reasons.append(str(bad))
            index = seed % len(source)
        return [], [*reasons, GIVEN_UP]


class Loader(Dataset):
    """Source and this rank's micro-batches of every step from `start_step` up to `steps`, made by worker processes.

    A sample that is refused was drawn in a worker, which sends the reason along with the step's batches. So it counts
    when its step is trained on, whatever was loaded ahead, and `total` makes the counts the same on every rank: all
    stop at the same step. Rank 0 logs them, and lists them in `refused`, from where a resumed run counts on.

    total: sums counts over the ranks, key by key; every rank calls it at every step. refused: file of JSON lines
    {"step", "source", "reason"}.
    """

    def __init__(
        self, mixture: Mixture, encode: Encode, *, seed: int, batch_size: int, accumulation: int, rank: int,
        world_size: int, start_step: int, steps: int, workers: int,
        total: Callable[[Mapping[str, float]], Mapping[str, float]] = dict, refused: Path | None = None,
    ) -> None:  # fmt: skip
        self.micro, remainder = divmod(batch_size, accumulation * world_size)
        if remainder:
            split = f"{world_size} processes x {accumulation} micro-steps"
            raise UserError(f"stage.batch_size={batch_size} does not split over {split}")
        self.mixture, self.encode, self.seed, self.batch_size = mixture, encode, seed, batch_size
        self.rank, self.range, self.workers = rank, range(start_step, steps), workers
        self.own = np.arange(batch_size).reshape(accumulation, world_size, self.micro)[:, rank].ravel().tolist()
        self.plan = lru_cache(maxsize=1)(mixture.epoch)
        self.total, self.path = total, refused
        self.refused: Counter[tuple[str, str]] = Counter()  # by source and kind of reason, over all ranks

    def __getitem__(self, step: int) -> tuple[str, list[str], tuple[bytes, Tensor]]:
        """What a worker makes of a step: the source, why samples were refused, and the parcel of micro-batches, empty
        where one could not be filled."""
        epoch, position = divmod(step, self.mixture.steps_per_epoch(self.batch_size))
        owners, batches = self.plan(self.seed, epoch, self.batch_size)
        name = self.mixture.names[owners[position]]
        rows: list[Encoded] = []
        reasons: list[str] = []
        for row in self.own:
            index, place = int(batches[position, row]), (self.seed, step, row)
            encoded, refused = self.mixture.draw(name, index, place, self.encode)
            rows += encoded
            reasons += refused
            if not encoded:
                return name, reasons, parcel.pack([])
        starts = range(0, len(rows), self.micro)
        return name, reasons, parcel.pack([collate(rows[i : i + self.micro], self.mixture.contrast) for i in starts])

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> Iterator[tuple[str, list[Batch]]]:
        for text, count in self.total(self._earlier()).items():
            self.refused[kind(text)] += int(count)
        made = DataLoader(
            self, batch_size=None, sampler=self.range, num_workers=self.workers, pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.workers else None, multiprocessing_context="fork" if self.workers else None,
            worker_init_fn=_outlive_signals,
        )  # fmt: skip
        for step, (name, reasons, micro_batches) in zip(self.range, made, strict=True):
            self._note(step, name, self.total(Counter(f"{name}: {reason}" for reason in reasons)))
            yield name, parcel.unpack(micro_batches)

    def _earlier(self) -> Counter[str]:
        """What was refused before the first step, which rank 0 knows; lines of steps that are repeated are dropped."""
        if self.rank or self.path is None or not self.path.exists():
            return Counter()
        lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]  # a killed run's may be cut
        records = [record for record in map(json.loads, lines) if record["step"] < self.range.start]
        self.path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return Counter(f"{record['source']}: {record['reason']}" for record in records)

    def _note(self, step: int, name: str, refused: Mapping[str, float]) -> None:
        """Raises UserError, on all ranks alike, where a batch cannot be filled or too many samples are bad."""
        for text, count in refused.items():
            source, _, reason = text.partition(": ")
            for _ in range(int(count) if reason != GIVEN_UP else 0):
                self.refused[kind(text)] += 1
                so_far = self.refused[kind(text)]
                if self.rank:
                    continue
                if so_far <= 3:
                    log.warning("skipped a sample of %s: %s", source, reason)
                elif str(so_far).strip("0") == "1":
                    log.warning("skipped %d samples of %s so far: %s", so_far, *kind(text))
                if self.path is not None:
                    with self.path.open("a") as file:
                        file.write(json.dumps({"step": step, "source": source, "reason": reason}) + "\n")
        where = f"all are listed in {self.path}" if self.path else "see the log"
        bad, limit = self.refused.total(), self.mixture.bad_samples
        draws = (step + 1) * self.batch_size + bad
        kinds = "; ".join(f"{count} x {source}: {what}" for (source, what), count in self.refused.most_common(8))
        if f"{name}: {GIVEN_UP}" in refused:
            raise UserError(f"mixture.sources.{name}: {GIVEN_UP} ({kinds}); {where}")
        if bad > (max(limit * draws, TOLERATED) if limit else 0):
            share = f"{bad} of {draws} samples cannot be used, more than mixture.bad_samples={limit}"
            raise UserError(f"{share} ({kinds}); {where}")


def _outlive_signals(worker: int) -> None:
    """A signal to all processes of a job is for the one that reads from the workers: it needs them to end well."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def kind(text: str) -> tuple[str, str]:
    """Source and kind of "SOURCE: WHERE: WHAT": the same whatever the record and the numbers."""
    source, _, reason = text.partition(": ")
    return source, re.sub(r"\d+", "N", reason.partition(": ")[2] or reason)
