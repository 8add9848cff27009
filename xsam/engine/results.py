"""What an evaluation leaves: answers on disk, and figures made of them: scores with intervals, `results.json` and
`results.md`, two runs side by side.

`OUT/predictions/<benchmark>/part-RANK.jsonl` holds what a process answered, a line per sample, written when it is made
and never changed. A killed process leaves at most one unfinished line, which is no JSON; its sample is asked again.
`OUT/predictions/made_by.json` says who answered what."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..checkpoints.pretrained import RANDOM, WEIGHTS, fetch
from ..data.mixture import key
from ..metrics import bootstrap
from ..metrics.base import Metric
from ..structures import BadSample, Prediction, Sample, Segment, UserError
from ..tasks.base import Task
from . import distributed

REPLICATES = "bootstrap.npz"  # beside the predictions: float[R] of every metric, and of which images


class Answers:
    """The predictions of one benchmark, as this process adds to them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.done = set(read_answers(folder))  # of all processes
        self._path = folder / f"part-{distributed.rank()}.jsonl"
        if self._path.is_file() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            self._append("\n")  # closes the line of a process that was killed

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Keep those that are new."""
        new = (prediction for prediction in predictions if prediction.id not in self.done)
        self._append("".join(json.dumps(asdict(prediction)) + "\n" for prediction in new))

    def _append(self, text: str) -> None:
        with self._path.open("a") as file:
            file.write(text)


def read_answers(folder: Path) -> dict[str, Prediction]:
    """All predictions of a benchmark by sample id."""
    found = {}
    for part in sorted(folder.glob("part-*.jsonl")):
        for line in part.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # a line that a killed process left
                row = json.loads(line)
                row["segments"] = tuple(Segment(**segment) for segment in row["segments"])
                found[row["id"]] = Prediction(**row)
    return found


def claim(out: Path, checkpoint: str, protocol: str, config: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """Note whose predictions a folder holds, and to which questions; returns the sha256 of the weights.

    `rows` are the benchmarks that are about to be answered. Raises UserError if the folder holds predictions of other
    weights, another protocol, model or processor, or to other questions of the same name, which would be taken for
    these."""
    path = out / "predictions" / "made_by.json"
    tokens = {key: value for key, value in config["processor"].items() if key != "tokenizer"}  # it is in the weights
    mine = {"weights": sha256(checkpoint), "protocol": protocol, "model": _digest([config["model"], tokens]),
            **{f"questions of {name}": _digest(questions(row)) for name, row in rows.items()}}  # fmt: skip
    theirs = json.loads(path.read_text()) if path.is_file() else {}
    if other := [key for key in mine if theirs.get(key, mine[key]) != mine[key]]:
        raise UserError(f"{out}: holds predictions of other {', '.join(other)}; give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(theirs | mine, indent=1))
    partial.replace(path)  # whole or not at all, whenever a kill comes
    return mine["weights"]


def questions(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a benchmark's row decides what is asked: rows that differ in the rest share their answers."""
    return {key: value for key, value in row.items() if key not in ("metric", "published")}


def sha256(checkpoint: str) -> str:
    """Of all weights of a run folder, another folder, a file or a hub name; "" for random ones."""
    if checkpoint == RANDOM:
        return ""
    path = fetch(checkpoint)
    files = [path] if path.is_file() else sorted(path.glob("model*.safetensors"))
    digest = hashlib.sha256()
    for file in files or sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def score(task: Task, indices: Sequence[int], folder: Path) -> dict[str, Any]:
    """One entry of `results["benchmarks"]` from the predictions in `folder`.

    Every sample is scored alone, for `scores.json` there (by which the gallery finds the worst); those of an image are
    merged, and the images are drawn with replacement for the intervals."""
    answers = read_answers(folder)
    errors: dict[str, str] = {}
    scores: dict[str, float | None] = {}
    images: dict[int, Metric] = {}
    whole: Metric = task.metric()
    for prediction, sample in tqdm(_truths(task, indices, answers, errors), f"scoring {folder.name}", delay=2):
        one: Metric = task.metric()
        task.score(one, prediction, sample)
        scores[prediction.id] = one.headline()
        whole.merge(one)
        images.setdefault(key("image", sample.image or sample.id), task.metric()).merge(one)
    (folder / "scores.json").write_text(json.dumps(scores))
    return {"task": task.name, "samples": len(indices), "scored": len(scores),
            "failed": sum(answers[task.id(index)].failed for index in indices), "errors": errors,
            "metrics": whole.compute(), "ci95": _intervals(images, folder), "categories": task.per_category(whole),
            "baselines": task.baselines(indices)}  # fmt: skip


def export(task: Task, indices: Sequence[int], folder: Path, path: Path) -> None:
    """Write the predictions in `folder` as the benchmark itself takes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    task.export(_truths(task, indices, read_answers(folder), {}), path)


def _truths(task: Task, indices: Sequence[int], answers: Mapping[str, Prediction],
            errors: dict[str, str]) -> Iterator[tuple[Prediction, Sample]]:  # fmt: skip
    """Predictions with their samples, as far as these can be read; what could not be read or asked goes to `errors`."""
    for index in indices:
        prediction = answers[task.id(index)]
        if prediction.error:
            errors[prediction.id] = prediction.error
        try:
            sample = task.sample(index, np.random.default_rng(key("evaluate", prediction.id)))
        except BadSample as bad:
            errors[prediction.id] = str(bad)
            continue
        yield prediction, sample


def _intervals(images: Mapping[int, Metric], folder: Path) -> dict[str, list[float]]:
    """95 % of each metric, in percent. The draws depend on the images alone, so that two runs have the same."""
    names = sorted(images)
    (folder / REPLICATES).unlink(missing_ok=True)
    if len(names) < 2:
        return {}
    seed = key("bootstrap", *names)
    drawn = type(images[names[0]]).resample([images[name] for name in names], bootstrap.draws(len(names), seed))
    columns = {metric: np.array([row[metric] for row in drawn], float) for metric in drawn[0]}
    np.savez(folder / REPLICATES, allow_pickle=False, images=np.array(seed), **columns)
    found = {metric: interval for metric in columns if (interval := bootstrap.interval(columns[metric]))}
    # Moved to the figure, an interval could begin below 0, which no figure can be, or end above the highest draw's.
    highest = {metric: max(np.nanmax(columns[metric]), low) for metric, (low, _) in found.items()}
    return {metric: np.clip(interval, 0, highest[metric]).tolist() for metric, interval in found.items()}


def write(out: Path, rows: dict[str, Any], *, config_path: str, checkpoint: str, sha256: str, protocol: str,
          seconds: float) -> None:  # fmt: skip
    """`out/results.json` and `out/results.md`."""
    results = {"schema": 1, "config": config_path, "checkpoint": {"path": checkpoint, "sha256": sha256},
               "protocol": protocol, "seed": 0,
               "versions": {"xsam": __version__, "torch": torch.__version__, "transformers": version("transformers")},
               "seconds": round(seconds, 1), "benchmarks": rows}  # fmt: skip
    (out / "results.json").write_text(json.dumps(results, indent=1))
    weights = f"Checkpoint {checkpoint} ({sha256[:12] or 'random weights'})"
    head = f"{weights}, config {config_path}, protocol {protocol}. Percent; 95 %: bootstrap over images."
    (out / "results.md").write_text("\n".join([head, "", *_table(rows), *_categories(rows)]) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """A `results.json`; UserError where there is none."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: no results; make them with `xsam evaluate --out {folder}`")
    return json.loads(path.read_text())


def _table(rows: Mapping[str, Any]) -> Iterator[str]:
    """Markdown: a line per metric; what a benchmark's blind baselines reach, and its failures, follow it."""
    yield "| benchmark | metric | ours | 95 % | published | difference |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, row in rows.items():
        if "error" in row:
            yield f"| {name} | not run: {row['error']} | | | | |"
            continue
        for metric, value in row["metrics"].items():
            known = row["published"].get(metric)
            apart = None if None in (value, known) else value - known
            cells = _cell(value), _span(row["ci95"].get(metric)), _cell(known), _cell(apart, "+")
            yield f"| {name} | {metric} | {' | '.join(cells)} |"
        for trick, scores in row["baselines"].items():
            for metric in scores:
                if metric.startswith(("cIoU", "mIoU")):
                    yield f"| {name} | {metric}, {trick} (blind) | {_cell(scores[metric])} | | | |"
        if row["failed"]:
            yield f"| {name} | failed | {row['failed']} of {row['samples']} | | | |"


def _categories(rows: Mapping[str, Any]) -> Iterator[str]:
    """A folded table for every benchmark with classes."""
    for name, row in rows.items():
        if not row.get("categories"):
            continue
        metrics = list(dict.fromkeys(metric for values in row["categories"].values() for metric in values))
        yield f"\n<details><summary>{name} by category</summary>\n"
        yield f"| category | {' | '.join(metrics)} |"
        yield f"|---|{'---:|' * len(metrics)}"
        for label, values in row["categories"].items():
            yield f"| {label} | {' | '.join(_cell(values.get(metric)) for metric in metrics)} |"
        yield "\n</details>"


def compare(first: Path, second: Path) -> str:
    """Two runs side by side, in Markdown, with the interval of the difference on the images that they share.

    Where they are the same images, both were drawn alike, and the difference is taken draw by draw. Raises UserError
    where a folder holds no results."""
    runs = [read(folder)["benchmarks"] for folder in (first, second)]
    lines = [f"| benchmark | metric | {first} | {second} | difference | 95 % |", "|---|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys([*runs[0], *runs[1]]):
        metrics = [run.get(name, {}).get("metrics", {}) for run in runs]
        drawn = [_replicates(folder, name) for folder in (first, second)]
        same = "images" in drawn[0] and drawn[0]["images"] == drawn[1].get("images")
        for metric in dict.fromkeys([*metrics[0], *metrics[1]]):
            a, b = (found.get(metric) for found in metrics)
            apart = None if None in (a, b) else b - a
            both = [replicates[metric] for replicates in drawn if same and metric in replicates]
            span = bootstrap.paired(*both) if len(both) == 2 else None
            note = _span(span, "+") if same or apart is None else "other images"
            lines.append(f"| {name} | {metric} | {_cell(a)} | {_cell(b)} | {_cell(apart, '+')} | {note} |")
    return "\n".join(lines)


def _replicates(folder: Path, name: str) -> dict[str, np.ndarray]:
    path = folder / "predictions" / name / REPLICATES
    if not path.is_file():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def _cell(value: float | None, sign: str = "") -> str:
    return "" if value is None or math.isnan(value) else f"{value:{sign}.1f}"


def _span(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.1f} to {interval[1]:{sign}.1f}"
