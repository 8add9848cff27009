"""Every shipped config loads, its model builds, its stage parses, and its rows name what exists."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from xsam import config
from xsam.engine.stages import Stage, parameter_groups, prepare
from xsam.structures import UserError

ROOT = Path(__file__).parents[1]
STAGES = sorted(
    path for folder in ("", "shapes/", "finetune/", "examples/") for path in ROOT.glob(f"configs/{folder}*.py")
)
PARAMETERS = {  # without the official files' dead tensors: SAM's neck, SigLIP's last layer, norm and head
    "xsam_tiny": 2_949_493,
    "xsam_phi3": 4_592_914_657,
    "xsam_qwen3_1_7b": 2_476_050_657,
    "xsam_qwen3_4b": 4_785_347_297,
}


def check_arguments(node):
    """Every `type`, however deep, exists and takes the arguments beside it; its files need not be there."""
    if isinstance(node, dict):
        arguments = {key: value for key, value in node.items() if key != "type"}
        if "type" in node:
            inspect.signature(config.resolve(node["type"])).bind(**arguments)
        for value in arguments.values():
            check_arguments(value)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_stage_config_is_whole(path):
    loaded = config.load(path)
    assert json.loads(json.dumps(loaded)) == loaded  # it can be stored beside the weights
    stage = Stage.parse(loaded["stage"])
    with torch.device("meta"):
        model = config.build(loaded["model"])
    prepare(model, stage)
    groups = parameter_groups(model, stage.lr, stage.lr_scale, stage.weight_decay)
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    for pattern in stage.new:
        assert hasattr(model, pattern), f"stage.new names {pattern}, which the model does not have"
    if stage.next:
        assert (ROOT / stage.next).is_file()
    config.build(loaded["criterion"])
    for row in [loaded["mixture"], loaded["processor"], *loaded["benchmarks"].values()]:
        check_arguments({key: value for key, value in row.items() if key != "published"})


@pytest.mark.parametrize("name", PARAMETERS)
def test_model_sizes(name):
    with torch.device("meta"):
        model = config.build(config.load(ROOT / f"configs/_base_/models/{name}.py")["model"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[name], rel=0.01)


def test_qwen_takes_nothing_from_phi():
    llm = config.load(ROOT / "configs/_base_/models/xsam_qwen3_4b.py")["model"]["llm"]
    assert not {"sliding_window", "original_max_position_embeddings", "pad_token_id"} & llm.keys()


@pytest.mark.parametrize("path", [p for p in STAGES if "qwen3" in p.name], ids=lambda p: p.stem)
def test_a_variant_differs_in_the_language_model_only(path):
    variant = config.load(path)
    phi3 = config.load(path.with_name(re.sub(r"qwen3(_1_7b|_4b)?_", "phi3_" if "xsam" in path.name else "", path.name)))
    assert variant["processor"]["template"].startswith("qwen3")
    changed = {part for part in phi3["model"] if phi3["model"][part] != variant["model"][part]}
    assert "llm" in changed
    assert changed <= {"llm", "projector", "seg_projector", "phrase_projector"}
    assert variant["mixture"] == phi3["mixture"]
    assert variant["benchmarks"] == phi3["benchmarks"]


def test_overrides():
    path = ROOT / "configs/shapes/stage1.py"
    loaded = config.load(
        path, ["stage.lr=3e-4", "stage.betas=(0.9,0.98)", "model.levels.0=1", "stage.init_from=[]", "stage.name=x"]
    )
    assert loaded["stage"]["lr"] == 3e-4
    assert loaded["stage"]["betas"] == [0.9, 0.98]
    assert loaded["model"]["levels"] == [1, 3, 4]
    assert loaded["stage"]["name"] == "x"
    assert config.load(path)["stage"]["lr"] != 3e-4


@pytest.mark.parametrize(
    "override, message",
    [
        ("stages.lr=1", "unknown config key 'stages'; there is: benchmarks, categories, criterion"),
        ("model.seg_encoder.wide.x=1", "unknown config key 'model.seg_encoder.wide'"),
        (
            "benchmarks.coco_panoptic.metric=x",
            "unknown config key 'benchmarks.coco_panoptic'; there is: shapes_instance",
        ),
        ("model.levels.7=1", "unknown config key 'model.levels.7'"),
    ],
)
def test_unknown_keys(override, message):
    with pytest.raises(UserError, match=message):
        config.load(ROOT / "configs/shapes/stage1.py", [override])


def test_unknown_arguments_are_refused_when_built():
    loaded = config.load(ROOT / "configs/shapes/stage1.py", ["model.seg_encoder.widht=3"])
    with pytest.raises(UserError, match="unexpected keyword argument 'widht'"):
        config.build(loaded["model"])


def test_only_this_package_is_built():
    with pytest.raises(UserError, match="not part of xsam"):
        config.build({"type": "os.system", "command": "true"})
    with pytest.raises(UserError, match="does not exist"):
        config.build({"type": "xsam.models.connector.Conector"})


def test_missing_and_damaged_configs(tmp_path):
    with pytest.raises(UserError, match="no such config"):
        config.load(tmp_path / "a.py")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        config.load(tmp_path / "b.json")
    (tmp_path / "c.py").write_text("from xsam.models.connector import Conector\nmodel = dict(type=Conector)\n")
    with pytest.raises(UserError, match="Conector"):
        config.build(config.load(tmp_path / "c.py")["model"])


def test_the_data_folder_can_be_elsewhere(monkeypatch):
    monkeypatch.setenv("XSAM_DATA", "/disk/sets")
    loaded = config.load(ROOT / "configs/shapes/stage1.py")
    assert loaded["mixture"]["sources"]["panoptic"]["data"]["images"] == "/disk/sets/shapes/train"
    assert loaded["stage"]["init_from"] == ["/disk/sets/shapes/base"]
