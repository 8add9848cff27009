"""COCO readers, on files written here, on the embedded world, on recorded files, and on files that are wrong."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from world.files import prepare
from world.shapes import CATEGORIES
from xsam.data.coco import Category, CocoInstances, CocoPanoptic, clean_name, distinct
from xsam.data.masks import encode_rle, unpack, write_panoptic_png
from xsam.data.records import read_mask
from xsam.structures import BadSample, UserError

RECORDED = Path(__file__).parents[2] / "../shared/refdata"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="recorded files are not here")
IDS = np.array([[300, 300, 7, 0], [300, 9, 7, 7]])


@pytest.fixture
def panoptic(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "png").mkdir()
    write_panoptic_png(tmp_path / "png/a.png", IDS)
    Image.new("RGB", (4, 2)).save(tmp_path / "images/a.jpg")
    segments = [
        {"id": 300, "category_id": 5, "area": 3, "iscrowd": 0, "bbox": "junk"},
        {"id": 9, "category_id": 2, "area": 1, "iscrowd": 1},
        {"id": 7, "category_id": 2, "area": 3, "iscrowd": 0},
    ]
    content = {
        "images": [{"id": 11, "file_name": "a.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 11, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 2, "name": "tree-merged", "isthing": 0}, {"id": 5, "name": "Cat", "isthing": 1}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return tmp_path


def read_panoptic(root: Path) -> CocoPanoptic:
    return CocoPanoptic(root / "panoptic.json", root / "png", root / "images")


def changed(path: Path, change) -> None:
    """Rewrite a JSON file after `change(content)`."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_panoptic_record_and_masks(panoptic):
    data = read_panoptic(panoptic)
    assert data.categories == [Category(2, "tree-merged", False), Category(5, "Cat", True)]
    assert (len(data), data.id(0)) == (1, "11")
    record = data[0]
    assert (record.image, record.image_id) == (str(panoptic / "images/a.jpg"), "11")
    assert (record.height, record.width) == (2, 4)
    assert [(s.id, s.category_id, s.area, s.is_crowd) for s in record.annotations] == [
        (300, 5, 3, False),
        (9, 2, 1, True),
        (7, 2, 3, False),
    ]
    shown = data.segments(0)
    assert shown.masks.ids.tolist() == [[[0, 0, 2, -1], [0, 1, 2, 2]]]
    assert (shown.masks.count, shown.category_ids, shown.crowd) == (3, (5, 2, 2), (False, True, False))
    with pytest.raises(IndexError):
        data[1]


def test_nothing_of_the_file_is_kept_in_memory(panoptic):
    data = pickle.loads(pickle.dumps(read_panoptic(panoptic)))
    assert data.segments(0).category_ids == (5, 2, 2)
    assert len(pickle.dumps(data)) < 2000


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": "300"}, r"image 11: 'id' is '300'"),
        ({"id": 8}, r"a\.png: segment 8 has no pixel"),
        ({"id": 7}, "image 11: an annotation id stands there twice"),
        ({"category_id": 3}, "image 11, annotation 300: category_id 3 is not in the file's list"),
        ({"category_id": None}, "annotation 300: 'category_id' is None"),
        ({"area": -1}, "annotation 300: 'area' is -1"),
        ({"area": 10**30}, "annotation 300: 'area' is 1000.*, more than the image has"),
        ({"area": float("inf")}, "annotation 300: 'area' is inf, more than the image has"),
        ({"area": float("nan")}, "annotation 300: 'area' is nan"),
        ({"iscrowd": 2}, "annotation 300: 'iscrowd' is '2'"),
    ],
)
def test_a_wrong_segment_is_named(panoptic, change, message):
    changed(panoptic / "panoptic.json", lambda c: c["annotations"][0]["segments_info"][0].update(change))
    with pytest.raises(BadSample, match=message):
        read_panoptic(panoptic).segments(0)


@pytest.mark.parametrize(
    "place, change, message",
    [
        ("images", {"height": 3}, r"a\.png: is \(2, 4\), its image \(3, 4\)"),
        ("images", {"height": 0}, "image 11: 'height' is 0"),
        ("images", {"width": 2.5}, r"image 11: 'width' is 2\.5"),
        ("images", {"width": 10**9}, "more than an image can have"),
        ("images", {"file_name": 3}, "image 11: 'file_name' is 3"),
        ("annotations", {"file_name": "b.png"}, r"b\.png: cannot be read as an image"),
        ("annotations", {"file_name": None}, "image 11: 'png' is None"),
        ("annotations", {"segments_info": {}}, "image 11: 'segments_info' is {}"),
        ("annotations", {"segments_info": [5]}, "image 11: is 5, not an object"),
        ("annotations", {"segments_info": []}, r"a\.png: segment 7 is in the PNG but not in the file"),
    ],
)
def test_a_wrong_panoptic_record_is_named(panoptic, place, change, message):
    changed(panoptic / "panoptic.json", lambda c: c[place][0].update(change))
    with pytest.raises(BadSample, match=message):
        read_panoptic(panoptic).segments(0)


@pytest.mark.parametrize(
    "change, names, message",
    [
        (
            lambda c: c["annotations"].append({"image_id": 4}),
            ["11", "annotation number 1"],
            "image 4 is not once among",
        ),
        (lambda c: c["annotations"].append([]), ["11", "annotation number 1"], "image None is not once among"),
        (
            lambda c: (c["annotations"].extend(c["annotations"] + [{"image_id": 12}]), c["images"].append({"id": 12})),
            ["annotation number 0", "annotation number 1", "12"],
            "image 11 has more than one annotation",
        ),
    ],
)
def test_a_record_that_belongs_to_no_image_is_not_usable(panoptic, change, names, message):
    changed(panoptic / "panoptic.json", change)
    data = read_panoptic(panoptic)
    assert [data.id(i) for i in range(len(data))] == names
    with pytest.raises(BadSample, match=message):
        data[1]


@pytest.fixture
def instances(tmp_path):
    (tmp_path / "images").mkdir()
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:5] = True
    annotations = [
        {"id": 1, "image_id": 3, "category_id": 1, "segmentation": encode_rle(mask), "area": 8, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 1, "segmentation": [[3, 2, 7, 2, 7, 5, 3, 5]], "area": 12.5},
        {"id": 4, "image_id": 3, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [40, 8]},
         "area": 8, "iscrowd": 1},
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 8} for i in (3, 5)]
    for image in images:
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / image["file_name"])
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "screw"}]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_instances_may_overlap(instances):
    data = CocoInstances(instances, instances.parent / "images")
    assert [record.image_id for record in data] == ["3", "5"]
    assert [i.is_crowd for i in data[0].annotations] == [False, False, True]
    shown = data.segments(0)
    masks = unpack(shown.masks)
    assert masks.sum((1, 2)).tolist() == [8, 12, 8]
    assert (masks[0] & masks[1]).any()
    assert (shown.crowd, shown.areas) == ((False, False, True), (8, 12.5, 8))
    assert data[1].annotations == ()
    assert data.segments(1).masks.ids.tolist() == [[[-1] * 8] * 6]
    assert data.categories == [Category(1, "screw", True)]
    assert data.of_image("5").image_id == "5"
    with pytest.raises(BadSample, match="has no image 4"):
        data.of_image("4")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"segmentation": []}, "annotation 2: the segmentation is empty"),
        ({"segmentation": None}, "image 3, annotation 2: 'segmentation' is None"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"annotation 2: the RLE has the size \[8, 6\]"),
        ({"segmentation": {"size": 5, "counts": [48]}}, "annotation 2: "),
        ({"segmentation": {"size": [6, 8], "counts": None}}, "annotation 2: "),
        ({"segmentation": [[1, 1, 1, 1, 1, 1]]}, "image 3, annotation 2: the mask is empty"),
        ({"id": 1}, "image 3: an annotation id stands there twice"),
        ({"category_id": 9}, "annotation 2: category_id 9 is not in the file's list"),
        ({"area": "12"}, "annotation 2: 'area' is '12'"),
    ],
)
def test_a_wrong_instance_is_named(instances, change, message):
    changed(instances, lambda c: c["annotations"][1].update(change))
    data = CocoInstances(instances, instances.parent / "images")
    with pytest.raises(BadSample, match=message):
        data.segments(0)


def test_an_image_of_another_size_is_named(instances):
    changed(instances, lambda c: c["images"][0].update(height=7))
    with pytest.raises(BadSample, match=r"3\.png: is \(6, 8\), .*instances\.json says \(7, 8\)"):
        CocoInstances(instances, instances.parent / "images").segments(0)


def test_what_belongs_to_no_image_is_a_record_that_cannot_be_used(instances):
    def change(content):
        content["images"] += [{"id": 5}, "text"]
        content["annotations"][0]["image_id"] = 77

    changed(instances, change)
    data = CocoInstances(instances, instances.parent / "images")
    names = ["3", "image number 1", "image number 2", "image number 3", "annotation number 0"]
    assert [data.id(i) for i in range(len(data))] == names
    reasons = ["id 5 is missing, or not the only one"] * 2 + ["id None is missing", "image 77 is not once among"]
    for index, reason in enumerate(reasons, start=1):
        with pytest.raises(BadSample, match=reason):
            data[index]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"panoptic\.json: cannot be read \(No such file"),
        ("{", r"panoptic\.json: not valid JSON"),
        ("[" * 10**5, r"panoptic\.json: not valid JSON"),
        ("[]", r"panoptic\.json: not a COCO file"),
        ('{"images": [], "categories": []}', r"panoptic\.json: has no list annotations"),
        (
            '{"images": [], "annotations": [{"image_id": 4}], "categories": []}',
            r"panoptic\.json: none of its 1 records can be used, .*image 4 is not once among the images",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"category number 0: has no 'name'"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "-other"}]}', "'name' is '-other'"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a", "isthing": "no"}]}',
            r"category number 0: 'isthing' is 'no'",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            r"panoptic\.json: has more than one category 1",
        ),
    ],
)
def test_a_wrong_file_is_named(panoptic, content, message):
    (panoptic / "panoptic.json").unlink()
    if content is not None:
        (panoptic / "panoptic.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_panoptic(panoptic)


def test_a_missing_folder_is_named(panoptic):
    with pytest.raises(UserError, match="elsewhere: no such folder"):
        CocoPanoptic(panoptic / "panoptic.json", panoptic / "elsewhere", panoptic / "images")


@pytest.mark.parametrize(
    "name, clean",
    [
        ("wall-other-merged", "wall"),
        ("window-blind", "window blind"),
        ("Door-stuff", "door"),
        ("teddy bear", "teddy bear"),
    ],
)
def test_clean_name(name, clean):
    assert clean_name(name) == clean


def test_distinct():
    assert distinct(np.array([[3, 3, -1], [-1, 7, 3]])) == [-1, 3, 7]
    assert distinct(np.zeros((0, 4), int)) == []


def test_panoptic_and_instances_of_the_world_agree(tmp_path):
    prepare(tmp_path, train=3, val=1)
    panoptic = CocoPanoptic(
        tmp_path / "annotations/panoptic_train.json", tmp_path / "panoptic_train", tmp_path / "train"
    )
    instances = CocoInstances(tmp_path / "annotations/instances_train.json", tmp_path / "train")
    assert {c.name: c.id for c in panoptic.categories} == CATEGORIES
    for i in range(3):
        all_of_it, things = panoptic.segments(i), instances.segments(i)
        assert all_of_it.category_ids[:-2] == things.category_ids
        assert (unpack(all_of_it.masks)[:-2] == unpack(things.masks)).all()


@recorded
def test_recorded_panoptic_scene():
    root = RECORDED / "panoptic/coco"
    data = CocoPanoptic(root / "gt.json", root / "gt", root)
    assert len(data.categories) == 133
    record, shown = data[0], data.segments(0)
    assert record.image_id == "142238"
    assert any(shown.crowd)
    assert unpack(shown.masks).sum((1, 2)).tolist() == [segment.area for segment in record.annotations]


@recorded
def test_recorded_panoptic_and_instances_of_one_photo(tmp_path):
    root = RECORDED / "panoptic/hf_39769"
    image = {"id": 39769, "file_name": "000000039769.png", "height": 480, "width": 640}
    segments = json.loads((root / "coco_panoptic_annotations.txt").read_text())
    categories = json.loads((RECORDED / "panoptic/panoptic_coco_categories.json").read_text())
    annotation = {"image_id": 39769, "file_name": "000000039769.png", "segments_info": segments}
    rest = {"images": [image], "categories": categories}
    (tmp_path / "panoptic.json").write_text(json.dumps(rest | {"annotations": [annotation]}))
    shown = CocoPanoptic(tmp_path / "panoptic.json", root / "coco_panoptic", root).segments(0)
    assert unpack(shown.masks).sum((1, 2)).tolist() == [53306, 59627, 174579, 4068, 2118, 2750]

    annotations = json.loads((root / "coco_annotations.txt").read_text())
    (tmp_path / "instances.json").write_text(json.dumps(rest | {"annotations": annotations}))
    things = CocoInstances(tmp_path / "instances.json", root).segments(0)
    expected = json.loads((root / "expected.json").read_text())["pycocotools_areas"]
    assert unpack(things.masks).sum((1, 2)).tolist() == expected
    assert things.category_ids == (75, 75, 63, 65, 17, 17)


@recorded
def test_recorded_instances_with_polygons_and_crowds():
    path = RECORDED / "coco_instance/instances_val2014_100.json"
    areas = json.loads((RECORDED / "coco_instance/expected_polygon_masks.json").read_text())["areas"]
    expected = {row["id"]: row["mask_area"] for row in areas}
    data = CocoInstances(path, path.parent)
    assert len(data) == 100
    seen = 0
    for record in data:
        for instance in record.annotations:
            if instance.id in expected:
                assert read_mask(instance.segmentation, record.height, record.width, "").sum() == expected[instance.id]
                seen += 1
    assert seen == len(expected) > 100


@recorded
def test_small_files_of_another_program(tmp_path):
    root = RECORDED / "formats/datumaro/coco_dataset"
    good = CocoPanoptic(
        root / "coco/annotations/panoptic_train.json",
        root / "coco/annotations/panoptic_train",
        root / "coco/images/train",
    )
    assert [c.name for c in good.categories] == ["a", "b"]
    assert unpack(good.segments(0).masks).sum((1, 2)).tolist() == [20]
    shutil.copytree(root / "coco_panoptic/annotations", tmp_path / "annotations")
    other = CocoPanoptic(
        tmp_path / "annotations/panoptic_train.json",
        tmp_path / "annotations/panoptic_train",
        root / "coco_panoptic/images",
    )
    with pytest.raises(BadSample, match=r"a\.png: is \(5, 5\), its image \(5, 10\)"):
        other.segments(0)
    empty = CocoInstances(root / "coco/annotations/instances_train.json", root / "coco/images/train")
    with pytest.raises(BadSample, match="annotation 1: the segmentation is empty"):
        empty.segments(0)
