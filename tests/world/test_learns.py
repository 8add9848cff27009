"""The real pipeline in miniature: same readers, mixture, stages and evaluation as `make shapes`, on fewer scenes."""

import json
import shutil

import pytest

from world.files import prepare
from xsam import config as configs
from xsam.cli import main

STEPS = {"stage1": 260, "stage2": 60, "stage3": 120}
MARGINS = {  # least gains over the untrained model, about half of those of one run
    "stage1": {("shapes_panoptic", "PQ_th"): 25.0},
    "stage3": {("shapes_refer", "cIoU_attribute"): 4.0, ("shapes_chat", "accuracy"): 20.0},
}


@pytest.mark.slow
def test_a_minute_of_training_teaches(tmp_path):
    prepare(tmp_path / "shapes", train=400, val=40)
    shutil.copytree("data/shapes/base", tmp_path / "shapes" / "base")
    for stage, steps in STEPS.items():
        text = json.dumps(configs.load(f"configs/shapes/{stage}.py", [f"stage.steps={steps}"]))
        config, run = tmp_path / f"{stage}.json", tmp_path / "runs" / stage
        config.write_text(text.replace("data/shapes", f"{tmp_path}/shapes").replace("runs/shapes", f"{tmp_path}/runs"))
        assert main(["train", str(config), "--work-dir", str(run)]) == 0
        if margins := MARGINS.get(stage):
            untrained, trained = (scores(config, checkpoint, margins) for checkpoint in ("random", str(run)))
            for figure, margin in margins.items():
                assert trained[figure] >= (untrained[figure] or 0) + margin, (figure, untrained, trained)


def scores(config, checkpoint, figures):
    out = config.with_suffix("") / checkpoint.rpartition("/")[2]
    rows = {row for row, _ in figures}
    asked = ["evaluate", str(config), "--checkpoint", checkpoint, "--benchmarks", *rows, "--out", str(out)]
    assert main(asked) == 0
    found = json.loads((out / "results.json").read_text())["benchmarks"]
    return {(row, name): found[row]["metrics"][name] for row, name in figures}
