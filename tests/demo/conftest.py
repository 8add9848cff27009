"""The miniature with random weights behind the page; what it is asked is noted."""

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xsam.api import XSam, load
from xsam.result import Found, Result


class Noted(XSam):
    """Random weights have nothing to say: what is generated is given here."""

    asked: list[Any]

    def interact(self, images: Any, **prompt: Any) -> Any:
        self.asked.append(prompt)
        return super().interact(images, **prompt)

    def ground(self, images: Any, regions: Any, **more: Any) -> Any:
        self.asked.append((regions, np.shape(more["reference"])))
        return super().ground(images, regions, **more)

    def describe(self, images: Any, max_new_tokens: int = 0) -> Any:
        mask = np.zeros(images.shape[:2], bool)
        mask[20:60, 20:60] = True
        return Result(images, "", "", "<i>a ring</i> on sand", (Found(mask, "a ring", 0.9, (3, 9)),), 0.1)

    def chat(self, image: Any, messages: Any, max_new_tokens: int = 0, *, stream: bool = False) -> Iterator[str]:
        self.asked.append([row["content"] for row in messages])
        return iter(["two ", "<b>rings</b>"])


@pytest.fixture(scope="session")
def model(world: Path) -> Noted:
    noted = Noted(*load("random", "configs/shapes/stage3.py", [f"processor.tokenizer={world}/base"])[:2])
    noted.asked = []
    return noted


@pytest.fixture
def asked(model: Noted) -> list[Any]:
    model.asked = []
    return model.asked


@pytest.fixture(scope="session")
def photo(world: Path) -> Path:
    return next((world / "val").glob("*.jpg"))


@pytest.fixture(scope="session")
def pixels(photo: Path) -> np.ndarray:
    return np.array(Image.open(photo))


@pytest.fixture(scope="session")
def bomb() -> Callable[[int], bytes]:
    """Makes a PNG of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(side: int) -> bytes:
        parts = {
            b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0),
            b"IDAT": zlib.compress(bytes(1000)),
            b"IEND": b"",
        }
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())

    return png
