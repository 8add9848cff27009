"""Tables of questions: shared images, odd cells, rotated copies, damaged files, and images inside of text."""

import base64
import csv
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from xsam.data.images import image_size, read_image
from xsam.data.tsv import TsvQuestions
from xsam.structures import BadSample, UserError

HEADER = ("index", "image", "question", "hint", "A", "B", "C", "E", "answer", "category", "split")


def picture(seed: int, side: int = 8) -> str:
    """A JPEG of noise as base64."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100)
    return base64.b64encode(file.getvalue()).decode()


def write(path, rows, header=HEADER):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path


def test_cells_become_questions(tmp_path):
    first, large = picture(0), picture(1, 260)
    assert len(large) > csv.field_size_limit() or len(large) > 131_072  # what the csv module takes by default
    table = write(
        tmp_path / "a.tsv",
        [
            ("7", first, 'What is "this"?\nLook:\tclosely', "Read\nit", "a cat", "None", "", "2", "E", "x", "dev"),
            ("8", large, "Is it?", "", "", "", "", "", "Yes", " random,popular ", "dev"),
        ],
    )
    data = TsvQuestions(table)
    assert len(data) == 2
    assert [data.id(i) for i in range(2)] == ["7", "8"]
    assert data.options.tolist() == [3, 0]
    one, two = data[0], data[1]
    assert (one.question, one.hint) == ('What is "this"?\nLook:\tclosely', "Read\nit")
    assert one.options == {"A": "a cat", "B": "None", "E": "2"}
    assert (one.answer, one.categories) == ("E", ("x",))
    assert (two.options, two.answer, two.hint, two.categories) == ({}, "yes", "", ("random", "popular"))
    assert one.image == f"data:image/jpeg;base64,{first}"
    assert image_size(one.image) == (8, 12)
    assert read_image(two.image).shape == (260, 264, 3)
    assert len(pickle.dumps(data)) < 2_000  # the images are on disk only
    with pytest.raises(IndexError):
        data[2]


def test_images_are_shared_by_index_and_by_content(tmp_path):
    header = ("index", "image", "question", "answer")
    a, b = picture(0), picture(1)
    rows = [("1", "3", "Q", "no"), ("2", a, "Q", "no"), ("3", b, "Q", "no"), ("4", a, "Q", "no"), ("5", "4", "Q", "no")]
    data = TsvQuestions(write(tmp_path / "a.tsv", rows, header))
    assert [data[i].picture for i in range(5)] == [2, 1, 2, 1, 1]
    assert [data[i].image.partition(",")[2] == a for i in range(5)] == [False, True, False, True, True]
    assert data[0].categories == ("",)


def test_rotated_copies_are_left_out(tmp_path):
    a = picture(0)
    rows = [
        ("41", a, "Q", "", "x", "y", "", "", "A", "c", ""),
        ("1000041", "41", "Q", "", "y", "x", "", "", "B", "c", ""),
        ("1000042", "41", "Q", "", "y", "x", "", "", "B", "c", ""),  # a copy of nothing here
        ("2000041", "41", "another", "", "y", "x", "", "", "B", "c", ""),
    ]
    data = TsvQuestions(write(tmp_path / "a.tsv", rows))
    assert [data.id(i) for i in range(len(data))] == ["41", "1000042", "2000041"]


def test_rows_that_cannot_be_used_are_named(tmp_path):
    a = picture(0)
    rows = [
        ("1", a, "Q", "", "x", "y", "", "", "C", "c", ""),
        ("2", "9", "Q", "", "x", "y", "", "", "A", "c", ""),
        ("3", a, "", "", "x", "y", "", "", "A", "c", ""),
        ("4", a, "Q", "", "", "", "", "", "maybe", "c", ""),
        ("5", a, "Q", "", "x", "<SEG>", "", "", "A", "c", ""),
        ("5", "", "Q", "", "x", "y", "", "", "A", "c", ""),
        ("6", a[:80] + "%" * 80, "Q", "", "x", "y", "", "", "A", "c", ""),
    ]
    data = TsvQuestions(write(tmp_path / "a.tsv", rows))
    reasons = [
        "question 1: the answer is 'C', not A or B",
        "question 2: its image should be that of '9'",
        "question 3: 'question' is ''",
        "question 4: the answer is 'maybe', not yes or no",
        "question 5: 'B' is '<SEG>', not plain text",
        "question 5#5: its image should be that of ''",
    ]
    for index, reason in enumerate(reasons):
        with pytest.raises(BadSample, match=reason):
            data[index]
    with pytest.raises(BadSample, match="^data:image/jpeg;base64: cannot be read as an image") as caught:
        read_image(data[6].image)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "has no column index, image, question, answer"),
        (b"<html>\n", "has no column index"),
        (b"index\timage\tquestion\n", "has no column answer"),
        (b"index\timage\tquestion\tanswer\n", "holds no question with an image"),
        (b"index\timage\tquestion\tanswer\n1\t2\tQ\tyes\n", "holds no question with an image"),
        (b"index\timage\tquestion\tanswer\n1\tabc\n", r"line 2 \(2 cells under 4 columns\)"),
        (b'index\timage\tquestion\tanswer\n1\ta\t"Q\tyes\n2\tb\tQ\tno\n', "damaged near line 3"),
        (b"index\timage\tquestion\tanswer\n1\ta\t\xff\tyes\n", "damaged near line"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, reason):
    (tmp_path / "bad.tsv").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.tsv.*{reason}"):
        TsvQuestions(tmp_path / "bad.tsv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.tsv: cannot be read"):
        TsvQuestions(tmp_path / "no.tsv")


@pytest.mark.parametrize("data", ["", "AAAA", "/9j/", "&&&&", "abc", "é"])
def test_an_inline_image_that_is_none_is_refused_without_its_text(data):
    for read in (read_image, image_size):
        with pytest.raises(BadSample, match=r"^data:image/png;base64: cannot be read as an image \([^<]*\);"):
            read(f"data:image/png;base64,{data}")


def test_an_inline_image_has_the_limits_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(BadSample, match="exceeds limit of 40 pixels"):
        read_image(f"data:image/jpeg;base64,{picture(0)}")
