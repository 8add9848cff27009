"""docs/finetune.md, command by command, in miniature: fewer pictures and steps, and weights that are hardly trained."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from xsam.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/finetune.md"


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's blocks of shell, without those that begin with "# Needs"."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks if not block.startswith("# Needs") for line in block.splitlines()]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """A folder like a fresh clone's, with a small world and the run that `make shapes` leaves."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shapes").symlink_to(world)
    assert main(["train", "configs/shapes/stage3.py", "stage.init_from=[]", "stage.steps=1"]) == 0
    return tmp_path


def miniature(words: list[str]) -> list[str]:
    if words[:2] == ["xsam", "train"]:
        return [*words, "stage.steps=2", "--init-from", "runs/shapes/stage3"]
    return [*words, "6", "3"] if words[0] == "python" else words


def test_the_walk_from_zero_to_a_picture(home, monkeypatch, capsys):
    walked = [words for words in commands(PAGE) if words[1] != "doctor"]  # the big model's; engine/test_doctor.py
    assert [words[1] for words in walked] == [
        "examples/own_data.py", "data", "data", "data", "train", "evaluate", "evaluate", "predict", "convert"
    ]  # fmt: skip
    for words in map(miniature, walked):
        if words[0] == "python":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
        else:
            assert main(words[1:]) == 0, " ".join(words)
    said = capsys.readouterr().out
    assert "data/own/train.json: trains the task generic, read by CocoInstances" in said
    assert "data/own/train: trains the task generic, read by LabelMaps" in said
    stored = json.loads((home / "runs/mine/config.json").read_text())
    assert stored["mixture"]["sources"]["own"]["data"]["annotations"] == "data/own/train.json"
    assert list(stored["benchmarks"]) == ["own"]
    scored = json.loads((home / "runs/mine/eval/strict/results.json").read_text())["benchmarks"]["own"]
    assert "AP50" in scored["metrics"]
    assert "cIoU" in json.loads((home / "refer/results.json").read_text())["benchmarks"]["own"]["metrics"]
    for made in ("page/index.html", "predictions/1.png", "mine/model.safetensors"):
        assert (home / made).is_file(), made


@pytest.mark.parametrize("data", ["train", "train.jsonl"])
def test_the_other_formats_train_as_well(home, data, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["examples/own_data.py", "data/own", "6", "3"])
    runpy.run_path("examples/own_data.py", run_name="__main__")
    given = ["configs/finetune/own_data_mixed.py", f"data=data/own/{data}", "stage.steps=2", "--work-dir", "runs/mine"]
    assert main(["train", *given, "--init-from", "runs/shapes/stage3", "mixture.bad_samples=0"]) == 0
