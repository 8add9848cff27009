"""Mask arithmetic, against pycocotools, PIL and values worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from xsam.data.masks import (
    decode_rle,
    encode_rle,
    from_label_map,
    mask_box,
    pack,
    pad_ids,
    read_panoptic_png,
    resize_ids,
    segmentation_mask,
    unpack,
    write_panoptic_png,
)

RECORDED = Path(__file__).parents[2] / "../shared/refdata/rle/micro_rle_polygon.json"


def blobs(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """bool[count, height, width] of random discs, the first one empty."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres, radii = rng.random((count, 2)) * (height, width), rng.random(count) * height / 2
    radii[0] = -1
    return np.stack([np.hypot(y - cy, x - cx) < r for (cy, cx), r in zip(centres, radii, strict=True)])


def test_rle_agrees_with_pycocotools():
    for mask in [*blobs(8, 37, 53), np.random.default_rng(1).random((61, 20)) < 0.5, np.ones((300, 200), bool)]:
        rle = encode_rle(mask)
        assert isinstance(rle["counts"], str)
        assert (coco_mask.decode(rle).astype(bool) == mask).all()
        assert (decode_rle(rle) == mask).all()
        assert (decode_rle(rle | {"counts": rle["counts"].encode()}) == mask).all()


def test_uncompressed_rle_runs_down_the_columns():
    mask = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "counts", ["", [], [1, 2], [9, -3], "hello world", "~~~~", encode_rle(blobs(2, 20, 20)[1])["counts"][:-1]]
)
def test_a_code_that_does_not_cover_its_size_is_refused(counts):
    with pytest.raises(ValueError):
        decode_rle({"size": [20, 20] if isinstance(counts, str) else [2, 3], "counts": counts})


def test_segmentation_of_every_form():
    square = [[1, 1, 4, 1, 4, 3, 1, 3]]
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    assert (segmentation_mask(square, 5, 6) == expected).all()
    assert (segmentation_mask(encode_rle(expected), 5, 6) == expected).all()
    assert (segmentation_mask({"size": [5, 6], "counts": [6, 2, 3, 2, 3, 2, 12]}, 5, 6) == expected).all()
    assert segmentation_mask([*square, [4, 3, 6, 3, 6, 5, 4, 5]], 5, 6).sum() == 6 + 4


@pytest.mark.parametrize(
    "segmentation, problem",
    [
        ([], "empty"),
        (None, "empty"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ([{"size": [5, 6]}], "three points"),
        ({"size": [6, 5], "counts": [30]}, "size"),
        ({"size": [5, 6], "counts": [29]}, "runs"),
        ({"counts": [30]}, "neither"),
    ],
)
def test_a_bad_segmentation_is_refused_by_name(segmentation, problem):
    with pytest.raises(ValueError, match=problem):
        segmentation_mask(segmentation, 5, 6)


def test_mask_box_has_an_exclusive_maximum():
    mask = np.zeros((6, 8), bool)
    assert mask_box(mask) == (0, 0, 0, 0)
    mask[2, 3:6] = True
    assert mask_box(mask) == (3, 2, 6, 3)


def test_pack_and_unpack_are_exact():
    masks = blobs(12, 40, 30)
    segments = pack(masks)
    assert segments.ids.dtype == np.int16
    assert segments.count == 12
    assert 1 < len(segments.ids) < 12
    assert (unpack(segments) == masks).all()


def test_pack_of_nothing_is_one_empty_layer():
    segments = pack(np.zeros((0, 4, 5), bool))
    assert segments.ids.tolist() == [[[-1] * 5] * 4]
    assert unpack(segments).shape == (0, 4, 5)


def test_masks_that_do_not_overlap_share_a_layer():
    labels = np.array([[7, 7, 3], [0, 5, 3]])
    segments = pack(np.stack([labels == i for i in (3, 7, 5)]))
    assert segments.ids.tolist() == [[[1, 1, 0], [-1, 2, 0]]]


def test_from_label_map_keeps_the_order_of_the_ids():
    labels = np.array([[7, 7, 300], [0, 5, 300]], np.int32)
    segments = from_label_map(labels, [300, 7, 9])
    assert segments.count == 3
    assert segments.ids.tolist() == [[[1, 1, 0], [-1, -1, 0]]]
    assert (from_label_map(labels, []).ids == -1).all()


def test_panoptic_png_round_trip(tmp_path):
    ids = np.array([[0, 1, 255], [256, 65536 + 2, 2**24 - 1]])
    write_panoptic_png(tmp_path / "a.png", ids)
    assert np.asarray(Image.open(tmp_path / "a.png"))[1, 1].tolist() == [2, 0, 1]
    read = read_panoptic_png(tmp_path / "a.png")
    assert read.dtype == np.int32
    assert (read == ids).all()


@pytest.mark.parametrize("size", [(64, 48), (17, 23), (40, 30)])
def test_resize_ids_is_nearest_of_every_mask(size):
    masks = blobs(9, 40, 30)
    segments = pack(masks)
    resized = unpack(type(segments)(resize_ids(segments.ids, *size), segments.count))
    for mask, result in zip(masks, resized, strict=True):
        expected = Image.fromarray(mask.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
        assert (result == np.asarray(expected).astype(bool)).all()


def test_pad_ids():
    assert pad_ids(np.zeros((1, 2, 1), np.int16), 3).tolist() == [[[0, -1, -1], [0, -1, -1], [-1, -1, -1]]]


@pytest.mark.skipif(not RECORDED.exists(), reason="recorded codes are not here")
def test_recorded_codes_and_polygons():
    recorded = json.loads(RECORDED.read_text())
    for case in recorded["rle"]:
        mask = decode_rle({"size": case["size"], "counts": case["compressed"]})
        assert (decode_rle({"size": case["size"], "counts": case["uncompressed_counts"]}) == mask).all()
        assert mask.sum() == case["area"]
        assert encode_rle(mask)["counts"] == case["compressed"]
    for case in recorded["polygons"]:
        assert (segmentation_mask(case["polygons"], *case["size"]) == np.array(case["mask"], bool)).all()
