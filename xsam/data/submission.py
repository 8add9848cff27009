"""Predictions as the files that benchmark servers and `xsam score` take. What could not be asked is left out."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..structures import Prediction, Sample
from .masks import decode_rle, encode_rle, write_panoptic_png

Answered = Iterable[tuple[Prediction, Sample]]


def panoptic(answered: Answered, path: Path) -> None:
    """COCO panoptic: `path`, and the PNGs in the folder of its name without `.json`."""
    rows = []
    for prediction, sample in answered:
        file = _picture(path, sample)
        write_panoptic_png(file, painted(prediction, sample))
        segments = [{"id": n, "category_id": s.label} for n, s in enumerate(prediction.segments, start=1)]
        rows.append({"image_id": _number(sample.id), "file_name": file.name, "segments_info": segments})
    path.write_text(json.dumps({"annotations": rows}))


def instances(answered: Answered, path: Path) -> None:
    """COCO results: a row per mask."""
    found = ((_number(prediction.id), s) for prediction, _ in answered for s in prediction.segments)
    rows = [
        {"image_id": id, "category_id": s.label, "segmentation": s.segmentation, "score": s.score} for id, s in found
    ]
    path.write_text(json.dumps(rows))


def labels(answered: Answered, path: Path, column: Mapping[Any, int]) -> None:
    """Label maps `STEM.png` in the folder of `path` without `.json`: uint8 class indices, 255 = none."""
    for prediction, sample in answered:
        classes = np.array([255, *(column[segment.label] for segment in prediction.segments)], np.uint8)
        Image.fromarray(classes[painted(prediction, sample)]).save(_picture(path, sample))


def masks(answered: Answered, path: Path) -> None:
    """A list of `{"id", "segmentation": RLE | null}`, the segments of an answer united; null = nothing."""
    found = ((p.id, [decode_rle(segment.segmentation) for segment in p.segments]) for p, _ in answered)
    rows = [{"id": id, "segmentation": encode_rle(np.any(shown, axis=0)) if shown else None} for id, shown in found]
    path.write_text(json.dumps(rows))


def texts(answered: Answered, path: Path) -> None:
    """A list of `{"id", "text"}`."""
    path.write_text(json.dumps([{"id": prediction.id, "text": prediction.text} for prediction, _ in answered]))


def painted(prediction: Prediction, sample: Sample) -> np.ndarray:
    """int32[H, W], the number of the segment of every pixel from 1, 0 = none."""
    ids = np.zeros(sample.masks.ids.shape[1:], np.int32)
    for number, segment in enumerate(prediction.segments, start=1):
        ids[decode_rle(segment.segmentation)] = number
    return ids


def _picture(path: Path, sample: Sample) -> Path:
    """`STEM.png` of the sample's image, in the folder of the name of `path` without its suffix, which is made."""
    path.with_suffix("").mkdir(parents=True, exist_ok=True)
    return path.with_suffix("") / f"{Path(sample.image).stem}.png"


def _number(name: str) -> int | str:
    """An id as COCO's files have it."""
    return int(name) if name.isdecimal() and str(int(name)) == name else name
