"""Annotation files of any size: parsed once into rows on disk, which no process or worker holds in its memory."""

import hashlib
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock

from ..structures import BadSample, UserError

log = logging.getLogger("xsam")

REMEDY = "`xsam data prepare shapes` writes the embedded world, data/README.md says where other datasets go"
BAD = "not usable"  # the only key of a row that stands for a record which cannot be used; its value says why
CHUNK = 1 << 20  # characters of a JSON list that are read at a time
DECODER = json.JSONDecoder()
SOLID = re.compile(r"[^ \t\n\r]")
TAGS = re.compile(r"</?p>|<SEG>|<image>|<region>")  # what a prompt gives a meaning
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half a character, which no tokenizer takes
NEAR = 32  # characters; more than a number, a literal or an escaped character can have


class Index:
    """Rows of an annotation file: an immutable sequence of JSON values, each parsed when it is asked for.

    The rows are written under `$XSAM_CACHE` (default `~/.cache/xsam`) when they are not there yet, by one process at a
    time, and written anew when a source file or `layout` changes.

    Args:
        sources: files that the rows are made of.
        layout: name and version of what `rows` makes, with all arguments that decide it.
        rows: makes the rows, one after the other; a record that cannot be used becomes `bad_row(why)`.

    Raises:
        UserError: a source is missing, all of its records are unusable, or the cache cannot be written or is damaged.
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
            self._build(sources[0], rows)
        self._open()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        """The row. Raises BadSample where the record cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index : index + 2].tolist()
        row = json.loads(os.pread(self._rows, end - start, start))  # not mapped: what was read is not kept
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

    def _build(self, source: str | Path, rows: Callable[[], Iterable[Any]]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):
                if not self._ends_path.is_file():
                    log.warning("reading %s for the first time", source)
                    self._write(source, rows())
        except OSError as error:
            raise UserError(
                f"{error.filename or self._path}: the index of {source} cannot be written ({error.strerror}); "
                "give another folder as XSAM_CACHE"
            ) from None

    def _write(self, source: str | Path, rows: Iterable[Any]) -> None:
        partial = self._path.with_suffix(".partial")
        ends, bad = [0], 0
        with partial.open("wb") as file:
            for row in rows:
                bad += isinstance(row, dict) and BAD in row
                file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
                ends.append(file.tell())
        if bad and bad == len(ends) - 1:
            raise UserError(f"{source}: none of its {bad} records can be used, the last: {row[BAD]}")
        partial.rename(self._path)
        with partial.open("wb") as file:
            np.save(file, np.array(ends, np.int64))
        partial.rename(self._ends_path)  # last: its presence says that all is there

    def _open(self) -> None:
        self._ends: np.ndarray = np.load(self._ends_path, mmap_mode="r")
        self._rows = os.open(self._path, os.O_RDONLY)  # shared with forked workers, who do not move each other's place
        weakref.finalize(self, os.close, self._rows)
        if os.fstat(self._rows).st_size != self._ends[-1]:
            raise UserError(f"{self._ends_path}: does not fit the rows beside it; delete it")

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._path = state["_path"]
        self._open()


def stream_json_list(path: str | Path) -> Iterator[Any]:
    """The values of a file that is one JSON list, parsed one after the other, so that memory holds one of them.

    Raises UserError where it cannot be read, is not a list, is damaged, or breaks off, with the place.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            yield from _Values(file, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None


class _Values:
    """A window on the file: `text` from character `at` on is what has not been parsed yet."""

    def __init__(self, file: TextIO, path: str | Path) -> None:
        self.file, self.path = file, path
        self.text, self.at, self.start, self.ended = "", 0, 0, False  # start: character of the file where `text` begins

    def __iter__(self) -> Iterator[Any]:
        if self.peek() != "[":
            raise UserError(f"{self.path}: not a JSON list; it is another kind of file")
        self.at += 1
        mark = self.peek()
        while mark != "]":
            self.peek()
            yield self.value()
            mark = self.peek()
            if mark not in (",", "]"):
                raise self.damage("is damaged" if mark else "the list breaks off")
            self.at += mark == ","
        self.at += 1
        if self.peek():
            raise self.damage("goes on after its list")

    def more(self) -> None:
        """Forget what has been parsed and read on; at least as much again, so that a long value costs linear time."""
        self.start += self.at
        self.text, self.at = self.text[self.at :], 0
        try:
            chunk = self.file.read(max(CHUNK, len(self.text)))
        except UnicodeDecodeError:
            raise self.damage("is not UTF-8 after what ends", len(self.text)) from None
        self.text += chunk
        self.ended = not chunk

    def peek(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while not (found := SOLID.search(self.text, self.at)):
            self.at = len(self.text)
            if self.ended:
                return ""
            self.more()
        self.at = found.start()
        return found[0]

    def value(self) -> Any:
        """The next value. What the window may have cut off is parsed again with more of the file."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end + NEAR < len(self.text) or self.ended:  # else the digits of a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                cut = error.pos + NEAR > len(self.text) or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise self.damage(f"is damaged ({error.msg})", error.pos) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.damage(f"cannot be parsed ({error})") from None
            self.more()

    def damage(self, what: str, at: int | None = None) -> UserError:
        place = self.start + (self.at if at is None else at)
        return UserError(f"{self.path}: {what} at character {place}; fetch or write the file anew")


def unique(name: str, number: int, seen: set[str]) -> str:
    """`name`, or with the record's number where an earlier record has it already; `seen` learns it."""
    while name in seen:
        name = f"{name}#{number}"
    seen.add(name)
    return name


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


def take_text(record: Any, key: str, what: str) -> str:
    """`record[key]`, stripped text that may go between the tags of a prompt. Raises BadSample as `take` does, and where
    it is empty or holds a tag or half a surrogate pair."""
    text: str = take(record, key, str, what).strip()
    if not text or TAGS.search(text) or SURROGATE.search(text):
        raise BadSample(f"{what}: {key!r} is {_short(text)}, not plain text")
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:37]}..."
