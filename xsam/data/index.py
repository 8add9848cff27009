"""Annotation files of any size: parsed once into rows on disk, which no process or worker holds in its memory."""

import hashlib
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..structures import BadSample, UserError

log = logging.getLogger("xsam")

REMEDY = "`xsam data prepare shapes` writes the embedded world, data/README.md says where other datasets go"
BAD = "not usable"  # the only key of a row that stands for a record which cannot be used; its value says why
CHUNK = 1 << 20  # characters of a JSON list that are read at a time
LONGEST = 1 << 26  # characters: what cannot be parsed even with so many is not cut off, but damaged
DECODER, BLANK = json.JSONDecoder(), " \t\n\r"
OPENING, SEPARATOR = re.compile(rf"[{BLANK}]*\[[{BLANK}]*(]?)"), re.compile(rf"[{BLANK}]*([],])[{BLANK}]*")
ANEW = "fetch or write the file anew"
TAGS = re.compile(r"</?p>|<SEG>|<image>|<region>")  # what a prompt gives a meaning
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half a character, which no tokenizer takes


class Index:
    """Rows of an annotation file: an immutable sequence of JSON values, each parsed when it is asked for.

    They are written under `$XSAM_CACHE` (default `~/.cache/xsam`), by one process at a time, and anew when a source or
    `layout` (name and version of what `rows` makes, with all arguments that decide it) changes. A BadSample among
    `rows` says why a record cannot be used. Raises UserError where a source is missing, all records are unusable, or
    the cache is damaged or cannot be written."""

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
        path = folder / f"{Path(sources[0]).stem}-{name}.jsonl"
        if not path.with_suffix(".npy").is_file():
            _build(path, sources[0], rows)
        self.__setstate__(path)

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

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], bytes of each row: a measure of how long its text is."""
        return np.diff(self._ends)

    def __getstate__(self) -> Path:
        return self._path

    def __setstate__(self, path: Path) -> None:
        self._path, ends_path = path, path.with_suffix(".npy")
        self._ends: np.ndarray = np.load(ends_path, mmap_mode="r")
        self._rows = os.open(path, os.O_RDONLY)  # shared with forked workers, who do not move each other's place
        weakref.finalize(self, os.close, self._rows)
        if os.fstat(self._rows).st_size != self._ends[-1]:
            raise UserError(f"{ends_path}: does not fit the rows beside it; delete it")


def _build(path: Path, source: str | Path, rows: Callable[[], Iterable[Any]]) -> None:
    partial, ends, bad, why = path.with_suffix(".partial"), [0], 0, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.with_suffix(".npy").is_file():
                return
            log.warning("reading %s for the first time", source)
            with partial.open("wb") as file:
                for row in rows():
                    if isinstance(row, BadSample):
                        bad, why, row = bad + 1, str(row), {BAD: str(row)}
                    file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
                    ends.append(file.tell())
            if bad and bad == len(ends) - 1:
                raise UserError(f"{source}: none of its {bad} records can be used, the last: {why}")
            partial.rename(path)
            with partial.open("wb") as file:
                np.save(file, np.array(ends, np.int64))
            partial.rename(path.with_suffix(".npy"))  # last: its presence says that all is there
    except OSError as error:
        what = f"{error.filename or path}: the index of {source} cannot be written ({error.strerror})"
        raise UserError(f"{what}; give another folder as XSAM_CACHE") from None


def stream_json_list(path: str | Path) -> Iterator[Any]:
    """The values of a file that is one JSON list, parsed one after the other, so that memory holds one of them. Raises
    UserError where it cannot be read, is not a list, is damaged, or breaks off, with the place."""
    text, read = "", 0  # the last of so many characters that have been read
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read(CHUNK)
            read, start = len(text), OPENING.match(text)
            if not start:
                raise UserError(f"{path}: not a JSON list; it is another kind of file")
            at, mark = start.end(), start[1]
            while mark != "]":
                following = None
                try:
                    value, place = DECODER.raw_decode(text, at)
                    following, why = SEPARATOR.match(text, place), "no comma and no end of the list"
                except (ValueError, RecursionError) as error:  # without pos: thousands of digits, thousands of brackets
                    place, why = getattr(error, "pos", at), getattr(error, "msg", str(error))
                if following:
                    yield value
                    at, mark = following.end(), following[1]
                elif len(text) - at < LONGEST and (chunk := file.read(max(CHUNK, len(text) - at))):
                    read += len(chunk)
                    text, at = (text[at:] + chunk).lstrip(BLANK), 0
                else:
                    raise UserError(f"{path}: is damaged at character {read - len(text) + place} ({why}); {ANEW}")
            if (text[at:] + file.read(CHUNK)).strip(BLANK):
                raise UserError(f"{path}: goes on after its list at character {read - len(text) + at}; {ANEW}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 somewhere after character {read}; {ANEW}") from None


def unique(name: str, number: int, seen: set[str]) -> str:
    """`name`, or with the record's number where an earlier record has it already; `seen` learns it."""
    while name in seen:
        name = f"{name}#{number}"
    seen.add(name)
    return name


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
    return f"{text[:37]}..." if len(text := repr(value)) >= 40 else text
