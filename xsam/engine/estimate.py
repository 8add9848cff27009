"""Will it fit, and how long is a step? Memory per GPU and step time of a stage, before a GPU is rented.

One micro-batch runs through the real model and criterion, forward and backward. Its indices are real; weights and
pixels, and all that is computed of them, have shapes and no content. Operations and the bytes alive at any moment are
counted. What DeepSpeed keeps beside that is arithmetic."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .. import config as configs
from ..data.collate import collate
from ..models.criterion import Criterion
from ..models.matcher import Matcher, Matches
from ..models.xsam import XSamModel
from ..structures import IGNORE_INDEX, IMAGE_TOKEN, Batch, Encoded
from . import stages, trainer

TEXT = 700  # tokens of a sample beside the image's: COCO's 133 names in a question
ANSWER = 32  # of them supervised
MASKS = 20  # targets of a sample
NAMES = 133  # candidate conditions of a sample
UTILISATION = 0.4  # of the GPU's peak
RESERVE = 1.5e9  # bytes: CUDA context, kernels, fragmentation of the allocator
GATHERED = 1e9  # weights that ZeRO-3 holds whole at a time (DeepSpeed's default)
GB = 1e9
FLASH, FLASH_CPU = "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"
FLOPS = flop_registry | {  # torch's own lacks attention on a CPU
    getattr(torch.ops.aten, FLASH_CPU + end): flop_registry[getattr(torch.ops.aten, FLASH + end)]
    for end in ("", "_backward")
}


class Tally(TorchDispatchMode):
    """Floating-point operations, and the bytes of all storages that were made since and are still referred to."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0.0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if count := FLOPS.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (key := leaf.untyped_storage()._cdata) not in self._seen:
                self._seen.add(key)
                self.add(size := leaf.untyped_storage().nbytes())
                weakref.finalize(leaf.untyped_storage(), self._drop, key, size)
        return made

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def add(self, size: float) -> None:
        """Count bytes, here also those of a gradient that stays until the optimizer's step."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def watch(self, module: nn.Module, taken: np.ndarray) -> None:
        """Add to `taken`, float[2], the operations of every call of a module and the bytes that it leaves."""

        def note(sign: int, *_: Any) -> None:
            taken[:] += sign * self.flops, sign * self.now

        module.register_forward_pre_hook(partial(note, -1))
        module.register_forward_hook(partial(note, 1))


class Part(NamedTuple):
    """A part of the model on one micro-batch."""

    name: str
    parameters: int
    trainable: int
    flops: float  # forward
    kept: float  # bytes that its forward pass leaves for the backward pass


class Line(NamedTuple):
    """A summand of the memory of one GPU, and how it came about."""

    name: str
    size: float  # bytes
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory and time of one stage on a number of GPUs."""

    parts: list[Part]
    flops: float  # of a micro-batch: forward, backward and what checkpointing computes again
    lines: list[Line]
    gpus: int
    micro_batch: int  # samples of one GPU at a time
    accumulation: int  # micro-batches of a step
    state: float  # bytes of a training state on disk

    @property
    def size(self) -> float:
        return sum(line.size for line in self.lines)

    def seconds(self, tflops: float) -> float:
        """Of one optimizer step, on GPUs of that peak."""
        return self.flops * self.accumulation / (tflops * 1e12 * UTILISATION)


class _AnyMatch(Matcher):
    """The one look-up that needs content. Without it no assignment is the best: target n goes to query n."""

    def assign(self, costs: Sequence[Tensor]) -> list[Matches]:
        return [Matches(*[torch.arange(min(cost.shape[1:])).expand(len(cost), -1)] * 2) for cost in costs]


def assumed_batch(model: XSamModel, config: Mapping[str, Any], samples: int) -> Batch:
    """A batch as the estimates assume it: a question about NAMES names, one `<SEG>`, MASKS masks, black images."""
    side = model.seg_encoder.image_size
    seen = model.vision_encoder.image_size if model.vision_encoder is not None else 0
    T = min(TEXT + 1, config["processor"]["max_length"]) if model.llm is not None else 0
    place, masks = np.arange(T), np.zeros(MASKS, np.int64)
    last = (place == T - 1) & (model.mask_decoder is not None)
    sample = Encoded(
        id="assumed", key=0, input_ids=np.where(place, 1, IMAGE_TOKEN),
        labels=np.where(place < T - ANSWER, IGNORE_INDEX, 1), seg_ids=np.where(last, 0, -1),
        span_ids=np.where((place > 0) & (place < T - 1), (place - 1) * NAMES // max(T - 2, 1), -1),
        pixel_values=np.zeros((3, seen, seen), np.uint8), seg_pixel_values=np.zeros((3, side, side), np.uint8),
        seg_size=(side, side), image_size=(side, side), target_labels=masks, target_segs=masks,
        target_ids=(np.arange(side * side) % MASKS).reshape(1, side, side).astype(np.int16),
    )  # fmt: skip
    return collate([sample] * samples)


def dry_run(
    config: Mapping[str, Any], stage: stages.Stage, samples: int, gradient: float
) -> tuple[list[Part], float, float]:
    """Run `samples` samples through a stage's model, criterion and backward pass, without weights and pixels.

    `gradient` bytes of every value of a gradient stay until the optimizer's step. Returns the parts, the last one being
    all that is outside of the model's; the operations; and the bytes at the worst moment, without the weights."""
    with torch.device("meta"):
        model: XSamModel = configs.build(config["model"])
    stages.prepare(model, stage)
    model.train().to(stage.dtype)
    criterion: Criterion = configs.build(config["criterion"])
    criterion.matcher = _AnyMatch()
    with FakeTensorMode(allow_non_fake_inputs=True) as blank:
        model.to_empty(device="cpu")
    tally = Tally(chain(model.parameters(), model.buffers()))

    def hand_over(parameter: Tensor) -> None:
        parameter.grad = None
        tally.add(parameter.numel() * gradient)

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(hand_over)
    taken = {name: np.zeros(2) for name, _ in model.named_children()}
    for name in taken:  # the language model is never called itself, its two halves are
        for path in ("llm.model", "llm.lm_head") if name == "llm" else (name,):
            tally.watch(model.get_submodule(path), taken[name])
    batch = assumed_batch(model, config, samples)
    with blank, tally:
        seen, framed = torch.empty_like(batch.pixel_values), torch.empty_like(batch.seg_pixel_values)
    batch = replace(batch, pixel_values=seen, seg_pixel_values=framed)
    with tally:
        losses = criterion(model(batch), batch, criterion.count(batch, model.num_queries))
        taken["losses"] = np.array([tally.flops, tally.now]) - sum(taken.values())
        torch.stack(list(losses.values())).sum().backward()
    parts = []
    for name, numbers in taken.items():
        own = [p for path, p in model.named_parameters() if path.startswith(f"{name}.")]
        if numbers.any():
            learns = sum(p.numel() for p in own if p.requires_grad)
            parts.append(Part(name, sum(p.numel() for p in own), learns, *numbers.tolist()))
    return parts, tally.flops, tally.peak


def estimate(config: Mapping[str, Any], gpus: int) -> Estimate:
    """What one of `gpus` GPUs holds at the worst moment of a step.

    Raises UserError where the batch does not split evenly."""
    stage = stages.Stage.parse(config["stage"])
    accumulation = stage.accumulation(gpus)
    micro = stage.batch_size // gpus // accumulation
    width = stage.dtype.itemsize
    # Gradients: added up in fp32 over micro-batches, spread over the GPUs from ZeRO-2 on; the host's with offload.
    gradient = 0 if stage.offload else (4 if accumulation > 1 else width) / (gpus if stage.zero >= 2 else 1)
    parts, flops, peak = dry_run(config, stage, micro, gradient if accumulation == 1 else 0)
    P, T = sum(part.parameters for part in parts), sum(part.trainable for part in parts)
    shared, spread = (gpus if stage.zero >= least else 1 for least in (1, 3))  # of optimizer states, of weights
    kept = 12 if stage.zero else 8  # two moments in fp32, ZeRO's weights in fp32
    copies = T * 4 / shared if stage.zero and not stage.offload else 0  # gradients in fp32 at the optimizer's step
    host = f", with gradients {T * (kept + 4) / shared / GB:.1f} GB of the host" if stage.offload else ""
    at_backward = f"activations and gradients ({gradient:.3g} B each), worst moment of a micro-batch of {micro}"
    at_update = f"{T / 1e6:.0f} M x ({gradient:.3g} B + 4 B / {shared}), gradients at the optimizer's step"
    worst = max(
        Line("backward", peak + (T * gradient if accumulation > 1 else 0), at_backward),
        Line("update", T * gradient + copies, at_update), key=lambda line: line.size,
    )  # fmt: skip
    bucket, whole = min(trainer.BUCKET, T) * bool(stage.zero), min(GATHERED, P) * (stage.zero == 3)
    lines = [
        Line("weights", P * width / spread, f"{P / 1e6:.0f} M x {width} B / {spread}"),
        Line("optimizer", 0 if stage.offload else T * kept / shared, f"{T / 1e6:.0f} M x {kept} B / {shared}{host}"),
        worst,
        Line("buckets", 2 * bucket * width, f"2 x {bucket / 1e6:.0f} M x {width} B, ZeRO's messages"),
        Line("gathered", whole * width, f"{whole / 1e6:.0f} M x {width} B, ZeRO-3's weights in use"),
        Line("reserve", RESERVE, "CUDA context, kernels, fragmentation"),
    ]
    return Estimate(parts, flops, lines, gpus, micro, accumulation, state=P * width + T * kept)


def report(found: Estimate, tflops: float) -> str:
    """The estimate with its arithmetic, as a table."""
    rows = [f"{'part':18}{'parameters':>12}{'trainable':>12}{'TFLOP':>9}{'kept':>11}"]
    for part in found.parts:
        counts = f"{part.parameters / 1e6:>10.2f} M{part.trainable / 1e6:>10.2f} M"
        rows.append(f"{part.name:18}{counts}{part.flops / 1e12:>9.3f}{part.kept / GB:>8.2f} GB")
    forward = sum(part.flops for part in found.parts)
    rows += ["", f"{'memory of a GPU':18}{'GB':>10}"]
    rows += [f"{line.name:18}{line.size / GB:>10.2f}  {line.arithmetic}" for line in found.lines if line.size]
    rows += [
        f"{'all':18}{found.size / GB:>10.2f}  computed",
        "",
        f"a step: {found.accumulation} micro-batches x {found.flops / 1e12:.1f} TFLOP (forward {forward / 1e12:.1f}, "
        f"backward and recomputed {(found.flops - forward) / 1e12:.1f}) / ({tflops:g} TFLOP/s x {UTILISATION:.0%} used)"
        f" = {found.seconds(tflops):.2f} s, computed, without waiting for data or for {found.gpus} GPUs' messages",
        f"assumed of a sample: {TEXT} tokens beside the image's, {ANSWER} supervised, {NAMES} names, {MASKS} masks",
    ]
    return "\n".join(rows)


def remedy(config: Mapping[str, Any], gpus: int, memory: float) -> str:
    """The first overrides, each on top of the ones before, that make a stage fit into `memory` bytes."""
    able = [name for name in ("llm", "vision_encoder", "seg_encoder") if name in config["model"]]
    steps: list[dict[str, Any]] = [{"checkpointing": able}, {"micro_batch": 1}]
    steps += [{"precision": "bf16", "zero": 2}] if config["stage"].get("zero", 0) < 2 else []
    steps += [{"zero": 3}] if gpus > 1 else []
    changes: dict[str, Any] = {}
    for step in (*steps, {"offload": True}):
        changes |= step
        if estimate({**config, "stage": {**config["stage"], **changes}}, gpus).size <= memory:
            return "fits with: " + " ".join(f"stage.{k}={v}".replace(" ", "") for k, v in changes.items())
    return "no setting makes it fit: use more GPUs, LoRA, or freeze parts"
