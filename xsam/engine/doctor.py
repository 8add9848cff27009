"""`xsam doctor`: what the machine and a config lack, each with the command that mends it, and two steps tried here."""

import io
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch
from huggingface_hub import try_to_load_from_cache
from packaging.requirements import Requirement

from .. import config as configs
from ..compat import prepare_deepspeed
from ..data.catalog import DATASETS
from ..structures import Batch, UserError
from . import trainer
from .estimate import GB, RESERVE, Estimate, assumed_batch, estimate, remedy, report
from .stages import Stage

CORE = 0.03e12  # operations that a CPU core does in a second, roughly
PATIENCE = 600  # seconds that a CPU may take for the two steps
ROOM = 2e9  # bytes that every disk should have left
KERNELS = {  # compiled packages that others need, and what we have instead
    "flash_attn": "torch's scaled_dot_product_attention",
    "MultiScaleDeformableAttention": "torch's grid_sample",
    "fused_adam": "torch's fused AdamW",  # DeepSpeed's, compiled at first use
}
PIP = "pip install -c constraints.txt"


class Finding(NamedTuple):
    """A line of the report."""

    good: bool
    text: str
    remedy: str = ""  # a command, or where to look
    otherwise: str = "problem"  # "note": something is left out, or may wait

    def __str__(self) -> str:
        return f"ok       {self.text}" if self.good else f"{self.otherwise:9}{self.text}; {self.remedy}"


def examine(path: str, overrides: Sequence[str], gpus: int, memory: float, tflops: float) -> int:
    """Print what there is to say about this machine and, where a config is given, about its stage; 1 if there is a
    problem, else 0. `gpus` or `memory` (GB) ask about another machine: then only whether the stage fits there."""
    config = configs.load(path, overrides) if path else {}
    if path and not {"model", "processor", "criterion", "stage"} <= config.keys():
        raise UserError(f"{path}: describes no training; give the config of a stage")
    here = not (path and (gpus or memory))
    failed = _say(environment()) if here else 0
    if not path:
        return failed
    cuda = here and torch.cuda.is_available()
    found = estimate(config, gpus or (torch.cuda.device_count() if cuda else 1))
    memory = memory or (torch.cuda.get_device_properties(0).total_memory / GB if cuda else 80)
    print(report(found, tflops))
    fits = found.size <= memory * GB
    text = f"one of {found.gpus} GPUs with {memory:g} GB has to hold {found.size / GB:.1f} GB"
    mend = "" if fits else remedy(config, found.gpus, memory * GB)
    failed |= _say([Finding(fits, text, mend, "problem" if cuda or not here else "note")])
    if here:
        failed |= _say(files(config, found)) | _say([dry_pass(config, found)])
    return failed


def _say(findings: Iterable[Finding]) -> int:
    failed = 0
    for finding in findings:
        print(finding, flush=True)
        failed |= not finding.good and finding.otherwise == "problem"
    return failed


def environment() -> Iterator[Finding]:
    """What this machine has and lacks, whatever is trained."""
    file = Path(__file__).parents[2] / "requirements.txt"  # of a checkout
    listed = file.read_text().splitlines() if file.is_file() else metadata.requires("xsam") or []
    installed = {str(package.name).lower(): package.version for package in metadata.distributions()}
    for need in (Requirement(line) for line in listed if line[:1] not in ("", "#") and "extra ==" not in line):
        version = installed.get(need.name, "")
        text = f"{need.name} {version or 'is missing'}, tested are {need.specifier}"
        tested = bool(version) and need.specifier.contains(version, prereleases=True)
        yield Finding(tested, text, f"{PIP} '{need}'", "note" if version else "problem")
    yield _torch()
    try:
        prepare_deepspeed()
        yield Finding(True, "deepspeed can be imported")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        yield Finding(False, f"deepspeed cannot be imported: {error}", f"{PIP} --force-reinstall deepspeed")
    for name, ours in KERNELS.items():
        yield Finding(True, f"{name} is {'installed' if util.find_spec(name) else 'absent'}, {ours} does its work")
    java = bool(shutil.which("java") and util.find_spec("pycocoevalcap"))
    install = "apt-get install default-jre-headless && pip install pycocoevalcap"
    yield Finding(java, "Java and pycocoevalcap, without which METEOR is left out", install, "note")
    ram, cores = psutil.virtual_memory(), len(os.sched_getaffinity(0))
    room = f"memory {ram.available / GB:.0f} of {ram.total / GB:.0f} GB free"
    yield Finding(True, f"Python {platform.python_version()}, {cores} cores, {room}")
    for place in filter(Path.exists, (Path(), configs.data_root(), Path("/dev/shm"))):
        free, path = shutil.disk_usage(place).free, place.resolve()
        mend = "docker run --shm-size 16g" if place.name == "shm" else "make room there, or work elsewhere"
        yield Finding(free > ROOM, f"{free / GB:.1f} GB free in {path}", mend)


def _torch() -> Finding:
    version, cuda = torch.__version__, torch.version.cuda
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        text = f"torch {version}, {torch.cuda.device_count()} x {device.name}, {device.total_memory / GB:.0f} GB each"
        return Finding(torch.cuda.is_bf16_supported(), text, "no bf16: stage.precision=fp32", "note")
    if not shutil.which("nvidia-smi"):
        return Finding(False, f"no GPU for torch {version}", "that is enough for tests and configs/shapes", "note")
    text = f"torch {version} sees no GPU, "
    if cuda:
        return Finding(False, f"{text}made for CUDA {cuda}", "update the driver, see nvidia-smi")
    mend = f"{PIP} --force-reinstall torch=={version.split('+')[0]} torchvision"
    return Finding(False, f"{text}it is a CPU build", mend)


def files(config: Mapping[str, Any], found: Estimate) -> Iterator[Finding]:
    """Data and weights that a config names, and room for what its training writes."""
    root = configs.data_root()
    sources = [*config["stage"].get("init_from", ()), config["processor"].get("tokenizer")]
    rows = {f"mixture.sources.{name}": row for name, row in config.get("mixture", {}).get("sources", {}).items()}
    rows |= {f"benchmarks.{name}": row for name, row in config.get("benchmarks", {}).items()} | {"weights": sources}
    users: dict[str, list[str]] = {}
    for name, row in rows.items():
        for path in re.findall(rf'"((?:/|{re.escape(str(root))}/)[^"]+)"', json.dumps(row, ensure_ascii=False)):
            users.setdefault(path, []).append(name)
    missing = [path for path in users if not Path(path).exists()]
    yield Finding(True, f"{len(users) - len(missing)} of {len(users)} files and folders of the data are here")
    for path in missing:
        folder = os.path.relpath(path, root).split(os.sep)[0]
        dataset = next((d for d in DATASETS.values() if users[path][0] in d.rows), DATASETS.get(folder))
        mend = dataset.remedy if dataset else "see docs/datasets.md"
        yield Finding(False, f"{path} is missing, for {', '.join(users[path])}", mend)
    for source in dict.fromkeys(source for source in sources if source and source not in users):
        here = Path(source).exists() or isinstance(try_to_load_from_cache(source, "config.json"), str)
        run = source.startswith("runs/")
        mend = f"xsam train configs/{source.removeprefix('runs/')}.py" if run else f"hf download {source}"
        yield Finding(here, f"weights of {source}", f"missing: {mend}", "problem" if run else "note")
    states, free = Stage.parse(config["stage"]).keep + 1, shutil.disk_usage(Path()).free  # one is being written
    text = f"{states} training states of {found.state / GB:.1f} GB, {free / GB:.0f} GB of disk are free"
    yield Finding(states * found.state < free, text, "stage.keep=1, or --work-dir on another disk")


def dry_pass(config: Mapping[str, Any], found: Estimate) -> Finding:
    """Two steps of one process on an assumed batch of the config's size, by the trainer; on a CPU only where there is
    the memory and the time."""
    repeats, micro, cuda = min(found.accumulation, 2), found.micro_batch, torch.cuda.is_available()
    change = {"batch_size": micro * repeats, "micro_batch": micro, "steps": 3, "max_skipped": 0, "log_every": 1}
    config = {**config, "stage": {**config["stage"], **change}}
    alone = estimate(config, 1)
    computed, seconds = alone.size - RESERVE, 2 * repeats * alone.flops / len(os.sched_getaffinity(0)) / CORE
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    if computed > free or (seconds > PATIENCE and not cuda):
        why = f"{computed / GB:.1f} GB, {free / GB:.1f} are free" if computed > free else f"about {seconds:.0f} s"
        return Finding(False, "two steps are not tried here", f"one process would take {why}", "note")
    with torch.device("cuda" if cuda else "cpu"):
        model = configs.build(config["model"]).to(Stage.parse(config["stage"]).dtype)
    step = "assumed", [assumed_batch(model, config, micro)] * repeats

    def data(**_: Any) -> Iterator[tuple[str, list[Batch]]]:
        yield from (step, step)
        raise EOFError  # before the third step, so nothing is saved

    text, began = f"two steps of {repeats} x {micro} samples", time.perf_counter()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), suppress(EOFError):
            trainer.train(model, configs.build(config["criterion"]), data, config, Path(folder), steps_per_epoch=3)
    except (UserError, torch.OutOfMemoryError) as error:
        return Finding(False, f"{text} failed: {error}", "stage.micro_batch=1")
    measured = f", {torch.cuda.max_memory_allocated() / GB:.2f} GB measured" if cuda else ""
    return Finding(True, f"{text} in {time.perf_counter() - began:.0f} s; {computed / GB:.2f} GB computed{measured}")
