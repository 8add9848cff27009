"""Annotation files of any size: parsed once into rows on disk, which every process and worker reads through the same
pages."""

import hashlib
import json
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..structures import BadSample, UserError

log = logging.getLogger("xsam")

REMEDY = "check the dataset's path, data/README.md lists where files go"
BAD = "not usable"  # the only key of a row that stands for a record which cannot be used; its value says why


class Index:
    """Rows of an annotation file: an immutable sequence of JSON values, each parsed when it is asked for.

    The rows are written under `$XSAM_CACHE` (default `~/.cache/xsam`) when they are not there yet, by one process at a
    time, and written anew when a source file or `layout` changes.

    Args:
        sources: files that the rows are made of. UserError where one is missing.
        layout: name and version of what `rows` makes, with all arguments that decide it.
        rows: makes the rows, one after the other; a record that cannot be used becomes `bad_row(why)`.
    """

    def __init__(self, sources: Sequence[str | Path], layout: str, rows: Callable[[], Iterable[Any]]) -> None:
        stamp = [layout]
        for source in sources:
            try:
                stat = os.stat(source)
            except OSError as error:
                raise UserError(f"{source}: cannot be read ({error.strerror}); {REMEDY}") from None
            stamp.append(f"{Path(source).resolve()} {stat.st_size} {stat.st_mtime_ns}")
        folder = Path(os.environ.get("XSAM_CACHE", "~/.cache/xsam")).expanduser() / "index"
        name = hashlib.blake2b("\n".join(stamp).encode(), digest_size=12).hexdigest()
        self._path = folder / f"{Path(sources[0]).stem}-{name}.jsonl"
        if not self._ends_path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):
                if not self._ends_path.is_file():
                    self._write(rows())
        self._ends = np.load(self._ends_path, mmap_mode="r")
        self._open()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        """The row. Raises BadSample where the record cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = json.loads(self._rows[int(self._ends[index]) : int(self._ends[index + 1])])
        if isinstance(row, dict) and BAD in row:
            raise BadSample(row[BAD])
        return row

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], bytes of each row: a measure of how long its text is."""
        return np.diff(self._ends)

    @property
    def _ends_path(self) -> Path:
        return self._path.with_suffix(".npy")

    def _write(self, rows: Iterable[Any]) -> None:
        log.warning("reading %s for the first time", self._path.stem)
        partial = self._path.with_suffix(".partial")
        ends = [0]
        with partial.open("wb") as file:
            for row in rows:
                file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
                ends.append(file.tell())
        partial.rename(self._path)
        with partial.open("wb") as file:
            np.save(file, np.array(ends, np.int64))
        partial.rename(self._ends_path)  # last: its presence says that all is there

    def _open(self) -> None:
        with self._path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            self._rows: Any = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_ends": np.asarray(self._ends)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def bad_row(reason: str) -> dict[str, str]:
    """The row of a record that cannot be used."""
    return {BAD: reason}


def take(record: Any, key: str, kind: type | tuple[type, ...], what: str, least: float | None = None) -> Any:
    """`record[key]`, checked. Raises BadSample: `what` has no such key, or one of another type, or below `least`."""
    if not isinstance(record, dict):
        raise BadSample(f"{what}: is {_short(record)}, not an object with {key!r}")
    if key not in record:
        raise BadSample(f"{what}: has no {key!r}")
    value: Any = record[key]
    small = least is not None and isinstance(value, int | float) and not value >= least  # NaN is small too
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or small:
        raise BadSample(f"{what}: {key!r} is {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:37]}..."
