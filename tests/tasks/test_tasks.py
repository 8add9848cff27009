"""Every task on the embedded world: a perfect answer scores 100, no answer scores 0, draws follow the sample id."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.conversations import Conversations
from xsam.data.masks import unpack
from xsam.data.mixture import key
from xsam.data.refer import RefCoco
from xsam.structures import ItemOutput, Prediction, Sample, UserError
from xsam.tasks.chat import Chat
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.referring import ReferringSegmentation


def generic(world: Path, **options) -> GenericSegmentation:
    split = "train" if options.get("train") else "val"
    annotations = world / f"annotations/panoptic_{split}.json"
    return GenericSegmentation(data=CocoPanoptic(annotations, world / f"panoptic_{split}", world / split), **options)


def referring(world: Path, split: str = "val", **options) -> ReferringSegmentation:
    data = RefCoco(world / "refer/refs(shapes).p", world / "refer/instances.json", world, split)
    return ReferringSegmentation(data=data, **options)


def perfect(sample: Sample, columns: int, seg: int = 0) -> ItemOutput:
    """Queries that are exactly the sample's masks, sure of their labels, and one that is nothing."""
    chosen = np.flatnonzero(sample.mask_segs == seg)
    masks = torch.from_numpy(unpack(sample.masks)[chosen]).float() * 40 - 20
    size = masks.shape[-1]
    classes = torch.full((len(chosen) + 1, columns + 1), -20.0)
    classes[range(len(chosen)), sample.labels[chosen]] = 20
    classes[-1, -1] = 20
    masks = torch.cat([masks, torch.full_like(masks[:1], -20)])
    return ItemOutput(
        mask_logits=masks, class_logits=classes, frame=size, seg_size=(size, size), image_size=(size, size)
    )


@pytest.mark.parametrize(
    "metric, names",
    [("panoptic", ("PQ", "PQ_th", "PQ_st")), ("instance", ("AP", "AP50")), ("semantic", ("mIoU", "pACC"))],
)
@pytest.mark.parametrize("with_instances", [True, False])
def test_generic(world, metric, names, with_instances):
    instances = CocoInstances(world / "annotations/instances_val.json", world / "val")
    options = {"instances": instances} if with_instances else {}
    task = generic(world, metric=metric, **options)
    scores = task.metric(), task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        task.score(scores[0], task.postprocess([perfect(sample, len(task.categories))], "", sample), sample)
        failed = task.postprocess([], "no mask here", sample)
        assert failed.failed
        task.score(scores[1], failed, sample)
    for name in names:
        assert scores[0].compute()[name] == pytest.approx(100)
        assert scores[1].compute()[name] == 0
    assert sample.turns[0].question.startswith("<image>\n")
    assert sample.turns[0].question.count("<p>") == len(task.categories) == 10
    assert "<p>sky</p>" in sample.turns[0].question


def test_generic_training_lists_what_is_there_and_some_of_the_rest(world):
    task = generic(world, train=True)
    counts = set()
    for seed in range(12):
        sample = task.sample(0, np.random.default_rng(seed))
        names = sample.turns[0].question.split("<p>")[1:]
        listed = [name.split("</p>")[0] for name in names]
        truth = {s.id: s.category_id for s in sample.truth["segments"]}
        for mask, label in zip(unpack(sample.masks), sample.labels, strict=True):
            (segment,) = np.unique(sample.truth["ids"][mask])
            assert {c.id: c.name for c in task.categories}[truth[int(segment)]] == listed[label]
        counts.add(len(listed))
    assert max(counts) == 10
    assert min(counts) < 10


def test_closed_set_has_no_text(world):
    sample = generic(world, closed_set=True).sample(0, np.random.default_rng(0))
    assert sample.turns == ()
    assert sample.labels.max() < 10


def test_referring_evaluates_sentence_by_sentence(world):
    task = referring(world)
    assert len({task.id(i) for i in range(len(task))}) == len(task)
    right, wrong = task.metric(), task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        assert len(sample.turns) == 1
        task.score(right, task.postprocess([perfect(sample, 1)], "", sample), sample)
        task.score(wrong, Prediction(id=sample.id, failed=True), sample)
    scores = right.compute()
    assert scores["cIoU"] == scores["gIoU"] == scores["cIoU_attribute"] == scores["cIoU_superlative"] == 100
    assert wrong.compute()["gIoU"] == 0
    blind = task.baselines(range(len(task)))
    assert set(blind) == {"whole image", "largest thing", "random thing"}
    areas = [unpack(task.sample(i, np.random.default_rng(0)).masks)[0].mean() for i in range(len(task))]
    assert blind["whole image"]["cIoU"] == pytest.approx(100 * np.mean(areas))  # all images have one size


def test_referring_trains_image_by_image(world):
    task = referring(world, "train", train=True, max_turns=3)
    sample = task.sample(0, np.random.default_rng(key(0)))
    assert 1 <= len(sample.turns) <= 3
    assert sample.shared_candidates
    assert sample.labels.tolist() == sample.mask_segs.tolist() == list(range(len(sample.turns)))
    assert [turn.question.startswith("<image>") for turn in sample.turns] == [True] + [False] * (len(sample.turns) - 1)
    drawn = {task.sample(0, np.random.default_rng(seed)).turns for seed in range(8)}
    assert len(drawn) > 4  # order, sentences and wordings vary
    assert task.sample(0, np.random.default_rng(5)).turns == task.sample(0, np.random.default_rng(5)).turns


def test_chat(world):
    data = Conversations(world / "conversations/val.json", world)
    task = Chat(data=data)
    right, wrong = task.metric(), task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        assert len(sample.turns) == 1
        task.score(right, task.postprocess([], sample.turns[0].answer.upper() + ".", sample), sample)
        task.score(wrong, task.postprocess([], "", sample), sample)
    assert right.compute() == {"accuracy": 100}
    assert wrong.compute() == {"accuracy": 0}
    assert len(Chat(data=data, train=True).sample(0, np.random.default_rng(0)).turns) > 1


def test_mistakes_name_the_remedy(world):
    with pytest.raises(UserError, match="metric='boxes' is unknown; generic segmentation has panoptic"):
        generic(world, metric="boxes")
    with pytest.raises(UserError, match="has no split 'testA'; there is: train, val"):
        referring(world, "testA")
