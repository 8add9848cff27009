"""Multiple choice: prompts, rotations, meanings of answers, and a table through model and metric."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from xsam.data.prompt import Processor
from xsam.data.tsv import TsvQuestions
from xsam.structures import BadSample, Turn, UserError
from xsam.tasks.multiple_choice import MultipleChoice


@pytest.fixture
def table(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 0, 0)).save(file, "JPEG")
    image = base64.b64encode(file.getvalue()).decode()
    rows = [
        ("index", "image", "question", "hint", "A", "B", "C", "answer", "category"),
        ("5", image, "Which?", "Look.", "red", "green", "blue", "B", "colour"),
        ("6", "5", "Is it {red}?", "", "", "", "", "Yes", "colour,shape"),
        ("7", "5", "Is it round? Please answer yes or no.", "", "", "", "", "No", "shape"),
        ("8", "A" * 80, "Which?", "", "x", "y", "", "A", "colour"),
    ]
    (tmp_path / "t.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return TsvQuestions(tmp_path / "t.tsv")


def samples(task):
    return [task.sample(index, np.random.default_rng(0)) for index in range(len(task))]


def test_prompts(table):
    task = MultipleChoice(data=table)
    assert task.generates
    assert task.may_be_empty  # an answer has no mask in the strict protocol either
    assert [task.id(index) for index in range(len(task))] == ["5", "6", "7", "8"]
    options, yes_no, said, _ = samples(task)
    text = "<image>\nLook.\nWhich?\nA. red\nB. green\nC. blue\nAnswer with the letter of the right option."
    assert options.turns == (Turn(text, "B"),)
    assert options.id == "5"
    assert yes_no.turns == (Turn("<image>\nIs it {red}?\nAnswer yes or no.", "yes"),)
    assert said.turns == (Turn("<image>\nIs it round? Please answer yes or no.", "no"),)
    assert options.image == yes_no.image
    ours = samples(MultipleChoice(data=table, letter="Letter?", yes_no="Well?"))
    assert [sample.turns[0].question.splitlines()[-1] for sample in ours[:2]] == ["Letter?", "Well?"]


def test_rotations_keep_the_right_text(table):
    task = MultipleChoice(data=table, measure="circular")
    assert [task.id(index) for index in range(len(task))] == ["5/0", "5/1", "5/2", "6/0", "7/0", "8/0", "8/1"]
    asked = [(s.id, s.turns[0].question.splitlines()[3:6], s.turns[0].answer) for s in samples(task)[:3]]
    assert asked == [
        ("5/0", ["A. red", "B. green", "C. blue"], "B"),
        ("5/1", ["A. green", "B. blue", "C. red"], "A"),
        ("5/2", ["A. blue", "B. red", "C. green"], "C"),
    ]


def scored(task, answers):
    metric = task.metric()
    failed = []
    for sample, answer in zip(samples(task), answers, strict=True):
        prediction = task.postprocess([], answer, sample)
        failed.append(prediction.failed)
        task.score(metric, prediction, sample)
    return metric, failed


def test_answers_are_scored_and_unclear_ones_fail(table):
    metric, failed = scored(MultipleChoice(data=table), ["(B) green", "Yes, it is.", "Well", "A or B"])
    assert failed == [False, False, True, True]
    assert metric.compute() == {"accuracy": 60}  # the second question counts in two categories
    assert metric.per_category()["shape"] == {"accuracy": 50}
    metric, _ = scored(MultipleChoice(data=table, measure="F1"), ["B", "yes", "yes", "A"])
    assert metric.per_category()["shape"] == {"F1": pytest.approx(200 / 3), "accuracy": 50}


def test_circular_and_paired_scores(table):
    metric, _ = scored(MultipleChoice(data=table, measure="circular"), ["B", "A", "B", "yes", "no", "A", "B"])
    assert metric.per_category() == {
        "colour": {"accuracy": pytest.approx(200 / 3)}, "shape": {"accuracy": 100},
    }  # fmt: skip
    metric, _ = scored(MultipleChoice(data=table, sums={"all": ["shape"]}), ["B", "yes", "yes", "A"])
    assert metric.compute() == {"all": 50}  # one of two questions, and not both about the image


def test_answers_are_exported_as_text(table, tmp_path):
    task = MultipleChoice(data=table)
    sample = samples(task)[0]
    task.export([(task.postprocess([], "B.", sample), sample)], tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == [{"id": "5", "text": "B."}]


def test_an_unknown_measure_is_named(table):
    with pytest.raises(UserError, match="measure='f1' is unknown; multiple choice has accuracy, circular, F1"):
        MultipleChoice(data=table, measure="f1")


def test_questions_reach_the_model_and_a_broken_image_is_one_bad_sample(table, world):
    processor = Processor(seg_size=64, vision_size=32, tokenizer=str(world / "base"))
    *good, broken = samples(MultipleChoice(data=table))
    for sample in good:
        encoded = processor.prompt(sample, 0)
        assert encoded.image_size == (30, 40)
        assert "answer" in processor.text([i for i in encoded.input_ids.tolist() if i >= 0]).lower()
    with pytest.raises(BadSample, match="^data:image/jpeg;base64: cannot be read as an image"):
        processor.prompt(broken, 0)
