"""Label maps: PNGs whose pixels are class numbers, as ADE20K, Cityscapes, Pascal VOC and PASCAL-Context have them."""

from dataclasses import replace
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
    # labelme writes "_background_"
    rows = [{"id": i, "name": line.strip("*_"), "isthing": line.startswith("*")} for i, line in enumerate(lines)]
    return check_categories(path, rows)


class LabelMaps:
    """Images and their label maps in two folders: one record per image, sorted by name.

    An image is `images/NAME + image_suffix`, its map, of one channel, `labels/NAME + label_suffix`; NAME may begin with
    folders, `image_suffix` may be "", which is any. `names`: see `read_names`. `first`: pixel value of the first class.
    `ignore`: pixel value of what belongs to no class and does not count. `split`: text file with one NAME per line;
    "" = all that the folders hold. `objects`: folder of maps that number the objects of an image, 0 = none; then all
    classes but "background" are things."""

    metrics: tuple[str, ...] = ("semantic",)  # that it can be the truth of

    def __init__(
        self, images: str | Path, labels: str | Path, names: str | Path, *, image_suffix: str = ".jpg",
        label_suffix: str = ".png", first: int = 0, ignore: int = 255, split: str | Path = "",
        objects: str | Path = "",
    ) -> None:  # fmt: skip
        self.images, self.labels = require_folder(images), require_folder(labels)
        self.categories, self.first, self.ignore = read_names(names), first, ignore
        self.image_suffix, self.label_suffix = image_suffix, label_suffix
        self.objects = require_folder(objects) if objects else None
        if objects:
            self.metrics = ("panoptic", "instance", "semantic")
            self.categories = [replace(c, is_thing=c.name != "background") for c in self.categories]
        self._images = {} if split else _named(self.images, image_suffix)
        # names of either folder, so that an image without a map is noticed
        found = _lines(split) if split else self._images.keys() | _named(self.labels, label_suffix).keys()
        if not found:
            raise UserError(f"{split or self.images}: names no image; {REMEDY}")
        self._names: np.ndarray = np.array(sorted(found))

    def __len__(self) -> int:
        return len(self._names)

    def id(self, index: int) -> str:
        """The name of an image, with the folders that it lies in."""
        return str(self._names[index])

    def segments(self, index: int) -> ImageSegments:
        """The image with one mask for each class that it shows, or for each object and each class besides them."""
        path = self.labels / ((name := self.id(index)) + self.label_suffix)
        values, last = read_values(path), self.first + len(self.categories) - 1
        shown = [value for value in distinct(values) if value != self.ignore]
        if wrong := [value for value in shown if not self.first <= value <= last]:
            raise BadSample(f"{path}: has the value {wrong[0]}; classes are {self.first} to {last}")
        if self.objects:
            numbers = read_values(path := self.objects / (name + self.label_suffix))
            if numbers.shape != values.shape:
                raise BadSample(f"{path}: is {numbers.shape}, the map of classes {values.shape}")
            values = np.where(values == self.ignore, -1, values + (numbers.astype(np.int64) << 16))
            shown = [value for value in distinct(values) if value >= 0]
            owned = [value >> 16 for value in shown if value >> 16]
            if twice := [number for number in owned if owned.count(number) > 1]:
                raise BadSample(f"{path}: object {twice[0]} has more than one class")
        ids, crowd = tuple(value % (1 << 16) - self.first for value in shown), (False,) * len(shown)
        image = self._images.get(name, str(self.images / (name + (self.image_suffix or ".jpg"))))
        return ImageSegments(image, name, from_label_map(values, shown), ids, crowd)


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


def _named(folder: Path, suffix: str) -> dict[str, str]:
    """The files below a folder that end in `suffix`, "" = all images, by their names without it."""
    known, found = [suffix] if suffix else Image.registered_extensions(), dict[str, str]()
    for path in sorted(path for path in folder.rglob(f"[!.]*{suffix}") if (suffix or path.suffix.lower()) in known):
        name = str(path.relative_to(folder)).removesuffix(suffix or path.suffix)
        if name in found:
            raise UserError(f"{path}: {found[name]} has this name, too; give every image a name of its own")
        found[name] = str(path)
    return found
