"""Evaluation on the embedded world: honest counting, continuing, grouping."""

import json
import shutil

import numpy as np
import pytest
import torch

from xsam import config
from xsam.engine import evaluator
from xsam.structures import UserError


@pytest.fixture
def setup(world, monkeypatch):
    """A tiny random model and the shapes benchmarks, pointed at the small world."""
    text = json.dumps(config.load("configs/shapes/stage3.py"))
    loaded = json.loads(text.replace("data/shapes", str(world)))
    torch.manual_seed(0)
    return config.build(loaded["model"]).eval(), config.build(loaded["processor"]), loaded["benchmarks"]


def test_all_rows_both_protocols(setup, tmp_path):
    model, processor, rows = setup
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    paper = evaluator.evaluate(model, processor, rows, tmp_path / "paper", limit=4, batch_size=4)
    assert list(paper) == list(rows)
    # one pass serves the three generic rows; then refer, grefer, reason, four interactive, five vgd; the others generate
    assert len(calls) == 1 + 3 + 4 + 5
    for row in paper.values():
        assert row["samples"] == row["scored"] == 4
    assert paper["shapes_refer"]["failed"] == 0  # the answer is given
    assert paper["shapes_refer"]["baselines"].keys() == {"whole image", "largest thing", "random thing"}
    strict = evaluator.evaluate(model, processor, rows, tmp_path / "strict", protocol="strict", limit=4, batch_size=4)
    for name, row in strict.items():
        if "chat" not in name:  # random weights never write a <SEG>: all fail, and score zero, none is dropped
            assert row["failed"] == row["scored"] == 4
            assert row["metrics"].get("PQ", row["metrics"].get("gIoU", 0)) == 0


def test_an_interrupted_evaluation_continues(setup, tmp_path):
    model, processor, rows = setup
    rows = {"shapes_refer": rows["shapes_refer"]}
    whole = evaluator.evaluate(model, processor, rows, tmp_path / "a", limit=6, batch_size=2)
    evaluator.evaluate(model, processor, rows, tmp_path / "b", limit=4, batch_size=2)
    part = tmp_path / "b/predictions/shapes_refer/part-0.jsonl"
    text = part.read_text()
    part.write_text(text[: len(text) - 30])  # killed in the middle of the last line
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    again = evaluator.evaluate(model, processor, rows, tmp_path / "b", limit=6, batch_size=2)
    handle.remove()
    assert len(calls) == 2  # the batch that was cut, and the missing one
    assert again == whole


def test_what_cannot_be_read_is_told_and_the_rest_runs(setup, tmp_path):
    model, processor, rows = setup
    images = tmp_path / "val"
    panoptic = json.loads(json.dumps(rows["shapes_panoptic"]))
    shutil.copytree(panoptic["data"]["images"], images)
    first, _second, *_ = sorted(images.iterdir())
    first.write_bytes(first.read_bytes()[:400])
    panoptic["data"]["images"] = str(images)
    lost = {**rows["shapes_refer"], "data": {**rows["shapes_refer"]["data"], "refs": "/no/refs.p"}}
    done = evaluator.evaluate(model, processor, {"a": panoptic, "b": lost}, tmp_path / "out", batch_size=3)
    assert "/no/refs.p" in done["b"]["error"]
    row = done["a"]
    assert row["samples"] == row["scored"] == 8
    assert row["failed"] == 1
    ((name, reason),) = row["errors"].items()
    assert name in first.name
    assert "cannot be read as an image" in reason
    assert "not run: /no/refs.p" in evaluator.table({"x": {"benchmarks": done}})
    with pytest.raises(UserError, match="/no/refs.p"):
        evaluator.evaluate(model, processor, {"b": lost}, tmp_path / "none")


def test_batches_change_nothing(setup, tmp_path):
    model, processor, rows = setup
    rows = {name: rows[name] for name in ("shapes_panoptic", "shapes_semantic", "shapes_refer")}
    one = evaluator.evaluate(model, processor, rows, tmp_path / "one", limit=5, batch_size=1)
    four = evaluator.evaluate(model, processor, rows, tmp_path / "four", limit=5, batch_size=4)
    for name in rows:
        for metric, value in one[name]["metrics"].items():
            assert four[name]["metrics"][metric] == pytest.approx(value, abs=0.05)


def test_results_file(setup, tmp_path):
    model, processor, rows = setup
    rows = {"shapes_refer": {**rows["shapes_refer"], "published": {"cIoU": 12.0}}}
    done = evaluator.evaluate(model, processor, rows, tmp_path, limit=2)
    evaluator.write_results(tmp_path, done, config_path="c", checkpoint="random", protocol="paper", seconds=1.0)
    results = evaluator.read_results(tmp_path)
    assert results["schema"] == 1
    assert results["protocol"] == "paper"
    row = results["benchmarks"]["shapes_refer"]
    assert row["published"] == {"cIoU": 12.0}
    assert row["task"] == "referring"
    table = (tmp_path / "results.md").read_text()
    assert f"| shapes_refer | cIoU | {row['metrics']['cIoU']:.1f} |" in table
    assert "whole image (blind)" in table
    both = evaluator.table({"ours": results, "again": results})
    assert "| benchmark | metric | ours | again |" in both


def test_unknown_benchmarks_and_results(setup, tmp_path):
    _, _, rows = setup
    assert evaluator.select(rows, ["all"]) == rows
    with pytest.raises(UserError, match="no benchmark refcoco in this config; it has shapes_panoptic"):
        evaluator.select(rows, ["refcoco"])
    with pytest.raises(UserError, match="no results"):
        evaluator.read_results(tmp_path)


def test_answers_depend_on_the_sample_alone(setup):
    """The draws of an evaluation come from the sample's id: another order asks the same questions."""
    _, _, rows = setup
    task = config.build(rows["shapes_refer"])
    first = [task.sample(i, np.random.default_rng(evaluator.key("evaluate", task.id(i)))).turns for i in range(3)]
    again = [task.sample(i, np.random.default_rng(evaluator.key("evaluate", task.id(i)))).turns for i in (2, 1, 0)]
    assert first == again[::-1]


def test_predictions_of_other_weights_are_not_taken_for_these(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    evaluator.claim(tmp_path / "out", str(weights), "paper")
    evaluator.claim(tmp_path / "out", str(weights), "paper")  # continuing
    with pytest.raises(UserError, match="other weights or another protocol"):
        evaluator.claim(tmp_path / "out", str(weights), "strict")
    weights.write_bytes(b"two")
    with pytest.raises(UserError, match="give another --out"):
        evaluator.claim(tmp_path / "out", str(weights), "paper")
