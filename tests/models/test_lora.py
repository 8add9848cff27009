"""Adapters: what they change, what they leave alone, and that merging them is exact."""

import pytest
import torch
from torch import nn

from xsam import config as configs
from xsam.engine.stages import Stage
from xsam.models.lora import Lora, inject, merge
from xsam.structures import UserError

TINY = "configs/_base_/models/xsam_tiny.py"


def world_of_two() -> nn.Module:
    torch.manual_seed(0)
    inside = nn.ModuleDict({"first": nn.Linear(6, 8), "norm": nn.LayerNorm(8), "lm_head": nn.Linear(8, 3)})
    return nn.ModuleDict({"llm": inside, "decoder": nn.Linear(8, 3)})


def test_an_adapter_is_w_plus_alpha_over_rank_b_a():
    model = world_of_two()
    layer, x = model["llm"]["first"], torch.randn(5, 6)
    weight, bias, before = layer.weight.clone(), layer.bias.clone(), layer(x)
    inject(model, Lora(modules=["llm"], rank=2, alpha=6, dropout=0.0))
    layer = model["llm"]["first"]
    assert torch.equal(layer(x), before)  # B starts at zero
    a = nn.init.normal_(layer.lora_A["default"].weight.data)
    b = nn.init.normal_(layer.lora_B["default"].weight.data)
    expected = x @ (weight + 6 / 2 * b @ a).T + bias
    torch.testing.assert_close(layer(x), expected)

    merged = merge(model.state_dict(), {"stage": {"lora": {"modules": ["llm"], "rank": 2, "alpha": 6}}})
    assert merged.keys() == world_of_two().state_dict().keys()
    torch.testing.assert_close(merged["llm.first.weight"], weight + 3 * b @ a)
    assert torch.equal(merged["llm.first.bias"], bias)


def test_only_adapters_of_the_named_modules_train():
    model = world_of_two()
    inject(model, Lora(modules=["llm"]))
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    adapter = {f"llm.first.lora_{side}.default.weight" for side in "AB"}
    assert trains == {*adapter, "decoder.weight", "decoder.bias"}


def test_every_linear_layer_of_every_part_but_the_head():
    model = configs.build(configs.load(TINY)["model"])
    inject(model, Lora(modules=["llm", "seg_encoder", "vision_encoder"], rank=4))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    depth = {"llm": 4, "seg_encoder": 4, "vision_encoder": 3}  # the last SigLIP layer is not built
    layers = {
        "llm": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
        "seg_encoder": ["attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"],
        "vision_encoder": [
            *(f"self_attn.{n}" for n in ("q_proj", "k_proj", "v_proj", "out_proj")),
            "mlp.fc1",
            "mlp.fc2",
        ],
    }
    prefix = {"llm": "llm.model", "seg_encoder": "seg_encoder", "vision_encoder": "vision_encoder.encoder"}
    expected = {f"{prefix[p]}.layers.{i}.{n}" for p in depth for i in range(depth[p]) for n in layers[p]}
    assert adapted == expected


def test_bf16_weights_merge_in_fp32():
    model = world_of_two().to(torch.bfloat16)
    inject(model, Lora(modules=["llm"], rank=2, alpha=2))
    layer = model["llm"]["first"]
    nn.init.normal_(layer.lora_B["default"].weight.data)
    tensors = model.state_dict()
    merged = merge(tensors, {"stage": {"lora": {"modules": ["llm"], "rank": 2, "alpha": 2}}})
    a, b = (tensors[f"llm.first.lora_{side}.default.weight"].float() for side in "AB")
    exact = tensors["llm.first.base_layer.weight"].float() + b @ a
    assert torch.equal(merged["llm.first.weight"], exact.bfloat16())


def test_weights_without_adapters_are_returned_as_they_are():
    tensors = {"a.base_layer.weight": torch.zeros(1)}
    assert merge(tensors, {"stage": {"lora": {}}}) == merge(tensors, {}) == tensors


@pytest.mark.parametrize(
    "values, message",
    [
        ({"modules": ["llm"], "r": 8}, "stage.lora.r is not known; there is: modules, rank"),
        ({"rank": 8}, "stage.lora.modules: None is no list"),
        ({"modules": "llm"}, "stage.lora.modules: 'llm' is no list"),
        ({"modules": ["llm"], "rank": 0}, "stage.lora.rank: 0 is not a positive"),
    ],
)
def test_a_wrong_entry_is_one_clear_line(values, message):
    with pytest.raises(UserError, match=message):
        Stage.parse({"name": "x", "lr": 1e-4, "lora": values})


def test_unknown_modules_are_named():
    with pytest.raises(UserError, match="the model has no 'lm'; it has: llm, decoder"):
        inject(world_of_two(), Lora(modules=["lm"]))
    with pytest.raises(UserError, match="below 'llm.norm' is no linear layer"):
        inject(world_of_two(), Lora(modules=["llm.norm"]))
    with pytest.raises(UserError, match="'llm' has adapters already"):
        inject(world_of_two(), Lora(modules=["llm", "llm"]))
