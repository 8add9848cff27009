"""Runs that explain themselves: a step that is not finite is recorded and can be replayed, a stall ends the run."""

import faulthandler
import json
import logging
import math
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data import parcel
from ..models.criterion import Counts
from ..structures import Batch, UserError
from . import checkpoint, distributed

log = logging.getLogger("xsam")

GRACE = 10.0  # seconds in which the other ranks report a stall, too, before a launcher ends them


def record(
    engine: Any, micro_batches: list[Batch], facts: dict[str, Any], skipped: Path, config: dict[str, Any], allowed: int
) -> None:
    """Keep in `skipped/step_N` what runs a step again that was just skipped. Call on every rank.

    That is the weights, which the step left as they were, `config.json`, and for each rank a folder `rank_R` with its
    micro-batches and `record.json`. Raises UserError, on all ranks, if more than `allowed` steps have been skipped.

    Args:
        facts: `step`, `source`, `losses` (terms of the global batch), `counts`, `seed` (of torch, on this rank)."""
    step, rank = facts["step"], distributed.rank()
    folder = skipped / f"step_{step}"
    own = folder / f"rank_{rank}"
    own.mkdir(parents=True, exist_ok=True)
    # Hooks in every step would wait for the GPU at every module: instead the forward pass is run once more.
    with torch.no_grad():
        terms, found = _trace(engine, engine.module, micro_batches, facts)
    written = facts | {
        "world_size": distributed.world_size(),
        "first_module": next(iter(found), ""),  # "" = finite on this rank
        "ids": [sample for batch in micro_batches for sample in batch.ids],
        "losses": {name: str(value) for name, value in facts["losses"].items()},  # JSON has no NaN
        "own_losses": {name: str(value) for name, value in terms.items()},
    }
    (own / "record.json").write_text(json.dumps(written, indent=1))
    torch.save(parcel.pack(micro_batches), own / "batch.pt")
    checkpoint.export(engine.module.model, folder, config)
    count = distributed.broadcast(sum(int(path.name[5:]) <= step for path in skipped.glob("step_*")))
    bad = [f"{name}={value}" for name, value in facts["losses"].items() if not math.isfinite(value)]
    bad += distributed.all_reduce_sum({f"first in {found[0]} of rank {rank}": 1} if found else {})
    text = (
        f"skipped step {step} of {facts['source']}, {count} of at most {allowed} (stage.max_skipped), not finite:"
        f" {', '.join(bad) or 'the gradient alone'}; run it again with `xsam train CONFIG --replay {folder}`"
    )
    if count > allowed:
        raise UserError(text)
    if distributed.is_main():
        log.warning(text)


def replay(objective: nn.Module, folder: Path) -> bool:
    """Run a recorded step again, forward and backward, rank after rank; print the terms, and what is not finite first.

    Args:
        objective: model, as in training and with the weights of the step, and criterion; on the device to use.
        folder: `step_N`, or one `rank_R` in it.

    Returns:
        Whether anything was not finite."""
    broken = False
    for own in sorted(folder.glob("rank_*")) or [folder]:
        if not (own / "record.json").is_file():
            raise UserError(f"{own}: holds no record of a step; give a folder `skipped/step_N` of a run")
        facts = json.loads((own / "record.json").read_text())
        terms, found = _trace(objective, objective, parcel.unpack(torch.load(own / "batch.pt")), facts)
        print(f"{own}: {facts['source']}, samples {', '.join(facts['ids'])}")
        print("  " + " ".join(f"{name}={value:.9g}" for name, value in terms.items()))
        print(f"  first value that is not finite: {found[0] if found else 'none'}")
        broken |= bool(found)
    return broken


def _trace(
    run: Any, objective: Any, micro_batches: list[Batch], facts: dict[str, Any]
) -> tuple[dict[str, float], list[str]]:
    """Loss terms of a step, and the modules whose output, or the gradient of it, is not finite, as they come up.

    `run` is `objective` or the engine around it. The backward pass is made, too, unless gradients are off."""
    terms: dict[str, float] = {}
    found: list[str] = []

    def check(name: str, value: Tensor) -> None:
        if value.is_floating_point() and not torch.isfinite(value).all():
            found.append(name)

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for value in filter(torch.is_tensor, tree_leaves(output)):
            check(name, value)
            if value.requires_grad:
                value.register_hook(partial(check, f"the gradient at {name}"))

    modules = objective.named_modules()
    hooks = [module.register_forward_hook(partial(look, name or "the criterion")) for name, module in modules]
    torch.manual_seed(facts["seed"])
    for batch in micro_batches:
        loss = run(batch.to(next(objective.parameters()).device), Counts(**facts["counts"]))
        if loss.requires_grad:
            loss.backward()
        for name, value in objective.losses.items():
            terms[name] = terms.get(name, 0.0) + value.item()
    for hook in hooks:
        hook.remove()
    return terms, found


class Watchdog(threading.Thread):
    """Ends a run in which no step finishes for some minutes: says where this rank is, prints all stacks, exits with 1.

    Nothing in Python can interrupt a collective that waits for a lost rank; but a launcher can start the job again.

    Attributes:
        place: step and phase, and `samples` of the last micro-batches, which the trainer keeps up to date.
        idle: tenths of the time; the trainer sets it to 0 at a step. A process that the system suspends misses one."""

    def __init__(self, minutes: float) -> None:
        super().__init__(daemon=True)
        self.minutes, self.idle, self.place, self.samples = minutes, 0, "", list[str]()
        self.over = threading.Event()
        if minutes:
            self.start()

    def run(self) -> None:
        while self.idle <= 10:
            if self.over.wait(6 * self.minutes):
                return
            self.idle += 1
        who = f"rank {distributed.rank()} of {distributed.world_size()}"
        what = f"no step has finished for {self.minutes:g} minutes (stage.stall_minutes); {self.place}"
        print(f"{who}: {what}; last samples: {', '.join(self.samples)}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        time.sleep(GRACE)
        os._exit(1)

    def close(self) -> None:
        self.over.set()
