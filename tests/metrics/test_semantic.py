import json
from pathlib import Path

import numpy as np
import pytest

from xsam.metrics.semantic import NOTHING, SemanticIoU
from xsam.structures import UserError

REFDATA = Path(__file__).parents[2] / "../shared/refdata/semantic"


def test_hand_computed_values_and_merge() -> None:
    gt = np.array([[0, 0, 1, 1], [0, 255, 1, 255]], np.uint8)
    pred = np.array([[0, 1, 1, 1], [0, 3, 2, 0]], np.uint8)
    whole, left, right = SemanticIoU(4), SemanticIoU(4), SemanticIoU(4)
    whole.update(pred, gt)
    left.update(pred[:1], gt[:1])
    right.update(pred[1:], gt[1:])
    left.merge(right)
    # class 0: 2 / 3, class 1: 2 / 4, class 2: predicted once, not there; class 3: only on an ignored pixel.
    expected = {
        "mIoU": 100 * (2 / 3 + 1 / 2) / 2,
        "mIoU_all": 100 * (2 / 3 + 1 / 2) / 3,
        "fwIoU": 100 * (2 / 3 * 3 + 1 / 2 * 3) / 6,
        "mACC": 100 * (2 / 3 + 2 / 3) / 2,
        "pACC": 100 * 4 / 6,
    }
    assert whole.compute() == pytest.approx(expected)
    assert left.compute() == whole.compute()
    assert whole.per_category() == {0: {"IoU": pytest.approx(100 * 2 / 3)}, 1: {"IoU": pytest.approx(50)}}


def test_what_was_not_predicted_is_wrong_and_of_no_class() -> None:
    metric = SemanticIoU(2)
    metric.update(np.array([[0, NOTHING, NOTHING]]), np.array([[0, 0, 255]]))
    assert metric.totals.tolist() == [[1, 0], [2, 0], [1, 0]]


def test_nothing_to_score_is_none() -> None:
    metric = SemanticIoU(2)
    metric.update(np.zeros((2, 2), int), np.full((2, 2), 255))
    assert set(metric.compute().values()) == {None}
    assert metric.per_category() == {}


@pytest.mark.parametrize(
    "pred, gt, message",
    [
        ([[2]], [[0]], "predicted map has label 2"),
        ([[255]], [[255]], "predicted map has label 255"),
        ([[0]], [[7]], "true map has label 7"),
        ([[0, 0]], [[0]], "sizes must be equal"),
    ],
)
def test_broken_maps_are_named(pred: list, gt: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SemanticIoU(2).update(np.array(pred), np.array(gt))


@pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")
def test_against_detectron2_mmsegmentation_and_the_ade20k_benchmark() -> None:
    cases = json.loads((REFDATA / "expected_sem.json").read_text())["cases"]
    checked = 0
    for path in sorted((REFDATA / "cases").glob("*.npz")):
        case, arrays = cases[path.stem], np.load(path)
        metric = SemanticIoU(case["num_classes"])
        for name in arrays.files:
            if name.startswith("pred"):
                metric.update(arrays[name], arrays[name.replace("pred", "gt")])
        values, classes = metric.compute(), metric.per_category()
        expected = {name: case["detectron2"][name] for name in ("mIoU", "fwIoU", "mACC", "pACC")}
        assert values == pytest.approx(expected | {"mIoU_all": case["mmseg"]["mIoU"]}, rel=1e-6), path.stem
        assert values["mACC"] == pytest.approx(case["mmseg"]["mAcc"], rel=1e-6)
        known = {int(label): value for label, value in case["mmseg"]["IoU"].items()}
        assert {label: row["IoU"] for label, row in classes.items()} == pytest.approx(
            {label: known[label] for label in classes}, rel=1e-6
        )
        assert not any(value for label, value in known.items() if label not in classes)
        if "csail_sceneparsing" in case:  # its mean is over all classes of the list, there or not
            mean = sum(row["IoU"] for row in classes.values()) / case["num_classes"]
            assert mean == pytest.approx(case["csail_sceneparsing"]["mean_iou_over_all_K"], rel=1e-6)
        checked += 1
    assert checked == 10
