"""One's own data for referring segmentation: lines `{"image", "text", "segmentation": RLE | polygons | null}`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..structures import BadSample
from .index import bad_row, take, take_text
from .refer import Expressions


class JsonLines(Expressions):
    """A sequence of images with expressions, in the order in which the file first names them.

    Lines with the same image and text are one expression with several masks; null says that nothing in the image
    fits the text. A line that cannot be used is a record of its own which raises BadSample with the line's number.

    Args:
        annotations: the file. UserError where it is missing or none of its lines can be used.
        images: the folder that image paths start from; default: the file's own.
    """

    def __init__(self, annotations: str | Path, images: str | Path = "") -> None:
        path = Path(annotations)
        super().__init__([path], images or path.parent, "jsonl 1", lambda: _rows(path))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    found: dict[str, dict[str, tuple[int, list[Any]]]] = {}  # image -> text -> first line, objects
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            what = f"{path.name}, line {number}"
            try:
                image, text, segmentation = _line(line, what)
                first, objects = found.setdefault(image, {}).setdefault(text, (number, []))
                if first != number and (segmentation is None or not objects):
                    raise BadSample(f"{what}: line {first} has this image and text too, and one of the two is null")
            except BadSample as error:
                yield bad_row(str(error))
                continue
            objects += [] if segmentation is None else [[what, segmentation]]
    for image, texts in found.items():
        everything = [row for _, objects in texts.values() for row in objects]
        yield {
            "id": image,
            "image": image,
            "size": None,
            "objects": everything,
            "expressions": [
                [f"line {first}", {text: ""}, [everything.index(row) for row in objects]]
                for text, (first, objects) in texts.items()
            ],
        }


def _line(line: bytes, what: str) -> tuple[str, str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{what}: not valid JSON ({error})") from None
    text = take_text(record, "text", what).lower()
    return take(record, "image", str, what), text, take(record, "segmentation", (list, dict, type(None)), what)
