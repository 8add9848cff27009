import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.metrics.panoptic import PanopticQuality
from xsam.structures import UserError

REFDATA = Path(__file__).parents[2] / "../shared/refdata/panoptic"
needs_refdata = pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")

THINGS_AND_STUFF = {1: True, 2: True, 3: False}


def test_perfect_prediction_under_other_ids() -> None:
    gt = np.array([[1, 1, 2], [0, 3, 3]])
    pred = np.array([[70000, 70000, 5], [0, 9, 9]])
    metric = PanopticQuality(THINGS_AND_STUFF)
    metric.update(pred, {70000: 1, 5: 2, 9: 3}, gt, {1: 1, 2: 2, 3: 3})
    assert set(metric.compute().values()) == {100.0}


def test_hand_computed_values_and_merge() -> None:
    # 10 pixels each: the person is found with IoU 6/10, the car is called a person, the road is missed.
    gt = np.repeat([1, 2, 3], 10)[None]
    pred = np.array([[1] * 6 + [0] * 4 + [2] * 10 + [0] * 10])
    first, second = PanopticQuality(THINGS_AND_STUFF), PanopticQuality(THINGS_AND_STUFF)
    first.update(pred, {1: 1, 2: 1}, gt, {1: 1, 2: 2, 3: 3})
    second.update(gt, {1: 1, 2: 2, 3: 3}, gt, {1: 1, 2: 2, 3: 3})
    alone = first.compute()
    rq = 100 * 1 / 1.5
    assert alone["PQ"] == pytest.approx(0.6 * rq / 3)
    assert alone["SQ"] == pytest.approx(60 / 3)
    assert alone["PQ_th"] == pytest.approx(0.6 * rq / 2)
    assert alone["PQ_st"] == 0
    first.merge(second)
    person = first.per_category()[1]
    assert person["PQ"] == pytest.approx(100 * 1.6 / 2.5)
    assert (person["TP"], person["FP"], person["FN"]) == (2, 1, 0)


def test_half_is_no_match_and_one_pixel_more_is() -> None:
    gt = np.ones((1, 8), int)
    for pixels, counts in ((4, [0, 1, 1]), (5, [1, 0, 0])):
        metric = PanopticQuality({1: True})
        metric.update((np.arange(8)[None] < pixels).astype(int), {1: 1}, gt, {1: 1})
        assert metric.totals[0, 1:].tolist() == counts


def test_void_and_crowd_excuse_a_prediction() -> None:
    # Columns: void, crowd of class 1, a true person of class 1.
    gt = np.array([[0, 0, 0, 0, 5, 5, 5, 5, 6, 6]])
    pred = np.array([[1, 1, 1, 2, 2, 2, 3, 3, 4, 4]])
    metric = PanopticQuality({1: True, 2: True})
    metric.update(pred, {1: 2, 2: 1, 3: 2, 4: 1}, gt, {5: 1, 6: 1}, crowd={5})
    # 1 lies on void, 2 on void and the crowd of its class, 3 on the crowd of another class: only 3 is wrong.
    assert metric.totals[:, 1:].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_groups_without_segments_are_none() -> None:
    metric = PanopticQuality(THINGS_AND_STUFF)
    assert set(metric.compute().values()) == {None}
    metric.update(np.zeros((2, 2), int), {}, np.ones((2, 2), int), {1: 1})
    assert metric.compute()["PQ_th"] == 0
    assert metric.compute()["PQ_st"] is None
    assert list(metric.per_category()) == [1]


@pytest.mark.parametrize(
    "pred, segments, message",
    [
        ([[1, 2]], {1: 1}, "id 2 is in the predicted map"),
        ([[1, -9]], {1: 1}, "id -9 is in the predicted map"),
        ([[1, 1]], {1: 1, 2: 2}, "segment 2 has no pixel"),
        ([[1, 1]], {1: 9}, "category 9"),
        ([[1, 1, 1]], {1: 1}, "sizes must be equal"),
    ],
)
def test_broken_predictions_are_named(pred: list, segments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PanopticQuality(THINGS_AND_STUFF).update(np.array(pred), segments, np.array([[1, 1]]), {1: 1})


def check_groups(metric: PanopticQuality, expected: dict) -> None:
    values = metric.compute()
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("pq", "sq", "rq"):
            value = expected[group][name]
            assert values[name.upper() + suffix] == (None if value is None else pytest.approx(100 * value, rel=1e-6))
    rows = {id: row for id, row in expected["per_class_counts"].items() if row["tp"] + row["fp"] + row["fn"]}
    ours = metric.per_category()
    assert {str(id) for id in ours} == set(rows)
    for id, row in ours.items():
        counts = rows[str(id)]
        assert [row["TP"], row["FP"], row["FN"]] == [counts[name] for name in ("tp", "fp", "fn")]
        assert row["SQ"] * row["TP"] / 100 == pytest.approx(counts["iou_sum"], rel=1e-6)


def add(metric: PanopticQuality, case: dict, pred: np.ndarray, gt: np.ndarray) -> None:
    metric.update(
        pred,
        {item["id"]: item["category_id"] for item in case["pred_segments"]},
        gt,
        {item["id"]: item["category_id"] for item in case["gt_segments"]},
        {item["id"] for item in case["gt_segments"] if item["iscrowd"]},
    )


def read_ids(path: Path) -> np.ndarray:
    return np.array(Image.open(path), np.int64) @ np.array([1, 256, 65536])


@needs_refdata
def test_coco_image_against_panopticapi() -> None:
    folder = REFDATA / "coco"
    truth = json.loads((folder / "gt.json").read_text())
    gt = read_ids(folder / "gt" / truth["annotations"][0]["file_name"])
    cases = json.loads((folder / "expected_pq.json").read_text())["cases"]
    checked = 0
    for name, expected in cases.items():
        if "error" in expected:
            continue
        pred = json.loads((folder / f"pred/{name}.json").read_text())["annotations"][0]
        metric = PanopticQuality({item["id"]: bool(item["isthing"]) for item in truth["categories"]})
        case = {"pred_segments": pred["segments_info"], "gt_segments": truth["annotations"][0]["segments_info"]}
        add(metric, case, read_ids(folder / "pred" / name / pred["file_name"]), gt)
        check_groups(metric, expected)
        checked += 1
    assert checked == 12


@needs_refdata
def test_micro_cases_against_panopticapi() -> None:
    for case in json.loads((REFDATA / "micro_cases.json").read_text())["cases"].values():
        metric = PanopticQuality({item["id"]: bool(item["isthing"]) for item in case["categories"]})
        add(metric, case, np.array(case["pred_map"]), np.array(case["gt_map"]))
        check_groups(metric, case["expected"])


@needs_refdata
def test_value_published_by_mmdetection() -> None:
    case = json.loads((REFDATA / "mmdet_published_case.json").read_text())
    # Its maps number the segments from 0 and keep void as another number; 0 is void here.
    listed = {item["id"] for item in case["gt_segments"]}
    metric = PanopticQuality({item["id"]: bool(item["isthing"]) for item in case["categories"]})
    maps = [np.array(case[name]) for name in ("pred_map", "gt_map")]
    add(metric, case, *(np.where(np.isin(ids, list(listed)), ids, 0) for ids in maps))
    assert metric.compute() == pytest.approx(case["published_percent"], rel=1e-6)
    check_groups(metric, case["panopticapi_here"])


@needs_refdata
def test_values_of_torchmetrics() -> None:
    cases = json.loads((REFDATA / "torchmetrics_cases.json").read_text())["cases"]
    published = cases["published_0.7753"]
    rows = [(published, published["here"], published["sq_rq"])]
    for case, expected, classes in rows + [(c, c["pq"], c["per_class_pq_sq_rq"]) for c in cases["random_with_void"]]:
        categories = dict.fromkeys(case["things"], True) | dict.fromkeys(case["stuffs"], False)
        maps, segments = [], []
        for pairs in (np.array(case["preds"]), np.array(case["target"])):
            category, instance = pairs[..., 0], pairs[..., 1] * np.isin(pairs[..., 0], case["things"])
            ids = np.where(np.isin(category, list(categories)), 1 + category * 1000 + instance, 0)
            maps.append(ids)
            segments.append({int(id): int(id - 1) // 1000 for id in np.unique(ids) if id})
        metric = PanopticQuality(categories)
        metric.update(maps[0], segments[0], maps[1], segments[1])
        assert metric.compute()["PQ"] == pytest.approx(100 * expected, rel=1e-6)
        found = metric.per_category()
        for category, figures in zip(categories, classes, strict=True):
            row = found.get(category, dict.fromkeys(("PQ", "SQ", "RQ"), 0))
            assert [row[name] for name in ("PQ", "SQ", "RQ")] == pytest.approx([100 * x for x in figures], rel=1e-6)


@needs_refdata
def test_value_published_by_deeplab2() -> None:
    folder = REFDATA / "deeplab2"
    case = json.loads((folder / "deeplab2_cases.json").read_text())
    gt = np.array(Image.open(folder / "team_gt_instance.png").convert("L"), int)
    colours = np.array(Image.open(folder / "team_pred_class.png").convert("RGB"))
    category = np.zeros(gt.shape, int)
    for colour, number in case["rgb_to_class"].items():
        category[(colours == [int(part) for part in colour.split(",")]).all(-1)] = number
    instance = np.array(Image.open(folder / "team_pred_instance.png").convert("L"), int)
    pred = np.where(category > 0, category * 256 + instance, 0)
    metric = PanopticQuality({1: True, 2: True})
    metric.update(
        pred,
        {int(id): int(id) // 256 for id in np.unique(pred) if id},
        gt,
        {int(id): number for id, number in case["instance_to_class"].items() if number},
    )
    expected = {name: 100 * case["published"][name] for name in ("PQ", "SQ", "RQ")}
    assert {name: metric.compute()[name] for name in expected} == pytest.approx(expected, rel=1e-6)


@needs_refdata
def test_numbered_void_published_by_deeplab2() -> None:
    """Void pixels that carry an instance number are no void for DeepLab2 but a region that excuses nothing."""
    case = json.loads((REFDATA / "deeplab2/deeplab2_cases.json").read_text())["published_label_case"]
    void, maps = case["ignored_label"], []
    for name in ("pred", "gt"):
        classes, instances = (np.array(case[f"{name}_{what}"]) for what in ("class", "inst"))
        maps.append(np.where((classes == void) & (instances == 0), 0, 1 + classes * 256 + instances))
    pred, gt = maps
    segments = [{int(id): int(id - 1) // 256 for id in np.unique(ids) if id} for ids in maps]
    metric = PanopticQuality(dict.fromkeys([*range(case["num_classes"]), void], True))
    metric.update(pred, segments[0], gt, segments[1], {id for id, category in segments[1].items() if category == void})
    values, rows = metric.compute(), metric.per_category().values()
    expected = case["expected"]
    assert {name: values[name] / 100 for name in ("PQ", "SQ", "RQ")} == pytest.approx(
        {name: expected[name] for name in ("PQ", "SQ", "RQ")}, rel=1e-6
    )
    for name in ("TP", "FP", "FN"):
        assert sum(row[name] for row in rows) / case["num_classes"] == pytest.approx(expected[name], rel=1e-6)
