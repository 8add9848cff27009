"""Grounded captions against hand-computed values, and against GLaMM's and the COCO caption evaluation's programs."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from xsam.data.masks import encode_rle
from xsam.metrics import grounded_caption
from xsam.metrics.detection import NAMES
from xsam.metrics.grounded_caption import (
    GroundedCaptionScore,
    cider,
    jaccard,
    meteor,
    pair,
    tokenize,
)
from xsam.structures import UserError

REFDATA = Path(__file__).parents[2] / "../shared/refdata"
needs_refdata = pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")
HAS_METEOR = bool(shutil.which("java") and importlib.util.find_spec("pycocoevalcap"))


@pytest.fixture(autouse=True)
def without_java(request, monkeypatch):
    """METEOR takes seconds to start; only the test that is about its values may."""
    if not request.node.originalname.startswith("test_meteor_against"):
        monkeypatch.setattr(shutil, "which", lambda name: None)


def row(pixels: str) -> dict:
    return encode_rle(np.array([[pixel == "#" for pixel in pixels]]))


def count(metric: GroundedCaptionScore, image: int, *, said=(), true=(), caption: str = "a dog", size=(1, 8)) -> None:
    metric.update(
        image,
        size,
        caption=caption,
        phrases=[name for name, _ in said],
        masks=[row(pixels) for _, pixels in said],
        true_captions=["a dog runs"],
        true_phrases=[name for name, _ in true],
        true_masks=[row(pixels) for _, pixels in true],
    )


def two_images() -> tuple[GroundedCaptionScore, GroundedCaptionScore]:
    first, second = GroundedCaptionScore(similarity="jaccard"), GroundedCaptionScore(similarity="jaccard")
    true = (("a red dog", "####...."), ("the sky", "....####"))
    # IoU 3/4 with the dog, words 2/3; 2/5 with the sky, the same words; the third mask is of nothing
    count(first, 1, true=true, said=(("the sky", "....###."), ("red dog", "####...."), ("a cat", "........")))
    count(second, 2, true=true, caption="")
    return first, second


def test_hand_computed_values():
    first, second = two_images()
    values = first.compute()
    assert values["mIoU"] == pytest.approx(100 * (1 + 3 / 4) / 2)  # of the pairs, the empty mask has none
    assert values["AP50"] == pytest.approx(100)  # all scores are 1: the right ones come first
    # six thresholds up to the sky's IoU; at the other four it is a false one before the dog: precision 1/2 up to recall 1/2
    assert values["AP"] == pytest.approx(100 * (6 + 4 * 51 / 101 / 2) / 10)
    assert values["recall"] == 100
    assert values["CIDEr"] == 0  # one image: every n-gram is in every document
    first.merge(second)
    values = first.compute()
    assert values["mIoU"] == pytest.approx(100 * (7 / 8) / 2)  # an image without masks counts
    assert values["recall"] == 50
    assert (first.headline(), second.headline()) == (pytest.approx(100 * (7 / 8) / 2), 0)
    assert GroundedCaptionScore().headline() is None


def test_recall_ends_at_the_first_pair_that_does_not_fit():
    true = (("a dog", "####...."), ("the sky", "....####"))
    metric = GroundedCaptionScore(similarity="jaccard")
    count(
        metric, 1, true=true, said=(("a cloud", "####...."), ("the sky", "....###."))
    )  # the greatest IoU, other words
    assert metric.compute()["recall"] == 0
    metric = GroundedCaptionScore(similarity="jaccard")
    count(metric, 1, true=true, said=(("a dog", "###....."), ("a cloud", "....##..")))  # the second has other words
    assert metric.compute()["recall"] == 50


def test_pairs_are_one_to_one_and_the_greatest_first():
    assert pair(np.array([[0.9, 0.8], [0.7, 0.0]])) == [(0, 0)]
    assert pair(np.array([[0.5, 0.8], [0.7, 0.6]])) == [(0, 1), (1, 0)]
    assert pair(np.zeros((0, 3))) == pair(np.zeros((2, 2))) == []


def test_cider_by_hand():
    captions = {1: ("a dog", ["a dog"]), 2: ("a dog", ["a cat"]), 3: ("", ["a bird", "two birds"])}
    # Of the first image: equal, 1 for n = 1 and 2, no n-grams of 3 and 4. Of the second: only "a" is shared, in three
    # of three documents, so it weighs nothing.
    assert cider(captions) == pytest.approx([1000 * 2 / 4, 0, 0])
    longer = {1: ("a dog runs", ["a dog"]), 2: ("", ["a cat"]), 3: ("", ["a fox"])}
    # n = 1: dog log 3, runs log 3, a 0; cosine 1 / sqrt 2. n = 2: one of two bigrams, the same. One bigram longer.
    assert cider(longer) == pytest.approx([1000 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72), 0, 0])
    repeated = {1: ("dog dog dog", ["dog dog"]), 2: ("", ["a cat"]), 3: ("", ["a fox"])}
    # min(3, 2) x 2 / (3 x 2) for n = 1 and 1 x 1 / (2 x 1) for n = 2
    assert cider(repeated) == pytest.approx([1000 * (2 / 3 + 1 / 2) / 4 * math.exp(-1 / 72), 0, 0])
    assert cider({}).shape == (0,)


def test_two_parts_make_the_whole():
    first, second = two_images()
    whole = GroundedCaptionScore(similarity="jaccard")
    for part in two_images():
        whole.merge(part)
    first.merge(second)
    assert whole.compute() == first.compute()


def test_what_was_not_measured_is_none():
    assert set(GroundedCaptionScore().compute().values()) == {None}
    metric = GroundedCaptionScore()
    count(metric, 1, true=(("a", "##......"),))
    values = metric.compute()
    assert (values["recall"], values["mIoU"], values["AP"]) == (None, 0, 0)


def test_replicates_by_hand(monkeypatch):
    """Images that count twice, once or never: means of the images, CIDEr with the whole set's frequencies."""
    monkeypatch.setattr(grounded_caption, "cider", lambda captions: np.array([30.0, 6.0])[: len(captions)])
    weights = np.array([[1, 1], [2, 1], [0, 3], [3, 0]])
    found = GroundedCaptionScore.resample(two_images(), weights)
    first, second = two_images()
    first.merge(second)
    assert found[0].pop("METEOR") is first.compute()["METEOR"] is None  # without Java here, never resampled
    assert found[0] == pytest.approx({name: first.compute()[name] for name in found[0]}, rel=1e-9)
    assert [row["mIoU"] for row in found] == pytest.approx([43.75, 2 * 87.5 / 3, 0, 87.5])
    assert [row["recall"] for row in found] == pytest.approx([50, 200 / 3, 0, 100])
    assert [row["CIDEr"] for row in found] == pytest.approx([18, 22, 6, 30])
    assert [row["AP50"] for row in found] == pytest.approx([100 * 51 / 101, 100 * 67 / 101, 0, 100])


def test_not_computed_without_its_program(caplog):
    assert two_images()[0].compute()["METEOR"] is None
    assert "METEOR is not computed" in caplog.text


def test_mistakes_are_named():
    with pytest.raises(UserError, match="image 1: a mask is \\[1, 4\\]"):
        count(GroundedCaptionScore(), 1, said=(("a", "##.."),))
    with pytest.raises(UserError, match="similarity='clip' is unknown; there is: jaccard, bert"):
        GroundedCaptionScore(similarity="clip")


@pytest.mark.parametrize(
    "caption, tokens",
    [  # as the PTB tokenizer of the COCO caption evaluation gives them
        (
            "A dog's bowl isn't here; it's (maybe) 50% full!",
            "a dog 's bowl is n't here it 's -lrb- maybe -rrb- 50 % full",
        ),
        ("\"Quoted\" text 'single' and “curly”…", "quoted text single and curly"),
        ("He can't, cannot, won't, gonna", "he ca n't can not wo n't gon na"),
        (
            "$5, #1, 3.5 and 1,000 & a/b two-story \N{EN DASH} done -- yes",
            "$ 5 # 1 3.5 and 1,000 & a/b two-story done yes",
        ),
        ("U.S.A. and Mr. Smith on St. Mary's St.", "u.s.a. and mr. smith on st. mary 's st."),
        ("The 8th ave. is. ok... At 3:30 p.m.", "the 8th ave. is ok at 3:30 p.m."),
        ("She'd they'll we've I'm you're o'clock", "she 'd they 'll we 've i 'm you 're o'clock"),
        ("A man(with hat)sits, at platform A.", "a man -lrb- with hat -rrb- sits at platform a"),
        ("towards 22 3/4 street\n", "towards 22\xa03/4 street"),
        ("...", ""),
    ],
)
def test_tokens(caption, tokens):
    assert tokenize(caption) == tokens


def test_jaccard():
    assert jaccard("A red dog", "a Dog") == pytest.approx(2 / 3)
    assert jaccard("", "") == 0


@needs_refdata
def test_against_the_coco_caption_evaluation():
    case = json.loads((REFDATA / "caption/coco_captions_case.json").read_text())
    expected = case["expected"]
    for texts, tokens in (("references", "tokenized_refs"), ("candidates", "tokenized_cands")):
        for image, captions in case[texts].items():
            assert [tokenize(caption) for caption in captions] == expected[tokens][image]
    captions = {image: (said[0], case["references"][image]) for image, said in case["candidates"].items()}
    assert cider(captions).mean() == pytest.approx(100 * expected["CIDEr"], rel=1e-6)
    assert cider(captions) == pytest.approx(100 * np.array(expected["CIDEr_per"]), rel=1e-6)


@needs_refdata
@pytest.mark.skipif(not HAS_METEOR, reason="Java or pycocoevalcap is not installed")
def test_meteor_against_its_program():
    case = json.loads((REFDATA / "caption/coco_captions_case.json").read_text())
    captions = {image: (said[0], case["references"][image]) for image, said in case["candidates"].items()}
    assert meteor(captions) == pytest.approx(100 * case["expected"]["METEOR"], rel=1e-6)
    truth = json.loads((REFDATA / "gcg/val_gcg_coco_caption_gt.json").read_text())["annotations"]
    found = json.loads((REFDATA / "gcg/predictions.json").read_text())
    captions = {row["image_id"]: (found[str(row["image_id"])]["caption"], [row["caption"]]) for row in truth}
    expected = json.loads((REFDATA / "gcg/expected_gcg.json").read_text())["expected"]["caption"]
    assert meteor(captions) == pytest.approx(100 * expected["METEOR"], rel=1e-6)


@needs_refdata
def test_against_glamm():
    masks, captions, found, expected = (
        json.loads((REFDATA / f"gcg/{name}.json").read_text())
        for name in ("val_gcg_coco_mask_gt", "val_gcg_coco_caption_gt", "predictions", "expected_gcg")
    )
    expected = expected["expected"]
    truth = {annotation["image_id"]: annotation for annotation in captions["annotations"]}
    metric = GroundedCaptionScore(similarity="jaccard")
    for image in masks["images"]:
        said, seen = found[str(image["id"])], metric.totals[1]
        metric.update(
            image["id"],
            (image["height"], image["width"]),
            caption=said["caption"],
            phrases=said["phrases"],
            masks=said["pred_masks"],
            true_captions=[truth[image["id"]]["caption"]],
            true_phrases=truth[image["id"]]["labels"],
            true_masks=[a["segmentation"] for a in masks["annotations"] if a["image_id"] == image["id"]],
        )
        assert metric.totals[1] - seen == pytest.approx(expected["per_image_miou"][str(image["id"])], abs=1e-9)
    values = metric.compute()
    known = dict(zip(NAMES, (100 * value for value in expected["AP_stats"]), strict=True))
    assert metric.detections.compute() == pytest.approx(known, rel=1e-6)
    assert (values["AP"], values["AP50"]) == pytest.approx((known["AP"], known["AP50"]), rel=1e-6)
    assert values["mIoU"] == pytest.approx(100 * expected["miou"], rel=1e-6)
    assert values["CIDEr"] == pytest.approx(100 * expected["caption"]["CIDEr"], rel=1e-6)
    assert values["recall"] == pytest.approx(39.6, abs=0.05)  # printed with three digits
