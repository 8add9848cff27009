import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from xsam.metrics.detection import NAMES, InstanceAP

REFDATA = Path(__file__).parents[2] / "../shared/refdata"
needs_refdata = pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")


def box(x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def truth(rle: dict[str, Any], category: int = 1, crowd: bool = False) -> dict[str, Any]:
    return {"category": category, "rle": rle, "crowd": crowd}


def found(rle: dict[str, Any], score: float, category: int = 1) -> dict[str, Any]:
    return {"category": category, "rle": rle, "score": score}


def test_hand_computed_values_and_silence(capsys: pytest.CaptureFixture) -> None:
    metric, other = InstanceAP(), InstanceAP()
    metric.update("b", (64, 64), [truth(box(0, 0, 10, 10))], [found(box(0, 0, 10, 8), 0.9)])  # IoU 0.8
    other.update("a", (64, 64), [truth(box(0, 0, 40, 40), 2)], [found(box(0, 0, 40, 40), 0.1, 2)])
    metric.merge(other)
    values = metric.compute()
    assert values["AP"] == pytest.approx(100 * (0.7 + 1) / 2)  # found at 7 of 10 thresholds, and at all
    assert values["AP50"] == values["AP75"] == pytest.approx(100)
    assert values["APs"] == pytest.approx(70)
    assert values["APm"] == pytest.approx(100)
    assert values["APl"] is None
    assert capsys.readouterr().out == ""


def test_stated_area_decides_the_size() -> None:
    metric = InstanceAP()
    metric.update(1, (64, 64), [truth(box(0, 0, 10, 10)) | {"area": 5000.0}], [found(box(0, 0, 10, 10), 1.0)])
    assert metric.compute()["APm"] == pytest.approx(100)
    assert metric.compute()["APs"] is None


def test_crowd_excuses_a_prediction() -> None:
    metric = InstanceAP()
    gt = [truth(box(0, 0, 30, 30), crowd=True), truth(box(40, 40, 50, 50))]
    metric.update(1, (64, 64), gt, [found(box(2, 2, 9, 9), 0.9), found(box(40, 40, 50, 50), 0.5)])
    assert metric.compute()["AP"] == pytest.approx(100)


def test_without_predictions_and_without_truth() -> None:
    assert InstanceAP().compute() == dict.fromkeys(NAMES)
    metric = InstanceAP()
    metric.update(1, (64, 64), [], [found(box(0, 0, 4, 4), 0.5)])
    assert metric.compute() == dict.fromkeys(NAMES)
    metric.update(2, (64, 64), [truth(box(0, 0, 4, 4))], [])
    assert (metric.compute()["AP"], metric.compute()["APl"]) == (0, None)


@pytest.fixture(scope="module")
def coco() -> dict[str, Any]:
    folder = REFDATA / "coco_instance"
    data = json.loads((folder / "instances_val2014_100.json").read_text())
    return {
        "expected": json.loads((folder / "expected.json").read_text()),
        "sizes": {image["id"]: (image["height"], image["width"]) for image in data["images"]},
        "gt": data["annotations"],
        "preds": json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text()),
    }


def evaluate(coco: dict[str, Any], ids: list[int], gt: list[Any], preds: list[Any]) -> dict[str, float | None]:
    metric = InstanceAP()
    for id in ids:
        size = coco["sizes"][id]
        truths = [
            {"category": a["category_id"], "rle": rle(a, size), "crowd": a["iscrowd"], "area": a["area"]}
            for a in gt
            if a["image_id"] == id
        ]
        results = [
            {"category": p["category_id"], "rle": p["segmentation"], "score": p["score"]}
            for p in preds
            if p["image_id"] == id
        ]
        metric.update(id, size, truths, results)
    return metric.compute()


def rle(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    parts = coco_mask.frPyObjects(annotation["segmentation"], *size)
    return coco_mask.merge(parts) if isinstance(parts, list) else parts


def percent(expected: dict[str, float]) -> dict[str, float | None]:
    return {name: None if expected[name] < 0 else pytest.approx(100 * expected[name], rel=1e-6) for name in NAMES}


@needs_refdata
def test_published_coco_values(coco: dict[str, Any]) -> None:
    values = evaluate(coco, coco["expected"]["image_ids_full"], coco["gt"], coco["preds"])
    assert values == percent(coco["expected"]["full"]["segm"])


@needs_refdata
@pytest.mark.parametrize(
    "case",
    [
        "subset",
        "all_scores_equal",
        "every_detection_duplicated_lower_score",
        "half_images_without_detections",
        "one_category_only",
        "wrong_categories",
        "single_pixel_masks",
        "ten_empty_masks_first",
        "ground_truth_as_detection_incl_crowd",
        "no_detection_at_all",
    ],
)
def test_adversarial_predictions(coco: dict[str, Any], case: str) -> None:
    expected, ids = coco["expected"], coco["expected"]["image_ids_first_half"]
    gt = [item for item in coco["gt"] if item["image_id"] in ids]
    preds = [item for item in coco["preds"] if item["image_id"] in ids]
    extra = expected["extra_detections"]
    match case:
        case "all_scores_equal":
            preds = [item | {"score": 0.5} for item in preds]
        case "every_detection_duplicated_lower_score":
            preds = preds + [item | {"score": item["score"] * 0.5} for item in preds]
        case "half_images_without_detections":
            preds = [item for item in preds if item["image_id"] in ids[::2]]
        case "one_category_only":
            preds = [item for item in preds if item["category_id"] == 1]
        case "wrong_categories":
            preds = [item | {"category_id": item["category_id"] % 10 + 1} for item in preds]
        case "single_pixel_masks":
            preds = extra["single_pixel_masks"]
        case "ten_empty_masks_first":
            preds = extra["ten_empty_masks_first_10"] + preds
        case "ground_truth_as_detection_incl_crowd":
            preds = [item | {"segmentation": rle(item, coco["sizes"][item["image_id"]]), "score": 1.0} for item in gt]
        case "no_detection_at_all":
            preds = []
    assert evaluate(coco, ids, gt, preds) == percent(expected["cases_first_half"][case])


@needs_refdata
def test_value_published_by_deeplab2() -> None:
    case = json.loads((REFDATA / "coco_instance/deeplab2_single_instance.json").read_text())
    metric = InstanceAP()
    metric.update(
        1,
        (4, 5),
        [truth(case["gt"]["annotations"][0]["segmentation"], 8)],
        [found(case["dt"][0]["segmentation"], 0.8, 8)],
    )
    assert metric.compute() == percent(case["here"])
