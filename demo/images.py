"""Bytes of a stranger to pixels in bounded memory, and pixels to what a browser shows."""

import base64
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from xsam.data.images import DAMAGE, image_source, read_image
from xsam.structures import UserError

BYTES = 20 * 2**20  # of a file at most
DECODED = 50_000_000  # pixels of a file at most, 200 MB in memory: a photo of a good phone
PIXELS, SHRUNK = 2**22, 2**21  # of an image that is asked about by REST, on the page; the model sees 2**20 at most
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # few decoders, few surprises


def decode(data: bytes, shrink: bool) -> np.ndarray:
    """uint8[H, W, 3] of an image file as it is stored; with `shrink` upright (EXIF) and made smaller where necessary.
    Raises UserError for a file that is too large, damaged, or in none of `FORMATS`."""
    if len(data) > BYTES:
        raise UserError(f"the file has {len(data) / 2**20:.0f} MB; at most {BYTES >> 20} MB are taken")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=FORMATS) as image:
            most = DECODED if shrink else PIXELS
            if image.width * image.height > most:
                size = f"{image.width} x {image.height}"
                raise UserError(f"the image has {size} pixels; at most {most / 1e6:.0f} million are taken")
            if not shrink:
                return read_image(image_source(image))
            image.draft("RGB", (2048, 2048))  # a large JPEG is decoded at a half, a quarter, .. of its size
            upright = ImageOps.exif_transpose(image)
            scale = (SHRUNK / (upright.width * upright.height)) ** 0.5
            if scale < 1:
                upright = upright.resize((max(1, int(upright.width * scale)), max(1, int(upright.height * scale))))
            return read_image(image_source(upright))
    except DAMAGE:
        names = ", ".join(FORMATS)
        raise UserError(f"this is no image that can be read; give a whole file of {names}") from None


def data_uri(image: Image.Image, side: int = 0) -> str:
    """A PNG for `src` or `href`; with `side` a JPEG whose longer side is that at most."""
    if side:
        image.thumbnail((side, side))
    kind = "JPEG" if side else "PNG"
    image.save(file := BytesIO(), kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getbuffer()).decode()}"
