"""Evaluation on the embedded world: honest counting, continuing, grouping."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from xsam import config
from xsam.cli import main
from xsam.data.masks import decode_rle
from xsam.engine import evaluator, results
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
    # one pass serves the three generic rows; then seen and novel pairs, refer, grefer, reason, four interactive, five vgd; the others generate
    assert len(calls) == 1 + 2 + 3 + 4 + 5
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
    with pytest.raises(UserError, match="/no/refs.p"):
        evaluator.evaluate(model, processor, {"b": lost}, tmp_path / "none")


def test_batches_change_nothing(setup, tmp_path):
    model, processor, rows = setup
    one = evaluator.evaluate(model, processor, rows, tmp_path / "one", limit=5, batch_size=1)
    four = evaluator.evaluate(model, processor, rows, tmp_path / "four", limit=5, batch_size=4)
    pixels = different = 0
    for name in rows:
        for metric, value in one[name]["metrics"].items():
            assert four[name]["metrics"][metric] == pytest.approx(value, abs=0.05)
        alone, together = (results.read_answers(tmp_path / run / "predictions" / name) for run in ("one", "four"))
        for answer in alone.values():
            segments, others = answer.segments, together[answer.id].segments
            assert [s.label for s in segments] == [s.label for s in others]
            assert answer.text == together[answer.id].text
            for ours, theirs in zip(segments, others, strict=True):
                pixels += ours.segmentation["size"][0] * ours.segmentation["size"][1]
                different += (decode_rle(ours.segmentation) != decode_rle(theirs.segmentation)).sum()
    assert different <= 1e-4 * pixels


def test_an_image_is_encoded_once_in_a_batch(setup, tmp_path):
    model, processor, rows = setup
    images = []
    model.seg_encoder.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    evaluator.evaluate(model, processor, {"a": rows["shapes_interactive_box"]}, tmp_path, limit=3, batch_size=3)
    task = config.build(rows["shapes_interactive_box"])
    shown = {task.sample(i, np.random.default_rng(0)).image for i in range(3)}
    assert images == [len(shown)]
    assert len(shown) < 3


def test_strict_reads_masks_from_the_generation(setup, tmp_path, monkeypatch):
    """Each image is encoded once and each prompt read once; rows that ask for nothing, or cannot be read, stay."""
    model, processor, rows = setup
    plain, ran = type(model).generate, []
    said = [[processor.seg_id], [], [processor.open_id, processor.seg_id]]

    def generate(self, *args):
        _, hidden = plain(self, *args)
        return said, hidden

    monkeypatch.setattr(type(model), "generate", generate)
    model.seg_encoder.register_forward_pre_hook(lambda _, args: ran.append(("images", len(args[0]))))
    model.llm.model.register_forward_pre_hook(
        lambda _, args, given: ran.append(("tokens", given["inputs_embeds"].shape[1])), with_kwargs=True
    )
    found = evaluator.evaluate(model, processor, {"a": rows["shapes_panoptic"]}, tmp_path, protocol="strict", limit=3)
    assert found["a"]["failed"] >= 2
    assert [count for kind, count in ran if kind == "images"] == [3]
    assert len([count for kind, count in ran if kind == "tokens" and count > 1]) == 1


def test_strict_counts_empty_answers_as_failures(setup, tmp_path, monkeypatch):
    """A mask without a pixel is no answer, unless nothing may be meant."""
    model, processor, rows = setup
    nothing = [(torch.zeros(96, 96, dtype=torch.bool), "", 1.0)]
    monkeypatch.setattr(type(config.build(rows["shapes_refer"])), "found", lambda *_: nothing)
    seg = processor.seg_id
    monkeypatch.setattr(type(model), "generate", lambda self, batch, *_: ([[seg]] * len(batch.ids), None))
    rows = {name: rows[name] for name in ("shapes_refer", "shapes_grefer")}
    strict = evaluator.evaluate(model, processor, rows, tmp_path / "s", protocol="strict", limit=2)
    assert [row["failed"] for row in strict.values()] == [2, 0]
    paper = evaluator.evaluate(model, processor, rows, tmp_path / "p", limit=2)
    assert [row["failed"] for row in paper.values()] == [0, 0]


@pytest.mark.parametrize("answer, failed", [("<SEG>", 0), ("<SEG> <SEG>", 1), ("<p> <SEG>", 1), ("", 1)])
def test_strict_answers(setup, tmp_path, monkeypatch, answer, failed):
    """One <SEG> and balanced tags, or the sample failed."""
    model, processor, rows = setup
    ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
    monkeypatch.setattr(type(model), "generate", lambda self, batch, *_: ([ids] * len(batch.ids), None))
    whole = [(torch.ones(96, 96, dtype=torch.bool), "", 1.0)]
    monkeypatch.setattr(type(config.build(rows["shapes_refer"])), "found", lambda *_: whole)
    rows = {"shapes_refer": rows["shapes_refer"]}
    row = evaluator.evaluate(model, processor, rows, tmp_path, protocol="strict", limit=1)["shapes_refer"]
    assert row["failed"] == failed
    assert (row["metrics"]["cIoU"] == 0) == bool(failed)


def test_unknown_benchmarks(setup):
    _, _, rows = setup
    assert evaluator.select(rows, ["all"]) == rows
    with pytest.raises(UserError, match="no benchmark refcoco in this config; it has shapes_panoptic"):
        evaluator.select(rows, ["refcoco"])
    with pytest.raises(UserError, match="give val=FILE"):
        evaluator.select({}, ["all"])


def test_answers_depend_on_the_sample_alone(setup):
    """The draws of an evaluation come from the sample's id: another order asks the same questions."""
    _, _, rows = setup
    task = config.build(rows["shapes_refer"])
    first = [task.sample(i, np.random.default_rng(evaluator.key("evaluate", task.id(i)))).turns for i in range(3)]
    again = [task.sample(i, np.random.default_rng(evaluator.key("evaluate", task.id(i)))).turns for i in (2, 1, 0)]
    assert first == again[::-1]


def test_killed_at_any_moment_it_ends_in_the_same_results(setup, tmp_path):
    model, processor, rows = setup
    rows = {name: rows[name] for name in ("shapes_panoptic", "shapes_semantic", "shapes_refer")}

    def run(folder):
        return evaluator.evaluate(model, processor, rows, folder, limit=8, batch_size=2)

    began = time.perf_counter()
    whole = run(tmp_path / "whole")
    seconds = time.perf_counter() - began
    rng, kept = np.random.default_rng(), []
    for number in range(10):
        folder = tmp_path / str(number)
        child = os.fork()
        if not child:
            run(folder)
            os._exit(0)
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kept.append(sum(len(results.read_answers(folder / "predictions" / name)) for name in rows))
        assert run(folder) == whole
    assert min(kept) < 24  # some came in the middle of it


def test_processes_and_workers_change_nothing(world, tmp_path):
    """Two processes with two workers each write, between them, the lines that one writes."""
    text = json.dumps(config.load("configs/shapes/stage3.py")).replace("data/shapes", str(world))
    (tmp_path / "config.json").write_text(text)
    options = [str(tmp_path / "config.json"), "--checkpoint", "random", "--limit", "5", "--batch-size", "2"]
    kinds = (
        "panoptic",
        "instance",
        "semantic",
        "refer",
        "grefer",
        "reason",
        "gcg",
        "interactive_box",
        "vgd_cross",
        "chat",
    )
    options += ["--benchmarks", *(f"shapes_{kind}" for kind in kinds)]
    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29641"]
    for launcher, out in (
        ([], ["one"]),
        (two, ["two", "--workers", "2"]),
    ):  # both new: memory lies as it does at a start
        command = [sys.executable, *launcher, "tools/evaluate.py", *options, "--out", str(tmp_path / out[0]), *out[1:]]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads((tmp_path / run / "results.json").read_text())["benchmarks"] for run in ("one", "two")]
    assert found[0] == found[1]
    for name in found[0]:
        one, two = (tmp_path / run / "predictions" / name for run in ("one", "two"))
        assert (two / "part-1.jsonl").stat().st_size
        alone, *rest = (sorted(line for part in run.glob("part-*") for line in part.open()) for run in (one, two))
        assert rest == [alone]


def test_what_fails_is_in_the_exit_code(world, tmp_path, capsys):
    text = json.dumps(config.load("configs/shapes/stage3.py")).replace("data/shapes", str(world))
    (tmp_path / "config.json").write_text(text)
    options = ["evaluate", str(tmp_path / "config.json"), "--limit", "2", "--out", str(tmp_path / "out")]
    names = ["--benchmarks", "shapes_refer", "shapes_reason"]
    lost = f"benchmarks.shapes_reason.data.folder={tmp_path}/nowhere"
    assert main([*options, "--checkpoint", "random", lost, *names]) == 1
    found = json.loads((tmp_path / "out/results.json").read_text())["benchmarks"]
    assert "nowhere" in found["shapes_reason"]["error"]
    assert found["shapes_refer"]["scored"] == 2
    assert main([*options, "--checkpoint", str(tmp_path / "typo"), *names]) == 2
    assert "typo" in capsys.readouterr().err
    assert main([*options, "--checkpoint", "random", "--benchmarks", "refcoco"]) == 2
