"""Steps that are not finite change nothing, are recorded and can be replayed; a stall says where it is.

As a script, `test_guard.py WORK_DIR`, it is what torchrun starts: a run for each of `STAGES`.
"""

import json
import os
import re
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from xsam.engine import distributed, guard, optim
from xsam.engine.trainer import Objective, _share, train
from xsam.structures import UserError

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy.py"))))

STAGE = {
    "name": "toy", "lr": 0.01, "clip": 0.5, "steps": 4, "batch_size": toy.SAMPLES, "log_every": 1, "save_every": 99,
}  # fmt: skip
BAD = 1  # the step


def broken(step: int = BAD, rank: int = 0):
    """A loader with a NaN in a picture of one step of one rank."""

    def load(**keywords):
        for number, (source, batches) in enumerate(toy.loader(**keywords), keywords["start_step"]):
            if number == step and distributed.rank() == rank:
                pixels = batches[-1].pixel_values.clone()
                pixels[-1, 0, 0, 0] = torch.nan
                batches = [*batches[:-1], replace(batches[-1], pixel_values=pixels)]
            yield source, batches

    return load


def fit(work_dir, stage=None, *, criterion=None, loader=None, **keywords):
    config = {"stage": STAGE | (stage or {})}
    train(
        toy.build(),
        criterion or toy.ToyCriterion(),
        loader or broken(),
        config,
        work_dir,
        steps_per_epoch=9,
        **keywords,
    )


def lines(work_dir):
    return [json.loads(line) for line in (work_dir / "log.jsonl").read_text().splitlines()]


def without_the_step(steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A plain loop that passes over BAD: losses of the other steps, and final weights."""
    model, criterion, losses = toy.build(), toy.ToyCriterion(), []
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    factor = optim.schedule("cosine", steps)
    for step in set(range(steps)) - {BAD}:
        batch = toy.samples(step, 0, toy.SAMPLES)
        loss = sum(criterion(model(batch), batch, criterion.count(batch, 2)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 0.01 * factor(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


BF16 = {"precision": "bf16", "micro_batch": 2}
STAGES = {
    "plain": {"micro_batch": 2},
    "zero1": {"zero": 1},
    "zero2": {"zero": 2, "micro_batch": 2},
    "zero2_bf16": {"zero": 2} | BF16,
    "zero2_offload": {"zero": 2, "offload": True} | BF16,
    "zero3": {"zero": 3},
    "zero3_bf16": {"zero": 3} | BF16,
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*run, __file__, str(folder)], check=True, timeout=240, env=environment)
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_a_nan_on_one_rank_is_skipped_on_all(two_ranks, name):
    run, stage = two_ranks / name, STAGES[name]
    losses, weights = without_the_step(4)
    written = lines(run)
    assert [line["skipped"] for line in written] == [0, 1, 1, 1]
    assert written[BAD]["loss"] is written[BAD]["grad_norm"] is None
    tolerance = 1e-2 if "precision" in stage else 1e-5
    torch.testing.assert_close([line["loss"] for line in written if line["loss"]], losses, rtol=tolerance, atol=0)
    if "precision" not in stage:  # where a gradient is almost zero, AdamW makes a step of how a sum was rounded
        for weight, trained in load_file(run / "model.safetensors").items():
            assert torch.isclose(trained, weights[weight], rtol=0, atol=1e-4).float().mean() > 0.999
    facts = [json.loads((run / f"skipped/step_1/rank_{rank}/record.json").read_text()) for rank in range(2)]
    assert [fact["first_module"] for fact in facts] == ["", "model.encoder"]
    assert all(fact["losses"]["text"] == "nan" and fact["world_size"] == 2 for fact in facts)
    assert facts[0]["own_losses"]["text"] != "nan"


def test_the_weights_of_the_record_are_those_of_the_step(tmp_path):
    for stage in ({}, {"zero": 3} | BF16):
        run, other = tmp_path / f"run{len(stage)}", tmp_path / f"other{len(stage)}"
        fit(run, stage)
        fit(other, stage, max_steps=BAD)
        recorded = load_file(run / "skipped" / f"step_{BAD}" / "model.safetensors")
        before = load_file(other / "model.safetensors")
        assert all(torch.equal(recorded[name], before[name]) for name in before)


def again(folder, criterion=None):
    model = toy.build()
    step = folder.parent if folder.name.startswith("rank") else folder
    model.load_state_dict(load_file(step / "model.safetensors"))
    return guard.replay(Objective(model, criterion or toy.ToyCriterion()).train(), folder)


def test_the_record_says_what_and_where(tmp_path, capsys, caplog):
    fit(tmp_path, {"micro_batch": 4}, max_steps=2)
    folder = tmp_path / "skipped" / "step_1"
    facts = json.loads((folder / "rank_0" / "record.json").read_text())
    assert facts["ids"] == [f"1/{number}" for number in range(8)]
    assert facts["source"] == "toy"
    assert facts["losses"]["text"] == facts["own_losses"]["text"] == "nan"
    assert facts["first_module"] == "model.encoder"
    assert "skipped step 1 of toy, 1 of at most 5 " in caplog.text
    assert "first in model.encoder of rank 0" in caplog.text
    assert f"xsam train CONFIG --replay {folder}" in caplog.text
    capsys.readouterr()
    assert again(folder)
    assert again(folder / "rank_0")
    assert "first value that is not finite: model.encoder" in capsys.readouterr().out
    with pytest.raises(UserError, match="rank_7: holds no record of a step"):
        again(folder / "rank_7")


class Worse(toy.ToyCriterion):
    """A term that is finite, with a gradient that is not: the root of zero."""

    def __call__(self, output, batch, counts):
        root = (0 * output.mask_features.sum()).sqrt()
        return super().__call__(output, batch, counts) | {"dice": root}


def test_the_replay_computes_the_same_terms_and_finds_a_gradient(tmp_path, capsys):
    fit(tmp_path, criterion=Worse(), loader=toy.loader, max_steps=1)
    folder = tmp_path / "skipped" / "step_0"
    facts = json.loads((folder / "rank_0" / "record.json").read_text())
    assert facts["first_module"] == ""
    capsys.readouterr()
    assert again(folder, Worse())
    text = capsys.readouterr().out
    assert {name: float(value) for name, value in re.findall(r"(\w+)=(\S+)", text)} == pytest.approx(
        {name: float(value) for name, value in facts["own_losses"].items()}, rel=1e-8
    )
    assert "first value that is not finite: the gradient at model.neck.1\n" in text
    assert not again(folder)  # without the term there is nothing to find
    assert "first value that is not finite: none" in capsys.readouterr().out


def test_one_too_many_ends_the_run(tmp_path):
    nothing = Worse()
    with pytest.raises(UserError, match=r"step 2 of toy, 3 of at most 2 \(stage\.max_skipped\).*--replay .*step_2`"):
        fit(tmp_path, {"max_skipped": 2}, criterion=nothing, loader=toy.loader)
    assert {path.name for path in (tmp_path / "skipped").iterdir()} == {"step_0", "step_1", "step_2"}
    assert not (tmp_path / "model.safetensors").exists()


def test_skips_before_a_resumption_count(tmp_path):
    fit(tmp_path, {"max_skipped": 1}, max_steps=2)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"step 3 of toy, 2 of at most 1 "):
        fit(tmp_path, {"max_skipped": 1}, loader=broken(3), resume=True)
    assert [line["skipped"] for line in lines(tmp_path)] == [0, 1, 1]


def test_ranks_must_be_at_the_same_step(monkeypatch):
    def two(values):
        return values | {"step 5 of b": 1}

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", two)
    with pytest.raises(UserError, match="a rank is at step 5 of a, others at step 5 of b; give every node the same"):
        _share({"tokens": 1.0}, "step 5 of a")
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda values: {name: 2 * v for name, v in values.items()})
    assert _share({"tokens": 1.0}, "step 5 of a") == {"tokens": 2.0}


def test_a_stall_is_reported_and_ends_the_process(monkeypatch, capfd):
    ended = []

    def end(code):
        ended.append(code)
        watchdog.close()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(guard, "GRACE", 0.0)
    watchdog = guard.Watchdog(0)
    watchdog.minutes, watchdog.place, watchdog.samples = 1e-4, "step 7 of a, forward and backward", ["x", "y"]
    watchdog.start()
    watchdog.join(20)
    assert ended == [1]
    text = capfd.readouterr().err
    assert text.startswith("rank 0 of 1: no step has finished for 0.0001 minutes (stage.stall_minutes); step 7 of a,")
    assert "forward and backward; last samples: x, y\n" in text
    assert "test_a_stall_is_reported" in text  # the stack of the main thread


def test_the_watchdog_knows_where_the_run_is(tmp_path):
    places = []

    def load(**keywords):
        for step in toy.loader(**keywords):
            (watchdog,) = (thread for thread in threading.enumerate() if isinstance(thread, guard.Watchdog))
            places.append((watchdog.place, watchdog.samples[:2]))
            yield step

    fit(tmp_path, loader=load, max_steps=2)
    assert places == [("step 0, waiting for data", []), ("step 1, waiting for data", ["0/0", "0/1"])]
    assert not any(isinstance(thread, guard.Watchdog) and not thread.over.is_set() for thread in threading.enumerate())


if __name__ == "__main__":
    for name, stage in STAGES.items():
        fit(Path(sys.argv[1]) / name, stage, loader=broken(rank=1))
    distributed.shutdown()
