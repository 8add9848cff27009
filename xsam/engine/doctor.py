"""Will it fit, and how long is a step? Memory per GPU and step time of a stage, before a GPU is rented.

One micro-batch runs forward and backward on tensors that have shapes and no content: every operation of the model's
own code is seen, its floating-point operations and the bytes alive at any moment are counted. What DeepSpeed keeps
beside that is arithmetic.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .. import config as configs
from ..models import pixel_decoder
from ..models.criterion import Criterion, Draws
from ..models.matcher import Matcher, Matches
from ..models.xsam import XSamModel
from ..structures import IGNORE_INDEX, Batch, DecoderItems, ModelOutput, Target
from . import stages, trainer

TEXT = 700  # tokens of a sample beside the image's: COCO's 133 names in a question
ANSWER = 32  # of them supervised
MASKS = 20  # targets of a sample
NAMES = 133  # candidate conditions of a sample
UTILISATION = 0.4  # of the GPU's peak
RESERVE = 1.5e9  # bytes: CUDA context, kernels, fragmentation of the allocator
GATHERED = 1e9  # weights that ZeRO-3 holds whole at a time (DeepSpeed's default)
GB = 1e9
POSITION_TABLES = (pixel_decoder.sine_positions, pixel_decoder._cell_centres)
BYTES = {"fp32": 4, "bf16": 2}


def _shapes(tensors: Sequence[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,  # of torch, which lacks attention on a CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*_shapes(qkv[:3])),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *gqkv, **_: sdpa_backward_flop_count(*_shapes(gqkv[:4]))
    ),
}


class Tally(TorchDispatchMode):
    """Floating-point operations, and the bytes of all storages that were made and are still referred to."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.flops = 0
        self.now = self.peak = self.gradients = self.gradients_at_peak = 0.0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if count := FLOPS.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())
            self._add(storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def _add(self, size: float) -> None:
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def keep(self, size: float) -> None:
        """Count a gradient that stays until the optimizer's step."""
        self.gradients += size
        self._add(size)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model on one micro-batch."""

    name: str
    parameters: int
    trainable: int
    flops: float  # forward
    kept: float  # bytes that its forward pass leaves for the backward pass


@dataclass(frozen=True, slots=True)
class DryRun:
    """One micro-batch, forward and backward."""

    parts: tuple[Part, ...]
    flops: float  # forward, backward and what checkpointing computes again
    activations: float  # bytes at the worst moment, without the gradients of parameters
    gradients: float  # bytes of those at that moment
    tokens: int  # of a sample in the language model


class _AnyMatch(Matcher):
    """Without content there is no best assignment: every target goes to query 0."""

    def assign(self, costs: Sequence[Tensor]) -> list[Matches]:
        return [Matches(*(c.new_zeros(len(c), min(c.shape[1:]), dtype=torch.long) for _ in range(2))) for c in costs]


def dry_run(
    config: Mapping[str, Any], stage: stages.Stage, samples: int, gradient: Callable[[Tensor], float]
) -> DryRun:
    """Run `samples` samples through a stage's model, criterion and backward pass without computing anything.

    Args:
        gradient: bytes that stay of the gradient of a parameter until the optimizer's step.
    """
    with torch.device("meta"):
        model: XSamModel = configs.build(config["model"])
    stages.prepare(model, stage)
    model.train().to(torch.bfloat16 if stage.precision == "bf16" else torch.float32)
    criterion: Criterion = configs.build(config["criterion"])
    criterion.matcher = _AnyMatch()
    text = min(TEXT, config["processor"]["max_length"]) if model.llm is not None else 0
    with FakeTensorMode(allow_non_fake_inputs=True), _fresh_caches():
        model.to_empty(device="cpu")
        tally = Tally(t for tensors in (model.parameters(), model.buffers()) for t in tensors)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: _hand_over(p, tally, gradient))
        with tally:
            run = _Run(model, tally)
            loss, tokens = run.loss(criterion, samples, text)
            loss.backward()
        activations = tally.peak - tally.gradients_at_peak
        return DryRun(tuple(run.parts), tally.flops, activations, tally.gradients_at_peak, tokens)


def _hand_over(parameter: Tensor, tally: Tally, gradient: Callable[[Tensor], float]) -> None:
    parameter.grad = None
    tally.keep(gradient(parameter))


@contextmanager
def _fresh_caches() -> Iterator[None]:
    """Position tables are cached: those without content must not meet the others."""
    for table in POSITION_TABLES:
        table.cache_clear()
    try:
        yield
    finally:
        for table in POSITION_TABLES:
            table.cache_clear()


class _Run:
    """The forward pass of `XSamModel`, without the look-ups that need content, and measured part by part."""

    def __init__(self, model: XSamModel, tally: Tally) -> None:
        self.model, self.tally = model, tally
        self.dtype = next(model.seg_encoder.parameters()).dtype
        self.parts: list[Part] = []

    def part(self, name: str, module: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Call a module, in a frozen encoder without a graph, and note what that took."""
        bytes_before, flops_before = self.tally.now, self.tally.flops
        learns = any(p.requires_grad for p in module.parameters())
        with torch.set_grad_enabled(learns or "encoder" not in name):
            output = module(*inputs, **options)
        numbers = [(p.numel(), p.requires_grad) for p in getattr(self.model, name).parameters()]
        self.parts.append(
            Part(
                name, sum(n for n, _ in numbers), sum(n for n, learns in numbers if learns),
                self.tally.flops - flops_before, self.tally.now - bytes_before,
            )
        )  # fmt: skip
        return output

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def loss(self, criterion: Criterion, B: int, text: int) -> tuple[Tensor, int]:
        """The loss of B samples with one image and one `<SEG>` each, and the tokens of one in the language model."""
        model, empty = self.model, self.empty
        side = model.seg_encoder.image_size
        indices = [*(model.levels if model.connector else ()), *([model.seg_level] if model.seg_projector else ())]
        maps = self.part("seg_encoder", model.seg_encoder, empty(B, 3, side, side), indices)
        conditions, seg_embeds = empty(B, 1, 0), torch.zeros(())
        logits, tokens = empty(0, 1), 0
        if model.llm is not None and model.vision_encoder and model.projector and model.seg_projector:
            seen = model.vision_encoder.image_size
            vision = self.part("vision_encoder", model.vision_encoder, empty(B, 3, seen, seen))
            parts = [
                self.part("projector", model.projector, vision),
                self.part("seg_projector", model.seg_projector, maps[-1]),
            ]
            embeds = torch.cat([*parts, model.llm.get_input_embeddings()(torch.zeros(B, text, dtype=torch.long))], 1)
            tokens = embeds.shape[1]
            hidden = self.part("llm", model.llm.model, inputs_embeds=embeds, use_cache=False).last_hidden_state
            logits = model.llm.lm_head(hidden[:, -min(ANSWER, text) :].flatten(0, 1))
            if model.phrase_projector is not None:
                projected = self.part("phrase_projector", model.phrase_projector, hidden[:, -text:])
                conditions, seg_embeds = projected[:, : min(NAMES, text)], projected[:, -1]
        embeds = classes = empty(0, 0, 0, 0)
        features = empty(B, 0, 0, 0)
        if model.connector and model.pixel_decoder and model.mask_decoder and model.classifier:
            pyramid = self.part("connector", model.connector, maps[: len(model.levels)])
            features, levels = self.part("pixel_decoder", model.pixel_decoder, pyramid)
            if not seg_embeds.dim():  # stage 1: no text
                seg_embeds = features.new_zeros(B, features.shape[1])
                conditions = seg_embeds[:, None]
            decoder = (levels, features, torch.arange(B), seg_embeds)
            states, embeds = self.part("mask_decoder", model.mask_decoder, *decoder)
            valid = torch.ones(conditions.shape[:2], dtype=torch.bool)
            classes = self.part("classifier", model.classifier, states, conditions, valid)
        targets = torch.zeros(len(logits), dtype=torch.long)
        output = ModelOutput(
            text_logits=logits, text_targets=targets, mask_embeds=embeds, mask_features=features,
            class_logits=classes, item_image=torch.arange(B), idle=empty(),
        )  # fmt: skip
        return self._criterion(criterion, output, side), tokens

    def _criterion(self, criterion: Criterion, output: ModelOutput, side: int) -> Tensor:
        bytes_before, flops_before = self.tally.now, self.tally.flops
        counts = trainer.Counts(1, 1, 1)
        losses = [criterion.text_loss(output, counts)] if len(output.text_logits) else []
        L, D, Q, _ = output.mask_embeds.shape
        if L:
            M, P = min(MASKS, Q), criterion.num_points
            ids, index = torch.zeros((1, side, side), dtype=torch.int16), torch.zeros(M, dtype=torch.long)
            number = range(D)  # no tensor: the criterion looks an item's image up, which would need content
            items = DecoderItems(number, index, index, index, targets=(Target(ids, index, index),) * D)  # type: ignore[arg-type]
            sizes = ((D, P), (D * M, 3 * P), (D * M, P // 4))
            points = (torch.rand(1, n, p, 2).expand(L, -1, -1, -1) for n, p in sizes)
            terms = criterion.layer_losses(output, _batch(items), counts, Draws(*points))
            losses += [term.sum() for term in terms.values()]
        loss = torch.stack(losses).sum()
        self.parts.append(Part("losses", 0, 0, self.tally.flops - flops_before, self.tally.now - bytes_before))
        return loss


def _batch(items: DecoderItems) -> Batch:
    nothing = torch.zeros(0)
    return Batch(
        ids=(), input_ids=nothing, labels=torch.full((1, 1), IGNORE_INDEX), span_ids=nothing, seg_ids=nothing,
        lengths=nothing, image_index=nothing, pixel_values=nothing, seg_pixel_values=nothing, seg_sizes=nothing,
        region_points=nothing, region_image=nothing, items=items,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """A summand of the memory of one GPU, and how it came about."""

    name: str
    size: float  # bytes
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory and time of one stage on a number of GPUs."""

    lines: tuple[Line, ...]
    run: DryRun
    accumulation: int

    @property
    def size(self) -> float:
        return sum(line.size for line in self.lines)

    def seconds(self, tflops: float) -> float:
        """Of one optimizer step, on GPUs of that peak."""
        return self.run.flops * self.accumulation / (tflops * 1e12 * UTILISATION)


def estimate(config: Mapping[str, Any], gpus: int) -> Estimate:
    """What one of `gpus` GPUs holds at the worst moment of a step.

    Raises UserError where the batch does not split evenly.
    """
    stage = stages.Stage.parse(config["stage"])
    accumulation = stage.accumulation(gpus)
    micro = stage.batch_size // gpus // accumulation
    width = BYTES[stage.precision]
    # Gradients: added up in fp32 over micro-batches, spread over the GPUs from ZeRO-2 on; the host's with offload.
    gradient = 0 if stage.offload else (4 if accumulation > 1 else width) / (gpus if stage.zero >= 2 else 1)
    run = dry_run(config, stage, micro, lambda p: p.numel() * gradient if accumulation == 1 else 0)
    P, T = sum(p.parameters for p in run.parts), sum(p.trainable for p in run.parts)
    shared = gpus if stage.zero >= 1 else 1
    weights = P * width / (gpus if stage.zero == 3 else 1)
    states = T * (12 if stage.zero else 8) / shared
    gradients = run.gradients if accumulation == 1 else T * gradient
    worst = Line("activations", run.activations, f"worst moment of a micro-batch of {micro}")
    copies = T * 4 / shared if stage.zero and not stage.offload else 0
    if T * gradient + copies > gradients + worst.size:  # ZeRO's step, when the activations are gone
        gradients = T * gradient
        worst = Line("update", copies, f"{T / 1e6:.0f} M x 4 B / {shared}, gradients in fp32 at the optimizer's step")
    lines = [
        Line("weights", weights, f"{P / 1e6:.0f} M x {width} B" + (f" / {gpus}" if stage.zero == 3 else "")),
        Line(
            "optimizer", 0 if stage.offload else states,
            f"{T / 1e6:.0f} M x {12 if stage.zero else 8} B" + (f" / {shared}" if shared > 1 else "")
            + (f", with gradients {(states + 4 * T / shared) / GB:.1f} GB of the host" if stage.offload else ""),
        ),
        Line("gradients", gradients, f"of at most {T / 1e6:.0f} M x {gradient:.3g} B, at the worst moment"),
        worst,
    ]  # fmt: skip
    if stage.zero:
        bucket = min(trainer.BUCKET, T)
        lines.append(Line("buckets", 2 * bucket * width, f"2 x {bucket / 1e6:.0f} M x {width} B, ZeRO's messages"))
    if stage.zero == 3:
        whole = min(GATHERED, P)
        lines.append(Line("gathered", whole * width, f"{whole / 1e6:.0f} M x {width} B, weights in use"))
    lines.append(Line("reserve", RESERVE, "CUDA context, kernels, fragmentation"))
    return Estimate(tuple(lines), run, accumulation)


def report(found: Estimate, gpus: int, tflops: float) -> str:
    """The estimate with its arithmetic, as a table."""
    run = found.run
    rows = [f"{'part':18}{'parameters':>12}{'trainable':>12}{'TFLOP':>9}{'kept':>11}"]
    for part in run.parts:
        counts = f"{part.parameters / 1e6:>10.2f} M{part.trainable / 1e6:>10.2f} M"
        rows.append(f"{part.name:18}{counts}{part.flops / 1e12:>9.3f}{part.kept / GB:>8.2f} GB")
    forward = sum(part.flops for part in run.parts)
    rows += ["", f"{'memory of a GPU':18}{'GB':>10}"]
    rows += [f"{line.name:18}{line.size / GB:>10.2f}  {line.arithmetic}" for line in found.lines]
    rows += [
        f"{'all':18}{found.size / GB:>10.2f}  computed",
        "",
        f"a step: {found.accumulation} micro-batches x {run.flops / 1e12:.1f} TFLOP (forward {forward / 1e12:.1f}, "
        f"backward and recomputed {(run.flops - forward) / 1e12:.1f}) / ({tflops:g} TFLOP/s x {UTILISATION:.0%} used)"
        f" = {found.seconds(tflops):.2f} s, computed, without waiting for data or for {gpus} GPUs' messages",
        f"assumed of a sample: {run.tokens} tokens in the language model, {MASKS} masks, 1 <SEG>, {NAMES} names",
    ]
    return "\n".join(rows)


def remedy(config: Mapping[str, Any], gpus: int, memory: float) -> str:
    """The first overrides, each on top of the ones before, that make a stage fit into `memory` bytes; "" if none do."""
    able = [name for name in ("llm", "vision_encoder", "seg_encoder") if name in config["model"]]
    changes: dict[str, Any] = {}
    steps: list[dict[str, Any]] = [{"checkpointing": able}, {"micro_batch": 1}]
    steps += [{"precision": "bf16", "zero": 2}] if config["stage"].get("zero", 0) < 2 else []
    steps += [{"zero": 3}] if gpus > 1 else []
    steps += [{"offload": True}]
    for step in steps:
        changes |= step
        tried = estimate({**config, "stage": {**config["stage"], **changes}}, gpus)
        if tried.size <= memory:
            return " ".join(f"stage.{name}={value}".replace(" ", "") for name, value in changes.items())
    return ""


def examine(path: str, overrides: Sequence[str], gpus: int, memory: float, tflops: float) -> int:
    """Print the estimate for a config; 0 when it fits into `memory` GB, else 1 after saying what would."""
    config = configs.load(path, overrides)
    found = estimate(config, gpus)
    print(report(found, gpus, tflops))
    if found.size <= memory * GB:
        print(f"fits: {found.size / GB:.1f} of {memory:g} GB")
        return 0
    change = remedy(config, gpus, memory * GB)
    print(f"does not fit: {found.size / GB:.1f} of {memory:g} GB")
    print(f"fits with: {change}" if change else "no setting makes it fit: use more GPUs, LoRA, or freeze parts")
    return 1
