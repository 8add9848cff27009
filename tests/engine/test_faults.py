"""Processes die at random moments; whatever was lost, the run that goes on is the run that was never disturbed."""

import json
import random
import runpy
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xsam.engine import checkpoint

toy_losses = runpy.run_path(str(Path(__file__).with_name("toy.py")))["losses"]

STAGE = {
    "name": "toy", "lr": 0.01, "lr_scale": {"neck": 0.5}, "clip": 0.5, "steps": 12, "batch_size": 8, "micro_batch": 2,
    "frozen": ["encoder"], "log_every": 1, "save_every": 2, "zero": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(launch, tmp_path_factory):
    """A function: the run folder of processes that nobody stops."""
    made = {}

    def run(world=2, **options):
        key = json.dumps([world, options])
        if key not in made:
            made[key] = tmp_path_factory.mktemp("undisturbed") / "run"
            codes, text = launch(made[key], world=world, toy={"stage": STAGE | options})
            assert codes == [0] * (world + 1), text
        return made[key]

    return run


def assert_same(folder, expected):
    assert toy_losses(folder) == toy_losses(expected)
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def killed(launch, folder, stage, *, victim, **moment):
    """Go on, or start, until `victim` is killed; whether that happened."""
    resume = bool(checkpoint.newest(folder / "checkpoints"))
    kill = {"name": "SIGKILL", "victim": victim, **moment}
    codes, text = launch(folder, toy={"stage": stage, "resume": resume}, signal=kill)
    if victim == "launcher":
        assert codes[:2] == [0, 0], text  # nobody is left to stop the ranks: they stop, and save
    return codes[-1 if victim == "launcher" else victim] == -signal.SIGKILL


def test_killed_and_resumed_is_the_same_run(launch, undisturbed, tmp_path):
    folder = tmp_path / "run"
    assert killed(launch, folder, STAGE, victim=1, moment="save", step=4, part=0.5)
    assert killed(launch, folder, STAGE, victim="launcher", moment="step", step=6, part=0.5)
    assert not (folder / "model.safetensors").exists()
    codes, text = launch(folder, toy={"stage": STAGE, "resume": True})
    assert codes == [0, 0, 0], text
    assert_same(folder, undisturbed())


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_killed_twenty_times_is_the_same_run(launch, undisturbed, tmp_path, zero):
    rng, kills, runs = random.Random(zero), 0, 0
    stage = STAGE | {"zero": zero}
    while kills < 10:
        folder = tmp_path / f"run_{runs}"
        while not (folder / "model.safetensors").exists():
            done = checkpoint.newest(folder / "checkpoints")
            step = rng.randint(int(done.name[5:]) if done else 0, 11)
            moment = {"moment": rng.choice(["step", "save"]), "part": rng.uniform(0, 1.2), "step": step}
            kills += killed(launch, folder, stage, victim=rng.choice([0, 1, "launcher"]), **moment)
        assert_same(folder, undisturbed(zero=zero))
        runs += 1


def test_a_signal_to_one_rank_stops_all_at_the_same_step(launch, tmp_path):
    notice = {"name": "SIGUSR1", "victim": 1, "moment": "step", "step": 4, "part": 0.1}
    codes, text = launch(tmp_path / "run", toy={"stage": STAGE | {"save_every": 100}}, signal=notice)
    assert codes == [0, 0, 0], text
    (state,) = checkpoint.states(tmp_path / "run" / "checkpoints")
    assert f"stopped after step {state.name[5:]} of 12; continue with --resume" in text


@pytest.mark.parametrize("zero", [*(pytest.param(zero, marks=pytest.mark.slow) for zero in (0, 1)), 2, 3])
def test_another_number_of_processes_goes_on(launch, undisturbed, tmp_path, zero):
    stage, folder, whole = STAGE | {"zero": zero}, tmp_path / "run", undisturbed(world=1, zero=0)
    for world, last in ((1, 4), (2, 8), (1, 12)):
        options = {"stage": stage, "resume": last > 4, "max_steps": last}
        codes, text = launch(folder, world=world, toy=options)
        assert codes == [0] * (world + 1), text
        assert ("goes on with" in text) == (last > 4)
    torch.testing.assert_close(toy_losses(folder), toy_losses(whole), rtol=1e-6, atol=0)
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert {path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()} == {"step_10", "step_12"}


def test_a_damaged_state_is_passed_over(launch, undisturbed, tmp_path):
    shutil.copytree(undisturbed(), tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    part = tmp_path / "run" / "checkpoints" / "step_12" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    codes, text = launch(tmp_path / "run", toy={"stage": STAGE, "resume": True})
    assert codes == [0, 0, 0], text
    assert "step_12: damaged, not used: zero_pp_rank_1_mp_rank_00_optim_states.pt changed" in text
    assert "step 11/12" in text
    assert "step 10/12" not in text
    assert_same(tmp_path / "run", undisturbed())
