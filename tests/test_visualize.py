import numpy as np
import pytest
from PIL import Image

from xsam.visualize import SIDE, color, draw_segments, draw_title


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def test_small_images_are_enlarged_and_large_ones_kept() -> None:
    assert draw_segments(gray(72, 96), []).size == (96 * 7, 72 * 7)
    assert draw_segments(gray(480, SIDE), []).size == (SIDE, 480)
    assert draw_segments(gray(30, 1000), []).size == (1000, 30)


def test_without_segments_the_image_is_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (400, 640, 3), np.uint8)
    assert np.array_equal(draw_segments(image, []), image)


def test_inside_is_tinted_and_outside_is_not() -> None:
    mask = np.zeros((480, 640), bool)
    mask[100:300, 100:400] = True
    drawn = np.asarray(draw_segments(gray(480, 640), [(mask, "", 1.0)]), int)
    assert (drawn[400:, 450:] == 128).all()
    towards = np.sign(np.array(color(0)) - 128)
    assert (np.sign(drawn[200, 250] - 128) == towards).all()


def test_small_masks_lie_above_large_ones() -> None:
    small, large = np.zeros((400, 640), bool), np.ones((400, 640), bool)
    small[150:250, 250:350] = True
    alone = np.asarray(draw_segments(gray(400, 640), [(small, "", 1.0)]), int)[200, 300]
    below = np.asarray(draw_segments(gray(400, 640), [(small, "", 1.0), (large, "", 1.0)]), int)[200, 300]
    above = np.asarray(draw_segments(gray(400, 640), [(large, "", 1.0), (small, "", 1.0)]), int)[200, 300]
    assert not np.array_equal(alone, below)
    assert abs(below - np.array(color(0))).sum() < abs(below - np.array(color(1))).sum()
    assert abs(above - np.array(color(1))).sum() < abs(above - np.array(color(0))).sum()


def test_name_stands_inside_its_mask() -> None:
    mask = np.zeros((400, 640), bool)
    mask[20:200, 300:620] = True
    with_name = np.asarray(draw_segments(gray(400, 640), [(mask, "zebra", 0.9)]), int)
    without = np.asarray(draw_segments(gray(400, 640), [(mask, "", 1.0)]), int)
    rows, columns = np.nonzero((with_name != without).any(-1))
    assert len(rows)
    assert mask[rows, columns].all()


@pytest.mark.parametrize("scale, side", [(1, 640), (2, 320), (7, 96)])
def test_one_pixel_is_shown_and_not_hidden_by_its_name(scale: int, side: int) -> None:
    mask = np.zeros((side, side), bool)
    mask[side // 2, side // 2] = True
    drawn = np.asarray(draw_segments(gray(side, side), [(mask, "dot", 0.5)]))
    assert drawn.shape[0] == side * scale
    place = slice(side // 2 * scale, (side // 2 + 1) * scale)
    pixel = drawn[place, place]
    assert (pixel != 128).any()
    box = (drawn == color(0)).all(-1)
    assert box.any()
    assert not box[place, place].all()


def test_odd_input_does_not_break() -> None:
    nothing = np.zeros((50, 40), bool)
    full = np.ones((50, 40), bool)
    draw_segments(gray(50, 40), [(nothing, "empty", 0.5), (full, "a name far too long for the picture " * 9, 0.5)])


def test_colors_differ() -> None:
    colors = np.array([color(number) for number in range(40)])
    distances = abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(40)
    assert distances.min() > 60
    assert color(3) == color(3)


def test_title_is_a_strip_above() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 300, 3), np.uint8))
    short = draw_title(picture, "What is this?")
    long = draw_title(picture, "What is this? " * 20, "A cat.")
    assert short.width == long.width == 300
    assert 100 < short.height < long.height
    assert np.array_equal(np.asarray(long)[-100:], np.asarray(picture))
