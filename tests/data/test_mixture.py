import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from xsam.data.mixture import Loader, Mixture, key, repeat_factors
from xsam.structures import BadSample, Encoded, Sample, Turn, UserError

# X-SAM's eleven training sources of stage 3, in size like the public files
SIZES = {
    "llava": 665_298, "panoptic": 118_287, "refcoco": 120_624, "refcoco+": 120_191, "refcocog": 80_512, "reason": 239,
    "grandf": 1_000, "gcg_refcocog": 20_000, "gcg_psg": 31_000, "gcg_flickr": 160_000, "vgd": 117_266,
}  # fmt: skip


class Numbers:
    """A source of n samples; those in `bad` cannot be used."""

    def __init__(self, n: int, bad: tuple[int, ...] = (), lengths: np.ndarray | None = None) -> None:
        self.n, self.bad = n, bad
        self.lengths = np.zeros(0, np.int64) if lengths is None else lengths

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        if index in self.bad:
            raise BadSample(f"record {index}: has {index} flaws")
        return Sample(id=f"{index}:{rng.integers(10**9)}", turns=(Turn("q", "a"),))


def encode(sample: Sample, key: int, *, shorten: bool) -> Encoded:
    assert shorten
    none, empty = np.zeros(0, np.int64), np.zeros((3, 0, 0), np.uint8)
    row = np.ones(3, np.int64)
    return Encoded(
        id=sample.id, key=key, input_ids=row, labels=row, span_ids=-row, seg_ids=-row, pixel_values=empty, seg_pixel_values=empty,
        seg_size=(0, 0), image_size=(0, 0), target_ids=empty.astype(np.int16), target_labels=none, target_segs=none,
        shared_candidates=False, region_points=np.zeros((0, 256, 2), np.float32), region_labels=np.zeros(0, np.int64), region_images=np.zeros(0, np.int64),
    )  # fmt: skip


def loader(mixture, *, rank=0, ranks=1, accumulation=1, workers=0, start=0, steps=12, batch_size=8, **options):
    return Loader(
        mixture, encode, seed=3, batch_size=batch_size, accumulation=accumulation, rank=rank, world_size=ranks,
        start_step=start, steps=steps, workers=workers, **options,
    )  # fmt: skip


def stream(mixture: Mixture, *, ranks: int = 1, accumulation: int = 1, **options) -> list[list[str]]:
    """Sample ids of each global batch in global order, put together from all ranks."""
    parts = [list(loader(mixture, rank=r, ranks=ranks, accumulation=accumulation, **options)) for r in range(ranks)]
    return [
        [i for m in range(accumulation) for r in range(ranks) for i in parts[r][s][1][m].ids]
        for s in range(len(parts[0]))
    ]


def drawn(mixture: Mixture, epoch: int = 0, batch_size: int = 8) -> dict[str, np.ndarray]:
    """How often each sample of each source is in an epoch."""
    owners, batches = mixture.epoch(0, epoch, batch_size)
    return {
        name: np.bincount(batches[owners == number].ravel(), minlength=len(mixture.sources[name]))
        for number, name in enumerate(mixture.names)
    }


def test_repeat_factors_by_hand():
    # shares 0.9, 0.075, 0.025 at t = 0.1: sqrt(0.1 / 0.075), sqrt(0.1 / 0.025)
    assert repeat_factors({"a": 900, "b": 75, "c": 25}, 0.1) == pytest.approx({"a": 1, "b": (4 / 3) ** 0.5, "c": 2})
    assert set(repeat_factors({"a": 900, "b": 1}, 0).values()) == {1.0}


def test_epoch_draws_every_sample_in_batches_of_one_source():
    mixture = Mixture(sources={"a": Numbers(900), "b": Numbers(75), "c": Numbers(25)})
    owners, _ = mixture.epoch(0, 0, 8)
    assert len(owners) == mixture.steps_per_epoch(8) == 113 + 11 + 7
    counts = drawn(mixture)
    assert all(count.min() >= 1 for count in counts.values())
    assert set(counts["c"]) <= {2, 3, 4}  # repeated twice, the last batch completed
    other = drawn(mixture, epoch=1)
    extra = [set(np.flatnonzero(count["b"] > 1)) for count in (counts, other)]
    assert extra[0] != extra[1]  # the fractional repeat is drawn anew, not the head of the list again
    assert max(extra[0]) > 60


def test_shares_of_the_papers_sources():
    mixture = Mixture(sources={name: Numbers(size) for name, size in SIZES.items()})
    total = sum(SIZES.values())
    wanted = {name: size * max(1.0, (0.1 * total / size) ** 0.5) for name, size in SIZES.items()}  # N_d r_d
    counts = drawn(mixture, batch_size=64)
    everything = sum(count.sum() for count in counts.values())
    for name, size in SIZES.items():
        assert counts[name].sum() / everything == pytest.approx(wanted[name] / sum(wanted.values()), rel=0.01)
        assert len(counts[name]) == size
        assert counts[name].min() >= 1
        # the mean place of what is drawn once more than the rest: uniform, so within 5 sigma of the middle
        extra = np.flatnonzero(counts[name] > counts[name].min())
        assert abs(extra.mean() / size - 0.5) < 5 / np.sqrt(12 * len(extra)) if len(extra) > 100 else True


def test_caps_and_multipliers():
    sources = {"a": Numbers(1000), "b": Numbers(100)}
    mixture = Mixture(sources=sources, threshold=0.75, caps={"a": 100}, multipliers={"b": 0.5})
    # capped, both are 100 of 200: sqrt(0.75 / 0.5) = 1.22; the cap holds for a, half of 122 is left of b
    assert mixture.counts == {"a": 100, "b": 61}
    first, second = (np.flatnonzero(drawn(mixture, epoch, 1)["a"]) for epoch in (0, 1))
    assert len(first) == len(second) == 100
    assert 0 < len(set(first) & set(second)) < 30  # 10 expected of two fresh subsets
    assert max(first) > 900


def test_batches_of_like_lengths():
    lengths = np.random.default_rng(0).permutation(4000)
    mixture = Mixture(sources={"a": Numbers(4000, lengths=lengths), "b": Numbers(4000)}, threshold=0)
    owners, batches = mixture.epoch(0, 0, 8)
    spread = np.ptp(lengths[batches], axis=1)
    assert spread[owners == 0].max() < 400  # ten chunks of 50 batches: 400 samples share 4000 lengths
    assert np.median(spread[owners == 0]) < 100 < np.median(spread[owners == 1])
    assert (drawn(mixture)["a"] == 1).all()
    means = lengths[batches[owners == 0]].mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # batches come shuffled, not from short to long


def test_same_stream_for_any_ranks_accumulation_and_workers():
    lengths = np.random.default_rng(0).permutation(50)
    mixture = Mixture(sources={"a": Numbers(50, bad=(3, 4), lengths=lengths), "b": Numbers(9)})
    alone = stream(mixture)
    assert stream(mixture, ranks=2) == alone
    assert stream(mixture, ranks=2, workers=2) == alone
    assert stream(mixture, ranks=2, accumulation=2) == alone
    assert stream(mixture, workers=2) == alone
    assert stream(mixture, start=5) == alone[5:]  # from any step, across the end of an epoch (9 steps)
    assert stream(mixture, start=5, ranks=2, workers=2) == alone[5:]


def test_repeated_sample_is_drawn_anew():
    ids = [i for batch in stream(Mixture(sources={"a": Numbers(1)}), steps=2) for i in batch]
    assert len(set(ids)) == 16  # one record, sixteen wordings


def test_bad_samples_are_replaced_until_there_are_too_many():
    mixture = Mixture(sources={"a": Numbers(50, bad=(7,))})
    ids = [i.split(":")[0] for batch in stream(mixture, steps=7) for i in batch]
    assert "7" not in ids
    assert len(ids) == 56
    with pytest.raises(UserError, match=r"1\d of \d+ samples .*mixture\.bad_samples=0\.001 .*1\d x a: has N"):
        stream(Mixture(sources={"a": Numbers(500, bad=tuple(range(250)))}), batch_size=1, steps=99)
    with pytest.raises(UserError, match=r"1 of \d+ samples cannot be used, more than mixture\.bad_samples=0 "):
        stream(Mixture(sources={"a": Numbers(50, bad=(7,))}, bad_samples=0))
    with pytest.raises(UserError, match=r"mixture\.sources\.a: 100 draws in a row cannot be used \(100 x a: has N"):
        stream(Mixture(sources={"a": Numbers(3, bad=(0, 1, 2))}, bad_samples=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_refusals_are_listed_once_across_a_resumption(tmp_path, workers, caplog):
    mixture = Mixture(sources={"a": Numbers(40, bad=(1, 2, 4, 5)), "b": Numbers(40, bad=(3,))}, bad_samples=1)
    whole = loader(mixture, steps=30, workers=workers, refused=tmp_path / "whole.jsonl")
    list(whole)
    records = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert whole.refused == Counter((record["source"], "has N flaws") for record in records)
    assert whole.refused.total() == len(records) > 12
    assert {record["reason"] for record in records if record["source"] == "b"} == {"record 3: has 3 flaws"}
    in_full = [r.message for r in caplog.records if "skipped a sample of a" in r.message]
    assert len(in_full) == 3
    assert "skipped 10 samples of a so far: has N flaws" in caplog.text

    path = tmp_path / "parts.jsonl"
    list(loader(mixture, steps=20, workers=workers, refused=path))
    with path.open("a") as file:
        file.write('{"step": 19, "sour')  # killed while it wrote
    second = loader(mixture, start=10, steps=30, workers=workers, refused=path)  # the last state was of step 10
    list(second)
    assert second.refused == whole.refused
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_all_ranks_stop_at_the_same_step(tmp_path):
    """Two ranks as threads that meet at every step: what one cannot use counts for both, and is listed once."""
    mixture = Mixture(sources={"a": Numbers(200, bad=tuple(range(20)))})
    meeting, given = threading.Barrier(2, timeout=20), [Counter(), Counter()]
    stops, outcomes = [0, 0], [(), ()]

    def run(rank: int) -> None:
        def total(counts):
            given[rank] = Counter(counts)
            meeting.wait()
            both = given[0] + given[1]
            meeting.wait()
            return both

        part = loader(mixture, rank=rank, ranks=2, steps=99, total=total, refused=tmp_path / "refused.jsonl")
        steps = iter(part)
        try:
            while True:
                next(steps)
                stops[rank] += 1
        except UserError as error:
            outcomes[rank] = stops[rank], part.refused, str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][2].endswith("all are listed in " + str(tmp_path / "refused.jsonl"))
    alone = loader(mixture, steps=99)
    with pytest.raises(UserError):
        list(alone)
    assert alone.refused == outcomes[0][1]
    assert len((tmp_path / "refused.jsonl").read_text().splitlines()) == alone.refused.total()


def test_hundreds_of_targets_need_few_open_files():
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)

    def twenty_segs(sample: Sample, key: int, *, shorten: bool) -> Encoded:
        order = np.arange(20)
        return replace(
            encode(sample, key, shorten=shorten), input_ids=order, labels=order, span_ids=order, seg_ids=order,
            target_labels=order, target_segs=order, target_ids=np.zeros((1, 4, 4), np.int16),
        )  # fmt: skip

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, limit[0]), limit[1]))
    try:
        mixture = Mixture(sources={"a": Numbers(100)})
        part = Loader(
            mixture, twenty_segs, seed=0, batch_size=16, accumulation=4, rank=0, world_size=1, start_step=0, steps=6,
            workers=1,
        )  # fmt: skip
        assert [len(batch.items) for _, batches in part for batch in batches] == [80] * 24
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_errors_name_the_remedy():
    with pytest.raises(UserError, match=r"mixture\.sources: a: no samples"):
        Mixture(sources={"a": Numbers(0)})
    with pytest.raises(UserError, match=r"mixture\.caps: no source b; there is: a"):
        Mixture(sources={"a": Numbers(3)}, caps={"b": 1})
    with pytest.raises(UserError, match=r"mixture\.multipliers\.a=0: give more than 0, or remove the source"):
        Mixture(sources={"a": Numbers(3)}, multipliers={"a": 0})
    with pytest.raises(UserError, match="batch_size=8 does not split over 3 processes"):
        stream(Mixture(sources={"a": Numbers(3)}), ranks=3)


def test_key_depends_on_every_part():
    assert len({key(1, 2, "a"), key(1, 2, "b"), key(12, "a"), key(2, 1, "a")}) == 4
    assert 0 <= key("x") < 2**63


def test_workers_outlive_the_signals_of_a_job():
    """A launcher signals every process of a rank; the rank still needs its workers to finish the step and save."""
    sent = loader(Mixture(sources={"a": Numbers(40)}), steps=10, workers=1)
    known = set(multiprocessing.active_children())
    steps = iter(sent)
    next(steps)
    for worker in set(multiprocessing.active_children()) - known:
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(steps)) == 9
