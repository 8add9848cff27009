import json
import os
import runpy
import signal
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from xsam.engine import optim
from xsam.engine.stages import Stage
from xsam.engine.trainer import train
from xsam.structures import UserError

SCRIPT = Path(__file__).with_name("toy.py")
toy = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

STAGE = {
    "name": "toy", "lr": 0.01, "lr_scale": {"encoder": 0.1}, "weight_decay": 0.05, "clip": 0.5, "steps": 6,
    "schedule": {"kind": "cosine", "warmup": 0.34}, "batch_size": toy.SAMPLES, "log_every": 1,
}  # fmt: skip


def fit(work_dir, stage=None, *, criterion=None, loader=toy.loader, **keywords):
    config = {"stage": STAGE | (stage or {})}
    model = toy.build()
    train(model, criterion or toy.ToyCriterion(), loader, config, work_dir, steps_per_epoch=3, **keywords)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for a second one
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference():
    """The same training as a plain loop over whole batches: losses and final weights."""
    model, criterion = toy.build(), toy.ToyCriterion()
    encoder = list(model.encoder.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("encoder")]
    optimizer = torch.optim.AdamW([{"params": encoder}, {"params": others}], weight_decay=0.05)
    factor, losses = optim.schedule("cosine", 6, warmup=0.34), []
    for step in range(6):
        batch = toy.samples(step, 0, toy.SAMPLES)
        loss = sum(criterion(model(batch), batch, criterion.count(batch, 2)).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group, rate in zip(optimizer.param_groups, (0.001, 0.01), strict=True):
            group["lr"] = rate * factor(step)
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: value.detach() for name, value in model.state_dict().items()}


def check(work_dir, reference, tolerance):
    losses, weights = reference
    torch.testing.assert_close(toy.losses(work_dir), losses, rtol=tolerance, atol=0)
    # Where a gradient is almost zero, AdamW makes a visible step of how a sum was rounded.
    exported = load_file(work_dir / "model.safetensors")
    torch.testing.assert_close(exported, weights, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("stage", [{}, {"micro_batch": 2}, {"zero": 2, "micro_batch": 2, "compile": ["neck"]}])
def test_equals_a_plain_loop(tmp_path, reference, stage, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))  # without C++
    fit(tmp_path, stage)
    check(tmp_path, reference, 1e-6)
    losses = toy.losses(tmp_path)
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "config.json").read_text()) == {"stage": STAGE | stage}


DEFAULT = [(1, True, 0), (2, False, 2), (3, True, 2)]
EVERY = [(zero, lora, micro) for zero in (1, 2, 3) for lora in (False, True) for micro in (0, 2)]
OTHERS = [pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in DEFAULT]


@pytest.mark.parametrize("zero, lora, micro_batch", DEFAULT + OTHERS)
def test_two_processes_equal_one(launch, tmp_path, zero, lora, micro_batch):
    stage = STAGE | {"steps": 20, "lora": {"modules": ["neck"], "rank": 2, "dropout": 0.0} if lora else {}}
    fit(tmp_path / "one", stage)
    apart = stage | {"zero": zero, "micro_batch": micro_batch}
    codes, text = launch(tmp_path / "two", toy={"stage": apart})
    assert codes == [0, 0, 0], text
    ours, theirs = (toy.losses(tmp_path / name) for name in ("two", "one"))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert any("lora_A" in name for name in ours) == lora
    # Where a gradient is almost zero, AdamW makes a visible step of how a sum was rounded.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("zero", [0, 2])
def test_interrupted_and_resumed_is_the_same_run(tmp_path, zero):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(whole, {"zero": zero})

    def interrupted(**keywords):
        for step, batches in enumerate(toy.loader(**keywords)):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # from the launcher, too
            yield batches

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        fit(broken, {"zero": zero}, loader=interrupted)
    assert stop.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (broken / "model.safetensors").exists()
    fit(broken, {"zero": zero}, resume=True)
    assert toy.losses(broken) == toy.losses(whole)
    states = {path.name for path in (broken / "checkpoints").glob("step_*")}
    assert states == {"step_3", "step_6"}
    resumed, unbroken = (load_file(path / "model.safetensors") for path in (broken, whole))
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


def test_max_steps_keeps_the_schedule(tmp_path, reference):
    fit(tmp_path, max_steps=4)
    torch.testing.assert_close(toy.losses(tmp_path), reference[0][:4], rtol=1e-6, atol=0)


def test_frozen_weights_stay_and_are_exported(tmp_path):
    before = toy.build().state_dict()
    fit(tmp_path, {"frozen": ["encoder"], "lr_scale": {}, "steps": 2})
    after = load_file(tmp_path / "model.safetensors")
    assert torch.equal(after["encoder.weight"], before["encoder.weight"])
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_bf16_keeps_close_to_fp32(tmp_path, reference):
    fit(tmp_path, {"precision": "bf16", "zero": 2, "micro_batch": 4})
    torch.testing.assert_close(toy.losses(tmp_path), reference[0], rtol=1e-2, atol=0)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}


def test_a_run_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="no intact training state"):
        fit(tmp_path, resume=True)
    fit(tmp_path, max_steps=1)
    with pytest.raises(UserError, match="already holds a run; give --resume"):
        fit(tmp_path)
    with pytest.raises(UserError, match="batch_size=8, not 16"):
        fit(tmp_path, {"batch_size": 16}, resume=True)


def test_the_rate_of_another_batch_size_when_asked():
    assert Stage.parse(STAGE).lr == 0.01
    assert Stage.parse(STAGE | {"lr_batch_size": 4 * toy.SAMPLES}).lr == pytest.approx(0.005)  # square root of 1 / 4
