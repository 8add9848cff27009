"""A training stage as data: what is frozen, what learns how fast, and for how long."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from ..models.lora import Lora, inject
from ..structures import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`config["stage"]`, checked. Patterns are `fnmatch` patterns on dotted module or parameter names."""

    name: str
    init_from: Sequence[str] = ()  # run folders or checkpoints that the weights come from; later ones override
    new: Sequence[str] = ()  # patterns of what none of them has, and starts at random
    frozen: Sequence[str] = ()
    lora: Mapping[str, Any] = field(default_factory=dict)  # arguments of models.lora.Lora; empty = no adapters
    lr: float
    lr_scale: Mapping[str, float] = field(default_factory=dict)  # pattern -> factor; the last match counts
    weight_decay: float = 0.05
    betas: Sequence[float] = (0.9, 0.999)
    clip: float = 1.0  # largest norm of the gradient, 0 = any
    schedule: Mapping[str, Any] = field(default_factory=lambda: {"kind": "cosine"})  # arguments of optim.schedule
    epochs: float = 1
    steps: int = 0  # optimizer steps; 0 = as many as `epochs` take
    batch_size: int = 64  # samples of one optimizer step, over all processes and micro-batches
    lr_batch_size: int = 0  # the batch size that lr is given for; 0 = it is used as it stands
    micro_batch: int = 0  # samples of one process at a time; 0 = no accumulation
    precision: str = "fp32"  # or "bf16": bf16 weights and activations, fp32 master weights
    zero: int = 0  # ZeRO stage
    offload: bool = False  # optimizer states in the memory of the host
    checkpointing: Sequence[str] = ()  # modules that recompute their activations in the backward pass
    compile: Sequence[str] = ()  # modules that torch.compile makes faster
    workers: int = 4  # data-loading processes per training process
    seed: int = 0
    log_every: int = 10
    save_every: int = 2000
    keep: int = 2  # newest training states that stay on disk
    keep_every: int = 0  # besides them, those whose step is a multiple of this stay; 0 = none
    max_skipped: int = 5  # steps with a loss or gradient that is not finite; one more ends the run
    stall_minutes: float = 8  # without a finished step, then the run ends; 0 = never. NCCL itself gives up after 10
    picture_every: int = 0  # steps between pictures of predictions; 0 = none
    peak_tflops: float = 0  # of one GPU at this precision, to log the share that is used; 0 = not known
    next: str = ""  # config of the stage that follows

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Stage":
        """Raises UserError for an unknown, missing or impossible value."""
        stage_keys, schedule_keys = sorted(f.name for f in fields(cls)), ["gamma", "kind", "milestones", "warmup"]
        schedule = values.get("schedule", {})
        for where, given, known in (("stage", values, stage_keys), ("stage.schedule", schedule, schedule_keys)):
            if unknown := sorted(set(given) - set(known)):
                raise UserError(f"config key {where}.{unknown[0]} is not known; there is: {', '.join(known)}")
        if missing := sorted({"lr", "name"} - set(values)):
            raise UserError(f"config key stage.{missing[0]} is missing; add it to the config's stage")
        stage = cls(**values)
        if stage.precision not in ("fp32", "bf16"):
            raise UserError(f"config key stage.precision: {stage.precision!r} is not known; give fp32 or bf16")
        if stage.zero not in (0, 1, 2, 3):
            raise UserError(f"config key stage.zero: {stage.zero!r} is not a ZeRO stage; give 0, 1, 2 or 3")
        if stage.zero < 2 and (stage.precision == "bf16" or stage.offload):
            raise UserError("config key stage.zero: bf16 and offload need ZeRO's fp32 weights; give 2 or 3")
        if stage.zero == 3 and stage.compile:
            raise UserError("config key stage.compile: ZeRO-3 gathers weights between operations; give zero=2 or less")
        if stage.keep < 1:
            raise UserError(f"config key stage.keep: {stage.keep!r} leaves nothing to resume; give 1 or more")
        if stage.lora:
            Lora.parse(stage.lora)
        if stage.lr_batch_size:  # AdamW's steps have the size of lr: noise is kept by a square root (arXiv 2205.10287)
            stage = replace(stage, lr=stage.lr * (stage.batch_size / stage.lr_batch_size) ** 0.5)
        return stage

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps or max(round(self.epochs * steps_per_epoch), 1)

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of one process in one step; UserError if the batch does not split evenly."""
        at_once = world_size * self.micro_batch if self.micro_batch else self.batch_size
        if self.batch_size % world_size or self.batch_size % at_once:
            what = f"{self.batch_size} does not split into {world_size} processes with micro_batch={self.micro_batch}"
            multiple = world_size * max(self.micro_batch, 1)
            raise UserError(f"config key stage.batch_size: {what}; give a multiple of {multiple}")
        return self.batch_size // at_once


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude every parameter at or below a matching name; a pattern without a match is an error."""
    for pattern in patterns:
        for parameter in _matching(model, pattern, "frozen").values():
            parameter.requires_grad_(False)


def prepare(model: nn.Module, stage: Stage) -> None:
    """Make a loaded model the one that the stage trains: freeze, add adapters, switch checkpointing on."""
    freeze(model, stage.frozen)
    if stage.lora:
        torch.manual_seed(stage.seed)  # adapters start alike on every rank
        inject(model, Lora.parse(stage.lora))
    enable_checkpointing(model, stage.checkpointing)


def parameter_groups(
    model: nn.Module, lr: float, lr_scale: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, one per learning rate.

    Weight decay holds for biases and norms too, as in the official training."""
    rates = _rates(model, lr, lr_scale)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(rates[name], []).append(parameter)
    if not groups:
        raise UserError("config key stage.frozen: nothing is left to train; remove a pattern")
    return [{"params": parameters, "lr": rate, "weight_decay": weight_decay} for rate, parameters in groups.items()]


def enable_checkpointing(model: nn.Module, names: Iterable[str]) -> None:
    """Let the named modules recompute their activations: less memory for about a third more compute."""
    modules = dict(model.named_modules())
    able = sorted(name for name, module in modules.items() if hasattr(module, "gradient_checkpointing_enable"))
    for name in names:
        if name not in able:
            raise UserError(f"config key stage.checkpointing: {name!r} cannot; these can: {', '.join(able)}")
        modules[name].gradient_checkpointing_enable()


def compile_parts(model: nn.Module, names: Iterable[str]) -> None:
    """Let torch.compile make the named modules faster, from their first call on; names of weights stay as they are."""
    for name in names:
        part: Any = dict(model.named_modules()).get(name)
        if part is None:
            raise UserError(f"compile: no module {name!r}; there is: {', '.join(n for n, _ in model.named_children())}")
        getattr(part, "base_model", part).compile()  # a language model is called without its head


def table(model: nn.Module, lr: float, lr_scale: Mapping[str, float]) -> str:
    """What trains: a line per child of the model, its parameters, how many of them train, and how fast."""
    rates = _rates(model, lr, lr_scale)
    lines = [f"{'module':24}{'parameters':>12}{'trainable':>12}  lr"]
    for child in [*dict.fromkeys(name.split(".")[0] for name in rates), ""]:
        below = {n: p for n, p in model.named_parameters() if not child or n.split(".")[0] == child}
        trainable = {n: p for n, p in below.items() if p.requires_grad}
        speeds = ", ".join(f"{rate:g}" for rate in sorted({rates[name] for name in trainable})) or "-"
        lines.append(f"{child or 'all':24}{_count(below):>12}{_count(trainable):>12}  {speeds}")
    return "\n".join(lines)


def _count(parameters: Mapping[str, nn.Parameter]) -> str:
    count = sum(parameter.numel() for parameter in parameters.values())
    return f"{count / 1e6:.2f} M" if count >= 1e4 else str(count)


def _rates(model: nn.Module, lr: float, lr_scale: Mapping[str, float]) -> dict[str, float]:
    rates = {name: lr for name, _ in model.named_parameters()}
    for pattern, scale in lr_scale.items():
        rates.update(dict.fromkeys(_matching(model, pattern, "lr_scale"), lr * scale))
    return rates


def _matching(model: nn.Module, pattern: str, key: str) -> dict[str, nn.Parameter]:
    """Parameters whose own name, or the name of a module around them, matches."""
    matching = {}
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(path, pattern) for path in accumulate(name.split("."), "{}.{}".format)):
            matching[name] = parameter
    if not matching:
        children = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()))
        raise UserError(f"config key stage.{key}: {pattern!r} matches nothing in the model; it has: {children}")
    return matching
