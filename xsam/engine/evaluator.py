"""Benchmarks: ask the model, keep every answer, score what was kept.

Answers are kept sample by sample, so an interrupted evaluation continues where it stopped. Benchmark rows that differ
in `metric` alone ask the same questions and are answered by one forward pass."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.collate import collate, uncollate
from ..data.masks import decode_rle
from ..data.mixture import key
from ..data.prompt import Processor
from ..models.xsam import ImageFeatures, XSamModel
from ..structures import BadSample, Batch, Encoded, ItemOutput, Prediction, Sample, UserError
from ..tasks.base import Task, build
from . import distributed, results
from .results import Answers, questions

log = logging.getLogger("xsam")
Asked = list[tuple[Sample, Encoded]]


def evaluate(model: XSamModel, processor: Processor, rows: Mapping[str, dict[str, Any]], out: Path, *,
             protocol: str = "paper", limit: int = 0, batch_size: int = 8, workers: int = 0,
             official: bool = False) -> dict[str, Any]:  # fmt: skip
    """Run benchmark rows and return `results["benchmarks"]`, on the ranks after the first without figures.

    A row whose files are missing becomes `{"error": ..}`, others run; UserError if none can. A sample that cannot be
    read failed; only if that is its truth it is not scored. Both are told by `errors`, a reason by sample id.

    Args:
        rows: benchmark configs by name.
        out: predictions are kept in `out/predictions/<benchmark>/part-RANK.jsonl`.
        protocol: "paper" gives the answer with its `<SEG>` and makes one pass; "strict" lets the model answer.
        limit: only the first so many samples of each benchmark; 0 = all.
        batch_size: samples of one pass. Batches are formed before they are dealt out to the processes.
        workers: processes that read samples for each of these.
        official: also write `out/official/<benchmark>.json`, in the benchmarks' own formats."""
    model.eval()
    tasks, found = _build(rows)
    groups: dict[str, list[str]] = {}
    for name in tasks:
        groups.setdefault(json.dumps(questions(rows[name]), sort_keys=True, default=str), []).append(name)
    for names in groups.values():
        lead = tasks[names[0]]
        indices = range(min(limit or len(lead), len(lead)))
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        kept = {name: Answers(out / "predictions" / name) for name in names}
        distributed.barrier()  # all have read what there was before any adds to it
        done = set.intersection(*(answers.done for answers in kept.values()))
        mine = batches[distributed.rank() :: distributed.world_size()]
        mine = [batch for batch in mine if not done.issuperset(map(lead.id, batch))]
        _answer(model, processor, {name: tasks[name] for name in names}, mine, kept, protocol == "strict", workers)
        distributed.barrier()
        for name in names if distributed.is_main() else ():
            folder = out / "predictions" / name
            try:
                found[name] = results.score(tasks[name], indices, folder)
                found[name]["published"] = rows[name].get("published", {})
                if official:
                    results.export(tasks[name], indices, folder, out / "official" / f"{name}.json")
            except UserError as error:  # of the truth
                found[name] = {"error": str(error)}
        distributed.barrier()
    return {name: found[name] for name in rows if name in found}


def _build(rows: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Task], dict[str, Any]]:
    """The tasks that can be run, on every rank the same, and `{"error": ..}` for the others, before any time of the
    model is spent. Raises UserError if there are none."""
    tasks, errors, found = {}, {}, {}
    for name, row in rows.items():
        try:
            tasks[name] = build(row)
        except UserError as error:
            errors[f"{name}: {error}"] = 1
    for text in distributed.all_reduce_sum(errors):  # also of a node that lacks a file
        name, _, message = text.partition(": ")
        tasks.pop(name, None)
        found[name] = {"error": message}
        if distributed.is_main():
            log.error("%s", text)
    if not tasks:
        raise UserError(next(iter(found.values()))["error"])
    return tasks, found


def _read(task: Task, processor: Processor, generate: bool, batch: range) -> tuple[Asked, list[Prediction]]:
    """The samples of a batch with their encoding, whole or up to the answer, and failed predictions of those that
    cannot be read."""
    encode = processor.prompt if generate else processor
    asked, refused = [], []
    for index in batch:
        seed = key("evaluate", name := task.id(index))
        try:
            sample = task.sample(index, np.random.default_rng(seed))
            asked.append((sample, encode(sample, seed)))
        except BadSample as bad:
            refused.append(Prediction(id=name, failed=True, error=str(bad)))
    return asked, refused


@torch.no_grad()
def _answer(model: XSamModel, processor: Processor, tasks: Mapping[str, Task], batches: Sequence[range],
            kept: Mapping[str, Answers], strict: bool, workers: int) -> None:  # fmt: skip
    title, *others = tasks
    lead = tasks[title]
    generate = (strict or lead.generates) and model.llm is not None  # a closed set has no words
    loader = DataLoader(cast(Dataset, batches), batch_size=None, collate_fn=partial(_read, lead, processor, generate),
                        num_workers=workers, multiprocessing_context="fork" if workers else None)  # fmt: skip
    title += f" (+{len(others)})" if others else ""
    for asked, refused in tqdm(loader, desc=title, unit="batch", disable=not distributed.is_main()):
        said = _ask(model, processor, lead, asked, generate) if asked else []
        for name, task in tasks.items():
            given = zip(asked, said, strict=True)
            found = [task.postprocess(outputs, text, sample) for (sample, _), (text, outputs) in given]
            if strict and not lead.may_be_empty:
                some = [any(decode_rle(part.segmentation).any() for part in one.segments) for one in found]
                found = [replace(one, failed=one.failed or not full) for one, full in zip(found, some, strict=True)]
            kept[name].add([*found, *refused])


def _ask(model: XSamModel, processor: Processor, task: Task, asked: Asked,
         generate: bool) -> list[tuple[str, list[ItemOutput]]]:  # fmt: skip
    encoded = [one for _, one in asked]
    batch = collate(encoded, 1).to(next(model.parameters()).device)
    given = [sample.turns[0].answer if sample.turns else "" for sample, _ in asked]
    return answers(model, processor, encoded, batch, model.encode(batch), task.max_new_tokens if generate else given)


def answers(
    model: XSamModel, processor: Processor, encoded: Sequence[Encoded], batch: Batch, features: ImageFeatures,
    given: Sequence[str] | int,
) -> list[tuple[str, list[ItemOutput]]]:  # fmt: skip
    """The text of every answer, and what the decoder gives for each `<SEG>` of it. The batch is that of the samples.
    given: the answers that the samples have, or the most tokens of those to be generated, on the samples' prompts."""
    texts, hidden, encoded = given, None, [*encoded]
    if isinstance(texts, int):
        said, hidden = model.generate(batch, texts, processor.stop_ids, features, processor.tag_ids)
        texts = [processor.text(answer) for answer in said]
        for row, answer in enumerate(said):
            with suppress(BadSample):  # unbalanced tags: there is nothing to read masks from
                encoded[row] = processor.answered(encoded[row], answer)
        batch = collate(encoded, 1).to(batch.input_ids.device)
    if not len(batch.items):
        return [(text, []) for text in texts]
    return list(zip(texts, uncollate(model(batch, features, hidden), batch, encoded), strict=True))


def select(benchmarks: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Rows by name, or all; UserError names what there is."""
    if not benchmarks:
        raise UserError("this config has no benchmarks; give val=FILE, your own data")
    if list(names) == ["all"]:
        return dict(benchmarks)
    unknown = [name for name in names if name not in benchmarks]
    if unknown:
        raise UserError(f"no benchmark {', '.join(unknown)} in this config; it has {', '.join(benchmarks)}")
    return {name: benchmarks[name] for name in names}
