"""The training loop, over DeepSpeed at every size: one process on a CPU, one GPU, or many nodes.

The criterion divides sums over local tokens and masks by global counts (over all ranks and micro-batches). So
the loss of a global batch is the plain sum of what all ranks and micro-batches return, however it is split."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.criterion import Counts, Criterion
from ..structures import Batch, UserError
from . import checkpoint, distributed, guard, optim, stages
from .log import Log, note_start

PATIENCE = 5  # seconds
BUCKET = 500_000_000  # gradients of one message between GPUs (DeepSpeed's default)

# Called with batch_size (global), accumulation, rank, world_size, start_step, steps and workers; gives the source and
# this rank's micro-batches of steps `start_step` .. `steps` - 1.
LoaderFactory = Callable[..., Iterable[tuple[str, list[Batch]]]]
Pictures = Callable[[nn.Module], Mapping[str, np.ndarray]]  # of a model, which stays as it is: uint8[H, W, 3] by name


class Objective(nn.Module):
    """Model and criterion as one module with one output, the loss of a micro-batch.

    DeepSpeed hooks the outputs of the module it wraps, which it does not find in a dataclass; and ZeRO-3
    hangs when their number differs between ranks, as that of the loss terms may. They are left in `losses`."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.losses: dict[str, Tensor] = {}

    def forward(self, batch: Batch, counts: Counts) -> Tensor:
        losses = self.criterion(self.model(batch), batch, counts)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum()


class Interrupt:
    """Notes SIGTERM, SIGINT and SIGUSR1 (SLURM's warning), so that the step can be finished and saved.

    It may come twice, from the scheduler and from the launcher that passes it on; one that comes more than `PATIENCE`
    seconds later acts at once. A launcher that is gone is a signal, too: nobody else could stop its processes."""

    def __enter__(self) -> "Interrupt":
        self._noted, self._parent = 0.0, os.getppid()
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._handlers = {number: signal.signal(number, self._note) for number in numbers}
        return self

    @property
    def noted(self) -> bool:
        return self._noted > 0 or (distributed.world_size() > 1 and os.getppid() != self._parent)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = self._noted or time.monotonic()
        if time.monotonic() - self._noted > PATIENCE:
            self.__exit__()
            signal.raise_signal(number)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def train(
    model: nn.Module, criterion: Criterion, loader_factory: LoaderFactory, config: dict[str, Any], work_dir: Path, *,
    steps_per_epoch: int, resume: bool = False, max_steps: int | None = None, tokenizer: Any = None,
    pictures: Pictures | None = None,
) -> None:  # fmt: skip
    """Run one stage and leave a self-contained run folder.

    Writes `config.json`, `environment.jsonl`, `log.jsonl`, `tensorboard/`, `checkpoints/` and at the end
    `model.safetensors`. A step whose loss or gradient is not finite changes nothing and is kept in `skipped/`. On
    SIGTERM, SIGINT or SIGUSR1 it finishes the step, saves and exits with 0.

    Args:
        model: built and loaded; has `num_queries`.
        config: resolved; `config["stage"]` is a `stages.Stage` as a dict.
        steps_per_epoch: how many global batches the data holds.
        resume: go on from the newest intact training state in `work_dir`.
        max_steps: stop early, with the learning rates of the whole stage.
        pictures: drawn every `stage.picture_every` steps; called on every rank.

    Raises:
        UserError: the stage does not fit the model or the processes, or `work_dir` does not fit `resume`; too many
            steps are not finite; ranks are not at the same step."""
    distributed.init()
    stage = stages.Stage.parse(config["stage"])
    accumulation = stage.accumulation(distributed.world_size())
    steps = stage.total_steps(steps_per_epoch)
    last = min(steps, max_steps or steps)
    factor = optim.schedule(steps=steps, **stage.schedule)
    state = _find_state(work_dir, resume)
    num_queries: int = model.num_queries  # type: ignore[assignment]
    engine, rates = initialize(model, criterion, stage, accumulation, state)
    first = checkpoint.load(engine, state) if state else 0
    loader = loader_factory(
        batch_size=stage.batch_size, accumulation=accumulation, rank=distributed.rank(),
        world_size=distributed.world_size(), start_step=first, steps=last, workers=stage.workers,
    )  # fmt: skip
    watchdog = guard.Watchdog(stage.stall_minutes)
    with Interrupt() as interrupt, _open_log(work_dir, config, stage, first, last) as log, closing(watchdog):
        batches = iter(loader)
        for step in range(first, last):
            watchdog.place, watchdog.idle = f"step {step}, waiting for data", 0
            began = time.perf_counter()
            source, micro_batches = next(batches)
            waited = time.perf_counter() - began
            watchdog.place = f"step {step} of {source}, forward and backward"
            watchdog.samples = [sample for batch in micro_batches for sample in batch.ids]
            seed = _begin(engine, rates, factor(step), stage.seed, step)
            counts = sum((criterion.count(batch, num_queries) for batch in micro_batches), Counts(0, 0, 0))
            read = {
                "images": sum(len(batch.seg_sizes) for batch in micro_batches),  # and reference images
                "text_tokens": float(sum(batch.lengths.sum() for batch in micro_batches)),  # an image is one
            }
            read = _share(asdict(counts) | read | {"interrupt": interrupt.noted}, f"step {step} of {source}")
            counts, stop = Counts(**{name: read.pop(name) for name in asdict(counts)}), read.pop("interrupt") > 0
            with log.counting(source) if log else nullcontext():
                losses, grad_norm = optimize(engine, stage, micro_batches, counts)
            if not math.isfinite(grad_norm):
                facts = {"step": step, "source": source, "seed": seed, "counts": asdict(counts), "losses": losses}
                with torch.compiler.set_stance("force_eager"):  # it looks into every module
                    guard.record(engine, micro_batches, facts, work_dir / "skipped", config, stage.max_skipped)

            done = step + 1
            if log:
                log.step(step, source, losses, lr=stage.lr * factor(step), grad_norm=grad_norm, waited=waited, **read)
            if pictures and done % stage.picture_every == 0:
                watchdog.place = f"step {step}, drawing"
                images = pictures(model)
                if log:
                    log.pictures(done, images)
            if stop or done == last or done % stage.save_every == 0:
                watchdog.place, watchdog.idle = f"step {step}, saving", 0
                checkpoint.save(engine, work_dir / "checkpoints", done, stage)
            if stop and done < last:
                distributed.say(f"{work_dir}: stopped after step {done} of {last}; continue with --resume")
                raise SystemExit(0)
    checkpoint.export(model, work_dir, config, tokenizer)


def _find_state(work_dir: Path, resume: bool) -> Path | None:
    """The training state to start from; UserError if there is none, or the run would overwrite another."""
    folder, state = work_dir / "checkpoints", None
    with distributed.together():
        if distributed.is_main() and resume and not (state := checkpoint.newest(folder)):
            raise UserError(f"{work_dir}: holds no intact training state; start without --resume")
        if not resume and (checkpoint.states(folder) or any(work_dir.glob("model*.safetensors"))):
            raise UserError(f"{work_dir}: already holds a run; give --resume, or another --work-dir")
    return distributed.broadcast(state)


def initialize(
    model: nn.Module, criterion: Criterion, stage: stages.Stage, accumulation: int, state: Path | None
) -> tuple[Any, list[float]]:
    """Freeze, group and wrap; returns the DeepSpeed engine and the learning rate of each parameter group."""
    import deepspeed

    stages.prepare(model, stage)
    stages.compile_parts(model, stage.compile)
    distributed.say(stages.table(model, stage.lr, stage.lr_scale))
    groups = stages.parameter_groups(model, stage.lr, stage.lr_scale, stage.weight_decay)
    rates = [group["lr"] for group in groups]
    config = _deepspeed_config(stage, accumulation, sum(p.numel() for group in groups for p in group["params"]))
    objective = Objective(model, criterion).train()
    if state:
        config["checkpoint"] = checkpoint.prepare(model, state, stage)
    optimizer = optim.adamw(groups, stage.betas)
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config, dist_init_required=False)
    return engine, rates


def _deepspeed_config(stage: stages.Stage, accumulation: int, trainable: int) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    bucket = min(BUCKET, trainable)  # two are allocated in full, however little trains
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": cuda}} if stage.offload else {}
    return {
        "train_micro_batch_size_per_gpu": stage.batch_size // distributed.world_size() // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": stage.clip if stage.zero else 0.0,  # without ZeRO, optimize clips
        "zero_optimization": {"stage": stage.zero, "overlap_comm": cuda, "reduce_bucket_size": bucket} | offload,
        "zero_allow_untested_optimizer": True,  # torch's AdamW, which it is tested with all the same
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would be compiled at first use
        "bf16": {"enabled": stage.precision == "bf16", "check_grad_overflow": True},  # else ZeRO-2 steps with NaN
        # Several gradients are added up in fp32; a single one may stay as it comes.
        "data_types": {"grad_accum_dtype": "fp32" if accumulation > 1 else stage.precision},
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice per step
    }


def _begin(engine: Any, rates: Sequence[float], factor: float, seed: int, step: int) -> int:
    """Set the learning rates of a step and seed torch on this rank; returns that seed."""
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    # A function of the position, so that a resumed run draws what the unbroken one would have drawn.
    own = int(np.random.SeedSequence((seed, step, distributed.rank())).generate_state(1)[0])
    torch.manual_seed(own)
    return own


def _share(values: dict[str, float], here: str) -> dict[str, float]:
    """Sums of values over the ranks. Raises UserError, on all of them, unless all are at the same place `here`."""
    total = distributed.all_reduce_sum(values | {here: 1})
    if total.pop(here) != distributed.world_size():
        others = ", ".join(total.keys() - values.keys())
        raise UserError(f"a rank is at {here}, others at {others}; give every node the same config and data files")
    return total


def _open_log(
    work_dir: Path, config: dict[str, Any], stage: stages.Stage, first: int, last: int
) -> AbstractContextManager[Log | None]:
    if not distributed.is_main():
        return nullcontext()
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / "config.json").write_text(json.dumps(config, indent=1))
    note_start(work_dir, stage.seed, distributed.world_size())
    return closing(Log(work_dir, stage, first=first, last=last))


def optimize(
    engine: Any, stage: stages.Stage, micro_batches: list[Batch], counts: Counts
) -> tuple[dict[str, float], float]:
    """One update; returns the losses of the global batch and the norm of its gradient before clipping.

    Where loss or gradient are not finite on any rank, neither is the norm on all of them, and nothing is updated."""
    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        loss = engine(batch.to(engine.device), counts)
        # A loss that is not finite makes all gradients NaN, on every rank once they are summed: the step is skipped.
        weight = distributed.world_size() + 0 * loss.detach()
        for name, value in engine.module.losses.items():
            sums[name] = sums.get(name, 0) + value
        # The gradient is a sum over ranks and micro-batches; DeepSpeed would make it a mean over both.
        engine.backward(loss * weight, scale_wrt_gas=False)
        if stage.zero == 0 and engine.is_gradient_accumulation_boundary():
            norm = nn.utils.clip_grad_norm_(engine.module.parameters(), stage.clip or math.inf)
            if not torch.isfinite(norm):
                engine.zero_grad()  # AdamW leaves alone what has no gradient; with ZeRO, DeepSpeed skips the step
        engine.step()
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    size = float(norm if stage.zero == 0 else engine.get_global_grad_norm())
    if stage.zero == 2 and stage.offload and not math.isfinite(size):
        engine.optimizer.averaged_gradients = {}  # DeepSpeed 0.19.8 would add the next ones to these
    return distributed.all_reduce_sum(values), size
