import pytest
import torch
from torch import nn

from xsam.engine import stages
from xsam.structures import UserError


class Checkpointable(nn.Linear):
    enabled = False

    def gradient_checkpointing_enable(self) -> None:
        self.enabled = True


@pytest.fixture
def model() -> nn.Module:
    encoder = nn.Sequential(Checkpointable(4, 4), nn.LayerNorm(4))
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(4, 2), "tail": nn.Linear(2, 2)})


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_freeze_takes_modules_wildcards_and_parameters(model):
    stages.freeze(model, ["encoder.0", "t*l", "head.bias"])
    assert trainable(model) == {"encoder.1.weight", "encoder.1.bias", "head.weight"}


def test_a_pattern_without_a_match_names_the_children(model):
    with pytest.raises(UserError, match=r"'encodr' matches nothing in the model; it has: encoder, head, tail"):
        stages.freeze(model, ["encodr"])
    with pytest.raises(UserError, match=r"lr_scale: 'enc'"):
        stages.parameter_groups(model, 1e-3, {"enc": 0.1}, 0.05)


def test_one_group_per_rate_with_decay_everywhere(model):
    stages.freeze(model, ["tail"])
    groups = stages.parameter_groups(model, 1e-3, {"encoder": 0.1, "encoder.1": 1.0}, 0.05)
    by_rate = {group["lr"]: group for group in groups}
    assert sorted(by_rate) == pytest.approx([1e-4, 1e-3])
    assert [p.shape for p in by_rate[1e-3 * 0.1]["params"]] == [(4, 4), (4,)]
    assert len(by_rate[1e-3]["params"]) == 4  # norm (the later pattern counts) and head, frozen tail left out
    assert all(group["weight_decay"] == 0.05 for group in groups)


def test_nothing_left_to_train(model):
    stages.freeze(model, ["*"])
    with pytest.raises(UserError, match="nothing is left"):
        stages.parameter_groups(model, 1e-3, {}, 0.0)


def test_table(model):
    stages.freeze(model, ["tail"])
    lines = stages.table(model, 1e-3, {"encoder.0": 0.1}).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["encoder", "28", "28", "0.0001,", "0.001"],
        ["head", "10", "10", "0.001"],
        ["tail", "6", "0", "-"],
        ["all", "44", "38", "0.0001,", "0.001"],
    ]


def test_checkpointing(model):
    stages.enable_checkpointing(model, ["encoder.0"])
    assert model["encoder"][0].enabled
    with pytest.raises(UserError, match=r"'head' cannot; these can: encoder\.0"):
        stages.enable_checkpointing(model, ["head"])


def test_stage_reads_a_config():
    stage = stages.Stage.parse({"name": "s", "lr": 1e-4, "epochs": 2, "batch_size": 64, "micro_batch": 4})
    assert stage.total_steps(steps_per_epoch=100) == 200
    assert stage.accumulation(world_size=4) == 4
    assert stages.Stage.parse({"name": "s", "lr": 1e-4, "steps": 7}).total_steps(100) == 7
    assert stages.Stage.parse({"name": "s", "lr": 1e-4}).accumulation(world_size=8) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": 1}, "stage.learning_rate is not known"),
        ({"lr": None}, "stage.lr is missing"),
        ({"precision": "fp16"}, "give fp32 or bf16"),
        ({"zero": 4}, "not a ZeRO stage"),
        ({"precision": "bf16"}, "give 2 or 3"),
        ({"keep": 0}, "leaves nothing to resume"),
        ({"zero": 3, "compile": ["llm"]}, "give zero=2 or less"),
    ],
)
def test_stage_refuses(change, message):
    values = {"name": "s", "lr": 1e-4} | change
    with pytest.raises(UserError, match=message):
        stages.Stage.parse({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize("world_size, micro_batch", [(3, 0), (2, 5)])
def test_a_batch_that_does_not_split(world_size, micro_batch):
    stage = stages.Stage.parse({"name": "s", "lr": 1.0, "batch_size": 8, "micro_batch": micro_batch})
    with pytest.raises(UserError, match="does not split"):
        stage.accumulation(world_size)


def test_a_tied_parameter_is_counted_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    (group,) = stages.parameter_groups(model, 1.0, {}, 0.0)
    assert len(group["params"]) == 1
    assert torch.equal(group["params"][0], model["b"].weight)
