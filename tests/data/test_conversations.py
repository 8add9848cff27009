"""The reader of LLaVA's conversations."""

import json
from pathlib import Path

import pytest

from xsam.data.conversations import Conversations
from xsam.structures import BadSample, Turn, UserError

LLAVA = Path(__file__).parents[2] / "../shared/refdata/llava"


def write(path, *records):
    path.write_text(json.dumps(records))
    return Conversations(path, path.parent)


def talk(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_the_image_stands_before_the_question_that_showed_it(tmp_path):
    record = {"id": 5, "image": "a/b.jpg", "conversations": talk("Hi", "Hello", "What is it?\n<image>", " A cat. ")}
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


def test_lines_are_records_and_a_broken_one_is_one_bad_record(tmp_path):
    record = {"id": "x", "image": "a.jpg", "conversations": talk("Q", "A")}
    (tmp_path / "c.jsonl").write_text(f"{json.dumps(record)}\n\n{{oops\n{json.dumps(record)}\n")
    records = Conversations(tmp_path / "c.jsonl", tmp_path)
    assert (len(records), records[0].turns, records[2].turns) == (3, records[2].turns, (Turn("<image>\nQ", "A"),))
    with pytest.raises(BadSample, match="c.jsonl, line 3: not valid JSON"):
        records[1]


def test_text_only_and_a_leading_answer(tmp_path):
    record = {"id": "t", "conversations": [{"from": "gpt", "value": "Welcome"}, *talk("Q", "A", "unanswered")]}
    (conversation,) = write(tmp_path / "c.json", record)
    assert conversation.image == ""
    assert conversation.turns == (Turn("Q", "A"),)


def test_tags_in_a_conversation_about_html_are_letters(tmp_path):
    record = {"id": "t", "conversations": talk("What is </p>?", "It closes <p>, not <b> or <SEG>.")}
    (conversation,) = write(tmp_path / "c.json", record)
    assert conversation.turns == (Turn("What is < /p>?", "It closes < p>, not <b> or < SEG>."),)


def test_ids_are_unique_and_lengths_measure_text(tmp_path):
    rows = [{"id": name, "conversations": talk("Q", "A" * size)} for name, size in (("a", 1), ("b", 50), ("a", 1))]
    data = write(tmp_path / "c.json", *rows, {"conversations": talk("Q", "A")})
    names = ["a", "b", "a#2", "record 3"]
    assert [data.id(i) for i in range(4)] == [conversation.id for conversation in data] == names
    assert data.lengths[1] == data.lengths[0] + 49


@pytest.mark.parametrize(
    "record, problem",
    [
        ({"id": "x", "conversations": []}, "x: no question with an answer"),
        ({"id": "x", "conversations": talk("<image>\nQ", "A")}, "x: shows an image but names none"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "x: has no 'value'"),
        ({"id": "x", "conversations": [{"from": 1, "value": "Q"}]}, "x: 'from' is 1"),
        ({"id": "x", "conversations": [{"from": "dog", "value": "Q"}]}, "x: nobody is called 'dog'"),
        ({"id": "x", "conversations": [7]}, "x: is 7"),
        ({"id": "x", "image": 3, "conversations": talk("Q", "A")}, "x: 'image' is 3"),
        ({"id": "x", "conversations": talk("\ud800", "A")}, "x: half a surrogate pair"),
        ({"id": "x", "conversations": "Q"}, "record 1: 'conversations' is 'Q'"),
        ({"id": "x"}, "record 1: has no 'conversations'"),
        ("text", "record 1: is 'text', not an object"),
    ],
)
def test_a_bad_record_is_named_and_leaves_the_others(tmp_path, record, problem):
    data = write(tmp_path / "c.json", {"id": "good", "conversations": talk("Q", "A")}, record)
    assert data[0].id == "good"
    assert data.id(1) in ("x", "record 1")
    with pytest.raises(BadSample, match=problem):
        data[1]


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UserError, match=r"c\.json: not a JSON list"):
        Conversations(tmp_path / "c.json", tmp_path)
    with pytest.raises(UserError, match=r"c\.json: none of its 1 records can be used, .*no 'conversations'"):
        write(tmp_path / "c.json", {"image": "a.jpg", "query": "Q"})


@pytest.mark.skipif(not LLAVA.is_dir(), reason="reference data are not here")
def test_llava():
    first, second = Conversations(LLAVA / "llava_conversations_sample.json", LLAVA)
    assert Path(first.image).is_file()
    assert first.turns[0] == Turn(
        "<image>\nWhat is unusual about this image?", "A man is ironing clothes on the back of a moving car."
    )
    assert (second.id, second.image) == ("textonly-1", "")
    assert second.turns == (Turn("Name three primary colours.", "Red, yellow and blue."),)
