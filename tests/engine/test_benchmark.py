import json
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch

from xsam.cli import main
from xsam.data.masks import unpack
from xsam.engine import benchmark
from xsam.structures import SegmentMap


def test_both_ways_build_the_same_masks(tmp_path):
    scenes = benchmark.Scenes(tmp_path, "generic")
    for side in (1024, 100):
        dense = benchmark.dense_masks(scenes.rles[1], side)
        ids = benchmark.targets(scenes.rles[1], side)
        assert dense.dtype == torch.int64
        assert dense.shape == (20, side, side)
        assert (unpack(SegmentMap(ids, len(dense))) == dense.numpy()).all()


@pytest.mark.parametrize("kind", ["generic", "referring", "chat"])
def test_scenes_are_samples(kind, world, tmp_path):
    processor = benchmark.Processor(seg_size=64, vision_size=32, tokenizer=str(world / "base"))
    encoded = processor(benchmark.Scenes(tmp_path, kind).sample(0, np.random.default_rng(0)), 0)
    count, segs = {"generic": (20, 1), "referring": (5, 5), "chat": (0, 0)}[kind]
    assert len(encoded.target_labels) == count
    assert encoded.seg_ids.max() + 1 == segs
    assert encoded.span_ids.max() + 1 == count


@pytest.fixture
def quick(monkeypatch, world):
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)
    monkeypatch.setattr(benchmark, "SEG_SIDE", 64)
    monkeypatch.setattr(benchmark, "QUERIES", 24)
    monkeypatch.setattr(benchmark, "IMAGES", 4)
    monkeypatch.setattr(benchmark, "DISTINCT", 2)
    monkeypatch.setattr(benchmark, "compare", partial(benchmark.compare, rounds=1))
    monkeypatch.setattr(benchmark, "train_tokenizer", lambda to: copytree(world / "base", to, dirs_exist_ok=True))


def test_report_of_a_config(quick, world, tmp_path, capsys):
    config = tmp_path / "config.json"
    source = {"type": "xsam.engine.benchmark.Scenes", "folder": str(tmp_path), "kind": "chat"}
    mixture = {"type": "xsam.data.mixture.Mixture", "sources": {"talk": source}}
    processor = {"type": "xsam.data.prompt.Processor", "seg_size": 64, "tokenizer": str(world / "base")}
    config.write_text(json.dumps({"mixture": mixture, "processor": processor}))
    assert main(["benchmark", "data", str(config), "--json", "processor.seg_size=32"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sources"].keys() == {"talk"}
    assert report["sources"]["talk"]["samples_per_second"] > 0
    assert report["targets"].keys() == {"ours", "sample", "dense"}
    assert report["targets"]["dense"].keys() == {"cpu_ms", "least_ms", "less", "peak_mb"}
    assert f"torch {torch.__version__.split('+')[0]}" in report["machine"]


def test_report_without_a_config(quick, capsys):
    assert main(["benchmark", "data"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {kind} " in text for kind in ("chat", "generic", "referring"))
    assert "worker_mb: " in text


def test_ways_take_turns_on_one_thread():
    calls = []
    torch.set_num_threads(2)
    work = {name: lambda name=name: calls.append((name, torch.get_num_threads())) for name in ("a", "b")}
    rows = benchmark.compare(work, rounds=2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert [name for name, _ in calls[::2]] == ["a", "b", "a", "b"]
    assert {threads for _, threads in calls} == {1}
    assert rows["b"]["less"] == 1
    assert rows["a"]["least_ms"] <= rows["a"]["cpu_ms"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_peak_is_what_a_call_takes_beyond_what_is_held():
    held = np.ones(8_000_000)
    work = {"64 MB": lambda: np.ones(8_000_000).sum(), "nothing": held.sum}
    rows = benchmark.compare(work, rounds=1)
    assert rows["64 MB"]["peak_mb"] == pytest.approx(64, abs=8)
    assert rows["nothing"]["peak_mb"] < 8


def test_both_ways_find_the_same_segments(quick, capsys):
    assert main(["benchmark", "evaluation", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tables = {name for name, rows in report.items() if "ours" in rows and "usual" in rows}
    assert len(tables) == 3
    agreement = report["agreement"]
    assert set(agreement) < tables
    assert all(row["same"] and row["segments"] > 10 and row["% pixels"] < 0.05 for row in agreement.values())
    assert agreement["panoptic, PQ; not resized"]["% pixels"] == 0


def test_the_loop_counts_what_the_metric_counts(monkeypatch):
    monkeypatch.setattr(benchmark, "DISTINCT", 3)
    maps = benchmark.scored_maps()
    sums = benchmark.by_loop(maps)
    assert (sums.sum(0) > 0).all()  # there are matches, wrong segments and missed ones
    assert (sums.astype(int)[:, 1:] == benchmark.by_metric(maps)[:, 1:]).all()
    np.testing.assert_allclose(benchmark.by_metric(maps), sums, rtol=1e-12)


def test_evaluation_takes_no_config(capsys):
    assert main(["benchmark", "evaluation", "configs/shapes/stage1.py"]) == 2
    assert "takes no config" in capsys.readouterr().err
