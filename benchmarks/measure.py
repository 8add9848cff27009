"""Time, memory and exactness of ways to do the same, side by side."""

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from xsam import __version__

Run = Callable[[], Any]
NOTHING = nullcontext()


def machine(device: str = "cpu") -> str:
    """What a measurement runs on, for every report."""
    cpuinfo = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "transformers", "numpy", "pillow", "pycocotools"))
    gpu = f"{torch.cuda.get_device_name()} (bf16 autocast); " if device == "cuda" else ""
    return f"{gpu}{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores; xsam {__version__}, {versions}"


def compare(
    work: Mapping[str, Run], same: AbstractContextManager[Any] = NOTHING, *, device: str = "cpu", rounds: int = 5,
    threads: int = 2,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Ways to do the same; on a GPU in bf16 (autocast). They take turns, so that what else the machine does falls on
    all of them. The first call of each finds the memory; its time counts if all took more than a second. `same`: inside
    of it the ways give the same, where otherwise they draw random numbers of their own.

    Returns by name `wall_ms` and `cpu_ms`, medians; `faster` and `less_cpu`, how many times that of the last way is of
    this one; `peak_mb`, memory taken beyond what was held (0 where the system does not tell), and `memory`, its
    share of the last way's; `max_abs` and `rms`, `differences` to what the last way gives."""
    before, peaks, results = torch.get_num_threads(), {}, {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}

    def call(name: str) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            result = work[name]()
        if device == "cuda":
            torch.cuda.synchronize()
        times[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
        return result

    *_, last = work
    torch.set_num_threads(threads)
    with same:
        for name in work:
            held = _most(device, forget=True)
            results[name] = call(name)
            peaks[name] = _most(device) - held
    if min(times[name][0][0] for name in work) < 1000:
        times.update({name: [] for name in work})
    while len(times[last]) < rounds:
        for name in work:
            call(name)
    torch.set_num_threads(before)
    (last_wall, last_cpu), last_peak, rows = np.median(times[last], 0).tolist(), peaks[last], {}
    for name, peak in peaks.items():
        wall, cpu = np.median(times[name], 0).tolist()
        absolute, relative = differences(results[name], results[last])
        rows[name] = {
            "wall_ms": wall, "cpu_ms": cpu, "faster": last_wall / wall, "less_cpu": last_cpu / cpu,
            "peak_mb": peak, "memory": peak / last_peak if last_peak else None,
            "max_abs": absolute, "rms": relative,
        }  # fmt: skip
    return rows


def _most(device: str, forget: bool = False) -> float:
    """The most memory so far, MB, of the process, on a GPU of torch; `forget`: from now on. 0 where nothing tells."""
    gc.collect()
    if device == "cuda":
        if forget:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return 0.0
    if forget:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that an earlier call freed would hide what this one takes
        reset.write_text("5")
    return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1e3


def gradients(run: Run, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a call, and with regard to `inputs` the gradients of a function of all their values."""
    outputs = tree_leaves(run())
    weights = [output.detach().sin() if output.dim() else None for output in outputs]
    return [output.detach() for output in outputs] + list(torch.autograd.grad(outputs, inputs, weights))


def differences(found: Any, expected: Any) -> tuple[float | None, float | None]:
    """Largest difference between the tensors of two results (as many as both hold); and the root of the mean square of
    one tensor's differences as a share of that of its values (at least 1e-3 of the largest there is: a gradient that is
    zero but for rounding has no scale), the largest share. Of ids and masks both are the share of places that differ.
    None without tensors, or where shapes differ."""
    ours, theirs = ([x.detach() for x in tree_leaves(result) if isinstance(x, Tensor)] for result in (found, expected))
    pairs = list(zip(ours, theirs, strict=False))
    if not pairs or any(a.shape != b.shape or not a.numel() for a, b in pairs):
        return None, None
    most, gaps, scales = zip(*(_gap(a, b) for a, b in pairs), strict=True)
    floor = 1e-3 * max(scales)
    return max(most), max(gap / max(scale, floor, 1e-30) for gap, scale in zip(gaps, scales, strict=True))


def _gap(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    if a.is_floating_point() and b.is_floating_point():
        return float((a - b).abs().max()), float((a - b).square().mean().sqrt()), float(b.square().mean().sqrt())
    differ = float((a.cpu() != b.cpu()).float().mean())
    return differ, differ, 1.0


def table(report: Mapping[str, Any]) -> str:
    """Any report as text: facts, and tables whose rows have the same columns."""
    lines = []
    for name, rows in report.items():
        if not isinstance(rows, Mapping):
            lines += [f"{name}: {rows}"]
            continue
        widths = {column: max(len(column), 8) + 2 for column in next(iter(rows.values()))}
        lines += ["", f"{name:44}" + "".join(f"{column:>{width}}" for column, width in widths.items())]
        for row, cells in rows.items():
            texts = {column: f"{cell:.4g}" if isinstance(cell, float) else str(cell) for column, cell in cells.items()}
            lines += [f"  {row:42}" + "".join(f"{texts[column]:>{width}}" for column, width in widths.items())]
    return "\n".join(lines)
