"""One's own data for referring segmentation: lines `{"image", "text", "segmentation": RLE | polygons | null}`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..structures import BadSample
from .index import json_lines, parse_line, take, take_text
from .refer import Expressions


class JsonLines(Expressions):
    """A sequence of images with expressions, in the order in which the file first names them.

    Lines with the same image and text are one expression with several masks; null says that nothing in the image fits.
    A line that cannot be used is a record. `images`: where image paths start from; default: the file's folder."""

    def __init__(self, annotations: str | Path, images: str | Path = "") -> None:
        path = Path(annotations)
        super().__init__([path], images or path.parent, "jsonl 3", lambda: _rows(path))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    found: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}  # image -> text -> first line, objects
    for what, line in json_lines(path):
        name = what.rpartition(", ")[2]
        try:
            record = parse_line(line, what)
            text, image = take_text(record, "text", what).lower(), take(record, "image", str, what)
            segmentation = take(record, "segmentation", (list, dict, type(None)), what)
            first, objects = found.setdefault(image, {}).setdefault(text, (name, {}))
            if first != name and (segmentation is None or not objects):
                raise BadSample(f"{what}: {first} has this image and text too, and one of the two is null")
            if segmentation is not None:
                objects[what] = segmentation
        except BadSample as bad:
            yield "", bad
    for image, texts in found.items():
        everything = {name: mask for _, objects in texts.values() for name, mask in objects.items()}
        expressions = [[first, {text: ""}, list(objects)] for text, (first, objects) in texts.items()]
        yield image, {"image": image, "size": None, "objects": everything, "expressions": expressions}
