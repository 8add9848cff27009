"""Training states, for resuming, and the exported run folder, for everything else.

A training state is a folder `step_N` that DeepSpeed writes (one file per process) beside our `state.json`, which is
written last and lists size and CRC-32 of every file. The folder gets its name only when it is complete.

It holds no random state and no position in the data: at each step the trainer seeds torch with (seed, step, rank), and
all other draws have keys of (seed, step, place), so the step alone tells what comes next."""

import json
import os
import shutil
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoints.convert import write_folder
from ..checkpoints.loading import read_tensors
from ..structures import UserError
from . import distributed
from .stages import Stage

STATE = "state.json"
SAME = ("zero", "seed", "batch_size")  # of a stage, for its training to go on


def save(engine: Any, folder: Path, step: int, stage: Stage) -> None:
    """Write `folder/step_N` with DeepSpeed, then remove what `stage.keep` and `keep_every` do not keep.

    Call on every rank. Raises UserError, with all old states still there, where the disk is full."""
    name, needed = f"step_{step}", _size(engine)
    partial = folder / f"{name}.partial"
    with distributed.together():
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            _check_room(folder, needed)
    try:
        engine.save_checkpoint(str(folder), tag=partial.name, save_latest=False)
        own = f"pp_rank_{distributed.rank()}_"  # in the names of what this rank wrote; rank 0 wrote the rest
        files = [p for p in partial.iterdir() if own in p.name or (distributed.is_main() and "pp_rank" not in p.name)]
        sums = distributed.all_reduce_sum(_sums(files))
    except (OSError, RuntimeError):  # which torch's writer makes of a disk that gets full
        shutil.rmtree(partial, ignore_errors=True)
        _check_room(folder, needed)
        raise
    if distributed.is_main():
        sizes = {file.name: (file.stat().st_size, int(sums[file.name])) for file in partial.iterdir()}
        state = {key: getattr(stage, key) for key in SAME} | {"world_size": distributed.world_size(), "files": sizes}
        (partial / STATE).write_text(json.dumps(state, indent=1))
        shutil.rmtree(folder / name, ignore_errors=True)  # a damaged one that the run was not resumed from
        partial.rename(folder / name)
        (folder / "latest.partial").write_text(name)
        (folder / "latest.partial").rename(folder / "latest")
        for old in [path for path in states(folder) if _step(path) <= step][stage.keep :]:
            if not stage.keep_every or _step(old) % stage.keep_every:
                shutil.rmtree(old)
    distributed.barrier()


def states(folder: Path) -> list[Path]:
    """Complete training states, newest first; they may be damaged."""
    return sorted((p for p in folder.glob("step_*") if p.name[5:].isdigit()), key=_step, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest training state whose files, all read again, are what was written; says why newer ones are not used."""
    for path in states(folder):
        if not (damage := _damage(path)):
            return path
        print(f"{path}: damaged, not used: {damage}", flush=True)
    return None


def prepare(model: nn.Module, path: Path, stage: Stage) -> dict[str, Any]:
    """DeepSpeed's settings for the `load` of a training state.

    Where ZeRO split the optimizer over another number of processes, `load` goes through DeepSpeed's universal
    checkpoint. That knows nothing of frozen weights and buffers, so all are copied into the model here, before it is
    wrapped. Raises UserError where the same training could not go on: another ZeRO stage, batch size or seed."""
    state = json.loads((path / STATE).read_text())
    for key in SAME:
        if state.get(key) != (value := getattr(stage, key)):
            raise UserError(f"{path}: was written with {key}={state.get(key)}, not {value}; resume with the same")
    if (size := distributed.world_size()) == state.get("world_size"):
        return {}
    same = "same data and optimizer; losses are the same but for the rounding of sums and the draws of dropout"
    distributed.say(f"{path}: written by {state.get('world_size')} processes, goes on with {size}: {same}")
    if not stage.zero:
        return {}
    weights = {name.removeprefix("model."): tensor for name, tensor in read_tensors(path).items()}
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])
    return {"load_universal": True}


def load(engine: Any, path: Path) -> int:
    """Restore weights and optimizer from a training state; returns how many steps it has behind it."""
    from deepspeed.checkpoint import ds_to_universal

    if not engine.load_universal_checkpoint():
        engine.load_checkpoint(str(path.parent), tag=path.name)
        return _step(path)
    universal = path.parent / "universal.partial"
    with distributed.together():
        if distributed.is_main():
            shutil.rmtree(universal, ignore_errors=True)
            _check_room(path.parent, 3 * sum(file.stat().st_size for file in path.iterdir()))
            ds_to_universal.main(Namespace(
                input_folder=str(path), output_folder=str(universal / path.name), num_extract_workers=1,
                num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
            ))  # fmt: skip
    engine.load_checkpoint(str(universal), tag=path.name)
    for moments in engine.optimizer.optimizer.state.values():  # ZeRO-3's loader gives all groups the same counter of
        moments["step"] = moments["step"].clone()  # steps, which each of them would count up
    distributed.barrier()
    if distributed.is_main():
        shutil.rmtree(universal)
    return _step(path)


def export(model: nn.Module, path: Path, config: dict[str, Any], tokenizer: Any = None) -> None:
    """Write a self-contained run folder: all weights, frozen ones too, `config.json`, the tokenizer's files.

    Call on every rank: weights that ZeRO-3 has scattered are collected one by one on rank 0. Tensors keep the
    precision of training; tied ones are written under each of their names."""
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


def _damage(path: Path) -> str:
    """What is wrong with a training state; empty where nothing is."""
    try:
        files = json.loads((path / STATE).read_text())["files"]
        for name, (size, _) in files.items():
            if (found := (path / name).stat().st_size) != size:
                return f"{name} has {found} of {size} bytes"
        sums = _sums([path / name for name in files])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} or a file that it lists cannot be read ({error})"
    changed = [name for name, (_, crc) in files.items() if sums[name] != crc]
    return f"{', '.join(changed)} changed since it was written (CRC-32)" if changed else ""


def _sums(paths: Sequence[Path]) -> dict[str, int]:
    """CRC-32 of files by their name. No checksum of Python's is faster: 4 GB/s, more than a disk."""
    with ThreadPoolExecutor() as pool:
        return dict(zip([path.name for path in paths], pool.map(_crc, paths), strict=True))


def _crc(path: Path) -> int:
    value, chunk = 0, memoryview(bytearray(1 << 22))
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())  # it is on the disk before an older state is removed
        while count := file.readinto(chunk):
            value = zlib.crc32(chunk[:count], value)
    return value


def _size(engine: Any) -> int:
    """Bytes of a training state, at most: every weight, and for a trainable one two moments and ZeRO's fp32 weight."""
    parameters = engine.module.parameters()  # a scattered one has its size elsewhere
    size = sum(getattr(p, "ds_numel", p.numel()) * (p.element_size() + 12 * p.requires_grad) for p in parameters)
    return size + size // 100 + 1_000_000


def _check_room(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        what = f"{needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free"
        raise UserError(f"{folder}: the disk is full: {what}; make room, then go on with --resume")
