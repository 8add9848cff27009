"""What an answer is: masks with names, text whose phrases point at them, and the files that other tools read."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data.coco import segment_row
from .data.masks import encode_rle, mask_box, write_panoptic_png
from .structures import RLE
from .visualize import SIDE, color, draw_segments, draw_title

LONGEST = 24  # characters of a name in a picture


@dataclass(frozen=True, slots=True)
class Found:
    """One mask and what it is."""

    mask: np.ndarray  # bool[H, W], not empty
    label: str
    score: float
    span: tuple[int, int] = (0, 0)  # characters of `Result.text` that speak of it; equal: none do
    is_thing: bool = True  # something countable; else stuff, all of it in one mask

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels, maximum exclusive."""
        return mask_box(self.mask)

    @property
    def rle(self) -> RLE:
        """The mask in COCO's run-length code."""
        return encode_rle(self.mask)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one question about one image."""

    image: np.ndarray  # uint8[H, W, 3]
    name: str  # of the image's file; "" if it came as pixels
    question: str  # in the words of the caller
    text: str = ""  # what the model wrote, without tags
    found: tuple[Found, ...] = ()
    seconds: float = 0.0  # that the answer took; a batch shares them

    @property
    def masks(self) -> np.ndarray:
        """bool[N, H, W]."""
        return np.array([found.mask for found in self.found], bool).reshape(-1, *self.image.shape[:2])

    @property
    def boxes(self) -> np.ndarray:
        """int64[N, 4], see `Found.box`."""
        return np.array([found.box for found in self.found], np.int64).reshape(-1, 4)

    @property
    def labels(self) -> list[str]:
        return [found.label for found in self.found]

    @property
    def scores(self) -> list[float]:
        return [found.score for found in self.found]

    def picture(self, title: bool = True, side: int = SIDE) -> Image.Image:
        """The image with its masks, as `draw_segments` draws them, below a strip with question and text, whose phrases
        have the colours of their masks."""
        short = [x if len(x) <= LONGEST else f"{x[: LONGEST - 3]}..." for x in self.labels]
        picture = draw_segments(
            self.image, [(f.mask, x, f.score) for f, x in zip(self.found, short, strict=True)], side
        )
        spans = [(*found.span, color(number)) for number, found in enumerate(self.found)]
        return draw_title(picture, self.question, self.text, spans) if title else picture

    def show(self) -> None:
        """Open the picture in the desktop's viewer. A notebook shows a result by itself."""
        self.picture().show()

    def save(self, path: str | Path) -> None:
        """Write the picture; the file's ending names the format."""
        self.picture().save(path)

    def _repr_png_(self) -> bytes:
        self.picture().save(data := io.BytesIO(), "PNG")
        return data.getvalue()

    def to_coco(self) -> dict[str, Any]:
        """A COCO instances file: image 1, an annotation for every mask, with its score, and the labels as categories in
        the order of the alphabet. "info" has question and text."""
        height, width = self.image.shape[:2]
        number, rows = self._categories(), []
        things = {found.label for found in self.found if found.is_thing}
        for n, found in enumerate(self.found, start=1):
            row = segment_row(n, number[found.label], found.mask)
            rows.append(row | {"image_id": 1, "segmentation": found.rle, "score": found.score})
        return {
            "info": {"question": self.question, "text": self.text},
            "images": [{"id": 1, "file_name": self.name, "height": height, "width": width}],
            "annotations": rows,
            "categories": [{"id": n, "name": name, "isthing": int(name in things)} for name, n in number.items()],
        }

    def to_panoptic(self, path: str | Path) -> dict[str, Any]:
        """Write COCO's panoptic PNG to `path` and give its annotation. Ids are those of `to_coco`; where masks overlap,
        the higher score lies on top, and what is hidden is left out."""
        ids, number = np.zeros(self.image.shape[:2], np.int32), self._categories()
        for place in np.argsort(self.scores, kind="stable").tolist():
            ids[self.found[place].mask] = place + 1
        write_panoptic_png(path, ids)
        shown = [(n, found) for n, found in enumerate(self.found, start=1) if (ids == n).any()]
        rows = [segment_row(n, number[found.label], ids == n) for n, found in shown]
        return {"image_id": 1, "file_name": Path(path).name, "segments_info": rows}

    def to_json(self) -> dict[str, Any]:
        """Everything but the pixels, as JSON can have it."""
        rows = [
            {"label": f.label, "score": f.score, "box": [*f.box], "span": [*f.span], "is_thing": f.is_thing}
            | {"segmentation": f.rle} for f in self.found
        ]  # fmt: skip
        head = {"image": self.name, "size": [*self.image.shape[:2]], "question": self.question, "text": self.text}
        return head | {"seconds": self.seconds, "found": rows}

    def to_labelme(self) -> dict[str, Any]:
        """A LabelMe file (5.2 or later) of "mask" shapes, which keep holes: each a PNG of its box."""
        shapes: list[dict[str, Any]] = []
        for found in self.found:
            x0, y0, x1, y1 = found.box
            Image.fromarray(found.mask[y0:y1, x0:x1].astype(np.uint8)).save(png := io.BytesIO(), "PNG")
            row = {"label": found.label, "shape_type": "mask", "points": [[x0, y0], [x1 - 1, y1 - 1]]}
            shapes.append(row | {"mask": base64.b64encode(png.getvalue()).decode(), "group_id": None, "flags": {}})
        size = {"imageHeight": self.image.shape[0], "imageWidth": self.image.shape[1]}
        return size | {"version": "5.2.0", "flags": {}, "shapes": shapes, "imagePath": self.name, "imageData": None}

    def _categories(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(sorted(set(self.labels)), start=1)}
