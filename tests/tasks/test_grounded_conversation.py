"""Grounded conversations: what a training sample says, and what a written answer means."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xsam.data.collate import collate
from xsam.data.gcg import GcgPairs, GrandF, GroundedCaption
from xsam.data.masks import decode_rle, encode_rle, unpack
from xsam.data.prompt import Processor
from xsam.structures import ItemOutput
from xsam.tasks.grounded_conversation import QUESTIONS, GroundedConversation, caption, marked, parse, shown

CAPTION = 'A dog and a Cat near "the house"'


def quarter(number: int) -> dict:
    mask = np.zeros((4, 8), bool)
    mask[:, 2 * number : 2 * number + 2] = True
    return encode_rle(mask)


@pytest.fixture
def training(tmp_path: Path) -> GrandF:
    groundings = {
        "a cat": {"token_positives": [10, 15], "rle_masks": [quarter(0), quarter(1)]},
        "a dog": {"token_positives": [0, 5], "rle_masks": [quarter(2)]},
    }
    record = {"file_name": "1.png", "height": 4, "width": 8, "caption": CAPTION, "groundings": groundings}
    (tmp_path / "train.json").write_text(json.dumps([record]))
    Image.new("RGB", (8, 4)).save(tmp_path / "1.png")
    return GrandF(tmp_path / "train.json", tmp_path, "grandf")


@pytest.fixture
def val(tmp_path: Path) -> GcgPairs:
    masks = [{"image_id": n, "segmentation": quarter(q)} for n, q in ((1, 0), (1, 3), (2, 1))]
    captions = [
        {"image_id": n, "caption": CAPTION, "labels": names} for n, names in ((1, ["a dog", "a cat"]), (2, ["x"]))
    ]
    images = [{"id": n, "height": 4, "width": 8} for n in (1, 2)]
    (tmp_path / "m.json").write_text(json.dumps({"images": images, "annotations": masks}))
    (tmp_path / "c.json").write_text(json.dumps({"annotations": captions}))
    return GcgPairs(tmp_path / "m.json", tmp_path / "c.json", tmp_path)


def test_a_training_sample(training):
    task = GroundedConversation(data=training, train=True, answers=["{caption} So: <SEG>."])
    sample = task.sample(0, np.random.default_rng(0))
    (turn,) = sample.turns
    assert turn.question.removeprefix("<image>\n") in QUESTIONS
    assert turn.answer == '<p>a dog</p> and <p>a cat</p> near "the house. So: <SEG>.'
    assert sample.labels.tolist() == [0, 1, 1]  # both cats are targets of one phrase
    assert sample.mask_segs.tolist() == [0, 0, 0]
    assert [mask.argmax(1)[0] for mask in unpack(sample.masks)] == [4, 0, 2]
    drawn = {
        GroundedConversation(data=training, train=True).sample(0, np.random.default_rng(s)).turns for s in range(20)
    }
    assert len(drawn) > 8  # wordings vary


def test_one_item_whose_candidates_are_the_spans_of_the_answer(training, world):
    processor = Processor(seg_size=64, vision_size=32, tokenizer=str(world / "base"))
    sample = GroundedConversation(data=training, train=True).sample(0, np.random.default_rng(0))
    batch = collate([processor(sample, 0)] * 2, 1)
    assert len(batch.items) == 2
    assert batch.items.candidates.tolist() == [[0, 1], [2, 3]]
    assert batch.items.targets[1].labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "caption, answer",
    [
        ('"A dog and a cat"', "<p>a dog</p> and <p>a cat</p> ."),
        ("A dog, then A CAT. Good!", "<p>a dog</p> , then <p>a cat</p> . good!"),
        ("See a dog.\nA cat  runs ", "see <p>a dog</p> . <p>a cat</p> runs."),
    ],
)
def test_how_an_answer_is_written(caption, answer):
    spans = [caption.lower().index(phrase) for phrase in ("a dog", "a cat")]
    record = GroundedCaption("", "", 0, 0, caption, (), (), spans=tuple((begin, begin + 5) for begin in spans))
    assert marked(record) == answer


def output(*quarters: int) -> ItemOutput:
    """A query for every quarter of the picture and one for nothing; phrase k is sure of its query."""
    masks = torch.full((5, 4, 8), -20.0)
    classes = torch.full((5, len(quarters) + 1), -20.0)
    classes[:, -1] = 0
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 20
    for column, query in enumerate(quarters):
        classes[query, column] = 20
    return ItemOutput(mask_logits=masks, class_logits=classes, frame=8, seg_size=(4, 8), image_size=(4, 8))


def test_an_answer_is_read_phrase_by_phrase(val):
    task = GroundedConversation(data=val, similarity="jaccard")
    right, failed = task.metric(), task.metric()
    for index, quarters in enumerate([(0, 3), (1,)]):
        sample = task.sample(index, np.random.default_rng(index))
        assert sample.turns[0].question == f"<image>\n{QUESTIONS[0]}"
        marked = " and ".join(f"<p>{label}</p>" for label in sample.truth["labels"])
        text = f"{marked} near the house. It is <SEG>."
        prediction = task.postprocess([output(*quarters)], text, sample)
        assert not prediction.failed
        assert [s.label for s in prediction.segments] == list(sample.truth["labels"])
        assert [s.segmentation for s in prediction.segments] == [quarter(n) for n in quarters]
        assert [s.score for s in prediction.segments] == pytest.approx([1] * len(quarters))
        task.score(right, prediction, sample)
        nothing = task.postprocess([], "I see nothing.", sample)
        assert nothing.failed
        task.score(failed, nothing, sample)
    values = right.compute()
    assert (values["mIoU"], values["AP"], values["recall"]) == (100, pytest.approx(100), 100)
    assert right.captions["1"] == ("a dog and a cat near the house.", [CAPTION])
    values = failed.compute()
    assert (values["mIoU"], values["AP50"], values["recall"], values["CIDEr"]) == (0, 0, 0, 0)


def test_masks_of_phrases_may_overlap(val):
    task = GroundedConversation(data=val)
    sample = task.sample(0, np.random.default_rng(0))
    prediction = task.postprocess([output(1, 1)], "<p>a</p> <p>b</p>. <SEG>", sample)
    assert [decode_rle(s.segmentation).sum() for s in prediction.segments] == [8, 8]


@pytest.mark.parametrize(
    "text", ["<p>a</p>.", "<p>a</p>. <SEG> <SEG>", "<p>a. <SEG>", "a</p> <p>. <SEG>", "A dog. <SEG>"]
)
def test_an_unusable_answer_fails(val, text):
    task = GroundedConversation(data=val)
    sample = task.sample(0, np.random.default_rng(0))
    prediction = task.postprocess([output(0)] * text.count("<SEG>"), text, sample)
    assert (prediction.failed, prediction.segments, prediction.text) == (True, (), text)


def test_spans_that_the_tokens_do_not_have_fail(val):
    task = GroundedConversation(data=val)
    sample = task.sample(0, np.random.default_rng(0))
    assert task.postprocess([output(0)], "<p>a</p> <p>b</p>. <SEG>", sample).failed


@pytest.mark.parametrize(
    "answer, said, places",
    [
        ("<p>a dog</p> and <p>a dog</p> . It is <SEG>.", "a dog and a dog.", [(0, 5), (10, 15)]),
        ("see <p> a  dog </p> ; <p>mr , x</p> <SEG>.", "see a dog; mr, x", [(4, 9), (11, 16)]),
        ("<p>a dog. then <SEG> it. runs</p> on <p>a mat</p>.", "a dog. runs on a mat.", [(0, 0), (15, 20)]),
    ],
)
def test_phrases_are_found_in_the_caption(answer, said, places):
    """The sentence of the `<SEG>` is left out, even from the middle of a phrase, which then stands nowhere."""
    found = list(shown(output(0, 1), answer))
    assert caption(answer) == said
    assert [place for *_, place in found] == places
    assert [decode_rle(encode_rle(mask.numpy())).sum() for mask, *_ in found] == [8, 8]


@pytest.mark.parametrize(
    "answer, caption, phrases",
    [
        ("<p>a dog</p> on <p>a mat</p> . It is <SEG>.", "a dog on a mat.", ("a dog", "a mat")),
        ("a <p>dog</p> sits. it sees <p>mr. cat</p>! <SEG>.", "a dog sits. it sees mr. cat!", ("dog", "mr. cat")),
        ("a <p> dog </p> on a mat <SEG>.", "a dog on a mat", ("dog",)),  # no full stop: the caption is not lost
        ("one thing. here it is <SEG>. bye", "one thing. bye", ()),
    ],
)
def test_parsing(answer, caption, phrases):
    assert parse(answer) == (caption, phrases)


def test_what_a_sample_says_is_read_back(training):
    sample = GroundedConversation(data=training, train=True).sample(0, np.random.default_rng(3))
    assert parse(sample.turns[0].answer) == ('a dog and a cat near "the house.', ("a dog", "a cat"))
