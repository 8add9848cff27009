"""Label maps: PNGs whose pixels are class numbers, as ADE20K, Cityscapes, Pascal VOC and PASCAL-Context have them."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..structures import BadSample, UserError
from .coco import Category, ImageSegments, check_categories, distinct
from .images import DAMAGE
from .index import REMEDY
from .masks import from_label_map
from .records import require_folder

NAMES = Path(__file__).parent / "names"


def read_names(names: str | Path) -> list[Category]:
    """Categories 0, 1, .. of a text file with one name per line, `*` before a thing: a list of `xsam/data/names` (such
    as "ade20k"), or a path that ends in `.txt`. Raises UserError where there is none, or a line is no name."""
    path = Path(names) if str(names).endswith(".txt") else NAMES / f"{names}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        shipped = ", ".join(sorted(file.stem for file in NAMES.glob("*.txt")))
        raise UserError(f"{path}: no list of class names; give a .txt file or one of {shipped}") from None
    if not lines:
        raise UserError(f"{path}: names no class; give one name per line")
    rows = [{"id": i, "name": line.lstrip("*"), "isthing": line.startswith("*")} for i, line in enumerate(lines)]
    return check_categories(path, rows)


class LabelMaps:
    """Images and their label maps in two folders: one record per image, sorted by name.

    An image is `images/NAME + image_suffix`, its map, of one channel, `labels/NAME + label_suffix`; NAME may begin with
    folders. `names`: see `read_names`. `first`: pixel value of the first class. `ignore`: pixel value of what belongs
    to no class and does not count. `split`: text file with one NAME per line; "" = all that the folders hold."""

    metrics: tuple[str, ...] = ("semantic",)  # that it can be the truth of

    def __init__(
        self, images: str | Path, labels: str | Path, names: str | Path, *, image_suffix: str = ".jpg",
        label_suffix: str = ".png", first: int = 0, ignore: int = 255, split: str | Path = "",
    ) -> None:  # fmt: skip
        self.images, self.labels = require_folder(images), require_folder(labels)
        self.categories, self.first, self.ignore = read_names(names), first, ignore
        self.image_suffix, self.label_suffix = image_suffix, label_suffix
        # names of either folder, so that an image without a map is noticed
        found = _lines(split) if split else _names(self.images, image_suffix) | _names(self.labels, label_suffix)
        if not found:
            raise UserError(f"{split or self.images}: names no image; {REMEDY}")
        self._names: np.ndarray = np.array(sorted(found))

    def __len__(self) -> int:
        return len(self._names)

    def id(self, index: int) -> str:
        """The name of an image, with the folders that it lies in."""
        return str(self._names[index])

    def segments(self, index: int) -> ImageSegments:
        """The image with one mask for each class that it shows."""
        path = self.labels / ((name := self.id(index)) + self.label_suffix)
        values, last = read_values(path), self.first + len(self.categories) - 1
        shown = [value for value in distinct(values) if value != self.ignore]
        if wrong := [value for value in shown if not self.first <= value <= last]:
            raise BadSample(f"{path}: has the value {wrong[0]}; classes are {self.first} to {last}")
        image, ids = str(self.images / (name + self.image_suffix)), tuple(value - self.first for value in shown)
        return ImageSegments(image, name, from_label_map(values, shown), ids, crowd=(False,) * len(shown))


def read_values(path: str | Path) -> np.ndarray:
    """The pixels of an image with one channel, int32[H, W]; of a palette its numbers, not its colours. Raises BadSample
    when the file is missing, damaged, or has several channels."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except DAMAGE as error:
        raise BadSample(f"{path}: cannot be read as a label map ({error}); replace or remove the file") from None
    if mode not in ("L", "P", "I") and not mode.startswith("I;16"):
        raise BadSample(f"{path}: is {mode}; a label map has one channel of class numbers")
    return pixels.astype(np.int32)


def _lines(path: str | Path) -> set[str]:
    try:
        return {line.strip() for line in Path(path).read_text("utf-8").splitlines()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of images ({error}); {REMEDY}") from None


def _names(folder: Path, suffix: str) -> set[str]:
    return {str(path.relative_to(folder)).removesuffix(suffix) for path in folder.rglob(f"[!.]*{suffix}")}
