"""A mixed schedule over all tasks on two ranks with ZeRO-3, and what a long run meets: a batch of only text, a rank
whose samples are all refused, a NaN. It finishes with one recorded skip, which the replay reproduces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xsam import config as configs
from xsam.apps.pages import Pictures
from xsam.cli import main

SCRIPT = Path(__file__).with_name("mixed.py")


@pytest.mark.parametrize("steps", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_mixed_run_gets_through(world, tmp_path, capsys, steps):
    options = [
        f"stage.steps={steps}", "stage.init_from=[]", "stage.log_every=1", "stage.lr=1e-4", "stage.zero=3",
        f"stage.picture_every={max(9, steps // 2)}", "stage.peak_tflops=1", f"stage.save_every={steps}",
    ]  # fmt: skip
    config, run = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps(configs.load("configs/shapes/stage3.py", options)).replace("data/shapes", str(world)))
    mixture = configs.build(json.loads(config.read_text())["mixture"])
    owners, _ = mixture.epoch(0, 0, 8)
    assert set(owners) == set(range(len(mixture.names)))
    order = [mixture.names[owner] for owner in owners]
    seen = [step for step, name in enumerate(order[:12]) if name != "chat"]
    nan_step, refused_step = seen[-2], seen[-1]
    port = str(29700 + steps)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [*launch, str(SCRIPT), str(nan_step), str(refused_step), "train", str(config), "--work-dir", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400 + 10 * steps, env=environment)
    assert done.returncode == 0, done.stderr[-9000:]

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [int(step >= nan_step) for step in range(steps)]
    assert [next(iter(line["sources"]), None) for line in lines[:12]] == [
        None if step == nan_step else name for step, name in enumerate(order[:12])
    ]
    assert "chat" in order[:12]
    texts = [line for line in lines if "chat" in line["sources"]]
    assert all(line["losses"].keys() == {"text"} for line in texts if not line["images_per_second"])
    assert all(line["loss"] > 0 and line["mfu_percent"] > 0 for line in lines if line["step"] != nan_step + 1)
    refused = [json.loads(line) for line in (run / "refused.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in refused if row["step"] == refused_step] == ["a test: refused"] * 4

    (start,) = (json.loads(line) for line in (run / "environment.jsonl").read_text().splitlines())
    assert (start["world_size"], start["seed"]) == (2, 0)
    assert f"train {config}" in start["command"]
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"pictures/panoptic", "pictures/refer", "pictures/interactive"} <= set(board.Tags()["images"])
    assert "pictures/chat" not in board.Tags()["images"]
    assert {"sources/panoptic", "memory_gb", "tokens_per_second"} <= set(board.Tags()["scalars"])

    (folder,) = (run / "skipped").iterdir()
    assert folder.name == f"step_{nan_step}"
    capsys.readouterr()
    assert main(["train", str(config), "--replay", str(folder)]) == 1
    text = capsys.readouterr().out
    assert text.count("first value that is not finite: none") == 1  # rank 0
    assert text.count("first value that is not finite: model.seg_encoder.") == 1
    assert main(["train", str(config), "--replay", str(folder / "rank_0")]) == 0


def test_conversations_alone_make_no_picture(world):
    config = json.loads(json.dumps(configs.load("configs/shapes/stage2.py")).replace("data/shapes", str(world)))
    pictures = Pictures(configs.build(config["mixture"]), configs.build(config["processor"]))
    assert pictures(torch.nn.Identity()) == {}
