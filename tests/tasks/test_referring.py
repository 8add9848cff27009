"""Referring segmentation on the embedded world and on files of one image: one target, several, none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xsam.data.jsonl import JsonLines
from xsam.data.masks import unpack
from xsam.data.mixture import key
from xsam.data.refer import RefCoco
from xsam.structures import BadSample, ItemOutput, Prediction, Sample, UserError
from xsam.tasks.referring import ReferringSegmentation, meant


def referring(world: Path, split: str = "val", **options) -> ReferringSegmentation:
    data = RefCoco(world / "refer/refs(shapes).p", world / "refer/instances.json", world, split)
    return ReferringSegmentation(data=data, **options)


def answer(masks: np.ndarray, probabilities: list[float]) -> ItemOutput:
    """Queries with these masks and probabilities of the one phrase."""
    logits = torch.from_numpy(masks).float() * 40 - 20
    phrase = torch.tensor(probabilities)
    size = masks.shape[-1]
    return ItemOutput(
        mask_logits=logits, class_logits=torch.stack([phrase, 1 - phrase], 1).log(), frame=size, seg_size=(size, size),
        image_size=(size, size),
    )  # fmt: skip


def perfect(sample: Sample) -> ItemOutput:
    """The sample's masks, sure, and a whole image that is nothing."""
    masks = unpack(sample.masks)
    nothing = np.ones((1, *sample.masks.ids.shape[1:]), bool)
    return answer(np.concatenate([masks, nothing]), [0.99] * len(masks) + [0.01])


def test_evaluates_sentence_by_sentence(world):
    task = referring(world)
    assert len({task.id(i) for i in range(len(task))}) == len(task)
    right, wrong = task.metric(), task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        assert (sample.id, len(sample.turns)) == (task.id(index), 1)
        task.score(right, task.postprocess([perfect(sample)], "", sample), sample)
        task.score(wrong, Prediction(id=sample.id, failed=True), sample)
    scores = right.compute()
    assert scores["cIoU"] == scores["gIoU"] == scores["cIoU_attribute"] == scores["cIoU_superlative"] == 100
    assert wrong.compute()["gIoU"] == 0
    assert task.postprocess([], "no mask", sample).failed


def test_baselines_do_not_read_the_expression(world):
    task = referring(world)
    blind = task.baselines(range(len(task)))
    assert set(blind) == {"whole image", "largest thing", "random thing"}
    areas = [unpack(task.sample(i, np.random.default_rng(0)).masks)[0].mean() for i in range(len(task))]
    assert blind["whole image"]["cIoU"] == pytest.approx(100 * np.mean(areas))  # all images have one size
    assert blind["largest thing"]["gIoU"] > blind["whole image"]["gIoU"]


def test_trains_image_by_image(world):
    task = referring(world, "train", train=True, max_turns=3)
    sample = task.sample(0, np.random.default_rng(key(0)))
    assert sample.id == task.id(0)
    assert 1 <= len(sample.turns) <= 3
    assert sample.shared_candidates
    assert sample.labels.tolist() == sample.mask_segs.tolist() == list(range(len(sample.turns)))
    assert [turn.question.startswith("<image>") for turn in sample.turns] == [True] + [False] * (len(sample.turns) - 1)
    drawn = {task.sample(0, np.random.default_rng(seed)).turns for seed in range(8)}
    assert len(drawn) > 4  # order, sentences and wordings vary
    assert task.sample(0, np.random.default_rng(5)).turns == task.sample(0, np.random.default_rng(5)).turns


def test_mistakes_name_the_remedy(world):
    with pytest.raises(UserError, match="has no split 'testA'; there is: train, val"):
        referring(world, "testA")


LEFT, RIGHT = [[0, 0, 2, 0, 2, 4, 0, 4]], [[2, 0, 4, 0, 4, 4, 2, 4]]  # halves of a 4 x 4 image
OWN = [("a.png", "a dog", LEFT), ("a.png", "both", LEFT), ("a.png", "both", RIGHT), ("a.png", "a cat", None)]


def own(folder, rows, **options):
    for name in {name for name, _, _ in rows}:
        Image.new("RGB", (4, 4)).save(folder / name)
    lines = (json.dumps({"image": name, "text": text, "segmentation": mask}) for name, text, mask in rows)
    (folder / "own.jsonl").write_text("\n".join(lines))
    return ReferringSegmentation(data=JsonLines(folder / "own.jsonl"), **options)


def phrases(sample):
    return [turn.question.split("<p>")[1].split("</p>")[0] for turn in sample.turns]


def test_several_targets_and_none_in_training(tmp_path):
    task = own(tmp_path, OWN, train=True)
    columns = np.arange(4)[None].repeat(4, 0)
    meaning = {"a dog": [columns < 2], "both": [columns < 2, columns >= 2], "a cat": []}
    for seed in range(5):
        sample = task.sample(0, np.random.default_rng(seed))
        assert set(phrases(sample)) == {"a dog", "both", "a cat"}
        expected = [(number, mask) for number, phrase in enumerate(phrases(sample)) for mask in meaning[phrase]]
        assert sample.labels.tolist() == sample.mask_segs.tolist() == [number for number, _ in expected]
        assert (unpack(sample.masks) == np.stack([mask for _, mask in expected])).all()


def test_an_image_that_fits_nothing_trains(tmp_path):
    sample = own(tmp_path, [("a.png", "a cat", None)], train=True).sample(0, np.random.default_rng(0))
    assert (len(sample.turns), len(sample.labels), sample.masks.count) == (1, 0, 0)
    assert sample.masks.ids.shape == (1, 4, 4)


def test_two_phrases_for_one_object_are_not_wrong_answers_to_each_other(world):
    data = RefCoco(world / "refer/refs(shapes).p", world / "refer/instances.json", world, "train")
    image = data[0]
    task = ReferringSegmentation(data=data, train=True, max_turns=99)
    for seed in range(5):
        sample = task.sample(0, np.random.default_rng(seed))
        assert len(set(phrases(sample))) == len(sample.turns) <= len(image.expressions)
        owners = [{e.objects for e in image.expressions if phrase in e.sentences} for phrase in phrases(sample)]
        assert len({objects for found in owners for objects in found}) >= len(owners)


def test_synthetic_negatives_are_phrases_of_other_images(tmp_path):
    rows = [("a.png", "a dog", LEFT), ("b.png", "a dog", LEFT), ("b.png", "a tree", RIGHT)]
    task = own(tmp_path, rows, train=True, absent=1.0)
    seen = set()
    for seed in range(30):
        sample = task.sample(0, np.random.default_rng(seed))
        seen.add(tuple(phrases(sample)))
        assert sample.labels.tolist() == [0]
    assert seen == {("a dog",), ("a dog", "a tree")}  # never the phrase that means something here
    task.absent = 0.0
    assert all(len(task.sample(0, np.random.default_rng(seed)).turns) == 1 for seed in range(10))


def test_the_answer_to_several_is_all_that_is_likelier_than_nothing(tmp_path):
    task = own(tmp_path, OWN, several=True)
    scores = task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        task.score(scores, task.postprocess([perfect(sample)], "", sample), sample)
    scores = scores.compute()
    assert (scores["cIoU"], scores["gIoU"], scores["N_acc"], scores["T_acc"]) == (100, 100, 100, 100)

    sample = task.sample(0, np.random.default_rng(0))
    halves = np.stack([np.arange(4)[None].repeat(4, 0) < 2, np.arange(4)[None].repeat(4, 0) >= 2])
    (found,) = task.postprocess([answer(halves, [0.6, 0.8])], "", sample).segments
    assert found.score == pytest.approx(0.8)
    assert found.segmentation == {"size": [4, 4], "counts": "0`0"}  # 0 pixels outside, then 16 inside
    absent = task.postprocess([answer(halves, [0.4, 0.5])], "", sample)  # as likely is not likelier
    assert (absent.segments, absent.failed) == ((), False)
    task.several = False
    assert len(task.postprocess([answer(halves, [0.4, 0.5])], "", sample).segments) == 1


def test_an_image_that_cannot_be_used_is_counted(tmp_path):
    task = own(tmp_path, [*OWN, ("b.png", "a dog", [[1]])])
    assert (len(task), task.id(3)) == (4, "line 5-0")
    with pytest.raises(BadSample, match="line 5: a polygon needs"):
        task.sample(3, np.random.default_rng(0))
    assert task.baselines(range(4))["whole image"]["T_acc"] == 100


@pytest.mark.parametrize("several", [False, True])
def test_below_the_score_the_target_is_absent(world, several):
    """N_acc and T_acc can be had at a threshold; without one, a single target is always there."""
    mask = np.zeros((1, 96, 96), bool)
    mask[:, 10:20, 10:30] = True
    for score, probability, there in ((0.6, 0.7, True), (0.6, 0.55, False), (0.0, 0.55, True)):
        task = referring(world, several=several, score=score)
        sample = task.sample(0, np.random.default_rng(0))
        segments = task.postprocess([answer(mask, [probability])], "", sample).segments
        assert [segment.score for segment in segments] == ([pytest.approx(probability)] if there else [])
        assert task.may_be_empty == (several or score > 0)
    assert len(meant(answer(mask, [0.1]))) == 1
    assert meant(answer(mask, [0.1]), several=True) == []
    assert meant(answer(mask, [0.1]), score=0.2) == []
