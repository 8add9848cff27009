"""Interactive segmentation: one object per prompt, and which of several good masks a prompt means."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xsam.data.masks import decode_rle, encode_rle
from xsam.data.postprocess import boxes
from xsam.data.region_records import CocoInteractive, CocoVgd
from xsam.data.regions import KINDS, dilate
from xsam.structures import ItemOutput, Region, Sample, UserError
from xsam.tasks.interactive import ANSWERS, QUESTIONS, InteractiveSegmentation, agreement


def task(world: Path, **options) -> InteractiveSegmentation:
    split = "train" if options.get("train") else "val"
    data = CocoInteractive(world / f"interactive/{split}.json", world / split, scale=0)
    return InteractiveSegmentation(data=data, **options)


def output(masks: np.ndarray, probabilities: list[float]) -> ItemOutput:
    """Queries with these masks bool[Q, H, W] and probabilities of the one candidate."""
    p = torch.tensor(probabilities)
    height, width = masks.shape[1:]
    return ItemOutput(
        mask_logits=torch.from_numpy(masks).float() * 40 - 20, class_logits=torch.stack([p, 1 - p], 1).log(),
        frame=height, seg_size=(height, width), image_size=(height, width),
    )  # fmt: skip


def rectangle(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_one_object_per_sample(world, kind):
    interactive = task(world, prompt=kind)
    assert len({interactive.id(i) for i in range(len(interactive))}) == len(interactive)
    objects = sum(len(record.annotations) for _, record in interactive.data.tried())
    assert len(interactive) == objects > 8
    right, wrong = interactive.metric(), interactive.metric()
    for index in range(len(interactive)):
        sample = interactive.sample(index, np.random.default_rng(index))
        question, answer = QUESTIONS[0].format(region="<p><region></p>"), ANSWERS[0]
        assert (sample.turns[0].question, sample.turns[0].answer) == (f"<image>\n{question}", answer)
        assert len(sample.regions) == sample.masks.count == 1
        truth = sample.masks.ids[0] == 0
        assert (decode_rle(sample.regions[0].mask) & truth).any()
        perfect = output(np.stack([truth, ~truth]), [0.9, 0.1])
        interactive.score(right, interactive.postprocess([perfect], "", sample), sample)
        failed = interactive.postprocess([], "no mask here", sample)
        assert failed.failed
        interactive.score(wrong, failed, sample)
    assert right.compute() == {"mIoU": 100, "cIoU": 100}
    assert wrong.compute() == {"mIoU": 0, "cIoU": 0}
    trick = interactive.baselines(range(len(interactive)))["the prompt itself"]["mIoU"]
    assert trick < 25 if kind == "point" else trick < 95


def test_training_draws_object_kind_and_words(world):
    interactive = task(world, train=True)
    assert len(interactive) == len(interactive.data)
    samples = [interactive.sample(1, np.random.default_rng(seed)) for seed in range(40)]
    assert len({sample.turns for sample in samples}) > 8
    record = interactive.data[1]
    assert len({sample.masks.ids.tobytes() for sample in samples}) == len(record.having(*KINDS)) > 1
    prompts = {sample.regions[0].mask["counts"] for sample in samples}
    assert len(prompts) > 2 * len(record.having(*KINDS))
    again = interactive.sample(1, np.random.default_rng(3))
    assert (again.turns, again.regions) == (samples[3].turns, samples[3].regions)
    only = task(world, train=True, prompt="box").sample(1, np.random.default_rng(0))
    assert only.regions[0].mask["counts"] in {i.prompts["box"] for i in record.annotations}


def chosen(masks: list[np.ndarray], scores: list[float], prompt: np.ndarray, kind: str) -> int:
    """Which of the masks an answer to the prompt is."""
    interactive = InteractiveSegmentation.__new__(InteractiveSegmentation)
    interactive.kinds = (kind,)
    sample = Sample(id="x", regions=(Region(encode_rle(prompt)),))
    segments = interactive.postprocess([output(np.stack(masks), scores)], "", sample).segments
    return next(i for i, mask in enumerate(masks) if segments[0].segmentation == encode_rle(mask))


def test_a_point_means_the_object_under_it_not_the_smallest():
    """The box of a dot is small; a mask of its size is no better an answer for that."""
    point = dilate(rectangle(20, 20, 21, 21), 10)
    thing, speck = rectangle(5, 5, 60, 60), rectangle(12, 30, 24, 42)
    assert chosen([speck, thing], [0.9, 0.9], point, "point") == 1
    assert chosen([speck, thing], [0.9, 0.9], rectangle(20, 10, 22, 50), "scribble") == 1


def test_the_middle_of_a_point_counts_most():
    """A brush as wide as this covers more of the neighbour than of the small object that was meant."""
    point = dilate(rectangle(20, 20, 21, 21), 10)
    small = dilate(rectangle(20, 20, 21, 21), 6)
    around = ~small
    assert (point & around).sum() > (point & small).sum()
    assert chosen([around, small], [0.9, 0.9], point, "point") == 1


def test_boxes_and_masks_are_compared():
    left, right = rectangle(10, 5, 40, 25), rectangle(10, 30, 40, 60)
    assert chosen([left, right, left | right], [0.9, 0.8, 0.9], rectangle(9, 29, 41, 61), "box") == 1
    assert chosen([left, right, left | right], [0.9, 0.8, 0.9], right, "mask") == 1
    cross = rectangle(10, 20, 40, 24) | rectangle(23, 10, 27, 40)
    assert chosen([rectangle(10, 10, 40, 40), cross], [0.9, 0.9], cross, "mask") == 1  # their boxes are the same


def test_a_better_score_decides_between_equals_and_low_ones_are_left_out():
    thing = rectangle(10, 10, 40, 40)
    larger = rectangle(10, 10, 50, 50)
    point = rectangle(20, 20, 24, 24)
    assert chosen([thing, larger], [0.8, 0.6], point, "point") == 0
    assert chosen([thing, larger], [0.6, 0.8], point, "point") == 1
    elsewhere = rectangle(50, 50, 60, 60)
    assert chosen([thing, elsewhere], [0.4, 0.9], point, "point") == 1  # the model is sure of it
    assert chosen([thing, elsewhere], [0.4, 0.3], point, "point") == 0  # nothing reaches 0.5: the best


def test_no_mask_at_all_is_an_answer(world):
    interactive = task(world, prompt="point")
    sample = interactive.sample(0, np.random.default_rng(0))
    nothing = interactive.postprocess([output(np.zeros((2, 96, 96), bool), [0.9, 0.2])], "", sample)
    assert nothing.segments == ()
    assert not nothing.failed


def test_agreement_by_hand():
    masks = torch.from_numpy(np.stack([rectangle(0, 0, 10, 10), rectangle(0, 0, 5, 10), rectangle(30, 30, 40, 40)]))
    prompt = rectangle(0, 0, 10, 20)
    assert agreement(masks, boxes(masks), prompt, "mask").tolist() == pytest.approx([0.5, 0.25, 0])
    assert agreement(masks, boxes(masks), prompt, "box").tolist() == pytest.approx([0.5, 0.25, 0])
    line = rectangle(5, 0, 6, 20)  # one pixel wide: all pixels weigh the same
    assert agreement(masks, boxes(masks), line, "point").tolist() == pytest.approx([0.5, 0, 0])


def test_records_that_cannot_be_used_stay_in_the_benchmark(world, tmp_path):
    path = tmp_path / "val.json"
    text = (world / "interactive/val.json").read_text()
    path.write_text(text.replace('"height": 96', '"height": "96"', 1))
    data = CocoInteractive(path, world / "val", scale=0)
    whole = task(world, prompt="point")
    broken = InteractiveSegmentation(data=data, prompt="point")
    first = len(whole.data[0].annotations)
    assert len(broken) == len(whole) - first + 1
    with pytest.raises(ValueError, match="'height' is '96'"):
        broken.sample(0, np.random.default_rng(0))
    assert broken.baselines(range(2)) == whole.baselines([first])  # a guess needs a truth, the evaluation goes on


def test_mistakes_name_the_remedy(world):
    data = CocoVgd(world / "annotations/instances_val.json", world / "val", scale=0.2)
    with pytest.raises(UserError, match="prompt='dot' is unknown; there is point, scribble, box"):
        InteractiveSegmentation(data=data, prompt="dot")
    with pytest.raises(UserError, match="prompt='' is unknown"):
        InteractiveSegmentation(data=data)
    assert len(InteractiveSegmentation(data=data, prompt="mask")) > 8  # any COCO instances will do
