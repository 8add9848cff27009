import json
from functools import partial
from shutil import copytree

import numpy as np
import pytest
import torch

from benchmarks import data
from xsam.cli import main
from xsam.data.masks import unpack
from xsam.structures import SegmentMap


def test_both_ways_build_the_same_masks(tmp_path):
    scenes = data.Scenes(tmp_path, "generic")
    for side in (1024, 100):
        dense = data.dense_masks(scenes.rles[1], side)
        ids = data.targets(scenes.rles[1], side)
        assert dense.dtype == torch.int64
        assert dense.shape == (20, side, side)
        assert (unpack(SegmentMap(ids, len(dense))) == dense.numpy()).all()


@pytest.mark.parametrize("kind", ["generic", "referring", "chat"])
def test_scenes_are_samples(kind, world, tmp_path):
    processor = data.Processor(seg_size=64, vision_size=32, tokenizer=str(world / "base"))
    encoded = processor(data.Scenes(tmp_path, kind).sample(0, np.random.default_rng(0)), 0)
    count, segs = {"generic": (20, 1), "referring": (5, 5), "chat": (0, 0)}[kind]
    assert len(encoded.target_labels) == count
    assert encoded.seg_ids.max() + 1 == segs
    assert encoded.span_ids.max() + 1 == count


@pytest.fixture
def quick(monkeypatch, world):
    monkeypatch.setattr(data, "SECONDS", 0.1)
    monkeypatch.setattr(data, "SEG_SIDE", 64)
    monkeypatch.setattr(data, "compare", partial(data.compare, rounds=1))
    monkeypatch.setattr(data, "train_tokenizer", lambda to: copytree(world / "base", to, dirs_exist_ok=True))


def test_report_of_a_config(quick, world, tmp_path, capsys):
    config = tmp_path / "config.json"
    talks = {"type": "xsam.data.conversations.Conversations", "annotations": str(world / "conversations/train.json")}
    source = {"type": "xsam.tasks.chat.Chat", "data": talks | {"images": str(world)}, "train": True}
    mixture = {"type": "xsam.data.mixture.Mixture", "sources": {"talk": source}}
    processor = {"type": "xsam.data.prompt.Processor", "seg_size": 64, "tokenizer": str(world / "base")}
    config.write_text(json.dumps({"mixture": mixture, "processor": processor}))
    assert main(["benchmark", "data", str(config), "--json", "processor.seg_size=32"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sources"].keys() == {"talk"}
    assert report["sources"]["talk"]["samples_per_second"] > 0
    assert report["targets"].keys() == {"ours", "sample", "dense"}
    assert {"wall_ms", "cpu_ms", "faster", "less_cpu", "peak_mb", "memory"} < report["targets"]["dense"].keys()
    assert f"torch {torch.__version__.split('+')[0]}" in report["machine"]


def test_report_without_a_config(quick, capsys):
    assert main(["benchmark", "data"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {kind} " in text for kind in ("chat", "generic", "referring"))
    assert "worker_mb: " in text
