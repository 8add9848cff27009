"""Chat on the embedded world."""

import json

import numpy as np
import pytest

from xsam.data.conversations import Conversations
from xsam.structures import BadSample, Sample, Turn
from xsam.tasks.chat import Chat


def test_short_answers_are_compared(world):
    data = Conversations(world / "conversations/val.json", world)
    task = Chat(data=data)
    right, wrong = task.metric(), task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        assert (sample.id, len(sample.turns)) == (task.id(index), 1)
        task.score(right, task.postprocess([], sample.turns[0].answer.upper() + ".", sample), sample)
        task.score(wrong, task.postprocess([], "", sample), sample)
    assert right.compute() == {"accuracy": 100}
    assert wrong.compute() == {"accuracy": 0}
    assert right.per_category() == {}
    assert len(Chat(data=data, train=True).sample(0, np.random.default_rng(0)).turns) > 1


def test_case_articles_and_punctuation_do_not_count(world):
    task = Chat(data=Conversations(world / "conversations/val.json", world))
    metric = task.metric()
    for name, answer, expected in (("1", "The Red ring.", "red ring"), ("2", "blue", "red")):
        sample = Sample(id=name, turns=(Turn("?", expected),))
        task.score(metric, task.postprocess([], answer, sample), sample)
    assert metric.compute() == {"accuracy": 50}


def test_conversations_with_and_without_an_image(tmp_path):
    talk = [{"from": who, "value": text} for who, text in (("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B"))]
    records = [{"id": "a", "image": "a.jpg", "conversations": talk}, {"id": "b", "conversations": talk}, {"id": "c"}]
    (tmp_path / "c.json").write_text(json.dumps(records))
    task = Chat(data=Conversations(tmp_path / "c.json", tmp_path), train=True)
    shown, plain = (task.sample(i, np.random.default_rng(0)) for i in (0, 1))
    assert shown.image == str(tmp_path / "a.jpg")
    assert shown.turns == (Turn("<image>\nQ", "A"), Turn("R", "B"))
    assert (plain.image, plain.turns) == ("", (Turn("Q", "A"), Turn("R", "B")))
    assert len(task.lengths) == len(task) == 3
    assert task.id(2) == "record 2"
    with pytest.raises(BadSample, match="record 2: has no 'conversations'"):
        task.sample(2, np.random.default_rng(0))
