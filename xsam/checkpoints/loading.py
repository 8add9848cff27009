"""Weights from files into a model: strict, and explained. What was not loaded was asked for by name."""

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..models.encoders import SamEncoder, resize_positions
from ..structures import UserError
from .released import PARTS, is_official, translate

FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names it uses; their bytes stay in the file until they are read.

    Takes a safetensors file, a `.bin` / `.pth` file of torch.save, or a folder with one of `FOLDER_FILES`. A
    "state_dict" wrapper and a common "module." prefix are taken off. Raises UserError for a missing or
    damaged file, or one that holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: no weights in this folder; expected one of {', '.join(FOLDER_FILES)}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give a weight file or a folder that holds one")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """`read_tensors` under our names. Official ones are recognised by content and translated; those that no
    module of ours has are left out."""
    tensors = read_tensors(path)
    if not is_official(tensors):
        return tensors
    return {ours: tensors[name] for name, ours in translate(tensors).items() if ours is not None}


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        files = dict.fromkeys(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{index}: not an index of weight files; download or export it again") from None
    return {name: tensor for file in files for name, tensor in read_tensors(index.parent / file).items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged, it cannot be read ({_first_line(error)}); copy or download it again"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        if "Unsupported global" in str(error):
            problem = "holds Python objects, which could run code; save the model's state dict alone"
        else:
            problem = f"damaged, it cannot be read ({_first_line(error)}); copy or download it again"
        raise UserError(f"{path}: {problem}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path}: not a dict of tensors; save the model's state dict alone")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass
class LoadReport:
    """What `load_weights` did; prints as a compact block."""

    total: Counter[str] = field(default_factory=Counter)  # tensors of each part of the model
    loaded: Counter[str] = field(default_factory=Counter)
    new: list[str] = field(default_factory=list)  # left at random, as asked
    resized: list[str] = field(default_factory=list)  # SAM positions made for another image size
    skipped: dict[str, Counter[str]] = field(default_factory=dict)  # by source and part

    def __str__(self) -> str:
        notes = {"new": Counter(map(_part, self.new)), "resized": Counter(map(_part, self.resized))}
        lines = []
        for part, total in self.total.items():
            note = ", ".join(f"{count[part]} {what}" for what, count in notes.items() if count[part])
            lines.append(f"{part:<18}{self.loaded[part]:>5} / {total:<6}{note}".rstrip())
        for source, parts in self.skipped.items():
            listed = ", ".join(f"{part} ({count})" for part, count in parts.items())
            lines.append(f"skipped in {source}: {listed}")
        return "\n".join(lines)


def load_weights(model: nn.Module, sources: Sequence[str], new: Sequence[str] = ()) -> LoadReport:
    """Fill a model from checkpoints, in place and in the model's precision; later sources override earlier.

    Parts that the model does not have are skipped and reported, and so is the closed-set classifier of a
    stage-1 source where the model classifies by conditions. SAM's positions are resized to the model's image
    size.

    Args:
        sources: paths for `read_weights`.
        new: fnmatch patterns of tensors or modules that start at random, whatever the sources hold.

    Raises:
        UserError: no source has a tensor of the model, a part of the model does not know a name, a shape
            differs, or a pattern matches nothing.
    """
    state = model.state_dict(keep_vars=True)
    report = LoadReport(total=Counter(map(_part, state)))
    found: dict[str, Tensor] = {}
    known, resized = set(state), set[str]()
    problems: list[str] = []
    for source in sources:
        weights = read_weights(source)
        known |= weights.keys()
        weights, skipped = _wanted({n: t for n, t in weights.items() if not _asked(n, new)}, state)
        if skipped:
            report.skipped[str(source)] = skipped
        fitted = _resize_sam(weights, model)
        resized |= fitted.keys()
        weights |= fitted
        problems += _misfits(source, weights, state)
        found |= {n: t for n, t in weights.items() if n in state and t.shape == state[n].shape}
    covered = {id(state[name]) for name in found}  # tied tensors stand in a file once
    missing = [name for name in state if id(state[name]) not in covered]
    report.new = [name for name in missing if _asked(name, new)]
    report.resized = [name for name in state if name in resized]
    if left := [name for name in missing if not _asked(name, new)]:
        problems.append(f"no source has {_some(left)}")
    idle = [pattern for pattern in new if not any(_asked(name, [pattern]) for name in known)]
    problems += [f"new={pattern!r} matches nothing" for pattern in idle]
    if problems:
        where = ", ".join(map(str, sources)) or "no weights given"
        remedy = "correct the config, or name in `new` what shall start at random"
        raise UserError(f"{where}: {'; '.join(problems)}; {remedy}")
    with torch.no_grad():
        for name, tensor in found.items():
            state[name].copy_(tensor)
    report.loaded = Counter(map(_part, set(state) - set(missing)))
    return report


def _part(name: str) -> str:
    return name.split(".")[0]


def _asked(name: str, new: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in new)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ..' if len(names) > 3 else ''} ({len(names)} tensors)"


def _wanted(weights: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Counter[str]]:
    """The tensors without those of parts that the model lacks, and how many were left out of each part."""
    without = [f"{part}." for part in PARTS if part not in map(_part, state)]
    if "classifier.background" in state:
        without.append("classifier.predictor.")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(without))}
    left = weights.keys() - kept.keys()
    return kept, Counter(prefix[:-1] for prefix in without for name in left if name.startswith(prefix))


def _resize_sam(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """SAM's positions at the image size of the model, where they are of another."""
    encoder, prefix = getattr(model, "seg_encoder", None), "seg_encoder."
    if not isinstance(encoder, SamEncoder) or any(prefix + n not in weights for n in encoder.state_dict()):
        return {}
    if weights[f"{prefix}pos_embed"].shape[1:3] == encoder.pos_embed.shape[1:3]:
        return {}
    resized = resize_positions(weights, encoder, prefix)
    return {name: tensor for name, tensor in resized.items() if tensor is not weights[name]}


def _misfits(source: str, weights: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """What of a source does not fit: one clause for unknown names, and one for every other shape."""
    unknown = [name for name in weights if name not in state]
    clauses = [f"the model has no {_some(unknown)} of {source}"] if unknown else []
    shapes = [
        f"{name} is {list(tensor.shape)} in {source}, {list(state[name].shape)} in the model"
        for name, tensor in weights.items()
        if name in state and tensor.shape != state[name].shape
    ]
    return clauses + (shapes if len(shapes) < 4 else [*shapes[:3], f"{len(shapes) - 3} more differ in shape"])
