"""Visual grounding: what is asked and what is to be found; regions on other images reach the model."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xsam import config
from xsam.data.collate import collate
from xsam.data.images import read_image
from xsam.data.masks import decode_rle, unpack
from xsam.data.prompt import Processor
from xsam.data.region_records import CocoVgd
from xsam.data.regions import KINDS
from xsam.structures import BadSample, ItemOutput, Sample, UserError
from xsam.tasks.visual_grounding import ANSWERS, QUESTIONS, VisualGrounding


def task(world: Path, **options) -> VisualGrounding:
    split = "train" if options.get("train") else "val"
    return VisualGrounding(data=CocoVgd(world / f"vgd/{split}.json", world / split), **options)


def draw(source: VisualGrounding, index: int, seed: int = 0) -> Sample:
    return source.sample(index, np.random.default_rng(seed))


def perfect(sample: Sample) -> ItemOutput:
    """Queries that are exactly the sample's masks, sure of their labels, and one that is nothing."""
    masks = torch.from_numpy(unpack(sample.masks)).float() * 40 - 20
    size = masks.shape[-1]
    classes = torch.full((len(masks) + 1, len(sample.regions) + 1), -20.0)
    classes[range(len(masks)), sample.labels] = 20
    classes[-1, -1] = 20
    masks = torch.cat([masks, torch.full_like(masks[:1], -20)])
    return ItemOutput(
        mask_logits=masks, class_logits=classes, frame=size, seg_size=(size, size), image_size=(size, size)
    )


def test_training_asks_for_all_classes_and_some_others(world):
    source = task(world, train=True)
    extras, orders, areas = Counter(), set(), set()
    for seed in range(200):
        sample = draw(source, 0, seed)
        record = source.data[0]
        present = {i.category_id for i in record.annotations}
        slots = sample.slots.tolist()
        assert len(set(slots)) == len(slots)
        assert present <= set(slots) <= set(source.data.categories)
        extras[len(slots) - len(present)] += 1
        orders.add(tuple(slots))
        assert sample.turns[0].question.count("<p><region></p>") == len(slots)
        assert [region.label for region in sample.regions] == sorted(present)  # one of each that is shown
        assert all(not region.image for region in sample.regions)
        assert sample.masks.count == len(record.annotations)
        for mask, label, instance in zip(unpack(sample.masks), sample.labels, record.annotations, strict=True):
            assert slots[label] == instance.category_id
            assert (mask == record.mask(instance)).all()
        areas.add(sample.regions[0].mask["counts"])
    left = len(source.data.categories) - len(present)
    assert set(extras) == set(range(left + 1))
    assert 100 < extras[0] < 140  # half of the samples and a sixth of the others: 117
    assert len(orders) > 10
    first = [i for i in record.annotations if i.category_id == sample.regions[0].label]
    assert areas == {i.prompts[kind] for i in first for kind in KINDS}  # any of its prompts
    assert draw(source, 0, 7).turns == draw(source, 0, 7).turns


def test_crowds_are_neither_targets_nor_absent(world, tmp_path):
    text = (world / "vgd/val.json").read_text()
    path = tmp_path / "val.json"
    path.write_text(text.replace('"iscrowd": 0', '"iscrowd": 1', 1))
    whole = task(world, prompt="box").data[0].annotations
    source = VisualGrounding(data=CocoVgd(path, world / "val"), train=True)
    for seed in range(20):
        sample = draw(source, 0, seed)
        assert sample.masks.count == len(whole) - 1
        if whole[0].category_id not in {i.category_id for i in whole[1:]}:
            assert whole[0].category_id not in sample.slots


def test_an_object_without_a_prompt_trains_only_beside_another_of_its_class(world):
    source = task(world, train=True)
    record = source.data[0]
    bare = replace(record, annotations=tuple(replace(i, prompts={}) for i in record.annotations))
    source.data = type("Stub", (), {"__getitem__": lambda _, i: bare, "path": "a.json"})()
    with pytest.raises(BadSample, match=r"a\.json: image .*: no object of class \d has a prompt"):
        draw(source, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_asks_for_what_is_there(world, kind):
    source = task(world, prompt=kind)
    assert len(source) == len({source.id(i) for i in range(len(source))}) == len(source.data)
    right, wrong = source.metric(), source.metric()
    for index in range(len(source)):
        sample, record = draw(source, index), source.data[index]
        listed = sample.truth["categories"]
        assert listed == sorted({i.category_id for i in record.annotations})
        assert len(sample.slots) == 0
        assert len(sample.regions) == sample.turns[0].question.count("<region>") == len(listed)
        asked = QUESTIONS[0].format(regions=", ".join(["<p><region></p>"] * len(listed)))
        assert (sample.turns[0].question, sample.turns[0].answer) == (f"<image>\n{asked}", ANSWERS[0])
        for category, region in zip(listed, sample.regions, strict=True):
            assert region.mask["counts"] in {i.prompts[kind] for i in record.annotations if i.category_id == category}
        source.score(right, source.postprocess([perfect(sample)], "", sample), sample)
        failed = source.postprocess([], "no mask here", sample)
        assert failed.failed
        source.score(wrong, failed, sample)
    assert right.compute()["AP"] == pytest.approx(100)
    assert wrong.compute()["AP"] == 0


def test_only_objects_with_a_prompt_of_the_kind_are_the_truth(world, tmp_path):
    rows = CocoVgd(world / "vgd/val.json", world / "val")
    first = rows[0].annotations[0]
    text = (world / "vgd/val.json").read_text()
    point = f'"point_visual_prompt": {{"size": [96, 96], "counts": "{first.prompts["point"]}"}}'.replace("\\", "\\\\")
    assert point in text
    path = tmp_path / "val.json"
    path.write_text(text.replace(point, '"point_visual_prompt": null', 1))
    data = CocoVgd(path, world / "val")
    assert draw(VisualGrounding(data=data, prompt="point"), 0).masks.count == len(rows[0].annotations) - 1
    assert draw(VisualGrounding(data=data, prompt="box"), 0).masks.count == len(rows[0].annotations)


def test_cross_image_shows_each_class_on_another_image(world):
    source = task(world, prompt="mask", cross=True)
    by_image = {source.data[i].image: source.data[i] for i in range(len(source.data))}
    references = set()
    for index in range(len(source)):
        for seed in range(3):
            sample = draw(source, index, seed)
            assert sample.id == source.id(index)
            assert sample.masks.count == len(sample.labels) > 0
            for category, region in zip(sample.truth["categories"], sample.regions, strict=True):
                assert region.image not in ("", sample.image)
                shown = [i for i in by_image[region.image].annotations if i.category_id == category]
                assert region.mask["counts"] in {i.prompts["mask"] for i in shown}
                references.add((index, category, region.image))
    assert len(references) > 2 * len(source)


def test_absent_classes_are_asked_for_in_a_share_of_the_questions(world):
    source = task(world, prompt="mask", cross=True, absent=0.5)
    asked = possible = 0
    metric = source.metric()
    records = {record.image_id: record for _, record in source.data.tried()}
    for index in range(len(source)):
        for seed in range(30):
            sample = draw(source, index, 100 * index + seed)
            present = {i.category_id for i in records[sample.id].annotations}
            extra = set(sample.truth["categories"]) - present
            assert len(extra) <= 1
            asked += len(extra)
            possible += present < set(source.shown)
            for category in extra:
                assert sample.truth["categories"].index(category) not in sample.labels
                assert sample.regions[sample.truth["categories"].index(category)].image
        source.score(metric, source.postprocess([perfect(sample)], "", sample), sample)
    assert possible >= 60
    assert 0.4 < asked / possible < 0.6
    assert metric.compute()["AP"] == pytest.approx(100)
    own = task(world, prompt="mask", absent=1.0)  # the others on the image itself
    for index in range(len(own)):
        sample = draw(own, index)
        present = {i.category_id for i in records[sample.id].annotations}
        elsewhere = [c for c, r in zip(sample.truth["categories"], sample.regions, strict=True) if r.image]
        assert len(elsewhere) == (present < set(own.shown))
        assert not present.intersection(elsewhere)


def test_a_class_that_one_image_shows_cannot_come_from_another(world):
    source = task(world, prompt="mask", cross=True)
    shown = {
        c: [i for i, (_, r) in enumerate(source.data.tried()) if c in {x.category_id for x in r.annotations}]
        for c in range(1, 7)
    }
    for index in range(len(source)):
        for category in draw(source, index).truth["categories"]:
            assert len(shown[category]) > 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return config.build(config.load("configs/_base_/models/xsam_tiny.py")["model"]).eval()


def processor(world: Path) -> Processor:
    return Processor(seg_size=96, vision_size=96, tokenizer=str(world / "base"), max_length=512)


@torch.no_grad()
def test_the_model_looks_at_the_reference_image(world, model):
    source, encode = task(world, prompt="mask", cross=True), processor(world)
    samples = [draw(source, 0), draw(source, 1)]
    rows = [encode(sample, 1) for sample in samples]
    batch = collate(rows, 1)
    names = [image for sample in samples for image in dict.fromkeys(region.image for region in sample.regions)]
    assert len(batch.seg_pixel_values) == 2 + len(names)
    place = {(row, image): 2 + i for i, (row, image) in enumerate(
        (row, image) for row, s in enumerate(samples) for image in dict.fromkeys(r.image for r in s.regions)
    )}  # fmt: skip
    expected = [place[row, region.image] for row, sample in enumerate(samples) for region in sample.regions]
    assert batch.region_image.tolist() == expected
    for image, frame in zip(names, batch.seg_pixel_values[2:], strict=True):
        assert (frame.numpy() == read_image(image).transpose(2, 0, 1)).all()  # these images have the frame's size
    regions = [region for sample in samples for region in sample.regions]
    for region, points in zip(regions, batch.region_points, strict=True):
        x, y = (points.numpy() * 96).round().astype(int).T
        assert decode_rle(region.mask)[y, x].all()
    out = model(batch)
    assert len(out.mask_features) == 2  # references are not segmented
    assert out.class_logits.shape[-1] == 1 + max(len(sample.regions) for sample in samples)
    # Each region token is what the sampler reads from its reference; another reference is another answer.
    features = model.encode(batch)
    embeds = model.region_sampler(features.seg_tokens, batch.region_points, batch.region_image)
    for i, image in enumerate(expected):
        alone = model.region_sampler(
            features.seg_tokens[image : image + 1], batch.region_points[i : i + 1], torch.zeros(1).long()
        )
        torch.testing.assert_close(embeds[i : i + 1], alone)
    frames = batch.seg_pixel_values.clone()
    frames[expected[0]] = 255 - frames[expected[0]]
    changed = model(replace(batch, seg_pixel_values=frames))
    columns = len(samples[0].regions)
    assert (changed.class_logits[-1, 0, :, :columns] - out.class_logits[-1, 0, :, :columns]).abs().max() > 1e-4
    torch.testing.assert_close(changed.class_logits[-1, 1], out.class_logits[-1, 1], rtol=1e-4, atol=1e-4)


def test_training_samples_become_a_batch(world):
    source, encode = task(world, train=True), processor(world)
    samples = [draw(source, i, i) for i in range(4)]
    batch = collate([encode(sample, i) for i, sample in enumerate(samples)], 4)
    slots = [(row, label) for row, sample in enumerate(samples) for label in sample.slots.tolist()]
    assert len(batch.region_points) == len(slots) == (batch.input_ids == -300).sum()
    shown = [{region.label for region in sample.regions} for sample in samples]
    crossed = 0
    for (row, label), image in zip(slots, batch.region_image.tolist(), strict=True):
        if any(label in group for group in shown):
            assert label in shown[image]  # an image of the group that shows the class
        crossed += label in shown[row] and image != row
    assert crossed > 0
    for item, sample in enumerate(samples):
        assert batch.items.targets[item].labels.tolist() == sample.labels.tolist()
        assert (batch.items.candidates[item] >= 0).sum() == len(sample.slots)


def test_as_many_regions_as_the_text_has(world):
    source, encode = task(world, prompt="box"), processor(world)
    sample = draw(source, 0)
    given = len(sample.regions)
    with pytest.raises(BadSample, match=rf"{sample.id}: {given} <region> in the text, {given - 1} visual prompts"):
        encode(replace(sample, regions=sample.regions[1:]), 0)
    with pytest.raises(BadSample, match=rf"{given} <region> in the text, {given + 1} visual prompts"):
        encode(replace(sample, slots=np.arange(given + 1)), 0)


def test_mistakes_name_the_remedy(world):
    with pytest.raises(UserError, match="prompt='dot' is unknown; there is point, scribble, box, mask"):
        task(world, prompt="dot")
    with pytest.raises(UserError, match="prompt='' is unknown"):
        task(world)
