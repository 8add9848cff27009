import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.data.masks import decode_rle
from xsam.metrics.iou import THRESHOLDS, ReferringIoU
from xsam.structures import UserError

REFDATA = Path(__file__).parents[2] / "../shared/refdata"
needs_refdata = pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")


def row(pixels: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in pixels]])


def scores(*samples: tuple[str, str]) -> dict[str, float | None]:
    metric = ReferringIoU()
    for pred, gt in samples:
        metric.update(row(pred), row(gt))
    return metric.compute()


def test_hand_computed_values() -> None:
    values = scores(
        ("###.....", "####...."),  # IoU 3/4
        ("........", "########"),  # missed
        ("........", "........"),  # rightly refused
        ("##......", "........"),  # a mask of something that is not there
    )
    assert values == {
        "cIoU": pytest.approx(100 * 3 / (4 + 8 + 2)),  # the false mask is in the union
        "gIoU": pytest.approx(100 * (0.75 + 0 + 1 + 0) / 4),
        "N_acc": 50.0,
        "T_acc": 50.0,
        "Pr@0.5": 50.0,
        "Pr@0.6": 50.0,
        "Pr@0.7": 50.0,
        "Pr@0.8": 0.0,
        "Pr@0.9": 0.0,
    }


def test_threshold_is_reached_by_equality() -> None:
    assert scores(("#.", "##"))["Pr@0.5"] == 100


def test_what_was_not_measured_is_none() -> None:
    assert set(scores().values()) == {None}
    refused = scores(("..", ".."))
    assert (refused["gIoU"], refused["N_acc"]) == (100, 100)
    assert (refused["cIoU"], refused["T_acc"], refused["Pr@0.5"]) == (None, None, None)
    assert scores(("##", "##"))["N_acc"] is None


def test_ignored_pixels_count_nowhere() -> None:
    metric = ReferringIoU()
    metric.update(row("###."), row("#..#"), row(".##."))
    assert metric.compute()["cIoU"] == 50
    inside = ReferringIoU()
    inside.update(row("..#."), row(".#.."), row(".##."))  # nothing is left: a sample without a target
    assert inside.compute()["N_acc"] == 100


def test_merge_is_addition() -> None:
    first, second, both = ReferringIoU(), ReferringIoU(), ReferringIoU()
    for metrics, pred, gt in (((first, both), "##..", "###."), ((second, both), "....", "....")):
        for metric in metrics:
            metric.update(row(pred), row(gt))
    first.merge(second)
    assert first.compute() == both.compute()


def test_other_size_is_named() -> None:
    with pytest.raises(UserError, match="sizes must be equal"):
        ReferringIoU().update(row("##"), row("###"))


@needs_refdata
def test_against_lisa_and_grefcoco_evaluation() -> None:
    reference = json.loads((REFDATA / "refer/refseg_cases.json").read_text())
    targets, everything, absent = ReferringIoU(), ReferringIoU(), ReferringIoU()
    for sample in reference["samples"]:
        pred, gt = (decode_rle(sample[name]) for name in ("pred", "gt"))
        everything.update(pred, gt)
        if sample["kind"] in ("single", "target_missed", "single_pixel_hit", "single_pixel_miss"):
            targets.update(pred, gt)
        if sample["kind"] == "no_target_correct":
            absent.update(pred, gt)

    expected = reference["expected"]["refcoco_like (targets only)"]["xsam_official_formula"]
    values = targets.compute()
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    check_lisa(targets, reference["expected"]["refcoco_like (targets only)"]["lisa"])
    found = reference["expected"]["refcoco_like (targets only)"]["rela"]
    assert (values["gIoU"], values["cIoU"]) == pytest.approx((found["gIoU"], found["cIoU"]), rel=1e-6)
    precision = {f"Pr@{x}": values[f"Pr@{x}"] for x in THRESHOLDS}
    assert precision == pytest.approx(reference["precision_at"], rel=1e-6)

    expected = dict(reference["expected"]["grefcoco_like (all, pred_nt = empty prediction)"]["rela"])
    expected |= {name: 100 * expected[name] for name in ("T_acc", "N_acc")}
    values = everything.compute()
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    check_lisa(everything, reference["expected"]["grefcoco_like (all, pred_nt = empty prediction)"]["lisa"])
    official = reference["expected"]["grefcoco_like (all, pred_nt = empty prediction)"]["xsam_official_formula"]
    assert {name: values[name] for name in official} == pytest.approx(official, rel=1e-6)
    check_lisa(absent, reference["expected"]["only_no_target_correct"]["lisa"])
    assert absent.compute()["cIoU"] is None  # 0 for LISA, 100 for X-SAM, an error for ReLA


def check_lisa(metric: ReferringIoU, expected: dict) -> None:
    """LISA adds 1e-5 to the number of samples (less to the union), and computes in float32."""
    samples, _, inter, union, iou, *_ = metric.totals.tolist()
    assert samples == expected["n"]
    assert [inter, union] == [expected["intersection"][1], expected["union"][1]]
    assert inter / (union + 1e-10) == pytest.approx(expected["ciou"], rel=1e-6)
    assert iou / samples == pytest.approx(expected["giou_exact_n"], rel=1e-6)
    assert iou / (samples + 1e-5) == pytest.approx(expected["giou"], rel=1e-6)


@needs_refdata
@pytest.mark.parametrize("name", ["2011_000003", "2011_000006"])
def test_ignored_regions_of_reasonseg(name: str) -> None:
    labels = np.array(Image.open(REFDATA / f"reasonseg/{name}_expected_mask.png"))
    pred = np.array(Image.open(REFDATA / f"reasonseg/{name}_pred.png")) > 0
    expected = json.loads((REFDATA / f"reasonseg/{name}_expected.json").read_text())
    metric = ReferringIoU()
    metric.update(pred, labels == 1, labels == 255)
    values = metric.compute()
    check_lisa(metric, expected["lisa"])
    for key, value in expected["xsam_official_formula"].items():
        assert values[key] == pytest.approx(value, rel=1e-6)


def test_kinds_are_scored_apart_and_together() -> None:
    full, half, none = np.ones((2, 2), bool), np.array([[True, True], [False, False]]), np.zeros((2, 2), bool)
    left, right = ReferringIoU(), ReferringIoU()
    left.update(full, full, kind="easy")
    right.update(half, full, kind="hard")
    right.update(none, full, kind="hard")
    right.update(full, full)
    left.merge(right)
    scores = left.compute()
    assert scores["cIoU_easy"] == 100
    assert scores["cIoU_hard"] == pytest.approx(100 * 2 / 8)
    assert (scores["Pr@0.5_easy"], scores["Pr@0.5_hard"]) == (100, 50)
    assert scores["cIoU"] == pytest.approx(100 * 10 / 16)
    assert "cIoU_" not in scores


def test_no_answer_is_not_a_refusal() -> None:
    """Where nothing fits, an empty answer is right; no usable answer at all is not."""
    nothing = np.zeros((2, 2), bool)
    metric = ReferringIoU()
    metric.update(nothing, nothing)
    metric.update(nothing, nothing, failed=True)
    scores = metric.compute()
    assert scores["gIoU"] == scores["N_acc"] == 50
