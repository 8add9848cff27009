"""Tables and curves of runs on the embedded world, as docs/shapes.md has them.

python -m world.report table full=RESULTS,RESULTS quick=RESULTS     # folders of `xsam evaluate --out`, one a seed
python -m world.report curves FILE.png RUN     # a stage-3 run; RUN/curve/step_N holds the results of its states
"""

import json
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from xsam.config import data_root
from xsam.engine import results

from . import shapes

ROWS = {  # what a row is called: benchmark and metric
    "panoptic PQ": ("shapes_panoptic", "PQ"),
    "panoptic PQ of things": ("shapes_panoptic", "PQ_th"),
    "panoptic PQ of stuff": ("shapes_panoptic", "PQ_st"),
    "instance AP50": ("shapes_instance", "AP50"),
    "semantic mIoU": ("shapes_semantic", "mIoU"),
    "seen pairs, PQ of things": ("shapes_pairs", "PQ_th"),
    "held-out pairs, PQ of things": ("shapes_ovseg", "PQ_th"),
    "referring cIoU": ("shapes_refer", "cIoU"),
    "referring cIoU, attributes": ("shapes_refer", "cIoU_attribute"),
    **{f"referring accuracy, {kind}s": ("shapes_refer", f"Pr@0.5_{kind}") for kind in shapes.KINDS},
    **{f"generalised referring {name}": ("shapes_grefer", name) for name in ("gIoU", "N_acc", "T_acc")},
    "reasoning gIoU": ("shapes_reason", "gIoU"),
    "grounded conversation mIoU": ("shapes_gcg", "mIoU"),
    "grounded conversation AP50": ("shapes_gcg", "AP50"),
    **{f"interactive mIoU, {k}": (f"shapes_interactive_{k}", "mIoU") for k in ("point", "scribble", "box", "mask")},
    **{f"visual grounding AP, {k}": (f"shapes_vgd_{k}", "AP") for k in ("point", "scribble", "box", "mask")},
    "visual grounding AP, another image": ("shapes_vgd_cross", "AP"),
    "chat exact match": ("shapes_chat", "accuracy"),
}
CURVES = (
    "panoptic PQ of things", "held-out pairs, PQ of things", "referring accuracy, attributes",
    "referring accuracy, relations", "reasoning gIoU", "grounded conversation mIoU", "chat exact match",
)  # fmt: skip


def metric(found: Mapping[str, Any], row: str) -> float:
    """The figure of a row of a `results.json`; NaN where it was not scored."""
    benchmark, name = ROWS[row]
    value = found["benchmarks"].get(benchmark, {}).get("metrics", {}).get(name)
    return float("nan") if value is None else float(value)


def described(kind: str) -> float:
    """Accuracy in per cent on val of who finds what fits the description, "small ring" of "the small ring left of the
    star" or "the lowest small ring", and takes any of it."""
    chances = []
    for ref in pickle.loads((data_root() / "shapes/refer/refs(shapes).p").read_bytes()):
        if (ref["split"], ref["kind"]) != ("val", kind):
            continue
        fitting = shapes.fits(shapes.compose(0, "val", ref["image_id"] % 1_000_000 - 1))
        for sentence in ref["sentences"]:
            words, *anchor = re.split(" (?:left of|right of|above|below) the ", sentence["sent"])
            looks = words.split()[1 if kind == "relation" else 2 :]
            rivals = {*fitting[" ".join(looks)]}.difference(*(fitting[landmark] for landmark in anchor))
            chances.append(1 / len(rivals))
    return 100 * float(np.mean(chances))


def table(columns: Mapping[str, Sequence[str]]) -> str:
    """Markdown: mean over the seeds and, with several, half of what lies between the lowest and the highest; last the
    blind answers that the evaluation scores, and behind a semicolon `described`."""
    found = {name: [results.read(Path(folder)) for folder in folders] for name, folders in columns.items()}
    lines = [f"| val split | {' | '.join(found)} | blind |", f"|---|{'---:|' * (len(found) + 1)}"]
    for row, (benchmark, name) in ROWS.items():
        cells = [_spread([metric(one, row) for one in seeds]) for seeds in found.values()]
        baselines = next(iter(found.values()))[0]["benchmarks"].get(benchmark, {}).get("baselines", {})
        blind = " / ".join(f"{known[name]:.0f}" for known in baselines.values() if known.get(name) is not None)
        blind += f"; {described(name[7:]):.0f}" if name.endswith(("_relation", "_superlative")) else ""
        lines.append(f"| {row} | {' | '.join(cells)} | {blind} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    half = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return "" if np.isnan(values).any() else f"{np.mean(values):.1f}{half}"


def curves(out: str, run: str) -> None:
    """Metrics of the evaluated states by step, and the loss of each source."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    metrics, losses = figure.subplots(1, 2)
    states = sorted(
        (int(path.name.removeprefix("step_")), results.read(path)) for path in Path(run).glob("curve/step_*")
    )
    for row in CURVES:
        metrics.plot([step for step, _ in states], [metric(found, row) for _, found in states], marker="o", label=row)
    metrics.set(xlabel="step of stage 3", ylabel="val, per cent", ylim=(0, 100))
    metrics.legend(fontsize=7)
    losses.set_prop_cycle(color=colormaps["tab20"](range(20)))  # more sources than the usual ten colours
    log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
    for source in sorted({name for line in log for name in line["sources"]}):
        seen = [(line["step"], line["sources"][source]) for line in log if source in line["sources"]]
        steps, values = np.array(seen).T
        width = min(9, len(values))
        losses.semilogy(
            np.convolve(steps, np.full(width, 1 / width), "valid"),
            np.convolve(values, np.full(width, 1 / width), "valid"), label=source,
        )  # fmt: skip
    losses.set(xlabel="step of stage 3", ylabel="training loss, mean of 9 lines of the log")
    losses.legend(fontsize=7, ncols=2)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "table":
        print(table({name: folders.split(",") for name, _, folders in (word.partition("=") for word in given)}))
    else:
        curves(*given)
