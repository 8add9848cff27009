import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from xsam.checkpoints import convert
from xsam.engine import checkpoint
from xsam.structures import UserError

STATE = {"seed": 0, "batch_size": 8, "zero": 0, "config": {}}


class Engine:
    """Stands in for DeepSpeed's: one file per state."""

    loaded = ""

    def save_checkpoint(self, folder, tag, save_latest):
        path = checkpoint.Path(folder, tag)
        path.mkdir(parents=True)
        (path / "states.pt").write_bytes(b"0123456789")

    def load_checkpoint(self, folder, tag):
        self.loaded = tag

    def zero_optimization_stage(self):
        return 0


def test_rotation_keeps_the_newest(tmp_path):
    for step in (2, 4, 10):
        checkpoint.save(Engine(), tmp_path, step, keep=2, state=STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_10", "step_4"]
    assert (tmp_path / "latest").read_text() == "step_10"


def test_a_damaged_state_is_passed_over(tmp_path):
    for step in (2, 4, 6):
        checkpoint.save(Engine(), tmp_path, step, keep=3, state=STATE)
    (tmp_path / "step_8.partial").mkdir()  # killed while saving
    (tmp_path / "step_6" / "states.pt").write_bytes(b"0123")
    (tmp_path / "step_4" / "state.json").unlink()
    found = checkpoint.newest(tmp_path)
    assert found == tmp_path / "step_2"
    engine = Engine()
    assert checkpoint.load(engine, found, seed=0, batch_size=8) == 2
    assert engine.loaded == "step_2"
    # The run goes on: its newer states replace the damaged ones, which do not push out the good one.
    checkpoint.save(Engine(), tmp_path, 4, keep=2, state=STATE)
    assert checkpoint.newest(tmp_path) == tmp_path / "step_4"
    assert (tmp_path / "step_2").exists()


def test_no_state(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None


def test_another_training_is_refused(tmp_path):
    checkpoint.save(Engine(), tmp_path, 2, keep=2, state=STATE)
    with pytest.raises(UserError, match=r"step_2: was written with seed=0, not 1"):
        checkpoint.load(Engine(), tmp_path / "step_2", seed=1, batch_size=8)


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
