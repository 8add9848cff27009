"""The reader of one's own expressions."""

import json

import numpy as np
import pytest
from PIL import Image

from xsam.data.jsonl import JsonLines
from xsam.data.masks import encode_rle
from xsam.structures import BadSample, UserError

SQUARE = [[1, 1, 3, 1, 3, 3, 1, 3]]


def line(image="a.png", text="a dog", segmentation=None):
    return json.dumps({"image": image, "text": text, "segmentation": segmentation})


@pytest.fixture
def write(tmp_path):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images/b.png")

    def write(*lines, images=""):
        (tmp_path / "my.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return JsonLines(tmp_path / "my.jsonl", images and tmp_path / images)

    return write


def test_lines_become_images_with_expressions(write, tmp_path):
    rle = encode_rle(np.ones((5, 6), bool))
    data = write(
        line(text="A Dog ", segmentation=SQUARE),
        "",
        line("images/b.png", "the cat"),
        line(text="all", segmentation=rle),
        line(text="a dog", segmentation=[[3, 3, 5, 3, 5, 5]]),
    )
    first, second = data
    assert (first.image, first.height, first.width) == (str(tmp_path / "a.png"), 5, 6)
    assert [expression.sentences for expression in first.expressions] == [("a dog",), ("all",)]
    dog, everything = (first.masks(expression.objects) for expression in first.expressions)
    assert len(dog) == 2
    assert dog[0, 1:3, 1:3].sum() == dog[0].sum() == 4
    assert everything.all()
    assert everything.shape == (1, 5, 6)
    assert second.masks(second.expressions[0].objects).shape == (0, 4, 4)
    names = [data.id(*row) for row in data.questions().tolist()]
    assert names == ["line 1-0", "line 4-0", "line 3-0"]


def test_another_folder_of_images(write, tmp_path):
    (image,) = write(line("b.png", "the cat"), images="images")
    assert image.image == str(tmp_path / "images/b.png")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        write(line(), images="nowhere")


@pytest.mark.parametrize(
    "bad, problem",
    [
        ("{", "not valid JSON"),
        ("[]", r"is \[\], not an object with 'text'"),
        ('{"image": "a.png", "text": "a dog"}', "has no 'segmentation'"),
        (line(segmentation="1"), "'segmentation' is '1'"),
        (line(image=None), "'image' is None"),
        (line(text=""), "'text' is ''"),
        (line(text="a </p>"), "'text' is 'a </p>'"),
        (line(text="good"), "line 1 has this image and text too, and one of the two is null"),
    ],
)
def test_a_bad_line_is_named_and_leaves_the_others(write, bad, problem):
    data = write(line(text="good", segmentation=SQUARE), "", bad)
    assert data[1].expressions[0].sentences == ("good",)
    with pytest.raises(BadSample, match=rf"my\.jsonl, line 3: {problem}"):
        data[0]
    assert data.questions().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_a_bad_mask_is_named(write):
    (image,) = write(line(segmentation=[[1, 2]]))
    with pytest.raises(BadSample, match=r"my\.jsonl, line 1: a polygon needs three points"):
        image.masks([0])


def test_a_missing_image_is_named(write):
    with pytest.raises(BadSample, match=r"c\.png: cannot be read"):
        write(line("c.png"))[0]


def test_another_kind_of_file_is_refused(write, tmp_path):
    with pytest.raises(UserError, match=r"my\.jsonl: none of its 2 records can be used"):
        write("{", "}")
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        JsonLines(tmp_path / "none.jsonl")
