"""Answers on disk: a line per sample, written when it is made and never changed.

`OUT/predictions/<benchmark>/part-RANK.jsonl` holds what a process answered. A killed process leaves at most one
unfinished line, which is no JSON; its sample is asked again. `OUT/predictions/made_by.json` says who answered what."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints.pretrained import RANDOM, WEIGHTS, fetch
from ..structures import Prediction, Segment, UserError
from . import distributed


class Answers:
    """The predictions of one benchmark, as this process adds to them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.done = set(read(folder))  # of all processes
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


def read(folder: Path) -> dict[str, Prediction]:
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
