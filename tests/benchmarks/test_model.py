"""Transformers' modules with our weights say what ours say; so the benchmark compares the same work."""

import json
from functools import partialmethod

import pytest
import torch

from benchmarks import model
from benchmarks.baselines import Usual, dense, made_up, same_points, segmentor
from xsam.cli import main

PARTS = {
    "encoder": ("global layer", "windowed layer", "encoder"),
    "pixel decoder": ("pixel decoder",),
    "masks": ("masked decoder, matching, losses",),
    "text": ("loss of 3 of 60 tokens",),
    "answers": ("answer of 16 tokens after 40", "second question"),
    "torch.compile": ("torch.compile, global layer", "torch.compile, language model"),
}


@pytest.fixture
def report(tiny, monkeypatch):
    monkeypatch.setattr(model, "PROMPT", 40)
    compile = partialmethod(torch.nn.Module.compile, backend="aot_eager")  # without C++
    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return model.report("cpu", tiny, rounds=1)


def test_every_part_gives_what_its_baseline_gives(report):
    names = [name for name in report if name != "machine"]
    for starts in PARTS.values():
        assert all(any(name.startswith(start) for name in names) for start in starts)
    assert sum(name.endswith("training") for name in names) == 7
    for name in names:
        *ours, baseline = report[name].values()
        assert (baseline["faster"], baseline["memory"], baseline["max_abs"]) == (1, 1, 0), name
        assert all(row["rms"] < 1e-4 for row in ours), name


def test_weights_are_random_and_the_same(tiny):
    ours = segmentor(tiny)
    usual = Usual(tiny, ours)
    mine, theirs = usual.pairs(ours)
    assert all(torch.equal(a, b) and a.std() > 0 for a, b in zip(mine, theirs, strict=True))
    assert len(mine) == len(list(ours.parameters())) == len(list(usual.parameters()))


def test_made_up_targets(tiny):
    batch = made_up(segmentor(tiny), tiny, samples=2, targets=6)
    masks, labels = dense(batch)
    assert [len(each) for each in labels] == [6, 6]
    for each in masks:
        assert each.shape == (6, 64, 64)
        assert (each.sum(0) == 1).all()  # of one mask each
        assert torch.equal(each, each[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2))
    assert batch.seg_pixel_values.float().std() > 70


def test_same_points_for_all():
    with same_points():
        one, two = torch.rand(1, 5, 2), torch.rand(3, 5, 2, generator=torch.Generator())
    assert torch.equal(one.expand(3, -1, -1), two)
    assert one.unique().numel() == 10
    assert not torch.equal(torch.rand(1, 5, 2), one)


def test_the_verb(tiny, monkeypatch, capsys):
    one_part = {"machine": "mine", "part": {"ours": {"wall_ms": 1.0}}}
    monkeypatch.setattr(model, "report", lambda device: one_part | {"device": device})
    assert main(["benchmark", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == one_part | {"device": "cpu"}
    assert main(["benchmark", "model"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "device: cpu"


@pytest.mark.parametrize("what", ["model", "evaluation", "growth"])
def test_a_config_where_none_is_read(what, capsys):
    assert main(["benchmark", what, "configs/shapes/stage1.py"]) == 2
    assert "`step CONFIG`" in capsys.readouterr().err


def test_overrides_without_a_config(capsys):
    assert main(["benchmark", "step", "stage.batch_size=2"]) == 2


def test_no_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", "model", "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err
