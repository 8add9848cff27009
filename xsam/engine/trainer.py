"""The training loop, over DeepSpeed at every size: one process on a CPU, one GPU, or many nodes.

The criterion divides sums over local tokens and masks by global counts (over all ranks and micro-batches). So
the loss of a global batch is the plain sum of what all ranks and micro-batches return, however it is split.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.criterion import Counts, Criterion
from ..structures import Batch, UserError
from . import checkpoint, distributed, optim, stages
from .log import Log

BUCKET = 500_000_000  # gradients of one message between GPUs (DeepSpeed's default)


# Called with batch_size (global), accumulation, rank, world_size, start_step, steps and workers; gives this rank's
# micro-batches of steps `start_step` .. `steps` - 1.
LoaderFactory = Callable[..., Iterable[list[Batch]]]


class Objective(nn.Module):
    """Model and criterion as one module with one output, the loss of a micro-batch.

    DeepSpeed hooks the outputs of the module it wraps, which it does not find in a dataclass; and ZeRO-3
    hangs when their number differs between ranks, as that of the loss terms may. They are left in `losses`.
    """

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.losses: dict[str, Tensor] = {}

    def forward(self, batch: Batch, counts: Counts) -> Tensor:
        losses = self.criterion(self.model(batch), batch, counts)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        return torch.stack(list(losses.values())).sum()


class Interrupt:
    """Notes SIGTERM and SIGINT, so that the step can be finished and saved; a second one acts at once."""

    def __enter__(self) -> "Interrupt":
        self.noted = False
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def train(
    model: nn.Module,
    criterion: Criterion,
    loader_factory: LoaderFactory,
    config: dict[str, Any],
    work_dir: Path,
    *,
    steps_per_epoch: int,
    resume: bool = False,
    max_steps: int | None = None,
    tokenizer: Any = None,
) -> None:
    """Run one stage and leave a self-contained run folder.

    Writes `config.json`, `log.jsonl`, `tensorboard/`, `checkpoints/` and at the end `model.safetensors`. On
    SIGTERM or SIGINT it finishes the step, saves and exits with 0.

    Args:
        model: built and loaded; has `num_queries`.
        config: resolved; `config["stage"]` is a `stages.Stage` as a dict.
        steps_per_epoch: how many global batches the data holds.
        resume: go on from the newest intact training state in `work_dir`.
        max_steps: stop early, with the learning rates of the whole stage.

    Raises:
        UserError: the stage does not fit the model or the processes, or `work_dir` does not fit `resume`.
    """
    device = distributed.init()
    stage = stages.Stage.parse(config["stage"])
    accumulation = stage.accumulation(distributed.world_size())
    steps = stage.total_steps(steps_per_epoch)
    last = min(steps, max_steps or steps)
    factor = optim.schedule(steps=steps, **stage.schedule)
    state = _find_state(work_dir, resume)
    num_queries: int = model.num_queries  # type: ignore[assignment]
    engine, rates = _initialize(model, criterion, stage, accumulation, device)
    first = checkpoint.load(engine, state, seed=stage.seed, batch_size=stage.batch_size) if state else 0
    loader = loader_factory(
        batch_size=stage.batch_size,
        accumulation=accumulation,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=first,
        steps=last,
        workers=stage.workers,
    )
    position = {"seed": stage.seed, "batch_size": stage.batch_size, "zero": stage.zero, "config": config}
    with Interrupt() as interrupt, _open_log(work_dir, config, stage, first, last) as log:
        batches = iter(loader)
        for step in range(first, last):
            began = time.perf_counter()
            micro_batches = next(batches)
            waited = time.perf_counter() - began

            for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step)
            # A function of the position, so that a resumed run draws what the unbroken one would have drawn.
            seed = np.random.SeedSequence((stage.seed, step, distributed.rank())).generate_state(1)
            torch.manual_seed(int(seed[0]))
            counts = sum((criterion.count(batch, num_queries) for batch in micro_batches), Counts(0, 0, 0))
            shared = distributed.all_reduce_sum(asdict(counts) | {"interrupt": interrupt.noted})
            stop = shared.pop("interrupt") > 0
            losses, grad_norm = _optimize(engine, stage, micro_batches, Counts(**shared), device)
            _check_finite(losses, step, micro_batches)

            if log:
                log.step(step, losses, lr=stage.lr * factor(step), grad_norm=grad_norm, waited=waited)
            done = step + 1
            if stop or done == last or done % stage.save_every == 0:
                checkpoint.save(engine, work_dir / "checkpoints", done, stage.keep, position)
            if stop and done < last:
                distributed.say(f"{work_dir}: stopped after step {done} of {last}; continue with --resume")
                raise SystemExit(0)
    checkpoint.export(model, work_dir, config, tokenizer)


def _find_state(work_dir: Path, resume: bool) -> Path | None:
    """The training state to start from; UserError if there is none, or the run would overwrite another."""
    with distributed.together():
        state = checkpoint.newest(work_dir / "checkpoints")
        if resume and not state:
            raise UserError(f"{work_dir}: holds no intact training state; start without --resume")
        if not resume and (state or any(work_dir.glob("model*.safetensors"))):
            raise UserError(f"{work_dir}: already holds a run; give --resume, or another --work-dir")
    return distributed.broadcast(state)


def _initialize(
    model: nn.Module, criterion: Criterion, stage: stages.Stage, accumulation: int, device: torch.device
) -> tuple[Any, list[float]]:
    """Freeze, group and wrap; returns the DeepSpeed engine and the learning rate of each parameter group."""
    import deepspeed

    stages.prepare(model, stage)
    distributed.say(stages.table(model, stage.lr, stage.lr_scale))
    groups = stages.parameter_groups(model, stage.lr, stage.lr_scale, stage.weight_decay)
    rates = [group["lr"] for group in groups]
    engine, *_ = deepspeed.initialize(
        model=Objective(model, criterion).train(),
        optimizer=optim.adamw(groups, stage.betas),
        config=_deepspeed_config(stage, accumulation, device, sum(p.numel() for g in groups for p in g["params"])),
        dist_init_required=False,
    )
    return engine, rates


def _deepspeed_config(stage: stages.Stage, accumulation: int, device: torch.device, trainable: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage.zero, "overlap_comm": device.type == "cuda"}
    zero["reduce_bucket_size"] = min(BUCKET, trainable)  # two are allocated in full, however little trains
    if stage.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": stage.batch_size // distributed.world_size() // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": stage.clip if stage.zero else 0.0,  # without ZeRO, _optimize clips
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW, which it is tested with all the same
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would be compiled at first use
        "bf16": {"enabled": stage.precision == "bf16"},
        # Several gradients are added up in fp32; a single one may stay as it comes.
        "data_types": {"grad_accum_dtype": "fp32" if accumulation > 1 else stage.precision},
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice per step
    }


def _open_log(
    work_dir: Path, config: dict[str, Any], stage: stages.Stage, first: int, last: int
) -> AbstractContextManager[Log | None]:
    if not distributed.is_main():
        return nullcontext()
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / "config.json").write_text(json.dumps(config, indent=1))
    return closing(Log(work_dir, first=first, last=last, batch_size=stage.batch_size, every=stage.log_every))


def _optimize(
    engine: Any, stage: stages.Stage, micro_batches: Sequence[Batch], counts: Counts, device: torch.device
) -> tuple[dict[str, float], float]:
    """One update; returns the losses of the global batch and the norm of its gradient before clipping."""
    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        loss = engine(batch.to(device), counts)
        for name, value in engine.module.losses.items():
            sums[name] = sums.get(name, 0) + value
        # The gradient is a sum over ranks and micro-batches; DeepSpeed would make it a mean over both.
        engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)
        if stage.zero == 0 and engine.is_gradient_accumulation_boundary():
            norm = nn.utils.clip_grad_norm_(engine.module.parameters(), stage.clip or math.inf)
        engine.step()
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    norm = norm if stage.zero == 0 else engine.get_global_grad_norm()
    return distributed.all_reduce_sum(values), float(norm)


def _check_finite(losses: dict[str, float], step: int, micro_batches: Sequence[Batch]) -> None:
    if bad := [f"{name}={value}" for name, value in losses.items() if not math.isfinite(value)]:
        ids = ", ".join(islice((sample for batch in micro_batches for sample in batch.ids), 8))
        raise FloatingPointError(f"step {step}: the loss is not finite ({', '.join(bad)}); samples here: {ids}")
