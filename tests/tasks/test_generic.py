"""Generic segmentation over the three kinds of readers: a perfect answer scores 100, no answer 0; lists in training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.label_maps import LabelMaps
from xsam.data.masks import encode_rle, unpack, write_panoptic_png
from xsam.structures import BadSample, ItemOutput, Sample, UserError
from xsam.tasks.generic import GenericSegmentation


def reader(world: Path, split: str = "val") -> CocoPanoptic:
    return CocoPanoptic(world / f"annotations/panoptic_{split}.json", world / f"panoptic_{split}", world / split)


def generic(world: Path, **options) -> GenericSegmentation:
    return GenericSegmentation(data=reader(world, "train" if options.get("train") else "val"), **options)


def perfect(sample: Sample, columns: int) -> ItemOutput:
    """Queries that are exactly the sample's masks, sure of their labels, and one that is nothing."""
    masks = torch.from_numpy(unpack(sample.masks)).float() * 40 - 20
    height, width = masks.shape[1:]
    side = max(height, width)
    masks = torch.nn.functional.pad(masks, (0, side - width, 0, side - height), value=-20)
    classes = torch.full((len(masks) + 1, columns + 1), -20.0)
    classes[range(len(masks)), sample.labels] = 20
    classes[-1, -1] = 20
    return ItemOutput(
        mask_logits=torch.cat([masks, torch.full((1, side, side), -20.0)]), class_logits=classes,
        frame=side, seg_size=(height, width), image_size=(height, width),
    )  # fmt: skip


def scores(task: GenericSegmentation) -> tuple[dict, dict]:
    """Of perfect answers to all samples, and of none."""
    right, wrong = task.metric(), task.metric()
    for index in range(len(task)):
        sample = task.sample(index, np.random.default_rng(0))
        assert sample.id == task.id(index)
        task.score(right, task.postprocess([perfect(sample, len(task.categories))], "", sample), sample)
        failed = task.postprocess([], "no mask here", sample)
        assert failed.failed
        task.score(wrong, failed, sample)
    return right.compute(), wrong.compute()


@pytest.mark.parametrize(
    "metric, names",
    [("panoptic", ("PQ", "PQ_th", "PQ_st")), ("instance", ("AP", "AP50")), ("semantic", ("mIoU", "pACC"))],
)
@pytest.mark.parametrize("with_instances", [True, False])
def test_panoptic_reader(world, metric, names, with_instances):
    instances = CocoInstances(world / "annotations/instances_val.json", world / "val")
    task = generic(world, metric=metric, **({"instances": instances} if with_instances else {}))
    right, wrong = scores(task)
    for name in names:
        assert right[name] == pytest.approx(100)
        assert wrong[name] == 0
    question = task.sample(0, np.random.default_rng(0)).turns[0].question
    assert question.startswith("<image>\n")
    assert question.count("<p>") == len(task.categories) == 10
    assert "<p>sky</p>" in question


@pytest.fixture
def parts(tmp_path):
    """Two overlapping screws and a crowd of them, a nut; and a picture that shows nothing."""
    masks = np.zeros((4, 12, 16), bool)
    masks[0, 2:8, 2:8] = masks[1, 5:11, 5:11] = masks[2, 0:2, 12:16] = masks[3, 9:12, 0:4] = True
    annotations = [
        {"id": 7 + i, "image_id": 1, "category_id": 40 if i == 3 else 4, "segmentation": encode_rle(mask),
         "area": int(mask.sum()), "iscrowd": int(i == 2)}
        for i, mask in enumerate(masks)
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in (1, 2)]
    for image in images:
        Image.new("RGB", (16, 12)).save(tmp_path / image["file_name"])
    categories = [{"id": 4, "name": "screw"}, {"id": 40, "name": "Nut-M4"}, {"id": 5, "name": "washer"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "parts.json").write_text(json.dumps(content))
    return tmp_path


def test_instances_alone_train_and_evaluate(parts):
    data = CocoInstances(parts / "parts.json", parts)
    task = GenericSegmentation(data=data)
    sample = task.sample(0, np.random.default_rng(0))
    assert sample.turns[0].question.count("<p>") == 3
    assert "<p>nut m4</p>" in sample.turns[0].question
    masks = unpack(sample.masks)
    assert masks.sum((1, 2)).tolist() == [36, 36, 12]  # without the crowd
    assert (masks[0] & masks[1]).sum() == 9
    assert sample.labels.tolist() == [0, 0, 1]
    right, wrong = scores(task)
    assert right["AP"] == pytest.approx(100)
    assert wrong["AP"] == 0
    truth = sample.truth["instances"]
    assert [(t["category"], t["crowd"], t["area"]) for t in truth] == [
        (4, False, 36), (4, False, 36), (4, True, 8), (40, False, 12),
    ]  # fmt: skip
    train = GenericSegmentation(data=data, train=True)
    drawn = train.sample(0, np.random.default_rng(3))
    assert (unpack(drawn.masks) == masks).all()
    assert train.sample(1, np.random.default_rng(3)).masks.count == 0


def test_label_maps(tmp_path):
    labels = np.array([[0, 1, 1, 3], [3, 3, 1, 0]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg")
    (tmp_path / "names.txt").write_text("sky\nroad\n*car\n")
    task = GenericSegmentation(data=LabelMaps(tmp_path, tmp_path, tmp_path / "names.txt", first=1, ignore=0))
    right, wrong = scores(task)
    assert set(right.values()) == {100}
    assert wrong["mIoU"] == 0
    sample = task.sample(0, np.random.default_rng(0))
    assert sample.labels.tolist() == [0, 2]
    metric = task.metric()
    truth = unpack(sample.masks)
    cut = truth[1].copy()
    cut[0, 3] = False  # of 3 pixels of car, 2 found; what does not count is called sky
    output = perfect(sample, 3)
    output.mask_logits[0, :2] = torch.from_numpy(~cut).float() * 40 - 20
    output.mask_logits[1, :2] = torch.from_numpy(cut).float() * 40 - 20
    task.score(metric, task.postprocess([output], "", sample), sample)
    assert metric.compute()["mIoU"] == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)


def test_crowds_are_no_targets_but_stay_in_the_truth(tmp_path):
    ids = np.zeros((4, 6), int)
    ids[:2, :3], ids[2:, :3], ids[:, 3:5] = 5, 6, 7
    write_panoptic_png(tmp_path / "a.png", ids)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg")
    segments = [{"id": i, "category_id": c, "area": 6, "iscrowd": int(i == 5)} for i, c in ((5, 1), (6, 1), (7, 2))]
    content = {
        "images": [{"id": "x", "file_name": "a.jpg", "height": 4, "width": 6}],
        "annotations": [{"image_id": "x", "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    task = GenericSegmentation(data=CocoPanoptic(tmp_path / "a.json", tmp_path, tmp_path))
    sample = task.sample(0, np.random.default_rng(0))
    assert sample.masks.ids.tolist() == [[[-1, -1, -1, 1, 1, -1]] * 2 + [[0, 0, 0, 1, 1, -1]] * 2]
    assert sample.labels.tolist() == [0, 1]
    metric = task.metric()
    output = perfect(sample, 2)
    output.mask_logits[2, :2, :3] = 20  # a cat predicted on the crowd is no error, here as on void
    output.class_logits[2] = torch.tensor([20.0, -20, -20])
    task.score(metric, task.postprocess([output], "", sample), sample)
    assert metric.per_category()[1] == {"PQ": 100, "SQ": 100, "RQ": 100, "TP": 1, "FP": 0, "FN": 0}


def names(sample: Sample) -> list[str]:
    return [part.split("</p>")[0] for part in sample.turns[0].question.split("<p>")[1:]]


def test_training_lists_what_is_there_and_some_of_the_rest(world):
    task = generic(world, train=True)
    truth, counts = reader(world, "train").segments(0), set()
    names_of = {category.id: category.name for category in task.categories}
    for seed in range(12):
        sample = task.sample(0, np.random.default_rng(seed))
        assert [names(sample)[label] for label in sample.labels] == [names_of[id] for id in truth.category_ids]
        assert (sample.masks.ids == truth.masks.ids).all()
        counts.add(len(names(sample)))
    assert max(counts) == 10
    assert min(counts) < 10
    assert {
        len(names(generic(world, train=True, partial=0.0).sample(0, np.random.default_rng(s)))) for s in range(9)
    } == {10}


def test_long_vocabularies_are_cut_down_to_what_is_there(world):
    present = len(set(reader(world, "train").segments(0).category_ids))
    for most in (1, present, present + 2):
        task = generic(world, train=True, partial=0.0, max_categories=most)
        drawn = [names(task.sample(0, np.random.default_rng(seed))) for seed in range(20)]
        assert {len(listed) for listed in drawn} == {max(most, present)}
        assert all(len(set(listed)) == len(listed) for listed in drawn)
    assert len({frozenset(listed) for listed in drawn}) > 3  # other negatives each time
    assert len(names(generic(world, max_categories=1).sample(0, np.random.default_rng(0)))) == 10  # not in evaluation


def test_closed_set_has_no_text(world):
    sample = generic(world, closed_set=True).sample(0, np.random.default_rng(0))
    assert sample.turns == ()
    assert sample.labels.max() < 10


def test_what_does_not_go_together_is_refused(world, parts, tmp_path):
    instances = CocoInstances(parts / "parts.json", parts)
    (tmp_path / "many.txt").write_text("".join(f"c{i}\n" for i in range(256)))
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    with pytest.raises(
        UserError, match="metric='boxes': CocoPanoptic can be scored by panoptic, instance, semantic only"
    ):
        generic(world, metric="boxes")
    with pytest.raises(UserError, match="metric='panoptic': CocoInstances can be scored by instance only"):
        GenericSegmentation(data=instances, metric="panoptic")
    with pytest.raises(UserError, match="metric='instance': LabelMaps can be scored by semantic only"):
        GenericSegmentation(data=LabelMaps(tmp_path, tmp_path, "voc", image_suffix=".png"), metric="instance")
    with pytest.raises(UserError, match="256 categories are more than 255"):
        GenericSegmentation(data=LabelMaps(tmp_path, tmp_path, tmp_path / "many.txt", image_suffix=".png"))
    with pytest.raises(UserError, match=r"parts\.json: category 40 is not a thing of `data`"):
        generic(world, instances=instances)


def test_instances_of_other_images_are_named(world):
    others = CocoInstances(world / "annotations/instances_train.json", world / "train")
    task = generic(world, metric="instance", instances=others)
    with pytest.raises(BadSample, match=r"instances_train\.json: has no image"):
        task.sample(0, np.random.default_rng(0))
