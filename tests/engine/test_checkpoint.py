import errno
import json
import os
import re
import subprocess
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from xsam.checkpoints import convert
from xsam.engine import checkpoint
from xsam.engine.stages import Stage
from xsam.structures import UserError

STAGE = {"name": "a", "lr": 1, "batch_size": 8}
CONTENT = b"0123456789" * 1000
Usage = namedtuple("Usage", "total used free")


class Engine:
    """Stands in for DeepSpeed's: two files per state."""

    loaded = ""
    module = nn.Linear(1000, 1000)

    def save_checkpoint(self, folder, tag, save_latest):
        path = checkpoint.Path(folder, tag)
        path.mkdir(parents=True)
        (path / "mp_rank_00_model_states.pt").write_bytes(CONTENT)
        (path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(CONTENT)

    def load_checkpoint(self, folder, tag):
        self.loaded = tag

    def load_universal_checkpoint(self):
        return False


def save(folder, *steps, engine=None, **rotation):
    for step in steps:
        checkpoint.save(engine or Engine(), folder, step, Stage(**STAGE, **{"keep": 9, **rotation}))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_rotation_keeps_the_newest_and_every_mth(tmp_path):
    save(tmp_path / "a", 2, 4, 10, keep=2)
    assert names(tmp_path / "a") == ["step_10", "step_4"]
    assert (tmp_path / "a" / "latest").read_text() == "step_10"
    save(tmp_path / "b", *range(1, 12), keep=2, keep_every=4)
    assert names(tmp_path / "b") == ["step_10", "step_11", "step_4", "step_8"]


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: path.write_bytes(CONTENT[:-1]), r"model_states.pt has 9999 of 10000 bytes"),
        (lambda path: path.write_bytes(CONTENT[:5000] + b"1" + CONTENT[5001:]), r"model_states.pt changed since .*CRC"),
        (lambda path: path.unlink(), r"cannot be read .*No such file .*model_states.pt"),
        (lambda path: (path.parent / "state.json").unlink(), r"cannot be read .*No such file .*state.json"),
        (lambda path: (path.parent / "state.json").write_text('{"files": {"a": [1'), r"cannot be read .*delimiter"),
        (lambda path: (path.parent / "state.json").write_text('{"files": {"a": 1}}'), r"cannot be read .*unpack"),
        (lambda path: (path.parent / "state.json").write_text('{"files": [1]}'), r"cannot be read .*items"),
        (lambda path: (path.parent / "state.json").write_text("{}"), r"cannot be read .*files"),
    ],
)
def test_a_damaged_state_is_passed_over_and_named(tmp_path, capsys, damage, reason):
    save(tmp_path, 2, 4)
    (tmp_path / "step_8.partial").mkdir()  # killed while saving
    damage(tmp_path / "step_4" / "mp_rank_00_model_states.pt")
    assert checkpoint.newest(tmp_path) == tmp_path / "step_2"
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{tmp_path}/step_4: damaged, not used: .*{reason}.*", line)
    engine = Engine()
    assert checkpoint.load(engine, tmp_path / "step_2") == 2
    assert engine.loaded == "step_2"
    # The run goes on: its newer states replace the damaged ones, which do not push out the good one.
    save(tmp_path, 4, keep=2)
    assert checkpoint.newest(tmp_path) == tmp_path / "step_4"
    assert (tmp_path / "step_2").exists()


def test_no_state(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None


def test_another_training_is_refused(tmp_path):
    save(tmp_path, 2)
    for key, value in {"seed": 1, "zero": 2, "batch_size": 16}.items():
        before = getattr(Stage(**STAGE), key)
        with pytest.raises(UserError, match=rf"step_2: was written with {key}={before}, not {value}"):
            checkpoint.prepare(Engine.module, tmp_path / "step_2", Stage(**STAGE | {key: value}))
    assert checkpoint.prepare(Engine.module, tmp_path / "step_2", Stage(**STAGE)) == {}


def test_a_full_disk_leaves_the_old_states(tmp_path, monkeypatch):
    save(tmp_path, 2, 4, keep=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 10_000_000))
    # 1,001,000 weights of 4 + 12 bytes, 1 % and 1 MB more
    with pytest.raises(UserError, match=rf"{tmp_path}: the disk is full: 0.0172 GB are needed, 0.01 GB are free"):
        save(tmp_path, 6, keep=1)
    assert names(tmp_path) == ["step_4"]

    class Filling(Engine):
        def save_checkpoint(self, folder, tag, save_latest):
            super().save_checkpoint(folder, tag, save_latest)
            free.pop()
            raise OSError(errno.ENOSPC, "No space left on device")

    free = [0, 10**9]
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, free[-1]))
    with pytest.raises(UserError, match=r"the disk is full: 0.0172 GB are needed, 0 GB are free; make room"):
        save(tmp_path, 6, keep=1, engine=Filling())
    assert names(tmp_path) == ["step_4"]
    free.extend([10**9, 10**9])
    with pytest.raises(OSError, match="No space left"):  # a quota: the disk has room
        save(tmp_path, 6, keep=1, engine=Filling())
    assert names(tmp_path) == ["step_4"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    class Real(Engine):
        def save_checkpoint(self, folder, tag, save_latest):
            checkpoint.Path(folder, tag).mkdir(parents=True)
            torch.save(torch.zeros(1000, 1000), checkpoint.Path(folder, tag, "mp_rank_00_model_states.pt"))

    mount = ["mount", "-t", "tmpfs", "-o", "size=26m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        save(tmp_path, 2, 4, engine=Real())
        assert names(tmp_path) == ["step_2", "step_4"]
        (tmp_path / "other").write_bytes(bytes(5_000_000))
        with pytest.raises(UserError, match="the disk is full: 0.0172 GB are needed, 0.0142 GB are free"):
            save(tmp_path, 6, engine=Real(), keep=1)
        assert names(tmp_path) == ["step_2", "step_4"]
        assert checkpoint.newest(tmp_path) == tmp_path / "step_4"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_export_is_self_contained(tmp_path, monkeypatch):
    model = nn.ModuleDict({"a": nn.Linear(64, 64, bias=False), "b": nn.Linear(64, 64, bias=False)})
    model["b"].weight = model["a"].weight  # tied
    model["a"].requires_grad_(False)
    model.register_buffer("mean", torch.arange(3.0))
    (tmp_path / "model-00001-of-00009.safetensors").write_bytes(b"of an earlier export")

    class Tokenizer:
        def save_pretrained(self, folder):
            checkpoint.Path(folder, "tokenizer.json").write_text("{}")

    checkpoint.export(model, tmp_path, {"model": {"depth": 2}}, Tokenizer())
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert json.loads((tmp_path / "config.json").read_text()) == {"model": {"depth": 2}}
    tensors = load_file(tmp_path / "model.safetensors")
    assert sorted(tensors) == ["a.weight", "b.weight", "mean"]
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())

    monkeypatch.setattr(convert, "SHARD", "20KB")
    checkpoint.export(model, tmp_path, {})
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(index) == ["a.weight", "b.weight", "mean"]
    assert not (tmp_path / "model.safetensors").exists()
