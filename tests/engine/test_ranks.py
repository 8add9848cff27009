"""Stage 3 of the embedded world through the command line: two processes equal one, resuming equals not stopping."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xsam.cli import main

STEPS = 4  # the shuffled sources of these steps include chat, which uses no mask decoder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, world):
    config = tmp_path_factory.mktemp("config") / "config.json"
    from xsam import config as configs

    loaded = configs.load(
        "configs/shapes/stage3.py", [f"stage.steps={STEPS}", "stage.init_from=[]", "stage.log_every=1"]
    )
    config.write_text(json.dumps(loaded).replace("data/shapes", str(world)))
    folder = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", str(config), "--work-dir", str(folder)]) == 0
    return config, losses(folder)


@pytest.mark.parametrize("zero", [2, 3])
def test_two_ranks_equal_one(alone, zero, tmp_path):
    config, expected = alone
    folder = tmp_path / "run"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(29600 + zero),
    ]
    command = [*launcher, "tools/train.py", str(config), f"stage.zero={zero}", "--work-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=_one_thread())
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(folder) == pytest.approx(expected, rel=1e-4)
    assert (folder / "model.safetensors").is_file()


def test_resuming_equals_not_stopping(alone, tmp_path):
    config, expected = alone
    run = ["train", str(config), "--work-dir", str(tmp_path)]
    assert main([*run, "--max-steps", "2"]) == 0
    (tmp_path / "model.safetensors").unlink()  # as if it had been killed before the end
    assert main([*run, "--resume"]) == 0
    assert losses(tmp_path) == expected
    assert main(run) == 2  # a finished run is not overwritten


def test_bf16(alone, tmp_path):
    config, expected = alone
    options = ["stage.precision=bf16", "stage.zero=2", "stage.checkpointing=['llm','seg_encoder','vision_encoder']"]
    assert main(["train", str(config), *options, "--max-steps", "1", "--work-dir", str(tmp_path)]) == 0
    assert losses(tmp_path) == pytest.approx(expected[:1], rel=0.02)


def _one_thread() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1"}
