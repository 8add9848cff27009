"""Reasoning segmentation: short and long questions, rephrasings, explanations, and pixels that do not count."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from xsam.data.masks import unpack
from xsam.data.reasonseg import ReasonSeg
from xsam.structures import BadSample, ItemOutput, Prediction, UserError
from xsam.tasks.reasoning import ANSWERS, LONG, SHORT, WHY, ReasoningSegmentation

TARGET = {"label": "target", "points": [[0, 0], [1, 0], [1, 3], [0, 3]]}  # columns 0 and 1 of a 4 x 4 image
IGNORE = {"label": "ignore", "points": [[3, 0], [3, 3]]}  # column 3


@pytest.fixture
def folder(tmp_path):
    records = {
        "a": ([" What runs? ", "Which one is fast?"], True),
        "b": (["the fast one"], False),
        "c": (["the slow one"], None),
    }
    (tmp_path / "val").mkdir()
    for name, (texts, is_sentence) in records.items():
        Image.new("RGB", (4, 4)).save(tmp_path / f"val/{name}.jpg")
        record = {"text": texts, "is_sentence": is_sentence, "shapes": [TARGET, IGNORE]}
        (tmp_path / f"val/{name}.json").write_text(json.dumps(record))
    (tmp_path / "why.json").write_text(json.dumps([{"image": "a.jpg", "query": "", "outputs": "A dog runs."}]))
    return tmp_path


def reasoning(folder, **options):
    return ReasoningSegmentation(data=ReasonSeg(folder / "val", folder / "why.json"), **options)


def test_questions_are_short_or_long(folder):
    for questions, names in (("all", "abc"), ("short", "bc"), ("long", "ac")):  # c says nothing and is counted in each
        task = reasoning(folder, questions=questions)
        assert [task.id(i) for i in range(len(task))] == list(names)
    task = reasoning(folder)
    long, short = (task.sample(i, np.random.default_rng(0)) for i in (0, 1))
    assert long.turns[0].question == "<image>\n" + LONG[0].format(phrase="<p>What runs?</p>")
    assert short.turns[0].question == "<image>\n" + SHORT[0].format(phrase="<p>the fast one</p>")
    assert long.turns[0].answer == short.turns[0].answer == ANSWERS[0]  # no explanation
    with pytest.raises(BadSample, match="'is_sentence' is None"):
        task.sample(2, np.random.default_rng(0))
    with pytest.raises(UserError, match="questions='middle' is unknown; reasoning segmentation has all, short, long"):
        reasoning(folder, questions="middle")


def test_training_draws_one_rephrasing_and_half_of_the_explanations(folder):
    task = reasoning(folder, train=True)
    samples = [task.sample(0, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(sample.turns) == 1 and sample.shared_candidates for sample in samples)
    asked = {sample.turns[0].question.split("<p>")[1].split("</p>")[0] for sample in samples}
    assert asked == {"What runs?", "Which one is fast?"}
    explained = [s for s in samples if any(s.turns[0].question.endswith(f" {why}") for why in WHY)]
    assert 70 < len(explained) < 130
    for sample in samples:
        answer = sample.turns[0].answer
        assert answer.removeprefix("A dog runs. ") in ANSWERS
        assert answer.startswith("A dog runs. ") == any(sample is one for one in explained)
    plain = [task.sample(1, np.random.default_rng(seed)).turns[0].answer for seed in range(20)]
    assert set(plain) <= set(ANSWERS)


def test_ignored_pixels_do_not_count(folder):
    task = reasoning(folder)
    sample = task.sample(0, np.random.default_rng(0))
    assert (unpack(sample.masks)[0] == (np.arange(4) < 2)).all()
    right, wrong = task.metric(), task.metric()
    masks = torch.from_numpy((np.arange(4) != 2)[None, None].repeat(4, 1)).float() * 40 - 20
    output = ItemOutput(
        mask_logits=masks, class_logits=torch.tensor([[3.0, 0.0]]), frame=4, seg_size=(4, 4), image_size=(4, 4)
    )
    prediction = task.postprocess([output], "", sample)
    assert len(prediction.segments) == 1
    task.score(right, prediction, sample)
    assert (right.compute()["gIoU"], right.compute()["cIoU"]) == (100, 100)
    task.score(wrong, Prediction(id=sample.id, failed=True), sample)
    assert wrong.compute()["gIoU"] == 0
    assert task.postprocess([], "", sample).failed
