"""The reader of LLaVA's conversations."""

import json

import pytest

from xsam.data.conversations import Conversations
from xsam.structures import Turn, UserError


def write(path, *records):
    path.write_text(json.dumps(records))
    return Conversations(path, path.parent)


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_the_image_stands_before_the_question_that_showed_it(tmp_path):
    record = {
        "id": 5,
        "image": "a/b.jpg",
        "conversations": talk("Hi", "Hello", "What is it?\n<image>", " A cat. "),
    }
    (conversation,) = write(tmp_path / "c.json", record)
    assert conversation.id == "5"
    assert conversation.image == str(tmp_path / "a/b.jpg")
    assert conversation.turns == (Turn("Hi", "Hello"), Turn("<image>\nWhat is it?", "A cat."))


def test_an_image_that_no_question_shows_stands_first(tmp_path):
    (conversation,) = write(tmp_path / "c.json", {"id": "x", "image": "a.jpg", "conversations": talk("Q", "A")})
    assert conversation.turns == (Turn("<image>\nQ", "A"),)


def test_an_image_is_shown_once(tmp_path):
    record = {"id": "x", "image": "a.jpg", "conversations": talk("<image>\nQ", "A", "<image> R", "B")}
    (conversation,) = write(tmp_path / "c.json", record)
    assert [turn.question for turn in conversation.turns] == ["<image>\nQ", "R"]


def test_text_only_and_a_leading_answer(tmp_path):
    record = {
        "id": "t",
        "conversations": [{"from": "gpt", "value": "Welcome"}, *talk("Q", "A", "unanswered")],
    }
    (conversation,) = write(tmp_path / "c.json", record)
    assert conversation.image == ""
    assert conversation.turns == (Turn("Q", "A"),)


@pytest.mark.parametrize(
    "record, problem",
    [
        ({"id": "x", "conversations": []}, "x: no question with an answer"),
        ({"id": "x", "conversations": talk("<image>\nQ", "A")}, "x: shows an image but names none"),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, problem):
    with pytest.raises(ValueError, match=problem):
        write(tmp_path / "c.json", record)[0]


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=r"c\.json: not a list of conversations"):
        Conversations(tmp_path / "c.json", tmp_path)
