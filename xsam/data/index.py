"""Annotation files of any size: parsed once into rows on disk, which no process or worker holds in its memory."""

import hashlib
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..structures import BadSample, UserError

log = logging.getLogger("xsam")

REMEDY = "`xsam data prepare shapes` writes the embedded world, data/README.md says where other datasets go"
BAD = "not usable"  # the only key of a row that stands for a record which cannot be used; its value says why
LONGEST_ID = 255  # characters; the rest of a longer one is cut off
CHUNK = 1 << 20  # characters of a JSON list that are read at a time
LONGEST = 1 << 26  # characters: what cannot be parsed even with so many is not cut off, but damaged
DECODER, BLANK = json.JSONDecoder(), " \t\n\r"
OPENING, SEPARATOR = re.compile(rf"[{BLANK}]*\[[{BLANK}]*(]?)"), re.compile(rf"[{BLANK}]*([],])[{BLANK}]*")
ANEW = "fetch or write the file anew"
TAGS = re.compile(r"</?p>|<SEG>|<image>|<region>")  # what a prompt gives a meaning
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half a character, which no tokenizer takes
Rows = Callable[[], Iterable[tuple[str | None, Any]]]


class Index:
    """Rows of an annotation file: an immutable sequence of JSON values, each parsed when it is asked for, with `ids`.

    They are written under `$XSAM_CACHE` (default `~/.cache/xsam`), by one process at a time, and anew when a source or
    `layout` (name and version of what `rows` makes, with all arguments that decide it) changes. `rows` gives the id
    ("" = it has none) and the row of each record, or the BadSample that says why it cannot be used, and at last maybe
    None and what is `known` of all. Raises UserError where a source is missing, all records are unusable, or the cache
    is damaged or cannot be written."""

    ids: np.ndarray  # str[N], unique; on disk

    def __init__(self, sources: Sequence[str | Path], layout: str, rows: Rows) -> None:
        stamp = ["ids", layout]  # an index without ids is an older one
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
        return len(self.ids)

    def __getitem__(self, index: int) -> Any:
        """The row. Raises BadSample where the record cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._read(index)
        if isinstance(row, dict) and BAD in row:
            raise BadSample(row[BAD])
        return row

    def _read(self, line: int) -> Any:
        start, end = self._ends[line : line + 2].tolist()
        return json.loads(os.pread(self._rows, end - start, start))  # not mapped: what was read is not kept

    @property
    def known(self) -> Any:
        """What is known of all records; None if nothing is."""
        return self._read(len(self))

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], bytes of each row: a measure of how long its text is."""
        return np.diff(self._ends)[: len(self)]

    def __getstate__(self) -> Path:
        return self._path

    def __setstate__(self, path: Path) -> None:
        self._path, ends_path = path, path.with_suffix(".npy")
        self._ends: np.ndarray = np.load(ends_path, mmap_mode="r")
        self.ids = np.load(path.with_suffix(".ids.npy"), mmap_mode="r")[:-1]
        self._rows = os.open(path, os.O_RDONLY)  # shared with forked workers, who do not move each other's place
        weakref.finalize(self, os.close, self._rows)
        if os.fstat(self._rows).st_size != self._ends[-1]:
            raise UserError(f"{ends_path}: does not fit the rows beside it; delete it")


def _build(path: Path, source: str | Path, rows: Rows) -> None:
    partial, seen, ids, ends, bad, why = path.with_suffix(".partial"), set[str](), list[str](), [0], 0, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.with_suffix(".npy").is_file():
                return
            log.warning("reading %s for the first time", source)
            with partial.open("wb") as file:
                for id, row in chain(rows(), [(None, None)]):
                    if isinstance(row, BadSample):
                        bad, why, row = bad + 1, str(row), {BAD: str(row)}
                    if id is not None:
                        ids.append(unique(id[:LONGEST_ID] or f"record {len(ids)}", len(ids), seen))
                    file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
                    ends.append(file.tell())
            if bad and bad == len(ids):
                raise UserError(f"{source}: none of its {bad} records can be used, the last: {why}")
            partial.rename(path)
            for suffix, array in ((".ids.npy", np.array([*ids, ""])), (".npy", np.array(ends, np.int64))):
                with partial.open("wb") as file:
                    np.save(file, array)
                partial.rename(path.with_suffix(suffix))  # .npy last: its presence says that all is there
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


def json_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each after its name in messages; `parse_line` reads one."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path.name}, line {number}", line


def parse_line(line: bytes, what: str) -> Any:
    """Raises BadSample where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{what}: not valid JSON ({error})") from None


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
