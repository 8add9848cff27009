"""The ReasonSeg reader, and polygons painted as OpenCV paints them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.data.reasonseg import ReasonSeg, paint_polygon
from xsam.structures import BadSample, UserError

REASONSEG = Path(__file__).parents[2] / "../shared/refdata/reasonseg"


def shape(label, *points):
    return {"label": label, "points": [list(point) for point in points], "shape_type": "polygon"}


RECORD = {"text": ["a dog"], "is_sentence": False, "shapes": [shape("target", (1, 1), (3, 1), (3, 3), (1, 3))]}


@pytest.fixture
def write(tmp_path):
    def write(record=RECORD, explanations=None, encoding="utf-8"):
        folder = tmp_path / "train"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / "x.jpg")
        text = record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)
        (folder / "x.json").write_text(text, encoding=encoding)
        if explanations is None:
            return ReasonSeg(folder)
        (tmp_path / "train.json").write_text(json.dumps(explanations))
        return ReasonSeg(folder, tmp_path / "train.json")

    return write


def painted(points, height, width):
    return ["".join(".#"[pixel] for pixel in row) for row in paint_polygon(points, height, width, "x").astype(int)]


def test_polygons_hold_their_outline():
    assert painted([[1, 1], [3.9, 1.9], [3, 3], [1, 3]], 5, 6) == ["......", ".###..", ".###..", ".###..", "......"]
    assert painted([[0, 0], [4, 2]], 3, 5) == [
        "##...",
        "..##.",
        "....#",
    ]  # half a pixel is rounded back to the left end
    assert painted([[2, 1]], 3, 5) == [".....", "..#..", "....."]
    assert painted([[-2, -2], [8, -2], [8, 1], [-2, 1]], 3, 5) == ["#####", "#####", "....."]


def test_polygons_that_cross_themselves_have_holes():
    star = [[6, 0], [9, 12], [0, 4], [12, 4], [3, 12]]
    mask = paint_polygon(star, 13, 13, "x")
    assert not mask[6, 6]
    assert mask[2, 6]


def test_polygons_as_opencv_paints_them():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for number in range(300):
        height, width = rng.integers(1, 60, 2)
        points = rng.random((rng.integers(1, 9), 2)) * [width, height]
        expected = np.zeros((height, width), np.uint8)
        for paint in (lambda *a: cv2.polylines(*a[:2], True, 1, 1), lambda *a: cv2.fillPoly(*a[:2], 1)):
            paint(expected, [points.astype(np.int32)])
        assert (paint_polygon(points.tolist(), height, width, "x") == expected).all(), number


@pytest.mark.parametrize(
    "points",
    [[], [1, 2], [[1]], [[1, 2, 3]], [["a", 1]], [[None, 1]], [[float("nan"), 1]], [[1e9, 1]], [[[1], 2]], "x"],
)
def test_a_bad_polygon_is_named(points):
    with pytest.raises(BadSample, match="record x: a polygon"):
        paint_polygon(points, 10, 10, "record x")


def test_small_polygons_lie_above_large_ones(write):
    shapes = [
        shape("target", (2, 2), (3, 2), (3, 3), (2, 3)),
        shape("IGNORE_this", (1, 1), (5, 1), (5, 4), (1, 4)),
        shape("target", (0, 0), (7, 0), (7, 5), (0, 5)),
        shape("Flag", (0, 0), (7, 0), (7, 5)),
    ]
    (record,) = write(RECORD | {"shapes": shapes})
    expected = np.ones((6, 8), np.uint8)
    expected[1:5, 1:6] = 255
    expected[2:4, 2:4] = 1
    assert (record.labels() == expected).all()


def test_records_and_explanations(write, tmp_path):
    record = RECORD | {"text": [" Which is it? ", "What is it?"], "is_sentence": True}
    data = write(record, [{"image": "x.jpg", "query": "", "outputs": "Because. "}, {"image": "y.jpg", "outputs": ""}])
    assert (len(data), data.id(0)) == (1, "x")
    (found,) = data
    assert (found.id, found.image) == ("x", str(tmp_path / "train/x.jpg"))
    assert (found.texts, found.is_sentence, found.explanation) == (("Which is it?", "What is it?"), True, "Because.")
    assert write()[0].explanation == ""


def test_text_in_the_windows_encoding(write):
    assert write(RECORD | {"text": ["the café… sign"]}, encoding="cp1252")[0].texts == ("the café… sign",)


@pytest.mark.parametrize(
    "record, problem",
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        (RECORD | {"text": "a dog"}, "'text' is 'a dog'"),
        (RECORD | {"text": []}, "'text' is ''"),
        (RECORD | {"text": ["<p>"]}, "'text' is '<p>'"),
        (RECORD | {"is_sentence": 1}, "'is_sentence' is 1"),
        (RECORD | {"shapes": None}, "'shapes' is None"),
        (RECORD | {"shapes": [{"points": []}]}, "has no 'label'"),
        (RECORD | {"shapes": [{"label": "target"}]}, "has no 'points'"),
    ],
)
def test_a_bad_record_is_named(write, record, problem):
    data = write(record)
    with pytest.raises(BadSample, match=rf"x\.json: .*{problem}"):
        data[0]


@pytest.mark.parametrize("shapes", [[], [shape("ignore", (0, 0), (7, 0), (7, 5))]])
def test_a_record_without_a_target_is_named(write, shapes):
    with pytest.raises(BadSample, match="x: no pixel is target"):
        write(RECORD | {"shapes": shapes})[0].labels()


def test_other_folders_and_files_are_refused(write, tmp_path):
    with pytest.raises(UserError, match=r"holds no \*\.json"):
        ReasonSeg(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        ReasonSeg(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"train\.json: not a list of explanations"):
        write(explanations={"image": "x.jpg"})


@pytest.mark.skipif(not REASONSEG.is_dir(), reason="reference data are not here")
def test_reasonseg_as_lisa_paints_it(tmp_path):
    names = ("2011_000003", "2011_000006")
    for name in names:
        for suffix in (".jpg", ".json"):
            shutil.copy(REASONSEG / f"{name}{suffix}", tmp_path)
    records = list(ReasonSeg(tmp_path))
    assert [record.id for record in records] == list(names)
    assert [record.is_sentence for record in records] == [True, False]
    for record in records:
        expected = np.array(Image.open(REASONSEG / f"{record.id}_expected_mask.png"))
        assert (record.labels() == expected).all()
