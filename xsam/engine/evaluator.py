"""Benchmarks: ask the model, keep every answer, score what was kept.

Predictions are appended sample by sample, so an interrupted evaluation continues where it stopped. Benchmark rows that
differ in `metric` alone ask the same questions and are answered by one forward pass.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__, config
from ..data.collate import collate, uncollate
from ..data.mixture import key
from ..data.prompt import Processor
from ..models.xsam import XSamModel
from ..structures import BadSample, Encoded, ItemOutput, Prediction, Sample, Segment, UserError
from ..tasks.base import Task
from . import distributed

log = logging.getLogger("xsam")


def evaluate(
    model: XSamModel,
    processor: Processor,
    rows: Mapping[str, dict[str, Any]],
    out: Path,
    *,
    protocol: str = "paper",
    limit: int = 0,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Run benchmark rows and return `results["benchmarks"]`.

    A row whose files are missing becomes `{"error": ..}` and the others run. A sample that cannot be read failed; only
    if its truth is what cannot be read it is not scored. Both are told by `errors`, a reason by sample id.

    Args:
        rows: benchmark configs by name.
        out: predictions are kept in `out/predictions/<benchmark>/part-RANK.jsonl`.
        protocol: "paper" gives the answer with its `<SEG>` and makes one pass; "strict" lets the model answer.
        limit: only the first so many samples of each benchmark; 0 = all.

    Raises:
        UserError: no row can be run.
    """
    model.eval()
    results: dict[str, Any] = {}
    built: dict[str, Task] = {}
    for name, row in rows.items():  # all of them before any time of the model is spent
        try:
            built[name] = config.build(_question(row))
        except UserError as error:
            log.error("%s: %s", name, error)
            results[name] = {"error": str(error)}
    if not built:
        raise UserError(next(iter(results.values()))["error"])
    for names in _same_questions({name: rows[name] for name in built}):
        tasks = {name: built[name] for name in names}
        lead = next(iter(tasks.values()))
        indices = range(min(limit or len(lead), len(lead)))
        _answer(model, processor, tasks, indices, out, protocol == "strict" or lead.generates, batch_size)
        distributed.barrier()
        if distributed.is_main():
            for name, task in tasks.items():
                results[name] = _score(task, indices, out / "predictions" / name)
                results[name]["published"] = rows[name].get("published", {})
        distributed.barrier()
    return {name: results[name] for name in rows if name in results}


def _question(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the published numbers, which are for the reader."""
    return {key: value for key, value in row.items() if key != "published"}


def _same_questions(rows: Mapping[str, dict[str, Any]]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name, row in rows.items():
        asked = {key: value for key, value in _question(row).items() if key != "metric"}
        groups.setdefault(json.dumps(asked, sort_keys=True), []).append(name)
    return list(groups.values())


@torch.no_grad()
def _answer(
    model: XSamModel,
    processor: Processor,
    tasks: Mapping[str, Task],
    indices: range,
    out: Path,
    generate: bool,
    batch_size: int,
) -> None:
    lead = next(iter(tasks.values()))
    files = {}
    done: set[str] = set()
    for number, name in enumerate(tasks):
        folder = out / "predictions" / name
        folder.mkdir(parents=True, exist_ok=True)
        kept = {prediction.id for prediction in _read(folder)}
        done = kept if number == 0 else done & kept
        files[name] = (folder / f"part-{distributed.rank()}.jsonl").open("a")
    # Batches are formed before they are dealt out, so that the number of processes changes nothing.
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    mine = [
        batch
        for batch in batches[distributed.rank() :: distributed.world_size()]
        if any(lead.id(i) not in done for i in batch)
    ]
    title = next(iter(tasks)) + (f" (+{len(tasks) - 1})" if len(tasks) > 1 else "")
    for batch in tqdm(mine, desc=title, unit="batch", disable=not distributed.is_main()):
        asked, refused = _ask(lead, processor, batch, generate)
        answers = _generated(model, processor, lead, asked) if generate else _given(model, asked)
        for name, task in tasks.items():
            given = zip(asked, answers, strict=True)
            found = [task.postprocess(outputs, text, sample) for (sample, _), (text, outputs) in given]
            files[name].writelines(json.dumps(asdict(prediction)) + "\n" for prediction in [*found, *refused])
        for file in files.values():
            file.flush()
    for file in files.values():
        file.close()


Asked = list[tuple[Sample, Encoded]]
Answer = tuple[str, list[ItemOutput]]


def _ask(task: Task, processor: Processor, indices: range, generate: bool) -> tuple[Asked, list[Prediction]]:
    """Samples with their encoding, whole or up to the answer; and failed predictions of those that cannot be read."""
    asked, refused = [], []
    for index in indices:
        seed = key("evaluate", task.id(index))
        try:
            sample = task.sample(index, np.random.default_rng(seed))
            asked.append((sample, processor.prompt(sample, seed) if generate else processor(sample, seed)))
        except BadSample as bad:
            refused.append(Prediction(id=task.id(index), failed=True, error=str(bad)))
    return asked, refused


def _given(model: XSamModel, asked: Asked) -> list[Answer]:
    """One pass over questions and given answers."""
    texts = [sample.turns[0].answer if sample.turns else "" for sample, _ in asked]
    return list(zip(texts, _outputs(model, [encoded for _, encoded in asked]), strict=True))


def _generated(model: XSamModel, processor: Processor, task: Task, asked: Asked) -> list[Answer]:
    """The model answers; where it wrote a `<SEG>`, question and answer are read again for the masks."""
    if not asked:
        return []
    batch = collate([prompt for _, prompt in asked], 1).to(_device(model))
    answers = model.generate(batch, task.max_new_tokens, processor.stop_ids)
    results: list[Answer] = [(processor.text(answer), []) for answer in answers]
    rows, encoded = [], []
    for row, ((sample, prompt), answer) in enumerate(zip(asked, answers, strict=True)):
        if processor.seg_id in answer:
            try:
                encoded.append(processor.prompt(sample, prompt.key, answer))
                rows.append(row)
            except BadSample:  # unbalanced tags: there is nothing to read masks from
                continue
    for row, outputs in zip(rows, _outputs(model, encoded), strict=True):
        results[row] = (results[row][0], outputs)
    return results


def _outputs(model: XSamModel, encoded: Sequence[Encoded]) -> list[list[ItemOutput]]:
    if not encoded:
        return []
    batch = collate(encoded, 1).to(_device(model))
    return uncollate(model(batch), batch, encoded)


def _device(model: XSamModel) -> torch.device:
    return next(model.parameters()).device


def _read(folder: Path) -> Iterator[Prediction]:
    for part in sorted(folder.glob("part-*.jsonl")):
        text = part.read_text()
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):  # cut off by a kill; the sample is asked again
                part.write_text(text[: -len(line)])
                break
            row = json.loads(line)
            row["segments"] = tuple(Segment(**segment) for segment in row["segments"])
            yield Prediction(**row)


def _score(task: Task, indices: range, folder: Path) -> dict[str, Any]:
    predictions = {prediction.id: prediction for prediction in _read(folder)}
    metric = task.metric()
    asked = [predictions[task.id(index)] for index in indices]
    errors = {prediction.id: prediction.error for prediction in asked if prediction.error}
    scored = 0
    for index, prediction in zip(indices, asked, strict=True):
        try:
            sample = task.sample(index, np.random.default_rng(key("evaluate", prediction.id)))
        except BadSample as bad:
            errors[prediction.id] = str(bad)
            continue
        task.score(metric, prediction, sample)
        scored += 1
    return {
        "task": task.name,
        "samples": len(indices),
        "scored": scored,
        "failed": sum(prediction.failed for prediction in asked),
        "errors": errors,
        "metrics": metric.compute(),
        "baselines": task.baselines(indices),
    }


def claim(out: Path, checkpoint: str, protocol: str) -> None:
    """Note whose predictions a folder holds. Raises UserError if it holds those of other weights or another protocol,
    which would be taken for this model's."""
    path = out / "predictions" / "made_by.json"
    mine = {"checkpoint": checkpoint, "sha256": _sha256(Path(checkpoint)), "protocol": protocol}
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise UserError(f"{out}: holds predictions of other weights or another protocol; give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine))


def select(benchmarks: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Rows by name, or all; UserError names what there is."""
    if list(names) == ["all"]:
        return dict(benchmarks)
    unknown = [name for name in names if name not in benchmarks]
    if unknown:
        raise UserError(f"no benchmark {', '.join(unknown)} in this config; it has {', '.join(benchmarks)}")
    return {name: benchmarks[name] for name in names}


def write_results(
    out: Path, benchmarks: dict[str, Any], *, config_path: str, checkpoint: Path | str, protocol: str, seconds: float
) -> None:
    """`out/results.json` and `out/results.md`."""
    results = {
        "schema": 1,
        "config": config_path,
        "checkpoint": {"path": str(checkpoint), "sha256": _sha256(Path(checkpoint))},
        "protocol": protocol,
        "seed": 0,
        "versions": {"xsam": __version__, "torch": torch.__version__, "transformers": version("transformers")},
        "seconds": round(seconds, 1),
        "benchmarks": benchmarks,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1))
    (out / "results.md").write_text(table({str(checkpoint): results}) + "\n")


def read_results(folder: Path) -> dict[str, Any]:
    """A `results.json`; UserError where there is none."""
    path = folder / "results.json" if folder.is_dir() else folder
    if not path.is_file():
        raise UserError(f"{path}: no results; make them with `xsam evaluate --out {folder}`")
    return json.loads(path.read_text())


def _sha256(path: Path) -> str:
    files = sorted(path.glob("model*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(np.memmap(file, np.uint8).data if file.stat().st_size else b"")
    return digest.hexdigest() if files else ""


def table(runs: Mapping[str, dict[str, Any]]) -> str:
    """Markdown: a line per metric, a column per run; blind baselines of a benchmark follow it."""
    lines = [f"| benchmark | metric | {' | '.join(runs)} |", f"|---|---|{'---:|' * len(runs)}"]
    first = next(iter(runs.values()))["benchmarks"]
    for name, row in first.items():
        if "error" in row:
            lines.append(f"| {name} | not run: {row['error']} |{' |' * len(runs)}")
        for metric in row.get("metrics", {}):
            cells = [_cell(run["benchmarks"].get(name, {}).get("metrics", {}).get(metric)) for run in runs.values()]
            lines.append(f"| {name} | {metric} | {' | '.join(cells)} |")
        for trick, scores in row.get("baselines", {}).items():
            for metric in [metric for metric in scores if metric.startswith(("cIoU", "mIoU"))]:
                cells = [_cell(scores[metric])] + [""] * (len(runs) - 1)
                lines.append(f"| {name} | {metric}, {trick} (blind) | {' | '.join(cells)} |")
        failed = [run["benchmarks"].get(name, {}).get("failed", "") for run in runs.values()]
        if any(failed):
            lines.append(f"| {name} | failed | {' | '.join(map(str, failed))} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
