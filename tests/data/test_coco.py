"""COCO readers, on files written here, on the embedded world, and on files that are wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from xsam.data.coco import Category, CocoInstances, CocoPanoptic, annotation_mask, clean_name
from xsam.data.masks import encode_rle, from_label_map, pack, unpack, write_panoptic_png
from xsam.data.shapes import CATEGORIES, prepare
from xsam.structures import SegmentMap, UserError

IDS = np.array([[300, 300, 7, 0], [300, 9, 7, 7]])


@pytest.fixture
def panoptic(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "png").mkdir()
    write_panoptic_png(tmp_path / "png/a.png", IDS)
    Image.new("RGB", (4, 2)).save(tmp_path / "images/a.jpg")
    segments = [
        {"id": 300, "category_id": 5, "area": 3, "iscrowd": 0},
        {"id": 9, "category_id": 2, "area": 1, "iscrowd": 1},
        {"id": 7, "category_id": 2, "area": 3, "iscrowd": 0},
    ]
    content = {
        "images": [{"id": 11, "file_name": "a.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 11, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 2, "name": "tree-merged", "isthing": 0},
            {"id": 5, "name": "Cat", "isthing": 1},
        ],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return tmp_path


def instance_map(data: CocoInstances, index: int) -> SegmentMap:
    record = data[index]
    masks = [annotation_mask(i, record.height, record.width) for i in record.instances if not i.is_crowd]
    return pack(np.array(masks, bool).reshape(-1, record.height, record.width))


def segment_map(data: CocoPanoptic, index: int) -> SegmentMap:
    return from_label_map(data.label_map(index), [s.id for s in data[index].segments if not s.is_crowd])


def test_panoptic_record_and_masks(panoptic):
    data = CocoPanoptic(panoptic / "panoptic.json", panoptic / "png", panoptic / "images")
    assert data.categories == [Category(2, "tree-merged", False), Category(5, "Cat", True)]
    assert len(data) == 1
    record = data[0]
    assert (record.image, record.image_id) == (str(panoptic / "images/a.jpg"), "11")
    assert (record.height, record.width) == (2, 4)
    assert [(s.id, s.category_id, s.area, s.is_crowd) for s in record.segments] == [
        (300, 5, 3, False),
        (9, 2, 1, True),
        (7, 2, 3, False),
    ]
    segments = segment_map(data, 0)
    assert segments.ids.tolist() == [[[0, 0, 1, -1], [0, -1, 1, 1]]]
    assert segments.count == 2


@pytest.fixture
def instances(tmp_path):
    (tmp_path / "images").mkdir()
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:5] = True
    annotations = [
        {"id": 1, "image_id": 3, "category_id": 1, "segmentation": encode_rle(mask), "area": 8, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 1, "segmentation": [[3, 2, 7, 2, 7, 5, 3, 5]], "area": 12},
        {"id": 4, "image_id": 3, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [40, 8]},
         "area": 8, "iscrowd": 1},
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in (3, 5)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "screw"}]}
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_instances_overlap_and_crowds_stay_out(instances):
    data = CocoInstances(instances, instances.parent / "images")
    assert [record.image_id for record in data] == ["3", "5"]
    assert [i.is_crowd for i in data[0].instances] == [False, False, True]
    masks = unpack(instance_map(data, 0))
    assert masks.sum((1, 2)).tolist() == [8, 12]
    assert (masks[0] & masks[1]).any()
    assert data[1].instances == ()
    assert instance_map(data, 1).ids.tolist() == [[[-1] * 8] * 6]
    assert data.categories == [Category(1, "screw", True)]


def test_a_bad_annotation_is_named(instances):
    content = json.loads(instances.read_text())
    content["annotations"][1]["segmentation"] = []
    instances.write_text(json.dumps(content))
    data = CocoInstances(instances, instances.parent / "images")
    with pytest.raises(ValueError, match="annotation 2: the segmentation is empty"):
        instance_map(data, 0)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"panoptic\.json: cannot be read \(No such file.*xsam data prepare shapes"),
        ("{", r"panoptic\.json: not valid JSON"),
        ("[]", r"panoptic\.json: not a COCO file"),
        ('{"images": [], "categories": []}', r"panoptic\.json: has no list annotations"),
        (
            '{"images": [], "annotations": [{"image_id": 4}], "categories": []}',
            r"panoptic\.json: 1 annotated images are not among its images, such as 4",
        ),
    ],
)
def test_a_wrong_file_is_named(panoptic, content, message):
    (panoptic / "panoptic.json").unlink()
    if content is not None:
        (panoptic / "panoptic.json").write_text(content)
    with pytest.raises(UserError, match=message):
        CocoPanoptic(panoptic / "panoptic.json", panoptic / "png", panoptic / "images")


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


def test_panoptic_and_instances_of_the_world_agree(tmp_path):
    prepare(tmp_path, train=3, val=1)
    panoptic = CocoPanoptic(
        tmp_path / "annotations/panoptic_train.json", tmp_path / "panoptic_train", tmp_path / "train"
    )
    instances = CocoInstances(tmp_path / "annotations/instances_train.json", tmp_path / "train")
    assert {c.name: c.id for c in panoptic.categories} == CATEGORIES
    for i in range(3):
        things = instance_map(instances, i)
        assert [s.category_id for s in panoptic[i].segments[:-2]] == [a.category_id for a in instances[i].instances]
        assert (unpack(segment_map(panoptic, i))[:-2] == unpack(things)).all()
