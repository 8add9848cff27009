import json
from pathlib import Path

import numpy as np
import pytest

from xsam.metrics.semantic import SemanticIoU
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
    expected = {"mIoU": 100 * (2 / 3 + 1 / 2) / 2, "mIoU_all": 100 * (2 / 3 + 1 / 2) / 3, "pACC": 100 * 4 / 6}
    assert whole.compute() == pytest.approx(expected)
    assert left.compute() == whole.compute()


def test_nothing_to_score_is_none() -> None:
    metric = SemanticIoU(2)
    metric.update(np.zeros((2, 2), int), np.full((2, 2), 255))
    assert metric.compute() == {"mIoU": None, "mIoU_all": None, "pACC": None}


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
def test_against_detectron2_and_mmsegmentation() -> None:
    cases = json.loads((REFDATA / "expected_sem.json").read_text())["cases"]
    checked = 0
    for path in sorted((REFDATA / "cases").glob("*.npz")):
        case, arrays = cases[path.stem], np.load(path)
        metric = SemanticIoU(case["num_classes"])
        for name in arrays.files:
            if name.startswith("pred"):
                metric.update(arrays[name], arrays[name.replace("pred", "gt")])
        expected = {"mIoU": case["detectron2"]["mIoU"], "mIoU_all": case["mmseg"]["mIoU"]}
        expected["pACC"] = case["detectron2"]["pACC"]
        assert metric.compute() == pytest.approx(expected, rel=1e-6), path.stem
        checked += 1
    assert checked == 10
