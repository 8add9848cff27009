"""Images: read from disk, and resized for the two encoders. Pixels stay uint8; the device normalises them."""

import base64
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..structures import BadSample, UserError

# a path (or data URI), PIL's, uint8[H, W, 3] or [H, W], uint8 or float (0 to 1) [3, H, W]
Picture: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor

PAD_COLOUR = 127  # int(255 * 0.5), the mean of SigLIP's normalisation
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# what PIL raises for a damaged file, according to the format and to where the damage is
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: str | Path) -> np.ndarray:
    """Read any image file, or one that is written out as `data:image/jpeg;base64,..`, as RGB, uint8[H, W, 3].

    EXIF orientation is not applied, as annotations are drawn on the pixels as stored; transparency is dropped, 16-bit
    grey scaled to 8 bits. Raises BadSample when the file is missing, truncated or no image."""
    with _opened(path) as image:
        return np.array(_rgb(image))


def image_source(picture: Picture) -> str:
    """A picture as `Sample.image` has it: the path as it is, or pixels as the data URI of a file without compression.
    Raises UserError for another type, shape or range, BadSample where PIL cannot read the pixels."""
    if isinstance(picture, str | Path):
        return str(picture)
    what = f"{type(picture).__name__} {getattr(picture, 'dtype', '')} {[*getattr(picture, 'shape', ())]}"
    if isinstance(picture, Tensor):
        if picture.is_floating_point() and picture.numel() and 0 <= picture.min() <= picture.max() <= 1:
            picture = (picture * 255).round().byte()
        if picture.dtype == torch.uint8 and picture.ndim == 3:
            picture = picture.permute(1, 2, 0).cpu().numpy()
    if isinstance(picture, np.ndarray) and picture.size and picture.dtype == np.uint8:
        picture = Image.fromarray(picture) if picture.ndim == 2 or picture.shape[2:] == (3,) else picture
    if not isinstance(picture, Image.Image):
        raise UserError(f"an image is a path, PIL's, uint8[H, W, 3] or a tensor [3, H, W] of uint8 or 0..1, not {what}")
    with _readable("the image"):
        _rgb(picture).save(file := BytesIO(), "PPM")
    return f"data:image/x-portable-pixmap;base64,{base64.b64encode(file.getbuffer()).decode()}"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) from the header of an image file. Raises BadSample as `read_image` does, but not for damaged pixels."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    inline = str(path).startswith("data:")
    name, _, data = str(path).partition(",") if inline else (str(path), "", "")
    with _readable(name), Image.open(BytesIO(base64.b64decode(data, validate=True)) if inline else path) as image:
        yield image


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Damage as BadSample."""
    try:
        yield
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else reason
        raise BadSample(f"{name}: cannot be read as an image ({reason}); replace or remove the file") from None


def longest_side_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (h, w) of an image whose longer side becomes `side`; rounds half up, keeps at least one pixel."""
    longest = max(height, width)
    return max(1, int(height * side / longest + 0.5)), max(1, int(width * side / longest + 0.5))


def fit_frame(image: np.ndarray, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8[H, W, 3] -> the segmentation frame, uint8[3, side, side], bilinear to the longest side, zeros right and
    below (also after normalising), and the (h, w) that the image covers."""
    height, width = longest_side_size(image.shape[0], image.shape[1], side)
    frame = np.zeros((3, side, side), np.uint8)
    frame[:, :height, :width] = _resize(image, height, width, "bilinear").transpose(2, 0, 1)
    return frame, (height, width)


def vision_image(image: np.ndarray, side: int, geometry: str, resample: str) -> np.ndarray:
    """uint8[H, W, 3] -> uint8[3, side, side] for the vision encoder. "pad" centres the image on a grey square first and
    keeps its aspect, "squash" does not."""
    if geometry == "pad":
        height, width = image.shape[:2]
        longest = max(height, width)
        top, left = (longest - height) // 2, (longest - width) // 2
        margins = (top, longest - height - top), (left, longest - width - left), (0, 0)
        image = np.pad(image, margins, constant_values=PAD_COLOUR)
    return np.ascontiguousarray(_resize(image, side, side, resample).transpose(2, 0, 1))


def _resize(image: np.ndarray, height: int, width: int, resample: str) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), _RESAMPLE[resample]))
