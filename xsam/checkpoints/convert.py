"""`xsam convert`: one checkpoint in another layout, the same tensors bit for bit unless another precision is asked for.

Tensors go from file to file by name alone. Nothing is visible under the target's name until it is complete."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import config as configs
from ..data.prompt import load_tokenizer
from ..models import lora
from ..structures import UserError
from .loading import EMBEDDING, build_model, from_official, read_tensors
from .pretrained import fetch
from .released import PARTS, is_official, part_of, to_official

UNUSED = "unused.safetensors"  # official tensors that no module of ours has, beside the weights
SHARD = "5GB"  # largest weight file of a folder, as the Hugging Face hub likes it
HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
HUB_KEYS = {  # of `config.json`, by which transformers finds our code
    "model_type": "xsam", "architectures": ["XSamModel"],
    "auto_map": {"AutoConfig": "modeling_xsam.XSamConfig", "AutoModel": "modeling_xsam.XSamModel"},
}  # fmt: skip

Tensors = dict[str, Tensor]


def convert(
    source: str | Path, target: str | Path, to: str, *, config: str = "", tokenizer: str = "",
    dtype: torch.dtype | None = None, overwrite: bool = False,
) -> str:  # fmt: skip
    """Write `source` to `target`; returns what was done, for the user to read.

    Args:
        source: anything that `read_tensors` takes, or a hub name. The tensors of a LoRA run are merged.
        target: a folder, or with `to="official"` a `.bin` or `.safetensors` file.
        to: "xsam", "official" or "hf".
        config, tokenizer: by default those stored in `source`, else the shipped config of the file's stage.
        dtype: of the weights written, by default their own.

    UserError: unreadable source, unknown tensor, tokenizer of another size, target that exists or cannot be written."""
    source, target = fetch(source), Path(target)
    _check_target(source, target, to, overwrite)
    tensors, unused = _read(source)
    later = 3 if any(name.startswith("mask_decoder.") for name in tensors) else 2
    stage = 1 if "classifier.predictor.weight" in tensors else later  # the one whose file has these parts
    path = Path(config) if config else _stored_config(source) or CONFIGS / f"xsam_phi3_stage{stage}.py"
    if "model" not in (settings := configs.load(path)):
        raise UserError(f"{path}: describes no model of X-SAM; give --config")
    tensors = lora.merge(tensors, settings)
    if dtype:
        tensors, unused = (
            {n: t.to(dtype) if t.is_floating_point() else t for n, t in some.items()} for some in (tensors, unused)
        )
    settings.get("stage", {}).pop("lora", None)
    count = f"{target}: {len(tensors)} tensors"
    if to == "official":
        official = {to_official(name): tensor for name, tensor in tensors.items()} | unused
        with _replacing(target) as partial:
            save_file(official, partial) if target.suffix == ".safetensors" else torch.save(official, partial)
        return f"{count}, {len(unused)} unused ones"
    if not tokenizer and (source / "tokenizer_config.json").is_file():
        tokenizer = str(source)
    words, rows = load_tokenizer(tokenizer) if tokenizer else None, len(tensors.get(EMBEDDING, ()))
    if words is not None and len(words) != rows:
        has = f"{len(words)} tokens with X-SAM's three, the weights have {rows} rows"
        raise UserError(f"tokenizer {tokenizer} has {has}; give the tokenizer that they were trained with")
    if rows and "llm" in settings["model"]:
        settings["model"]["llm"]["vocab_size"] = rows
    notes = _misfits(path, settings["model"], tensors)
    if words is None and rows:
        notes.append(f"{target}: written without a tokenizer; give --tokenizer")
    with _replacing(target) as partial:
        partial.mkdir()
        write_folder(partial, tensors, settings, words)
        if unused:
            save_file(unused, partial / UNUSED)
        if to == "hf":
            (partial / "config.json").write_text(json.dumps({**settings, **HUB_KEYS}, indent=1))
            shutil.copyfile(HERE / "modeling_xsam.py", partial / "modeling_xsam.py")
            (partial / "README.md").write_text(_card(settings, tensors))
    return "\n".join([f"{count}, {len(unused)} unused ones, config {path}", *notes])


def write_folder(folder: Path, tensors: Tensors, config: Mapping[str, Any], tokenizer: Any = None) -> None:
    """Weights in shards, `config.json` and the tokenizer's files: all that `XSam.from_pretrained` needs."""
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _card(config: Mapping[str, Any], tensors: Tensors) -> str:
    """The model card: parts and sizes as they are in the tensors, sizes of the inputs as in the config."""
    sizes, precisions = Counter[str](), defaultdict[str, set[str]](set)
    for name, tensor in tensors.items():
        sizes[part_of(name)] += tensor.numel()
        precisions[part_of(name)].add(str(tensor.dtype).removeprefix("torch."))
    rows = [f"| `{part}` | {size:,} | {', '.join(sorted(precisions[part]))} |" for part, size in sizes.items()]
    seg, vision = map(config.get("processor", {}).get, ("seg_size", "vision_size"))
    also, call = "", 'segment("photo.jpg", things=["car"], stuff=["road"])'
    if "llm" in sizes:
        also, call = f", the vision encoder {vision} x {vision}", 'refer("photo.jpg", "the car on the left")'
    template, total = (HERE / "model_card.md").read_text(), sum(sizes.values())
    return template.format(parts="\n".join(rows), total=total, seg=seg, also=also, call=call)


def _read(source: Path) -> tuple[Tensors, Tensors]:
    """The tensors of our modules under our names, and the rest under official ones; each with memory of its own."""
    tensors, unused = read_tensors(source), read_tensors(source / UNUSED) if (source / UNUSED).is_file() else {}
    if is_official(tensors):
        tensors, unused = from_official(source, tensors)
    if unknown := [name for name in tensors if part_of(name) not in PARTS]:
        raise UserError(f"{source}: {unknown[0]} (of {len(unknown)}) is no tensor of X-SAM; give an X-SAM checkpoint")
    return _apart(tensors), _apart(unused)


def _apart(tensors: Tensors) -> Tensors:
    """The same tensors; copied where they are views of a larger storage or share it, which the formats do not keep."""
    storages, result = set[int](), {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        own = storage.nbytes() == tensor.nbytes and tensor.is_contiguous() and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        result[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
    return result


def _misfits(path: Path, model: dict[str, Any], tensors: Tensors) -> list[str]:
    """What the user must know before loading: where the config and the tensors differ in names or shapes."""
    state = build_model(model, ()).state_dict(keep_vars=True)
    covered = {id(state[name]) for name in tensors if name in state}  # tied tensors stand in a file once
    absent = [name for name in state if id(state[name]) not in covered]
    other = [name for name, tensor in tensors.items() if name not in state or state[name].shape != tensor.shape]
    notes = {"of its tensors are not in the file": absent, "tensors of the file do not fit it": other}
    return [f"{path}: {len(names)} {what} ({names[0]}, ..)" for what, names in notes.items() if names]


def _stored_config(source: Path) -> Path | None:
    """The config of a run folder, or of the run folder around a training state."""
    is_state = (source / "latest").is_file() or any(source.glob("*_model_states.pt"))
    folders = (source, *(source.resolve().parents[:2] if is_state else ()))
    return next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)


def _check_target(source: Path, target: Path, to: str, overwrite: bool) -> None:
    if to == "official" and target.suffix not in (".bin", ".safetensors"):
        raise UserError(f"{target}: the official layout is one file; give a name that ends in .bin or .safetensors")
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; give another name, or --overwrite")
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(f"{target}: holds the source; give another name")
    if target.exists() and (target.is_dir() != (to != "official") or any(p.is_dir() for p in target.glob("*"))):
        raise UserError(f"{target}: is not something that convert wrote, so it is not overwritten; remove it yourself")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path beside the target that takes the target's place at the end; after an error nothing is left of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.stem}-", dir=target.parent) as room:
            partial, old = Path(room, "new"), Path(room, "old")
            try:
                yield partial
                if target.exists():
                    target.replace(old)
                partial.replace(target)
            finally:
                if old.exists() and not target.exists():
                    old.replace(target)
    except (OSError, RuntimeError, SafetensorError) as error:  # the last two: a full disk, by torch and safetensors
        problem = f"cannot be written, nothing was changed ({str(error).splitlines()[0]}); is there room?"
        raise UserError(f"{target}: {problem}") from None
