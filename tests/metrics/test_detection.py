import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from xsam.data.masks import encode_rle
from xsam.metrics import detection
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
    assert metric.per_category() == {
        1: {"AP": pytest.approx(70), "AP50": pytest.approx(100)},
        2: {"AP": pytest.approx(100), "AP50": pytest.approx(100)},
    }
    assert metric.headline() == pytest.approx(85)
    metric.update("c", (64, 64), [truth(box(0, 0, 9, 9), 3, crowd=True)], [])
    assert metric.per_category()[3] == {"AP": None, "AP50": None}


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


def random_image(rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    gt, preds = [], []
    for _ in range(rng.integers(0, 5)):
        category, (x, y) = int(rng.integers(1, 4)), rng.integers(0, 40, 2)
        gt.append(truth(box(x, y, x + 20, y + 20), category, crowd=bool(rng.random() < 0.2)))
        for _ in range(rng.integers(0, 4)):
            dx, dy = rng.integers(0, 5, 2)
            preds.append(found(box(x + dx, y + dy, x + 20, y + 20), rng.random(), category))
    preds.append(found(box(0, 0, 9, 9), rng.random(), int(rng.integers(1, 6))))
    return gt, preds


def test_replicates_are_those_of_repeated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "BYTES", 64 * 100)  # a few replicates at a time
    rng = np.random.default_rng(0)
    parts, contents = [InstanceAP() for _ in range(8)], [random_image(rng) for _ in range(9)]
    for number, content in enumerate(contents):  # the last part has two samples
        parts[min(number, 7)].update(f"image {number}", (64, 64), *content)
    weights = np.concatenate(
        [np.ones((1, 8), int), rng.multinomial(8, np.ones(8) / 8, size=20), 8 * np.eye(8, dtype=int)]
    )
    for row, values in zip(weights, InstanceAP.resample(parts, weights), strict=True):
        repeated = InstanceAP()
        for number, content in enumerate(contents):
            for copy in range(row[min(number, 7)]):
                repeated.update(f"image {number} again {copy}", (64, 64), *content)
        expected = repeated.compute()
        assert list(values) == ["AP", "AP50", "AP75"]
        approximately = {
            name: value if value is None else pytest.approx(value, rel=1e-9) for name, value in expected.items()
        }
        assert values == {name: approximately[name] for name in values}


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


def evaluate(coco: dict[str, Any], ids: list[int], gt: list[Any], preds: list[Any]) -> InstanceAP:
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
    return metric


def rle(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    parts = coco_mask.frPyObjects(annotation["segmentation"], *size)
    return coco_mask.merge(parts) if isinstance(parts, list) else parts


def percent(expected: dict[str, float]) -> dict[str, float | None]:
    return {name: None if expected[name] < 0 else pytest.approx(100 * expected[name], rel=1e-6) for name in NAMES}


def check(metric: InstanceAP, expected: dict[str, Any]) -> None:
    assert metric.compute() == percent(expected)
    classes = {str(id): values["AP"] for id, values in metric.per_category().items() if values["AP"] is not None}
    known = [value for value in expected["per_category_AP"].values() if value >= 0]
    assert list(classes.values()) == pytest.approx([100 * value for value in known], rel=1e-6)


@needs_refdata
def test_published_coco_values(coco: dict[str, Any]) -> None:
    sides, expected = (coco["gt"], coco["preds"]), coco["expected"]["full"]
    metric = evaluate(coco, coco["expected"]["image_ids_full"], *sides)
    check(metric, expected["segm"])
    parts = [InstanceAP({id: image}) for id, image in metric.images.items()]
    once = InstanceAP.resample(parts, np.ones((1, len(parts)), int))[0]
    assert once == {name: percent(expected["segm"])[name] for name in once}
    by_class = (sorted(side, key=lambda item: item["category_id"]) for side in sides)  # as pycocotools takes them
    agnostic = ([item | {"category_id": 1} for item in side] for side in by_class)
    check(evaluate(coco, coco["expected"]["image_ids_full"], *agnostic), expected["segm_class_agnostic"])
    people = ([item for item in side if item["category_id"] == 1] for side in sides)
    check(evaluate(coco, coco["expected"]["image_ids_full"], *people), expected["segm_person_only"])


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
    check(evaluate(coco, ids, gt, preds), expected["cases_first_half"][case])


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


@needs_refdata
def test_instances_of_a_panoptic_map_published_by_deeplab2() -> None:
    """All scores are equal, so the order counts: that in which the segments begin."""
    folder = REFDATA / "panoptic/deeplab2"
    case = json.loads((folder / "deeplab2_cases.json").read_text())
    gt, instance = (
        np.array(Image.open(folder / f"team_{name}_instance.png").convert("L"), int) for name in ("gt", "pred")
    )
    colours = np.array(Image.open(folder / "team_pred_class.png").convert("RGB"))
    segments = np.zeros(gt.shape, int)
    for colour, number in case["rgb_to_class"].items():
        here = (colours == [int(part) for part in colour.split(",")]).all(-1)
        segments[here] = 256 * number + instance[here]
    ids, first = np.unique(segments, return_index=True)
    things = [id for id in ids[np.argsort(first)] if id // 256 in (1, 2)]
    metric = InstanceAP()
    metric.update(
        1,
        gt.shape,
        [truth(encode_rle(gt == int(id)), number) for id, number in case["instance_to_class"].items() if number],
        [found(encode_rle(segments == id), 1.0, int(id) // 256) for id in things],
    )
    values = [-1 if value is None else value / 100 for value in metric.compute().values()]
    assert values == pytest.approx(case["published_instance_ap_things_1_2"], abs=5.1e-5)  # printed with four digits
