"""What readers share. They raise UserError where a file or folder is missing or of another kind, and BadSample, which
names the record and what is wrong, when one is asked for that cannot be used."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..structures import BadSample, UserError
from .index import REMEDY, Index, Rows, take
from .masks import segmentation_mask

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # of an image: PIL reads no larger one


def read_json(path: str | Path) -> Any:
    """Parse a JSON file. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); fetch or write the file anew") from None


def require_folder(path: str | Path) -> Path:
    """The path of a folder. Raises UserError when there is none."""
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder; {REMEDY}")
    return Path(path)


def take_size(record: Any, what: str) -> tuple[int, int]:
    """Height and width that a file states. Raises BadSample where they are no size of an image."""
    height, width = take(record, "height", int, what, 1), take(record, "width", int, what, 1)
    if height * width > MAX_PIXELS:
        raise BadSample(f"{what}: {height} x {width} pixels are more than an image can have")
    return height, width


def take_flag(record: dict[str, Any], key: str, default: int, what: str) -> bool:
    """A flag that is 0 or 1, or not there. Raises BadSample for anything else."""
    if (value := record.get(key, default)) not in (0, 1):
        raise BadSample(f"{what}: {key!r} is {str(value)[:40]!r}")
    return bool(value)


def read_mask(segmentation: Any, height: int, width: int, what: str, *, empty: bool = False) -> np.ndarray:
    """`segmentation_mask`, bool[H, W]. Raises BadSample where it is malformed, or has no pixel and may not be empty."""
    try:
        mask = segmentation_mask(segmentation, height, width)
    except ValueError as error:
        raise BadSample(f"{what}: {error}") from None
    if not empty and not mask.any():
        raise BadSample(f"{what}: the mask is empty")
    return mask


def take_id(record: Any, key: str) -> int | str | None:
    """An id; None where there is none that could be one."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def by_id(records: list[Any]) -> dict[Any, Any]:
    """The records whose id is there and the only one, so that none is taken for another."""
    ids = [take_id(record, "id") for record in records]
    counts = Counter(map(str, ids))
    return {id: record for id, record in zip(ids, records, strict=True) if id is not None and counts[str(id)] == 1}


def usable(records: Iterable[tuple[str, Any]], row: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
    """`row(record, what)`, which has an "id", of each record and its name `what` in messages, or its BadSample."""
    for what, record in records:
        try:
            made = row(record, what)
            yield str(made["id"]), made
        except BadSample as bad:
            yield "", bad


class Records:
    """A sequence of records: an index, and a folder of images."""

    def __init__(self, sources: Sequence[Path], images: str | Path, layout: str, rows: Rows) -> None:
        self.path, self.images = sources[0], require_folder(images)
        self._index = Index(sources, layout, rows)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def id(self, index: int) -> str:
        """The record's id, unique in its file; made up where it has none."""
        return str(self._index.ids[index])

    def tried(self) -> Iterator[tuple[str, Any]]:
        """The id of each record, and the record or the BadSample that says why it cannot be used."""
        for index in range(len(self)):
            try:
                yield self.id(index), self[index]
            except BadSample as bad:
                yield self.id(index), bad
