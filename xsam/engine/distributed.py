"""Processes: who am I, and the few collectives the engine needs. One process is the same case as many."""

import atexit
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ..compat import prepare_deepspeed
from ..structures import UserError


def init() -> torch.device:
    """Join the processes that `torchrun` or `deepspeed` started, or be the only one; returns the device.

    Collectives on CPU tensors go through gloo, those on CUDA tensors through NCCL. May be called again."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if dist.is_initialized():
        return device
    if cuda:
        torch.cuda.set_device(device)
    # DeepSpeed calls collectives that torch is about to rename; only that notice is silenced.
    renamed = ".*(all_gather_into|reduce_scatter)_tensor"
    warnings.filterwarnings("ignore", category=FutureWarning, message=renamed)
    prepare_deepspeed()
    import deepspeed  # takes a second, and reads the accelerator that prepare_deepspeed sets

    # It warns of what we chose: torch's AdamW, and a model that owns no parameter and returns a dataclass.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "MASTER_PORT" in os.environ:
        dist.init_process_group(backend)
    else:  # alone: no port to open, and none that a child process could inherit
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    atexit.register(shutdown)  # not sooner: DeepSpeed keeps the group, so a process joins once
    return device


def shutdown() -> None:
    """Leave the process group; without it torch complains at exit. May be called again."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    if is_main():
        print(text, flush=True)


def gather(value: Any) -> list[Any]:
    """The value of each rank, on all of them. Waits for no GPU."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(values: Mapping[str, float]) -> dict[str, float]:
    """Sum over the processes, key by key; a rank need not have every key."""
    total: Counter[str] = Counter()
    for part in gather(values):
        total.update(part)
    return dict(total)


def broadcast(value: Any) -> Any:
    """The value that rank 0 holds, on every rank."""
    return gather(value)[0]


@contextmanager
def together() -> Iterator[None]:
    """Run a block on every rank; a UserError on one of them is raised on all, so that all exit alike.

    The block must not hold a collective that a failing rank would miss."""
    message = ""
    try:
        yield
    except UserError as error:
        message = str(error)
    if message := next(filter(None, gather(message)), ""):
        raise UserError(message)
