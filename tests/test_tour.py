"""The tour of the Python API runs, whatever the model answers."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from xsam import config
from xsam.data.prompt import load_tokenizer
from xsam.engine import checkpoint, distributed

CALLS = {
    *("panoptic", "instance", "semantic", "refer", "absent", "several", "reason", "explain", "describe", "chat"),
    *("point", "points", "box", "scribble", "mask", "ground", "cross_image", *(f"batch_{n}" for n in range(4))),
}


def test_tour(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    distributed.init()
    settings = config.load("configs/shapes/stage3.py")
    torch.manual_seed(1)
    model = config.build(settings["model"])
    checkpoint.export(model, tmp_path / "run", settings, load_tokenizer(f"{world}/base"))
    folder = tmp_path / "tour"
    monkeypatch.setattr(sys, "argv", ["tour.py", str(folder), "--checkpoint", str(tmp_path / "run")])
    runpy.run_path("examples/tour.py", run_name="__main__")
    assert {path.stem for path in folder.glob("*.png")} == {*CALLS, "panoptic_ids"}
    assert Image.open(folder / "tour.jpg").width > 4 * 384
    assert {json.dumps(json.loads(path.read_text()))[0] for path in folder.glob("*.json")} == {"{"}
    assert all(Image.open(path).width >= 96 for path in folder.glob("*.png"))
    assert "streamed" in capsys.readouterr().out
