"""Stage 3 of the embedded world on two processes equals one process with the same global batch."""

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


def _one_thread() -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1"}
