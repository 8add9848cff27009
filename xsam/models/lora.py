"""Low-rank adapters by peft (LoRA, arXiv 2106.09685): W becomes W + alpha / rank * B A, and stays frozen itself.

A folder of such a run keeps base and adapter apart, under peft's names; `merge` makes plain weights of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from ..structures import UserError

_A, _B = "lora_A.default.weight", "lora_B.default.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """`config["stage"]["lora"]`, checked."""

    modules: Sequence[str]  # dotted names; every linear layer below them gets an adapter
    rank: int = 16
    alpha: float = 32  # the adapter counts alpha / rank times
    dropout: float = 0.05  # on the adapter's input, in training

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Lora":
        """Raises UserError for an unknown, missing or impossible value."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UserError(f"config key stage.lora.{unknown[0]} is not known; there is: {', '.join(known)}")
        modules = values.get("modules")
        if not isinstance(modules, Sequence) or isinstance(modules, str) or not modules:
            raise UserError(f"config key stage.lora.modules: {modules!r} is no list of modules; give e.g. ['llm']")
        lora = cls(**values)
        if not isinstance(lora.rank, int) or lora.rank < 1:
            raise UserError(f"config key stage.lora.rank: {lora.rank!r} is not a positive whole number")
        return lora


def inject(model: nn.Module, lora: Lora) -> None:
    """Freeze the named modules and put a trainable adapter on every linear layer below them, in place; B starts at 0.
    Raises UserError for a name that the model does not have, that holds no linear layer, or that is given twice."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    modules, key = dict(model.named_modules()), "config key stage.lora.modules"
    for name in lora.modules:
        if name not in modules:
            there = ", ".join(child for child, _ in model.named_children())
            raise UserError(f"{key}: the model has no {name!r}; it has: {there}")
        below = dict(modules[name].named_modules())
        if any(n.endswith("base_layer") for n in below):
            raise UserError(f"{key}: {name!r} has adapters already; name every module once")
        # The head of a language model, like its embeddings, gets no adapter.
        linear = [n for n, layer in below.items() if isinstance(layer, nn.Linear) and n.split(".")[-1] != "lm_head"]
        if not all(linear) or not linear:
            raise UserError(f"{key}: below {name!r} is no linear layer; name what is around one")
        modules[name].requires_grad_(False)
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=linear)
        inject_adapter_in_model(config, modules[name])


def of_config(config: Mapping[str, Any]) -> Lora | None:
    """The adapters of the run that a config describes."""
    return Lora.parse(values) if (values := config.get("stage", {}).get("lora")) else None


def merge(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Plain weights from those and the config of a run folder: every adapter added to its matrix in fp32, in the
    matrix's precision and under its plain name; without adapters as they are."""
    if (lora := of_config(config)) is None:
        return dict(tensors)
    merged = {}
    for name, tensor in tensors.items():
        layer, base, rest = name.rpartition("base_layer.")
        if base and rest == "weight":
            a, b = tensors[layer + _A].float(), tensors[layer + _B].float()
            tensor = (tensor.float() + lora.alpha / lora.rank * (b @ a)).to(tensor.dtype)
        if not name.endswith((_A, _B)):
            merged[layer + rest] = tensor
    return merged
