"""Training states, for resuming, and the exported run folder, for everything else.

A training state is a folder `step_N` that DeepSpeed writes (one file per process) beside our `state.json`,
which is written last and lists the size of every file. The folder gets its name only when it is complete.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.convert import write_folder
from ..structures import UserError
from . import distributed

STATE = "state.json"


def save(engine: Any, folder: Path, step: int, keep: int, state: dict[str, Any]) -> None:
    """Write `folder/step_N` with DeepSpeed, then drop all but the `keep` newest. Call on every rank."""
    name = f"step_{step}"
    partial = folder / f"{name}.partial"
    if distributed.is_main():
        shutil.rmtree(partial, ignore_errors=True)
    distributed.barrier()
    engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
    distributed.barrier()
    if distributed.is_main():
        files = {file.name: file.stat().st_size for file in partial.iterdir()}
        state = {**state, "step": step, "world_size": distributed.world_size(), "files": files}
        (partial / STATE).write_text(json.dumps(state, indent=1))
        if (folder / name).exists():  # a damaged one that the run was not resumed from
            shutil.rmtree(folder / name)
        partial.rename(folder / name)
        (folder / "latest.partial").write_text(name)
        (folder / "latest.partial").rename(folder / "latest")
        for old in [path for path in _states(folder) if _step(path) <= step][keep:]:
            shutil.rmtree(old)
    distributed.barrier()


def newest(folder: Path) -> Path | None:
    """The newest training state whose files are all there in full size."""
    return next(filter(_intact, _states(folder)), None)


def load(engine: Any, path: Path, *, seed: int, batch_size: int) -> int:
    """Restore weights and optimizer from a training state; returns how many steps it has behind it.

    Raises UserError where the same training could not go on: another number of processes, batch size or seed.
    """
    state = json.loads((path / STATE).read_text())
    now = {"world_size": distributed.world_size(), "zero": engine.zero_optimization_stage()}
    for key, value in (now | {"seed": seed, "batch_size": batch_size}).items():
        if state[key] != value:
            raise UserError(f"{path}: was written with {key}={state[key]}, not {value}; resume with the same")
    engine.load_checkpoint(str(path.parent), tag=path.name)
    return state["step"]


def export(model: nn.Module, path: Path, config: dict[str, Any], tokenizer: Any = None) -> None:
    """Write a self-contained run folder: all weights, frozen ones too, `config.json`, the tokenizer's files.

    Call on every rank: weights that ZeRO-3 has scattered are collected one by one on rank 0. Tensors keep the
    precision of training; tied ones are written under each of their names.
    """
    import deepspeed

    tensors = {}
    for name, value in model.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
            if distributed.is_main():
                tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    if distributed.is_main():
        _write(tensors, path, config, tokenizer)
    distributed.barrier()


def _write(tensors: dict[str, Any], path: Path, config: dict[str, Any], tokenizer: Any) -> None:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".export-") as partial:
        write_folder(Path(partial), tensors, config, tokenizer)
        files = sorted(os.listdir(partial))
        for old in path.glob("model*.safetensors*"):
            if old.name not in files:  # of an export that had another number of shards
                old.unlink()
        for file in files:
            os.replace(Path(partial) / file, path / file)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _states(folder: Path) -> list[Path]:
    """Complete training states, newest first."""
    return sorted((p for p in folder.glob("step_*") if p.name[5:].isdigit()), key=_step, reverse=True)


def _intact(path: Path) -> bool:
    try:
        files = json.loads((path / STATE).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in files.items())
