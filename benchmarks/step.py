"""`xsam benchmark step`: a whole training step. Without a config stage 1's beside the same composed of transformers'
modules, with one that of its stage on random weights."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from xsam import config as configs
from xsam.engine import distributed, estimate, optim, trainer
from xsam.engine.stages import Stage
from xsam.models.criterion import Criterion
from xsam.models.xsam import normalize

from .baselines import SIZES, Sizes, Usual, dense, made_up, our_loss, same_points, segmentor
from .measure import Run, compare, machine


def beside_transformers(device: str = "cpu", sizes: Sizes = SIZES, rounds: int = 3) -> dict[str, Any]:
    """Stage 1's step on one image with ten targets: forward, matching, losses, backward, AdamW."""
    ours, criterion = segmentor(sizes).to(device).train(), Criterion(sizes.points)
    usual, batch = Usual(sizes, ours).to(device).train(), made_up(ours, sizes, samples=1, targets=10).to(device)
    images, (masks, labels) = normalize(batch.seg_pixel_values, ours.seg_encoder, batch.seg_sizes), dense(batch)
    mine, theirs = usual.pairs(ours)
    ways = {
        "ours": update(lambda: our_loss(ours, criterion, batch), mine),
        "transformers": update(lambda: usual.loss(usual(images), masks, labels), theirs),
    }
    name = f"step of stage 1, {sizes.depth} layers, {sizes.image} px, {sizes.queries} queries"
    return {"machine": machine(device), name: compare(ways, same_points(), device=device, rounds=rounds)}


def update(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Run:
    """A step of AdamW; gives the loss and all gradients. With a rate of zero the weights stay."""
    optimizer = optim.adamw([{"params": parameters, "lr": 0.0}], (0.9, 0.999))

    def run() -> list[Tensor | None]:
        value = loss()
        value.backward()
        optimizer.step()
        found = [value.detach(), *(parameter.grad for parameter in parameters)]
        optimizer.zero_grad()
        return found

    return run


def of_stage(config_path: str, overrides: Sequence[str] = (), rounds: int = 5) -> dict[str, Any]:
    """A stage's own training step as its trainer makes it, with random weights and one micro-batch of assumed content
    (`estimate.assumed_batch`), on a GPU where there is one. Besides its speed: `mfu_percent` of `stage.peak_tflops`
    (None where that is not known), `memory_gb`, the most so far, and `largest`, the three kernels (on a CPU operators)
    that take most of a step."""
    config = configs.load(config_path, overrides)
    stage = Stage.parse(config["stage"])
    stage = replace(stage, batch_size=stage.micro_batch or stage.batch_size, micro_batch=0)
    device = distributed.init().type
    torch.manual_seed(stage.seed)
    with torch.device(device):
        model, criterion = configs.build(config["model"]).to(stage.dtype), configs.build(config["criterion"])
    batch = estimate.assumed_batch(model, config, stage.batch_size)
    counts, images = criterion.count(batch, model.num_queries), len(batch.seg_sizes)
    flops = estimate.dry_run(config, stage, stage.batch_size, 0)[1]
    with redirect_stdout(sys.stderr):  # it says what trains
        engine, _ = trainer.initialize(model, criterion, stage, 1, None)
    # In the stage's own precision, not that of the comparisons.
    run = torch.autocast(device, enabled=False)(partial(trainer.optimize, engine, stage, [batch], counts))
    steps = compare({"step": run}, device=device, rounds=rounds)
    seconds = steps["step"]["wall_ms"] / 1e3
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")) as recording:
        run()
    memory = torch.cuda.max_memory_allocated() or 1024 * getrusage(RUSAGE_SELF).ru_maxrss
    return {
        "machine": machine(device), "config": " ".join((config_path, *overrides)), "samples": stage.batch_size,
        "images_per_second": images / seconds, "tokens_per_second": float(batch.lengths.sum()) / seconds,
        "tflop_per_image": flops / images / 1e12, "memory_gb": memory / 1e9,
        "mfu_percent": 100 * flops / seconds / (stage.peak_tflops * 1e12) if stage.peak_tflops else None,
        "step": steps, "largest": largest(recording, device),
    }  # fmt: skip


def largest(recording: profile, device: str) -> dict[str, dict[str, float]]:
    time = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"  # microseconds
    kernels = [event for event in recording.key_averages() if event.device_type.name.lower() == device]
    kernels.sort(key=lambda kernel: -getattr(kernel, time))
    total = sum(getattr(kernel, time) for kernel in kernels)
    return {kernel.key: {"ms": getattr(kernel, time) / 1e3, "percent": 100 * getattr(kernel, time) / total}
            for kernel in kernels[:3]}  # fmt: skip
