"""Many sources, one stream: balanced resampling, batches of one source, keyed draws, any step reachable at once."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..structures import BadSample, Batch, Encoded, Sample, UserError
from .collate import collate

log = logging.getLogger("xsam")


class Source(Protocol):
    """What a mixture draws from: a task over one dataset."""

    def __len__(self) -> int: ...
    def id(self, index: int) -> str: ...
    def sample(self, index: int, rng: np.random.Generator) -> Sample: ...


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
    shuffled together. Sources whose share is below `threshold` are repeated; the fractional part of a repeat is drawn
    anew each epoch from the whole source.

    Args:
        sources: training tasks by name.
        threshold: t of the balanced resampling; 0 = every sample once.
        multipliers: a further factor of a source's length, on top of its repeat factor.
        contrast: samples with shared candidates share them in groups of this many consecutive samples.
        bad_samples: largest tolerated share of draws that cannot be used.
    """

    def __init__(
        self, *, sources: Mapping[str, Source], threshold: float = 0.1, multipliers: Mapping[str, float] | None = None,
        contrast: int = 4, bad_samples: float = 0.001,
    ) -> None:  # fmt: skip
        empty = [name for name, source in sources.items() if not len(source)]
        if empty or not sources:
            raise UserError(f"mixture.sources: {', '.join(empty) or 'none given'}: no samples to train on")
        self.sources, self.contrast, self.bad_samples = dict(sources), contrast, bad_samples
        self.names = sorted(self.sources)
        sizes = {name: len(source) for name, source in self.sources.items()}
        multipliers = multipliers or {}
        if unknown := sorted(set(multipliers) - set(sizes)):
            raise UserError(f"mixture.multipliers: no source {', '.join(unknown)}; there is: {', '.join(sizes)}")
        repeats = repeat_factors(sizes, threshold)
        self.factors = {name: repeats[name] * multipliers.get(name, 1.0) for name in sizes}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Global batches of one epoch; a source's last batch is completed from its own beginning."""
        return sum(-(-self._length(name) // batch_size) for name in self.names)

    def _length(self, name: str) -> int:
        return max(1, int(len(self.sources[name]) * self.factors[name]))

    def epoch(self, seed: int, epoch: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The plan of an epoch: source number int[steps] and sample indices int[steps, batch_size]."""
        rng = np.random.default_rng(key(seed, epoch, "plan"))
        owners, batches = [], []
        for number, name in enumerate(self.names):
            size, length = len(self.sources[name]), self._length(name)
            passes = [rng.permutation(size) for _ in range(-(-length // size))]
            order = np.concatenate(passes)[:length]
            order = np.resize(order, -(-length // batch_size) * batch_size)
            rows = rng.permutation(order).reshape(-1, batch_size)
            owners.append(np.full(len(rows), number))
            batches.append(rows)
        shuffled = rng.permutation(sum(map(len, owners)))
        return np.concatenate(owners)[shuffled], np.concatenate(batches)[shuffled]

    def draw(
        self, name: str, index: int, seed: int, epoch: int, encode: Callable[[Sample, int], Encoded]
    ) -> tuple[Encoded, list[str]]:
        """One encoded sample; a bad one is replaced by another of its source. Returns the bad ones' reasons too."""
        source = self.sources[name]
        reasons: list[str] = []
        for attempt in range(100):
            seeded = key(seed, epoch, name, source.id(index), attempt)
            try:
                return encode(source.sample(index, np.random.default_rng(seeded)), seeded), reasons
            except BadSample as bad:
                reasons.append(str(bad))
            index = seeded % len(source)
        raise UserError(f"mixture.sources.{name}: 100 draws in a row cannot be used, the last: {reasons[-1]}")


class _Steps(Dataset):
    """Map-style: item s is the list of micro-batches of step s for one rank, whoever loads it."""

    def __init__(
        self, mixture: Mixture, encode: Callable[[Sample, int], Encoded], seed: int, batch_size: int, accumulation: int,
        rank: int, world_size: int,
    ) -> None:  # fmt: skip
        micro, remainder = divmod(batch_size, accumulation * world_size)
        if remainder:
            raise UserError(
                f"stage.batch_size={batch_size} does not split over {world_size} processes x {accumulation} micro-steps"
            )
        self.mixture, self.encode, self.seed, self.batch_size = mixture, encode, seed, batch_size
        self.accumulation, self.rank, self.world_size, self.micro = accumulation, rank, world_size, micro
        self.plan: tuple[int, tuple[np.ndarray, np.ndarray]] = (-1, (np.zeros(0), np.zeros(0)))

    def __getitem__(self, step: int) -> tuple[str, list[Batch], list[str]]:
        epoch, position = divmod(step, self.mixture.steps_per_epoch(self.batch_size))
        if self.plan[0] != epoch:
            self.plan = (epoch, self.mixture.epoch(self.seed, epoch, self.batch_size))
        owners, batches = self.plan[1]
        name = self.mixture.names[owners[position]]
        micro_batches, reasons = [], []
        for micro_step in range(self.accumulation):
            start = (micro_step * self.world_size + self.rank) * self.micro
            rows: list[Encoded] = []
            for index in batches[position][start : start + self.micro]:
                row, bad = self.mixture.draw(name, int(index), self.seed, epoch, self.encode)
                rows.append(row)
                reasons += bad
            micro_batches.append(collate(rows, self.mixture.contrast))
        return name, micro_batches, reasons


class Loader:
    """This rank's micro-batches of every step from `start_step` up to `steps`."""

    def __init__(
        self, mixture: Mixture, encode: Callable[[Sample, int], Encoded], *, seed: int, batch_size: int,
        accumulation: int, rank: int, world_size: int, start_step: int, steps: int, workers: int,
    ) -> None:  # fmt: skip
        self.steps = _Steps(mixture, encode, seed, batch_size, accumulation, rank, world_size)
        self.range = range(start_step, steps)
        self.loader = DataLoader(
            self.steps, batch_size=None, sampler=self.range, num_workers=workers, pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None, multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        self.refused: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> Iterator[list[Batch]]:
        drawn = 0
        for name, micro_batches, reasons in self.loader:
            drawn += sum(len(batch.ids) for batch in micro_batches)
            for reason in reasons:
                self.refused[name] += 1
                log.warning("skipped a sample of %s: %s", name, reason)
            limit = self.steps.mixture.bad_samples
            if self.refused.total() > max(limit * drawn, 10):
                raise UserError(
                    f"{self.refused.total()} of {drawn} samples cannot be used ({dict(self.refused)}), more than "
                    f"mixture.bad_samples={limit}; the reasons are in the log"
                )
            yield micro_batches
