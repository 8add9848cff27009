"""LoRA through the command line on the embedded world: train, resume, load, merge, two processes, a new class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from xsam import config as configs
from xsam.api import load
from xsam.cli import main
from xsam.data.collate import collate
from xsam.data.mixture import key
from xsam.engine import results
from xsam.models import lora

STEPS = 3
LORA = 'stage.lora={"modules":["llm","seg_encoder"],"rank":4,"alpha":8,"dropout":0.0}'


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """A config, and a run folder of a few steps whose adapters matter."""
    folder = tmp_path_factory.mktemp("lora")
    options = [f"stage.steps={STEPS}", "stage.init_from=[]", "stage.log_every=1", "stage.lr=0.002", LORA]
    loaded = configs.load("configs/shapes/stage3.py", [*options, "stage.frozen=['vision_encoder']"])
    (folder / "config.json").write_text(json.dumps(loaded).replace("data/shapes", str(world)))
    assert main(["train", str(folder / "config.json"), "--work-dir", str(folder / "run")]) == 0
    return folder / "config.json", folder / "run"


def outputs(model, processor, config):
    task = configs.build(config["mixture"]["sources"]["panoptic"])
    rows = [processor(task.sample(i, np.random.default_rng(key(i))), i) for i in range(2)]
    with torch.inference_mode():
        return model(collate(rows, 1))


def test_unmerged_and_merged_weights_predict_the_same(tuned, tmp_path):
    _, run = tuned
    tensors = load_file(run / "model.safetensors")
    config = json.loads((run / "config.json").read_text())
    adapters = [name for name in tensors if name.endswith("lora_B.default.weight")]
    assert len(adapters) == 4 * 4 + 4 * 4
    assert all(tensors[name].abs().max() > 0 for name in adapters if "layers.3" not in name)

    model, processor, _ = load(str(run))
    assert any(".lora_A." in name for name, _ in model.named_parameters())
    found = outputs(model, processor, config)

    plain = configs.build(config["model"])
    plain.load_state_dict(lora.merge(tensors, config))
    merged = outputs(plain.eval(), processor, config)
    for name in ("class_logits", "mask_embeds", "mask_features", "text_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(merged, name), rtol=1e-5, atol=1e-5)


def test_only_adapters_moved_in_the_named_modules(tuned):
    config, run = tuned
    tensors = load_file(run / "model.safetensors")
    loaded = configs.load(config)
    torch.manual_seed(loaded["stage"]["seed"])
    start = configs.build(loaded["model"]).state_dict()
    for name, before in start.items():
        if name.startswith(("llm.", "seg_encoder.", "vision_encoder.")):
            layer, _, end = name.rpartition(".")
            after = tensors.get(name, tensors.get(f"{layer}.base_layer.{end}"))
            assert torch.equal(before, after), name
    assert not torch.equal(start["classifier.background"], tensors["classifier.background"])


def test_resuming_equals_not_stopping(tuned, tmp_path):
    config, run = tuned
    command = ["train", str(config), "--work-dir", str(tmp_path)]
    assert main([*command, "--max-steps", "1"]) == 0
    (tmp_path / "model.safetensors").unlink()
    assert main([*command, "--resume"]) == 0
    assert losses(tmp_path) == losses(run)


def test_checkpointing_leaves_the_gradients_as_they_are(tuned, tmp_path):
    config, run = tuned
    options = ["stage.checkpointing=['llm','seg_encoder']", "--work-dir", str(tmp_path)]
    assert main(["train", str(config), *options]) == 0
    assert losses(tmp_path) == pytest.approx(losses(run), rel=1e-4)


@pytest.mark.parametrize("zero", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_ranks_equal_one(tuned, zero, tmp_path):
    config, run = tuned
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(29620 + zero)]
    command = ["tools/train.py", str(config), f"stage.zero={zero}", "--work-dir", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *command], capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path) == pytest.approx(losses(run), rel=1e-4)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, run))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}


MODEL = Path("data/shapes/model")
OLD = (
    ("shapes_panoptic", "PQ"),
    ("shapes_semantic", "mIoU"),
    ("shapes_instance", "AP50"),
    ("shapes_refer", "cIoU_attribute"),
)


@pytest.mark.slow
@pytest.mark.skipif(not Path("data/shapes/prepared.json").is_file(), reason="`xsam data prepare shapes` was not run")
def test_a_new_class_is_learnt_and_the_old_ones_are_kept(tmp_path):
    own = tmp_path / "own"
    subprocess.run([sys.executable, "examples/own_data.py", own], check=True)
    given = [f"data={own}/train.json", f"val={own}/val.json"]
    config, scores = "configs/finetune/own_data_mixed.py", []
    assert main(["train", config, "--work-dir", str(tmp_path / "tuned"), *given]) == 0
    for checkpoint in (MODEL, tmp_path / "tuned"):
        out = tmp_path / f"eval_{checkpoint.name}"
        rows = ["own", *(name for name, _ in OLD)]
        command = [
            "evaluate",
            config,
            "--checkpoint",
            str(checkpoint),
            "--out",
            str(out),
            *given,
            "--benchmarks",
            *rows,
        ]
        assert main(command) == 0
        scores.append({name: row["metrics"] for name, row in results.read(out)["benchmarks"].items()})
    before, after = scores
    assert after["own"]["AP"] > before["own"]["AP"] + 40
    assert after["own"]["AP"] >= 0.7 * before["shapes_instance"]["AP"]
    for name, metric in OLD:
        assert after[name][metric] > before[name][metric] - 5, (name, metric)
