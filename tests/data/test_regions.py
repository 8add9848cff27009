"""Drawn prompts: their shapes by hand-counted pixels, and that they depend on the seed alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from xsam.data.masks import decode_rle, mask_box
from xsam.data.regions import KINDS, dilate, sample_points, typed_prompt, visual_prompts
from xsam.structures import BadSample, UserError

DISC_10, DISC_5 = 317, 81  # pixels (x, y) with x^2 + y^2 <= r^2: Gauss's circle problem


def rectangle(y0: int, x0: int, y1: int, x1: int, height: int = 120, width: int = 160) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def draw(mask: np.ndarray, seed: int = 0, kinds=KINDS, scale: float = 1.0) -> dict[str, np.ndarray]:
    return visual_prompts(mask, np.random.default_rng(seed), kinds, scale)


def test_dilation_is_a_disc():
    pixel = rectangle(60, 80, 61, 81)
    assert dilate(pixel, 10).sum() == DISC_10
    assert dilate(pixel, 5).sum() == DISC_5
    assert dilate(pixel, 1).sum() == 5
    assert (dilate(pixel, 0) == pixel).all()
    assert mask_box(dilate(pixel, 10)) == (70, 50, 91, 71)
    assert dilate(rectangle(0, 0, 1, 1), 1).sum() == 3  # cut at the corner of the image
    assert not dilate(rectangle(0, 0, 0, 0), 3).any()


def test_a_point_is_a_disc_inside_the_object():
    mask = rectangle(40, 50, 80, 110)
    for seed in range(20):
        point = draw(mask, seed, ("point",))["point"]
        assert point.sum() == DISC_10
        x0, y0, _, _ = mask_box(point)
        assert mask[y0 + 10, x0 + 10]  # its centre
        assert np.hypot(y0 + 10 - 59.5, x0 + 10 - 79.5) <= 20 + 1  # half of the shorter side, and rounding
    ring = dilate(rectangle(60, 80, 61, 81), 30) & ~dilate(rectangle(60, 80, 61, 81), 20)
    for seed in range(20):  # the centroid is outside
        x0, y0, _, _ = mask_box(draw(ring, seed, ("point",))["point"])
        assert ring[y0 + 10, x0 + 10]


def test_a_scribble_is_one_stroke_across_the_object():
    mask = rectangle(40, 50, 80, 110)
    downwards = set()
    for seed in range(20):
        scribble = draw(mask, seed, ("scribble",))["scribble"]
        assert ndimage.label(scribble)[1] == 1
        x0, y0, x1, y1 = mask_box(scribble)
        assert 30 < x1 - x0 <= 60 * 1.2 + 11  # a box with IoU 0.5 is at least half as wide
        assert y1 - y0 <= 40 * 1.2 * 1.5 + 11  # with waves of a quarter of its height
        assert (scribble & mask).sum() > 0.5 * scribble.sum()
        downwards.add(bool(np.argwhere(scribble[:, x0 + 5])[0, 0] < np.argwhere(scribble[:, x1 - 6])[0, 0]))
    assert downwards == {True, False}


def test_a_box_is_the_objects_up_to_a_tenth():
    sides = set()
    for seed in range(40):
        x0, y0, x1, y1 = mask_box(draw(rectangle(40, 50, 80, 110), seed, ("box",))["box"])
        assert 36 <= y1 - y0 <= 44
        assert 54 <= x1 - x0 <= 66
        assert abs(y0 + y1 - 120) <= 1
        assert abs(x0 + x1 - 160) <= 1
        sides.add((y1 - y0, x1 - x0))
    assert len(sides) > 20


def test_a_mask_is_the_blurred_one_above_its_mean():
    for mask in (rectangle(40, 50, 80, 110), rectangle(0, 0, 1, 1), rectangle(0, 100, 120, 160)):
        soft = ndimage.gaussian_filter(mask.astype(float), 2)
        assert ((soft > soft.mean()) == draw(mask, 0, ("mask",))["mask"]).mean() > 0.999


def test_every_large_component_is_shown():
    mask = rectangle(10, 10, 30, 30) | rectangle(80, 100, 110, 140)
    mask[60:62, 60:62] = True  # 4 pixels are a speck
    for kind in ("point", "scribble", "box"):
        labels, count = ndimage.label(draw(mask, 0, (kind,))[kind])
        assert count == 2
        assert labels[60, 60] == 0
    diagonal = np.eye(12, dtype=bool)  # joined at the corners only: one component
    assert ndimage.label(draw(diagonal, 0, ("point",), 0.1)["point"], np.ones((3, 3)))[1] == 1
    specks = rectangle(5, 5, 6, 6) | rectangle(50, 50, 51, 53)
    assert mask_box(draw(specks, 0, ("point",), 0)["point"])[1] == 50  # the larger one


@pytest.mark.parametrize("scale", [0.0, 0.2, 1.0])
def test_a_prompt_is_never_empty(scale):
    for mask in (
        np.ones((1, 1), bool),
        np.ones((9, 7), bool),
        rectangle(0, 159, 1, 160),
        rectangle(119, 0, 120, 160),
        np.random.default_rng(0).random((40, 50)) < 0.02,
    ):
        for seed in range(5):
            for prompt in draw(mask, seed, scale=scale).values():
                assert prompt.any()
                assert prompt.shape == mask.shape
                assert prompt.dtype == bool


def test_each_kind_depends_on_the_seed_alone():
    mask = rectangle(40, 50, 80, 110)
    together = draw(mask, 3)
    assert tuple(together) == KINDS
    for kind in KINDS:
        assert (draw(mask, 3, (kind,))[kind] == together[kind]).all()
    other = draw(mask, 4)
    assert all((other[kind] != together[kind]).any() for kind in ("point", "scribble", "box"))


def test_nothing_cannot_be_shown():
    with pytest.raises(BadSample, match="without a pixel"):
        draw(rectangle(0, 0, 0, 0))
    with pytest.raises(BadSample, match="covers no pixel"):
        sample_points(rectangle(0, 0, 0, 0), np.random.default_rng(0))


def test_sampled_points_are_pixels_of_the_region():
    few = sample_points(rectangle(4, 8, 6, 11), np.random.default_rng(0))
    assert few.shape == (256, 2)
    assert few.dtype == np.float32
    expected = {(np.float32(x / 160), np.float32(y / 120)) for y in (4, 5) for x in (8, 9, 10)}
    assert {tuple(point) for point in few} == expected
    many = sample_points(rectangle(0, 0, 120, 160), np.random.default_rng(0))
    assert len({tuple(point) for point in many}) == 256  # without repeats


Y, X = np.mgrid[:480, :640]


def typed(height: int = 480, width: int = 640, **given) -> np.ndarray:
    return decode_rle(typed_prompt(given, height, width))


def test_typed_prompts_have_the_brushes_of_drawn_ones():
    point = typed(point=(100, 200))
    assert point.sum() == DISC_10
    assert mask_box(point) == (90, 190, 111, 211)
    assert (typed(points=[(100, 200), (300.9, 400.2)]) == point | typed(point=(300, 400))).all()
    assert typed(96, 96, point=(50, 50)).sum() == 13  # radius 2, as the embedded world's prompts
    assert mask_box(typed(box=(10, 20, 30.5, 40))) == (10, 20, 31, 40)
    assert typed(box=(10, 20, 30.5, 40)).sum() == 21 * 20
    assert typed(box=(0, 0, 640, 480)).all()
    line = typed(scribble=[(100, 100), (150, 100), (150, 200)])
    assert mask_box(line) == (95, 95, 156, 206)
    assert line[100, 100:151].all()
    assert line[100:201, 150].all()
    assert ndimage.label(line)[1] == 1
    near = np.minimum(
        np.hypot(np.maximum(0, np.abs(X - 125) - 25), Y - 100), np.hypot(X - 150, np.maximum(0, np.abs(Y - 150) - 50))
    )
    assert (line == (near <= 5)).all()  # every pixel at most 5 from the two lines
    assert (typed(scribble=[(7, 9)]).sum(), typed(point=(639.9, 0)).any()) == (DISC_5, True)


def test_a_typed_mask_is_kept(tmp_path):
    mask = rectangle(10, 20, 30, 40)
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "a.png")
    for value in (mask, mask.astype(np.uint8), torch.from_numpy(mask), Image.fromarray(mask), tmp_path / "a.png"):
        assert (typed(120, 160, mask=value) == mask).all()


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "one of points, point, scribble, box, mask; here is none"),
        ({"point": (1, 1), "box": (1, 1, 2, 2)}, r"here is \['point', 'box'\]"),
        ({"circle": (1, 1)}, r"here is \['circle'\]"),
        ({"point": (1,)}, "does not have the numbers of a point"),
        ({"point": (1, 2, 3, 4)}, "does not have the numbers of a point"),
        ({"point": "here"}, "does not have the numbers"),
        ({"point": None}, "does not have the numbers|leaves the image"),
        ({"point": (160, 5)}, "leaves the image, which has 160 x 120 pixels"),
        ({"point": (5, -0.1)}, "leaves the image"),
        ({"point": (np.nan, 5)}, "leaves the image"),
        ({"points": []}, "is empty"),
        ({"box": (1, 1, 161, 5)}, "leaves the image"),
        ({"box": (5, 5, 5, 9)}, "is empty"),
        ({"box": (9, 9, 5, 5)}, "is empty"),
        ({"box": (1, 2, 3)}, "numbers of a box"),
        ({"scribble": [(1, 2), (3,)]}, "numbers of a scribble"),
        ({"scribble": [(1, 2), (159, 120)]}, "leaves the image"),
        ({"mask": np.zeros((120, 160), bool)}, "is empty"),
        ({"mask": np.ones((5, 5), bool)}, r"is \(5, 5\), the image \(120, 160\)"),
        ({"mask": ["a"]}, "numbers of a mask"),
    ],
)
def test_a_wrong_typed_prompt_is_one_line(given, message):
    with pytest.raises(UserError, match=message):
        typed_prompt(given, 120, 160)


def test_a_mask_file_that_is_not_there(tmp_path):
    with pytest.raises(BadSample, match="cannot be read as an image"):
        typed_prompt({"mask": tmp_path / "none.png"}, 10, 10)
