"""What an answer is written as, read back by pycocotools, PIL and by hand."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from xsam.result import Found, Result
from xsam.visualize import SIDE, color


def rectangle(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[y0:y1, x0:x1] = True
    return mask


RING = rectangle(5, 10, 15, 30) & ~rectangle(8, 15, 12, 20)  # 200 - 20 pixels
SKY = rectangle(0, 0, 10, 60)  # 600, of which 5 rows x 20 columns lie under the ring, without 2 x 5
IMAGE = np.full((40, 60, 3), 128, np.uint8)
TEXT = "a ring below the sky."


@pytest.fixture
def result() -> Result:
    found = (Found(RING, "ring", 0.9, (2, 6)), Found(SKY, "sky", 0.8, (17, 20), is_thing=False))
    return Result(IMAGE, "a.jpg", "What is this?", TEXT, found, 0.25)


def test_masks_boxes_labels_scores(result: Result) -> None:
    assert result.masks.shape == (2, 40, 60)
    assert result.boxes.tolist() == [[10, 5, 30, 15], [0, 0, 60, 10]]
    assert (result.labels, result.scores) == (["ring", "sky"], [0.9, 0.8])
    assert [TEXT[slice(*found.span)] for found in result.found] == result.labels
    nothing = Result(IMAGE, "", "?")
    assert (nothing.masks.shape, nothing.boxes.shape, nothing.labels) == ((0, 40, 60), (0, 4), [])
    assert nothing.to_coco()["annotations"] == nothing.to_json()["found"] == nothing.to_labelme()["shapes"] == []


def test_coco(result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result.to_coco()))
    coco = COCO(tmp_path / "a.json")
    assert coco.loadImgs(1) == [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}]
    assert [(row["id"], row["name"], row["isthing"]) for row in coco.loadCats([1, 2])] == [
        (1, "ring", 1),
        (2, "sky", 0),
    ]
    rows = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert [(row["category_id"], row["area"], row["bbox"], row["score"]) for row in rows] == [
        (1, 180, [10, 5, 20, 10], 0.9), (2, 600, [0, 0, 60, 10], 0.8),
    ]  # fmt: skip
    assert all((coco.annToMask(row) == mask).all() for row, mask in zip(rows, (RING, SKY), strict=True))
    assert coco.dataset["info"] == {"question": "What is this?", "text": TEXT}


def test_panoptic(result: Result, tmp_path: Path) -> None:
    annotation = result.to_panoptic(tmp_path / "ids.png")
    red, green, blue = np.moveaxis(np.asarray(Image.open(tmp_path / "ids.png")).astype(int), -1, 0)
    ids = red + 256 * green + 256 * 256 * blue  # COCO's format page
    assert (ids == np.where(RING, 1, np.where(SKY, 2, 0))).all()  # the ring has the higher score
    assert annotation["file_name"] == "ids.png"
    assert annotation["segments_info"] == [
        {"id": 1, "category_id": 1, "area": 180, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"id": 2, "category_id": 2, "area": 600 - (5 * 20 - 2 * 5), "bbox": [0, 0, 60, 10], "iscrowd": 0},
    ]
    hidden = Result(IMAGE, "", "", "", (Found(rectangle(6, 21, 7, 29), "dot", 0.1), *result.found))
    assert [row["id"] for row in hidden.to_panoptic(tmp_path / "b.png")["segments_info"]] == [2, 3]


def test_json_is_complete(result: Result) -> None:
    content = json.loads(json.dumps(result.to_json()))
    assert content == result.to_json()
    ring = content["found"][0]
    assert (coco_mask.decode(ring.pop("segmentation")) == RING).all()
    assert ring == {"label": "ring", "score": 0.9, "box": [10, 5, 30, 15], "span": [2, 6], "is_thing": True}
    assert (content["image"], content["size"], content["seconds"], content["text"]) == ("a.jpg", [40, 60], 0.25, TEXT)


def test_labelme(result: Result) -> None:
    """A "mask" shape has the two outer pixels of its box and a PNG of what lies inside, as LabelMe 5.2 reads it."""
    content = json.loads(json.dumps(result.to_labelme()))
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("a.jpg", 40, 60)
    for shape, mask in zip(content["shapes"], (RING, SKY), strict=True):
        (x0, y0), (x1, y1) = shape["points"]
        drawn = np.zeros((40, 60), bool)
        drawn[y0 : y1 + 1, x0 : x1 + 1] = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
        assert (drawn == mask).all()
        assert shape["shape_type"] == "mask"


def test_picture_colours_phrases_like_their_masks(result: Result, tmp_path: Path) -> None:
    picture = result.picture()
    plain = result.picture(title=False)
    assert plain.width == picture.width == 60 * round(SIDE / 60)
    strip = np.asarray(picture)[: picture.height - plain.height]
    for number in (0, 1):
        light = [(255 + value) // 2 for value in color(number)]
        assert (strip == light).all(-1).sum() > 50
    assert not (np.asarray(Result(IMAGE, "", "?", TEXT).picture()) == light).all(-1).any()
    result.save(tmp_path / "a.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) == np.asarray(picture)).all()
    assert Image.open(io.BytesIO(result._repr_png_())).size == picture.size


def test_long_names_are_cut_in_pictures_only() -> None:
    long = Result(IMAGE, "", "", "", (Found(RING, "a very long expression " * 5, 0.5),))
    cut = Result(IMAGE, "", "", "", (Found(RING, "a very long express...", 0.5),))
    short = Result(IMAGE, "", "", "", (Found(RING, long.labels[0][:21] + "...", 0.5),))
    assert (np.asarray(long.picture()) == np.asarray(short.picture())).all()
    assert cut.labels != long.labels
