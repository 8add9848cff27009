"""Masks: run-length codes, polygons, boxes, and the id maps that hold many masks in one small array."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from ..structures import RLE, SegmentMap
from .images import read_image

CODE = re.compile("(?:[0-o]*[0-O])?")  # the characters of a compressed RLE; pycocotools reads past the end of others


def encode_rle(mask: np.ndarray) -> RLE:
    """bool[H, W] -> COCO's compressed RLE, `counts` as str so that it goes into JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: RLE) -> np.ndarray:
    """COCO's RLE, compressed (str or bytes) or not (list of counts) -> bool[H, W]. Raises ValueError when the runs do
    not cover the size exactly: pycocotools takes a truncated code for a mask and no code at all for an empty mask."""
    (height, width), counts = rle["size"], rle["counts"]
    if isinstance(counts, str | bytes):
        runs = _run_lengths(counts)
    elif isinstance(counts, list) and all(type(run) is int and abs(run) < 2**40 for run in counts):
        runs = np.asarray(counts, np.int64)
    else:
        raise ValueError(f"the RLE's counts are neither a code nor run lengths: {str(counts)[:40]!r}")
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the RLE has {runs.sum()} pixels in its runs, its size says {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """Run lengths of a compressed code, int64[n]. Each is a group of characters, 48 plus 5 bits each, least significant
    first; bit 5 says that the group goes on, bit 4 of its last is the sign. From the fourth on it is the difference to
    the number two before."""
    text = counts if isinstance(counts, str) else counts.decode("latin1")
    if not CODE.fullmatch(text):
        raise ValueError("the RLE holds characters that are not part of the code, or breaks off")
    code = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(code & 32 == 0)
    lengths = np.diff(ends, prepend=-1)
    if (lengths > 12).any():
        raise ValueError("the RLE holds a number that is too large")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(len(code)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((code & 31) << shifts, starts) if len(starts) else starts
    numbers = numbers - np.where(code[ends] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers


def has_size(rle: RLE, height: int, width: int) -> bool:
    """Whether an RLE says that it has the size of its image, in whole numbers."""
    size = rle.get("size")
    return isinstance(size, list | tuple) and list(size) == [height, width] and {int} == set(map(type, size))


def segmentation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """The `segmentation` of a COCO annotation (polygons, RLE, uncompressed RLE) -> bool[H, W]. Raises ValueError that
    names the problem: nothing there, another size, a polygon without an area, garbage."""
    if isinstance(segmentation, dict):
        if not {"size", "counts"} <= segmentation.keys():
            raise ValueError("the segmentation is neither polygons nor an RLE with size and counts")
        if not has_size(segmentation, height, width):
            raise ValueError(f"the RLE has the size {segmentation['size']}, the image {[height, width]}")
        return decode_rle(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"the segmentation is empty or not a list: {str(segmentation)[:40]!r}")
    far = 2 * max(height, width)  # beyond it, as for NaN and infinity, pycocotools ends the process
    for polygon in segmentation:
        numbers = isinstance(polygon, list) and all(type(v) in (int, float) and abs(v) <= far for v in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs three points x, y or more, got {str(polygon)[:40]}")
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))).astype(bool)


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """bool[H, W] -> (x0, y0, x1, y1) in pixels, maximum exclusive; zeros for an empty mask."""
    columns, rows = (np.flatnonzero(mask.any(axis)).tolist() or [0, -1] for axis in (0, 1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def pack(masks: np.ndarray) -> SegmentMap:
    """bool[N, H, W] -> SegmentMap; a mask goes into the first layer where it overlaps nothing."""
    assert len(masks) <= np.iinfo(np.int16).max, "more masks than int16 can number"
    layers = [np.full(masks.shape[1:], -1, np.int16)]
    for number, mask in enumerate(masks):
        x0, y0, x1, y1 = mask_box(mask)
        box = np.s_[y0:y1, x0:x1]
        layer = next((layer for layer in layers if (layer[box][mask[box]] < 0).all()), None)
        if layer is None:
            layers.append(layer := np.full(masks.shape[1:], -1, np.int16))
        layer[box][mask[box]] = number
    return SegmentMap(np.stack(layers), len(masks))


def unpack(segments: SegmentMap) -> np.ndarray:
    """SegmentMap -> bool[N, H, W]."""
    numbers = np.arange(segments.count, dtype=np.int16)[:, None, None]
    masks = np.zeros((segments.count, *segments.ids.shape[1:]), bool)
    for layer in segments.ids:
        masks |= layer == numbers
    return masks


def select(segments: SegmentMap, chosen: np.ndarray) -> SegmentMap:
    """The masks with the numbers int[n], ascending, numbered anew."""
    if len(chosen) == segments.count:
        return segments
    number = np.full(segments.count + 1, -1, np.int16)  # the last stands for -1, no mask
    number[chosen] = np.arange(len(chosen))
    return SegmentMap(number[segments.ids], len(chosen))


def from_label_map(labels: np.ndarray, ids: Sequence[int]) -> SegmentMap:
    """int[H, W] and N distinct ids -> SegmentMap of one layer whose mask i is `labels == ids[i]`."""
    if not len(values := np.asarray(ids)):
        return SegmentMap(np.full((1, *labels.shape), -1, np.int16), 0)
    assert len(np.unique(values)) == len(values), "repeated ids"
    flat = labels.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # a map has far fewer runs than pixels
    order = np.argsort(values)
    place = np.searchsorted(values[order], flat[starts]).clip(max=len(values) - 1)
    numbers = np.where(values[order][place] == flat[starts], order[place], -1).astype(np.int16)
    return SegmentMap(np.repeat(numbers, np.diff(starts, append=flat.size)).reshape(1, *labels.shape), len(values))


def read_panoptic_png(path: str | Path) -> np.ndarray:
    """COCO's panoptic PNG -> int32[H, W], id = R + 256 G + 256^2 B. Raises BadSample as `read_image` does."""
    red, green, blue = np.moveaxis(read_image(path), -1, 0)
    return red + (green.astype(np.int32) << 8) + (blue.astype(np.int32) << 16)


def write_panoptic_png(path: str | Path, ids: np.ndarray) -> None:
    """int[H, W] of ids below 2^24 -> COCO's panoptic PNG."""
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)).save(path)


def resize_ids(ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """int16[L, H, W] -> int16[L, height, width], the same as PIL's nearest for each mask on its own."""
    rows, columns = _nearest(ids.shape[1], height), _nearest(ids.shape[2], width)
    return ids.take(columns, axis=2).take(rows, axis=1)


def _nearest(size: int, resized: int) -> np.ndarray:
    """int32[resized], the pixel of `size` that each becomes a copy of: asked of PIL, whose rounding errors add up."""
    line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(line.resize((resized, 1), Image.Resampling.NEAREST))[0]


def pad_ids(ids: np.ndarray, side: int) -> np.ndarray:
    """int16[L, h, w] -> int16[L, side, side], -1 right and below."""
    return np.pad(ids, ((0, 0), (0, side - ids.shape[1]), (0, side - ids.shape[2])), constant_values=-1)
