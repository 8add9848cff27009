"""Pictures of results: masks over the image, names inside them, a strip with the question and the answer."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from PIL.ImageFont import FreeTypeFont as Font
from PIL.ImageFont import load_default

SIDE = 640  # a picture whose longer side is smaller is enlarged towards this, so that names can be read
OPACITY = 0.40  # of the fill of a mask
SHADES = ((0.75, 1.0), (0.45, 1.0), (0.90, 0.80), (0.55, 0.85), (0.95, 1.0))  # (saturation, value)
Color = tuple[int, int, int]
Span = tuple[int, int, Color]  # begin and end in a text


def draw_segments(image: np.ndarray, segments: Sequence[tuple[np.ndarray, str, float]],
                  side: int = SIDE) -> Image.Image:  # fmt: skip
    """The image uint8[H, W, 3] with its segments (mask bool[H, W], label, score) drawn over it.

    Segment i has the colour `color(i)`; large masks lie below small ones. A name stands inside its mask, beside it if
    the mask is too small, and on no other name as far as there is room. A score of 1, as of ground truth, is not
    written. An image whose longer side is below `side` is enlarged by a whole number."""
    height, width = image.shape[:2]
    scale = max(1, round(side / max(height, width)))
    size = width * scale, height * scale
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    areas = [mask.sum() for mask, _, _ in segments]
    order = sorted(np.flatnonzero(areas).tolist(), key=lambda number: -areas[number])
    masks = {number: _soft(segments[number][0], size) for number in order}
    for number, mask in masks.items():
        _fill(picture, mask, color(number), line=2 * max(1, round(max(size) / 320)) + 1)
    taken = np.zeros((size[1], size[0]), bool)
    for number, mask in masks.items():
        _, label, score = segments[number]
        if text := (label if score == 1 else f"{label} {score:.2f}".strip()):
            _write_name(picture, np.asarray(mask) > 0, text, color(number), taken)
    return picture


def draw_title(picture: Image.Image, question: str, answer: str = "", spans: Sequence[Span] = ()) -> Image.Image:
    """A new picture with a strip above: the question in grey, below it the answer in black, both wrapped. Each of the
    spans of the answer lies on its colour, made lighter."""
    font = _font(picture)
    margin, step = round(font.size * 0.8), round(font.size * 1.4)
    lines: list[tuple[str, Color, Sequence[Span]]] = []
    for text, ink, marks in ((question, (110, 110, 110), ()), (answer, (20, 20, 20), spans)):
        lines += [(row, ink, marks) for row in _wrap(text, font, picture.width - 2 * margin)]
    top = len(lines) * step + margin
    titled = Image.new("RGB", (picture.width, top + picture.height), "white")
    titled.paste(picture, (0, top))
    draw, place = ImageDraw.Draw(titled), 0
    for number, (row, ink, marks) in enumerate(lines):
        y = margin // 2 + (number + 0.5) * step
        place = answer.find(row, place) if marks else 0  # where the row begins
        for begin, end, light in marks:
            first, last = (min(max(edge - place, 0), len(row)) for edge in (begin, end))
            x0, x1 = (margin + font.getlength(row[:edge]) for edge in (first, last))
            if first < last:
                box = x0, y - 0.45 * step, x1, y + 0.45 * step
                draw.rounded_rectangle(box, font.size // 4, tuple((255 + value) // 2 for value in light))
        draw.text((margin, y), row, ink, font, anchor="lm")
    return titled


def color(number: int) -> Color:
    """RGB of segment `number`: hues a golden ratio apart, so that neighbours differ."""
    saturation, value = SHADES[number % len(SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * 0.618034) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _font(picture: Image.Image) -> Font:
    return load_default(max(12, round(max(picture.size) / 48)))  # Pillow's own: the same picture on every machine


def _soft(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A mask as L image of `size`, edges smooth instead of in steps."""
    enlarged = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    smooth = enlarged.filter(ImageFilter.GaussianBlur(0.45 * size[0] / mask.shape[1]))
    hard = smooth.point(lambda value: 255 * (value > 110))  # below one half: a mask of one pixel survives
    return hard.filter(ImageFilter.GaussianBlur(0.6))


def _fill(picture: Image.Image, mask: Image.Image, ink: Color, line: int) -> None:
    """Colour the inside lightly and draw a line along the inner edge, with a thin white one around it."""
    picture.paste(ink, mask=mask.point(lambda value: round(OPACITY * value)))
    picture.paste((255, 255, 255), mask=ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(3)), mask))
    picture.paste(ink, mask=ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(line))))


def _write_name(picture: Image.Image, mask: np.ndarray, text: str, ink: Color, taken: np.ndarray) -> None:
    """Write a name in a box of the mask's colour at the best place, and note the place in `taken`."""
    draw, font = ImageDraw.Draw(picture), _font(picture)
    gap, pad = font.size // 4, font.size // 3
    inner = round(draw.textlength(text, font)) + 2 * pad, round(1.2 * font.size) + pad
    width, height = min(inner[0] + 2 * gap, picture.width), min(inner[1] + 2 * gap, picture.height)
    x, y = _place(mask, taken, width, height)
    taken[y : y + height, x : x + width] = True
    box = (x + gap, y + gap, x + width - gap - 1, y + height - gap - 1)
    draw.rounded_rectangle(box, font.size // 3, ink, (255, 255, 255))
    dark = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] < 140  # luma of ITU-R BT.601
    draw.text((x + gap + pad, y + height / 2), text, "white" if dark else "black", font, anchor="lm")


def _place(mask: np.ndarray, taken: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Corner (x, y) of a box in the mask and near its middle, or near it but not on it where the box would hide it.

    Above all it is not where another name stands."""
    area = width * height
    inside = 1.0 if mask.sum() > 2 * area else -1.0
    rows, columns = np.nonzero(mask)
    cover = _box_sums(mask, width, height)
    y, x = np.ogrid[: cover.shape[0], : cover.shape[1]]
    far = np.hypot(y + height / 2 - rows.mean(), x + width / 2 - columns.mean()) / max(mask.shape)
    value = inside * cover / area - far - 3 * _box_sums(taken, width, height) / area
    best = np.unravel_index(value.argmax(), value.shape)
    return int(best[1]), int(best[0])


def _box_sums(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Pixels of the mask under a box of that size at every place, int[H - height + 1, W - width + 1]."""
    sums = np.pad(mask.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]


def _wrap(text: str, font: Font, room: int) -> list[str]:
    """Lines of at most `room` pixels, broken between words; a single longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
