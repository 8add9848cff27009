"""ReasonSeg: a folder of `X.jpg` with `X.json`, whose texts ask for something without naming it."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..structures import BadSample, UserError
from .images import image_size
from .index import REMEDY, take, take_text
from .records import read_json, require_folder, take_id


@dataclass(frozen=True, slots=True)
class ReasoningRecord:
    """An image, the ways to ask for one target in it, and the polygons around it."""

    id: str
    image: str  # path
    texts: tuple[str, ...]  # one or more that mean the same
    is_sentence: bool  # whether the texts are long questions; else phrases
    explanation: str  # "" = none
    shapes: tuple[tuple[bool, Any], ...]  # whether its pixels are to be ignored, and the points [x, y]

    def labels(self) -> np.ndarray:
        """uint8[H, W]: 1 = target, 255 = ignore, 0 = neither; a small polygon lies above a large one, as in LISA's
        code. Raises BadSample where a polygon is malformed or no pixel is target."""
        size = image_size(self.image)
        painted = [(paint_polygon(points, *size, self.id), ignore) for ignore, points in self.shapes[::-1]]
        labels = np.zeros(size, np.uint8)
        for mask, ignore in sorted(painted, key=lambda pair: pair[0].sum(), reverse=True):
            labels[mask] = 255 if ignore else 1
        if not (labels == 1).any():
            raise BadSample(f"{self.id}: no pixel is target")
        return labels


class ReasonSeg:
    """The folder of a split: a sequence of records in the order of their names, each read when it is asked for.
    `explanations` is `explanatory/train.json`; default: there are none."""

    def __init__(self, folder: str | Path, explanations: str | Path = "") -> None:
        self._files = sorted(require_folder(folder).glob("*.json"))
        if not self._files:
            raise UserError(f"{folder}: holds no *.json; {REMEDY}")
        rows = read_json(explanations) if explanations else []
        if not isinstance(rows, list) or not all(isinstance(take_id(row, "image"), str) for row in rows):
            raise UserError(f"{explanations}: not a list of explanations of images; it is another kind of file")
        self._explanations = {Path(row["image"]).stem: row for row in rows}

    def __len__(self) -> int:
        return len(self._files)

    def id(self, index: int) -> str:
        """The record's name, also of one that cannot be used."""
        return self._files[index].stem

    def __getitem__(self, index: int) -> ReasoningRecord:
        path, what = self._files[index], str(self._files[index])
        record = _read(path)
        shapes = [(take(shape, "label", str, what).lower(), shape) for shape in take(record, "shapes", list, what)]
        drawn = (("ignore" in label, take(shape, "points", list, what)) for label, shape in shapes if label != "flag")
        texts = tuple(take_text({"text": text}, "text", what) for text in take(record, "text", list, what) or [""])
        is_sentence, explanation = take(record, "is_sentence", bool, what), self._explanations.get(path.stem)
        why = take_text(explanation, "outputs", f"explanation of {path.stem}") if explanation else ""
        return ReasoningRecord(path.stem, str(path.with_suffix(".jpg")), texts, is_sentence, why, tuple(drawn))


def _read(path: Path) -> Any:
    """A JSON file in UTF-8, or as some of the published ones are in cp1252."""
    try:
        with suppress(UnicodeDecodeError):
            return json.loads(path.read_bytes().decode())
        return json.loads(path.read_bytes().decode("cp1252"))
    except OSError as error:
        raise BadSample(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{path}: not valid JSON ({error})") from None


def paint_polygon(points: Any, height: int, width: int, what: str) -> np.ndarray:
    """The pixels inside a polygon and on its outline, bool[H, W]; coordinates are cut to integers.

    Equal to OpenCV's `polylines` and `fillPoly` pixel for pixel for a polygon inside the image, where labelme keeps
    all points: the pixels between the crossings of a row, and those of lines drawn from their left end with halves
    rounded back. An edge that leaves the image is cut off here; OpenCV moves its end to the border first. Raises
    BadSample for a point that is not two numbers, or lies further from the image than the image is large."""
    far = max(height, width)
    try:
        plain = all(type(value) in (int, float) for x, y in points for value in (x, y))
        corners = np.array(points if plain else [], np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        raise BadSample(f"{what}: a polygon is not a list of points [x, y]") from None
    if not len(corners) or not (np.abs(corners - far / 2) <= 1.5 * far).all():
        raise BadSample(f"{what}: a polygon has no points, or one that is no place near the image")
    x, y = corners.astype(np.int64).T
    crossings, outline = np.zeros((height, width + 1), np.int64), np.zeros((height, width), bool)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        rows = np.arange(max(min(y0, y1), 0), min(max(y0, y1), height))  # a row belongs to the edge that begins at it
        if len(rows):
            columns = x0 - (y0 - rows) * (x1 - x0) // (y1 - y0)  # rounded up
            np.add.at(crossings, (rows, columns.clip(0, width)), 1)
        columns, rows = _line(x0, y0, x1, y1)
        seen = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        outline[rows[seen], columns[seen]] = True
    return outline | (crossings.cumsum(1)[:, :width] % 2 == 1)


def _line(x0: int, y0: int, x1: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a line one pixel wide (Bresenham), both ends included."""
    (x0, y0), (x1, y1) = sorted(((x0, y0), (x1, y1)))
    short, long = sorted((x1 - x0, abs(y1 - y0)))
    step = np.arange(long + 1)
    side = (2 * short * step + long - 1) // (2 * long) if long else step
    along, across = (step, side) if x1 - x0 == long else (side, step)
    return x0 + along, y0 + across * (1 if y1 >= y0 else -1)
