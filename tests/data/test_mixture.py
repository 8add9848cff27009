from collections import Counter

import numpy as np
import pytest

from xsam.data.mixture import Loader, Mixture, key, repeat_factors
from xsam.structures import BadSample, Encoded, Sample, Turn, UserError


class Numbers:
    """A source of n samples; those in `bad` cannot be used."""

    def __init__(self, n: int, bad: tuple[int, ...] = ()) -> None:
        self.n, self.bad = n, bad

    def __len__(self) -> int:
        return self.n

    def id(self, index: int) -> str:
        return str(index)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        if index in self.bad:
            raise BadSample(f"{index} is bad")
        return Sample(id=f"{index}:{rng.integers(1000)}", turns=(Turn("q", "a"),))


def encode(sample: Sample, seed: int) -> Encoded:
    none, empty = np.zeros(0, np.int64), np.zeros((3, 0, 0), np.uint8)
    row = np.ones(3, np.int64)
    return Encoded(
        id=sample.id, key=seed, input_ids=row, labels=row, span_ids=-row, seg_ids=-row, pixel_values=empty, seg_pixel_values=empty,
        seg_size=(0, 0), image_size=(0, 0), target_ids=empty.astype(np.int16), target_labels=none, target_segs=none,
        shared_candidates=False, region_points=np.zeros((0, 256, 2), np.float32), region_labels=np.zeros(0, np.int64), region_images=np.zeros(0, np.int64),
    )  # fmt: skip


def stream(
    mixture: Mixture,
    *,
    ranks: int = 1,
    accumulation: int = 1,
    workers: int = 0,
    start: int = 0,
    steps: int = 12,
) -> list[list[str]]:
    """Sample ids of each global batch in global order, put together from all ranks."""
    parts = [
        list(
            Loader(
                mixture,
                encode,
                seed=3,
                batch_size=8,
                accumulation=accumulation,
                rank=r,
                world_size=ranks,
                start_step=start,
                steps=steps,
                workers=workers,
            )
        )
        for r in range(ranks)
    ]
    return [
        [i for m in range(accumulation) for r in range(ranks) for i in parts[r][s][m].ids] for s in range(steps - start)
    ]


def test_repeat_factors_by_hand():
    # shares 0.9, 0.075, 0.025 at t = 0.1: sqrt(0.1 / 0.075), sqrt(0.1 / 0.025)
    assert repeat_factors({"a": 900, "b": 75, "c": 25}, 0.1) == pytest.approx({"a": 1, "b": (4 / 3) ** 0.5, "c": 2})
    assert set(repeat_factors({"a": 900, "b": 1}, 0).values()) == {1.0}


def test_epoch_draws_every_sample_in_batches_of_one_source():
    mixture = Mixture(sources={"a": Numbers(900), "b": Numbers(75), "c": Numbers(25)})
    owners, batches = mixture.epoch(0, 0, 8)
    assert len(owners) == mixture.steps_per_epoch(8) == 113 + 11 + 7
    drawn = {name: Counter(batches[owners == n].ravel().tolist()) for n, name in enumerate(mixture.names)}
    assert all(len(drawn[name]) == len(mixture.sources[name]) for name in mixture.names)
    assert set(drawn["c"].values()) <= {2, 3, 4}  # repeated twice, the last batch completed
    other = mixture.epoch(0, 1, 8)
    extra = [
        set(np.flatnonzero(np.bincount(b[o == 1].ravel(), minlength=75) > 1)) for o, b in ((owners, batches), other)
    ]
    assert extra[0] != extra[1]  # the fractional repeat is drawn anew, not the head of the list again
    assert max(extra[0]) > 60


def test_same_stream_for_any_ranks_accumulation_and_workers():
    mixture = Mixture(sources={"a": Numbers(50), "b": Numbers(9)})
    alone = stream(mixture)
    assert stream(mixture, ranks=2) == alone
    assert stream(mixture, ranks=2, accumulation=2) == alone
    assert stream(mixture, workers=2) == alone
    assert stream(mixture, start=5) == alone[5:]  # from any step, across the end of an epoch (9 steps)


def test_bad_samples_are_replaced_until_there_are_too_many():
    mixture = Mixture(sources={"a": Numbers(50, bad=(7,))})
    ids = [i.split(":")[0] for batch in stream(mixture, steps=7) for i in batch]
    assert "7" not in ids
    assert len(ids) == 56
    with pytest.raises(UserError, match=r"samples cannot be used .*mixture\.bad_samples=0\.001"):
        stream(Mixture(sources={"a": Numbers(50, bad=tuple(range(25)))}), steps=12)
    with pytest.raises(UserError, match="100 draws in a row"):
        stream(Mixture(sources={"a": Numbers(3, bad=(0, 1, 2))}))


def test_errors_name_the_remedy():
    with pytest.raises(UserError, match=r"mixture\.sources: a: no samples"):
        Mixture(sources={"a": Numbers(0)})
    with pytest.raises(UserError, match="batch_size=8 does not split over 3 processes"):
        stream(Mixture(sources={"a": Numbers(3)}), ranks=3)


def test_key_depends_on_every_part():
    assert len({key(1, 2, "a"), key(1, 2, "b"), key(12, "a"), key(2, 1, "a")}) == 4
    assert 0 <= key("x") < 2**63
