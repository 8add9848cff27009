"""Weights from files into a model: strict, and explained. What was not loaded was asked for by name.

Tensors stay mapped from their files, copy-on-write, until they are read or written: a loaded model takes no memory of
its own, and training it does not touch the file."""

import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from .. import config as configs
from ..compat import prepare_deepspeed
from ..data.records import read_json
from ..models.encoders import SamEncoder, TimmEncoder, resize_grid, resize_positions
from ..models.lora import Lora, inject
from ..structures import UserError
from .pretrained import TIMM, base_names, fetch
from .released import PARTS, canonical, is_official, part_of, translate

FOLDER_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json"))
Tensors = Mapping[str, Tensor]
EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"

# What DeepSpeed's files may hold beside tensors and plain values: classes that do nothing when they are made.
INERT = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address",
}  # fmt: skip


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint under the names it uses; their bytes stay in the file until they are read.

    Takes a safetensors file, a `.bin` / `.pth` file of torch.save, a folder with one of `FOLDER_FILES`, and a training
    state of DeepSpeed: its folder, or the one around it with the file `latest`. A "state_dict" or "module" wrapper and
    what a trainer puts before the names are taken off. UserError: a missing or damaged file, more than tensors."""
    path = next((file for name in FOLDER_FILES if (file := Path(path, name)).is_file()), Path(path))
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a weight file or a folder that holds one")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return _plain_names(_read_state(path) if path.is_dir() else _read_file(path))


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """`read_tensors` of a path or hub name, under our names.

    Official names and those of base models are recognised by content and translated; what no module of ours has is
    left out. timm's tensors depend on the encoder that takes them: "timm.ARCHITECTURE." stands before their names."""
    tensors = read_tensors(path := fetch(source))
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if architecture and isinstance(architecture, str):  # a folder as timm publishes them
        return {f"{TIMM}{architecture}.{name}": tensor for name, tensor in tensors.items()}
    if base := base_names(tensors):
        tensors = {official: tensors[name] for name, official in base.items()}
    return from_official(source, tensors)[0] if is_official(tensors) else tensors


def from_official(source: str | Path, tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under our names, the unused under the archive branch's. UserError if both branches name one tensor."""
    if len(set(map(canonical, tensors))) < len(tensors):
        raise UserError(f"{source}: names of both official branches for the same tensor; remove one of them")
    names = translate(tensors)
    unused = {canonical(name): tensors[name] for name, ours in names.items() if ours is None}
    return {ours: tensors[name] for name, ours in names.items() if ours is not None}, unused


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without "module.", of data parallelism, or "model." and "criterion.", of our training states."""
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith(tuple(f"model.{part}." for part in PARTS)) for name in tensors):
        tensors = {name.removeprefix("model."): t for name, t in tensors.items() if not name.startswith("criterion.")}
    return tensors


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        files = dict.fromkeys(index.parent / name for name in json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index}: not an index of weight files; download or export it again") from None
    return {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    with _readable(path):
        if path.suffix == ".safetensors":
            return dict(sorted(load_file(path).items()))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    for wrapper in ("state_dict", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values())
    if not tensors or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: not a dict of tensors; save the model's state dict alone")
    return content


def _read_state(folder: Path) -> dict[str, Tensor]:
    """The weights of a training state in fp32, put together by DeepSpeed. It unpickles without restriction, so before
    every file is searched for what is not in INERT; torch's search gives up on files in which a name could hide. Up to
    ZeRO stage 2 one file holds the whole model as it computes, with what is frozen; stage 0 has no other."""
    if (folder / "latest").is_file():
        folder = folder / (folder / "latest").read_text().strip()
    if not any(folder.glob("*_model_states.pt")):
        known = ", ".join((*FOLDER_FILES, "DeepSpeed's *_model_states.pt"))
        raise UserError(f"{folder}: no weights in this folder; expected one of {known}")
    tensors = _read_file(whole) if (whole := folder / "mp_rank_00_model_states.pt").is_file() else {}
    if tensors and not any(folder.glob("*_optim_states.pt")):
        return tensors
    for file in sorted(folder.glob("*.pt")):
        with _readable(file):
            foreign = ", ".join(sorted(set(get_unsafe_globals_in_checkpoint(file)) - INERT))
        if foreign:
            trusted = "if you trust it, merge the folder by DeepSpeed's zero_to_fp32.py and give the result"
            raise UserError(f"{file}: holds {foreign}, which could run code; nothing was executed; {trusted}")
    prepare_deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with _readable(folder), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        merged = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name, lazy_mode=True)
        return tensors | {name: tensor.contiguous() for name, tensor in merged.items()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What a file's content can do to its reader, as one line."""
    try:
        yield
    except (
        SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError,
        AttributeError, TypeError) as error:  # fmt: skip
        if asked := re.search(r"(?i)unsupported (global|class|operand):? *([\w.]*)", str(error)):
            named = f" ({asked[2]})" if "." in asked[2] else ""
            problem = f"holds Python objects{named}, which could run code; save the model's state dict alone"
        else:
            reason = (re.split(r"[.\n]", str(error))[0]) or type(error).__name__
            problem = f"damaged, it cannot be read ({reason}); copy or download it again"
        raise UserError(f"{path}: {problem}") from None


@dataclass
class LoadReport:
    """What `load_weights` did; prints as a compact block."""

    total: Counter[str] = field(default_factory=Counter)  # tensors of each part of the model
    loaded: Counter[str] = field(default_factory=Counter)
    new: list[str] = field(default_factory=list)  # left at random, as asked
    resized: list[str] = field(default_factory=list)  # made for another image size or vocabulary
    skipped: dict[str, Counter[str]] = field(default_factory=dict)  # by source and part
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        notes, lines = {"new": Counter(map(part_of, self.new)), "resized": Counter(map(part_of, self.resized))}, []
        for part, total in self.total.items():
            note = ", ".join(f"{count[part]} {what}" for what, count in notes.items() if count[part])
            lines.append(f"{part:<18}{self.loaded[part]:>5} / {total:<6}{note}".rstrip())
        for source, parts in self.skipped.items():
            lines.append(f"skipped in {source}: " + ", ".join(f"{part} ({count})" for part, count in parts.items()))
        return "\n".join(lines + self.notes)


def load_model(
    model: dict[str, Any], sources: Sequence[str | Path], new: Sequence[str] = (), *,
    dtype: torch.dtype | None = None, vocabulary: int = 0, adapters: Lora | None = None,
) -> tuple[nn.Module, LoadReport]:  # fmt: skip
    """Build the model of a config and fill it from checkpoints, without holding a weight twice.

    Args:
        model: `config["model"]`. Its `llm.vocab_size` becomes what the sources hold, in place.
        sources: paths or hub names for `read_weights`; later ones override earlier ones.
        new, dtype: as in `load_weights`, whose UserErrors are raised.
        vocabulary: length of the tokenizer, 0 = none is needed. The base weights of a language model are cut or
            extended to it; X-SAM's own must have it, else UserError.
        adapters: what a run with LoRA has beside its base weights."""
    weights = {str(source): read_weights(source) for source in sources}
    holders = [name for name, tensors in weights.items() if EMBEDDING in tensors and not _asked(EMBEDDING, new)]
    llm, rows, notes = model.get("llm", {}), 0, []
    if llm and holders:
        base = _is_language_model(weights[holders[-1]])
        rows = (vocabulary or llm["vocab_size"]) if base else len(weights[holders[-1]][EMBEDDING])
        if llm["vocab_size"] != rows:
            notes.append(f"model.llm.vocab_size: {rows} instead of {llm['vocab_size']}, for {holders[-1]}")
            llm["vocab_size"] = rows
    built = build_model(model, new)
    if adapters:
        inject(built, adapters)
    report = load_weights(built, weights, new, dtype)
    report.notes = notes
    if rows and vocabulary and rows != vocabulary:
        has = f"has {rows} token embeddings, the tokenizer {vocabulary} tokens with X-SAM's three"
        raise UserError(f"{holders[-1]}: {has}; give the tokenizer that it was trained with as processor.tokenizer")
    return built, report


def build_model(model: dict[str, Any], new: Sequence[str]) -> nn.Module:
    """The model of a config; a part without anything new has no memory yet, `load_weights` gives it some."""
    parts, built = {name: node for name, node in model.items() if isinstance(node, dict) and "type" in node}, {}
    for name, node in parts.items():
        with init_empty_weights(include_buffers=False):
            part = configs.build(node)
        if any(_asked(f"{name}.{tensor}", new) for tensor in part.state_dict()):
            part = configs.build(node)
        elif hasattr(part, "tie_weights"):
            part.tie_weights()  # emptying them made two of one
        built[name] = part
    return configs.build({key: value for key, value in model.items() if key not in parts}, **built)


def load_weights(
    model: nn.Module, sources: Mapping[str, Tensors], new: Sequence[str] = (), dtype: torch.dtype | None = None
) -> LoadReport:
    """Make the tensors of checkpoints those of a model; later sources override earlier.

    Parts that the model lacks are skipped and reported, as is a closed-set classifier where the model classifies by
    conditions. Positions of SAM and SigLIP, and the vocabulary of a language model alone, get the model's size.

    Args:
        model, sources: with or without memory; weights by where they come from, as `read_weights` gives them.
        new: fnmatch patterns of tensors or modules that start at random, whatever the sources hold.
        dtype: precision of the model; by default the one that its tensors are stored in, the widest if they differ.

    Raises UserError, and leaves the model as it was, where no source has a tensor of the model, a part of the model
    does not know a name, a shape differs, or a pattern matches nothing."""
    report = LoadReport(total=Counter(map(part_of, state := model.state_dict(keep_vars=True))))
    found, known, problems = dict[str, Tensor](), set(state), list[str]()
    for source, stored in sources.items():
        _check_language_model(source, stored, model, state)
        known |= (placed := _placed(stored, model)).keys()
        weights, skipped = _wanted({n: t for n, t in placed.items() if not _asked(n, new)}, state)
        if skipped:
            report.skipped[source] = skipped
        report.resized += (fitted := _fitted(weights, model, state))
        weights |= fitted
        problems += _misfits(source, weights, state)
        found |= {n: t for n, t in weights.items() if n in state and t.shape == state[n].shape}
    covered = {id(state[name]): name for name in found}  # tied tensors stand in a file once, or twice the same
    for name, tensor in found.items():
        twin = covered[id(state[name])]
        if twin != name and not torch.equal(tensor, found[twin]):
            problems.append(f"{name} and {twin} are one tensor in the model, but differ in the sources")
    missing = [name for name in state if id(state[name]) not in covered]
    report.new = [name for name in missing if _asked(name, new)]
    if left := [name for name in missing if not _asked(name, new)]:
        problems.append(f"no source has {_some(left)}")
        problems += [f"{source} {hint}" for source, weights in sources.items() if (hint := _looks_like(weights))]
    problems += [f"new={p!r} matches nothing" for p in new if not any(_asked(name, [p]) for name in known)]
    if problems:
        problems.append("correct the config, or name in `new` what shall start at random")
        raise UserError(f"{', '.join(sources) or 'no weights given'}: {'; '.join(problems)}")
    precisions = {tensor.dtype for tensor in found.values() if tensor.is_floating_point()} or {torch.float32}
    _adopt(model, found, dtype or reduce(torch.promote_types, precisions))
    report.loaded = Counter(map(part_of, set(state) - set(missing)))
    return report


def _adopt(model: nn.Module, found: Tensors, dtype: torch.dtype) -> None:
    """Put tensors in the place of the model's, without a copy where the precision is right."""
    state = model.to(dtype).state_dict(keep_vars=True)
    owners: dict[int, Tensor] = {}  # by the tensor that they replace: what was tied stays one
    for name, tensor in found.items():
        tensor, old = tensor.to(dtype) if tensor.is_floating_point() else tensor, state[name]
        owners[id(old)] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    adopted = {name: owners[id(old)] for name, old in state.items() if id(old) in owners}
    model.load_state_dict(adopted, strict=False, assign=True)


def _asked(name: str, new: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in new)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ..' if len(names) > 3 else ''} ({len(names)} tensors)"


def _is_language_model(weights: Iterable[str]) -> bool:
    """Whether a source is a language model alone: the base of one, not X-SAM's."""
    return all(name.startswith("llm.") for name in weights)


def _check_language_model(source: str, weights: Tensors, model: nn.Module, state: Tensors) -> None:
    """Say it in one word, where every name would differ: only Phi-3 keeps queries, keys and values in one matrix."""
    fused, split = (f"llm.model.layers.0.self_attn.{name}_proj.weight" for name in ("qkv", "q"))
    if (fused in weights and split in state) or (split in weights and fused in state):
        kind = cast(Any, model.get_submodule("llm")).config.model_type
        held = "a fused Phi-3" if fused in weights else "not fused as Phi-3 is"
        raise UserError(f"{source}: its language model is {held}, the config's is {kind}; give the config of the file")


def _looks_like(weights: Tensors) -> str:
    """What a source seems to be that does not hold everything."""
    parts, first = set(map(part_of, weights)), next(iter(weights), "")
    if "classifier.predictor.weight" in weights:
        return "looks like stage 1: a segmentor with a closed set of classes, no language model"
    if "projector" in parts and "mask_decoder" not in parts:
        return "looks like stage 2: projectors, no mask decoder"
    return f"is timm's {first.split('.')[1]}" if first.startswith(TIMM) else ""


def _placed(weights: Tensors, model: nn.Module) -> dict[str, Tensor]:
    """A source of timm's under the names of the encoders of its architecture; another as it is."""
    placed: dict[str, Tensor] = {}
    for part, encoder in model.named_children():
        if isinstance(encoder, TimmEncoder):
            prefix = f"{TIMM}{encoder.name.split('.')[0]}."
            if own := {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}:
                placed |= {f"{part}.{name}": tensor for name, tensor in encoder.pretrained(own).items()}
    return placed or dict(weights)


def _wanted(weights: Tensors, state: Tensors) -> tuple[dict[str, Tensor], Counter[str]]:
    """The tensors without those of parts that the model lacks, and how many were left out of each part."""
    without = [TIMM, *(f"{part}." for part in PARTS if part not in map(part_of, state))]
    without += ["classifier.predictor."] * ("classifier.background" in state)
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(tuple(without))}
    left = weights.keys() - kept.keys()
    return kept, Counter(prefix[:-1] for prefix in without for name in left if name.startswith(prefix))


def _fitted(weights: Tensors, model: nn.Module, state: Tensors) -> dict[str, Tensor]:
    """What has to have another size in this model: positions of SAM and SigLIP, and the vocabulary of base weights."""
    other = {name: tensor for name, tensor in weights.items() if name in state and tensor.shape != state[name].shape}
    fitted = {}
    if "seg_encoder.pos_embed" in other and all(n in weights for n in state if n.startswith("seg_encoder.")):
        fitted = resize_positions(weights, cast(SamEncoder, model.get_submodule("seg_encoder")), "seg_encoder.")
    if (name := "vision_encoder.embeddings.position_embedding.weight") in other:
        fitted[name] = resize_grid(other[name], len(state[name]))
    for name in [n for n in (EMBEDDING, HEAD) if n in other and _is_language_model(weights)]:
        table, rows = other[name], len(state[name])
        mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)  # for every row that is missing
        fitted[name] = torch.cat([table[:rows], mean.expand(max(0, rows - len(table)), -1)])
    return fitted


def _misfits(source: str, weights: Tensors, state: Tensors) -> Iterator[str]:
    """What of a source does not fit: one clause for unknown names, and one for other shapes."""
    if unknown := [name for name in weights if name not in state]:
        yield f"the model has no {_some(unknown)} of {source}"
    shapes = {n: (list(t.shape), list(state[n].shape)) for n, t in weights.items() if n in state}
    if other := [f"{n} is {a} in {source}, {b} in the model" for n, (a, b) in shapes.items() if a != b]:
        yield _some(other)
