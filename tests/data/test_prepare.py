"""Converters, on 8 x 8 images worked out by hand and on recorded maps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xsam.data import prepare
from xsam.data.coco import CocoInstances, CocoPanoptic
from xsam.data.label_maps import LabelMaps, read_values
from xsam.data.masks import unpack, write_panoptic_png
from xsam.structures import BadSample, UserError

RECORDED = Path(__file__).parents[2] / "../shared/refdata"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="recorded files are not here")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def ade(tmp_path):
    """Wall (class 1) above floor (4), a bed (8) as instance 1 and without one, two chairs (20), hidden grass (10)."""
    semantic = np.full((8, 8), 1)
    semantic[4:] = 4
    semantic[2:6, 0:3] = 8  # 4 x 3 of bed, of which the upper half is an instance
    semantic[0, 7] = 0
    semantic[7, 7] = 10  # grass, all of it under a chair
    objects = np.zeros((8, 8, 3), int)
    objects[2:4, 0:3] = (1, 1, 0)  # bed is the first of the 100 classes
    objects[5:8, 4:6] = (8, 2, 0)  # chair the eighth
    objects[6:8, 6:8] = (8, 7, 0)
    for name in ("ADE_val_00000001", "ADE_val_00000002"):
        save(tmp_path / f"images/validation/{name}.jpg", np.zeros((8, 8, 3)))
        save(tmp_path / f"annotations/validation/{name}.png", semantic)
        save(tmp_path / f"annotations_instance/validation/{name}.png", objects)
    return tmp_path


def test_ade20k_panoptic_and_instances(ade):
    prepare.ade20k(ade)
    images = ade / "images/validation"
    data = CocoPanoptic(ade / "ade20k_panoptic_val.json", ade / "ade20k_panoptic_val", images)
    assert (len(data), len(data.categories), sum(c.is_thing for c in data.categories)) == (2, 150, 100)
    record, shown = data[0], data.segments(0)
    assert record.image_id == "ADE_val_00000001"
    areas = {"wall": 32 - 1 - 6, "floor": 32 - 6 - 6 - 4, "bed": 6, "chair": [6, 4]}  # the lower bed is void, no grass
    names = [data.categories[segment.category_id].name for segment in record.annotations]
    assert names == ["wall", "floor", "bed", "chair", "chair"]
    assert [segment.area for segment in record.annotations] == [areas["wall"], areas["floor"], 6, 6, 4]
    assert unpack(shown.masks).sum((1, 2)).tolist() == [segment.area for segment in record.annotations]
    assert (shown.masks.ids[0, 4:6, 0:3] == -1).all()

    things = CocoInstances(ade / "ade20k_instance_val.json", images)
    assert [(c.id, c.name) for c in things.categories[:2]] == [(7, "bed"), (8, "windowpane")]
    assert len(things.categories) == 100
    found = things.segments(1)
    assert found.category_ids == (7, 19, 19)
    assert found.areas == (6, 6, 4)
    assert (unpack(found.masks) == unpack(shown.masks)[2:]).all()
    box = json.loads((ade / "ade20k_panoptic_val.json").read_text())["annotations"][0]["segments_info"][3]["bbox"]
    assert box == [4, 5, 2, 3]


def test_ade20k_goes_on_where_it_stopped(ade, monkeypatch):
    prepare.ade20k(ade)
    files = [ade / f"ade20k_{kind}_val.json" for kind in ("panoptic", "instance")]
    first = [file.read_text() for file in files]
    made = []
    monkeypatch.setattr(prepare, "_ade_ids", lambda *args: made.append(args) or _ids(*args))
    prepare.ade20k(ade)
    assert not made
    for file in files:
        file.unlink()
    (ade / "ade20k_panoptic_val/ADE_val_00000002.png").unlink()
    prepare.ade20k(ade)
    assert len(made) == 1
    assert [file.read_text() for file in files] == first


_ids = prepare._ade_ids


def test_ade20k_names_what_is_wrong(ade):
    with pytest.raises(UserError, match="has neither training/ nor validation/"):
        prepare.ade20k(ade / "elsewhere")
    instance = ade / "annotations_instance/validation/ADE_val_00000002.png"
    save(instance, np.full((8, 8, 3), 101))
    with pytest.raises(UserError, match=r"ADE_val_00000002\.png: has class 101 of 100"):
        prepare.ade20k(ade)
    save(instance, np.zeros((8, 9, 3)))
    with pytest.raises(UserError, match=r"is \(8, 9\), .*00000002\.png is \(8, 8\)"):
        prepare.ade20k(ade)
    instance.unlink()
    with pytest.raises(BadSample, match=r"ADE_val_00000002\.png: cannot be read"):
        prepare.ade20k(ade)
    assert not (ade / "ade20k_panoptic_val.json").exists()
    write_panoptic_png(ade / "ade20k_panoptic_val/ADE_val_00000001.png", np.full((8, 8), 3 * 65536 + 200))
    with pytest.raises(UserError, match=r"ADE_val_00000001\.png: segment 196808 was not written by this program"):
        prepare.ade20k(ade)
    shutil.rmtree(ade / "annotations_instance")
    with pytest.raises(UserError, match=r"annotations_instance/validation: no such folder"):
        prepare.ade20k(ade)


@pytest.fixture
def coco(tmp_path):
    ids = np.array([[300, 300, 7, 0], [300, 9, 7, 7]])
    folder = tmp_path / "annotations/panoptic_val2017"
    folder.mkdir(parents=True)
    write_panoptic_png(folder / "000000000011.png", ids)
    save(tmp_path / "val2017/000000000011.jpg", np.zeros((2, 4, 3)))
    categories, crowds = {300: 90, 9: 1, 7: 200}, {9: 1}
    segments = [{"id": i, "category_id": c, "area": 1, "iscrowd": crowds.get(i, 0)} for i, c in categories.items()]
    content = {
        "images": [{"id": 11, "file_name": "000000000011.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 11, "file_name": "000000000011.png", "segments_info": segments}],
        "categories": [{"id": id, "name": str(id), "isthing": 1} for id in (1, 90, 200)],
    }
    (tmp_path / "annotations/panoptic_val2017.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_semantic_has_contiguous_classes_and_counts_crowds(coco):
    prepare.coco_semantic(coco)
    out = coco / "annotations/panoptic_semseg_val2017"
    assert read_values(out / "000000000011.png").tolist() == [[1, 1, 2, 255], [1, 0, 2, 2]]
    stamp = (out / "000000000011.png").stat().st_mtime_ns
    prepare.coco_semantic(coco)
    assert (out / "000000000011.png").stat().st_mtime_ns == stamp
    (coco / "names.txt").write_text("a\nb\nc\n")
    assert LabelMaps(coco / "val2017", out, coco / "names.txt").segments(0).category_ids == (0, 1, 2)


def test_coco_semantic_names_what_is_wrong(coco):
    with pytest.raises(UserError, match="has no panoptic_<split>.json of train2017, val2017"):
        prepare.coco_semantic(coco / "val2017")
    (coco / "annotations/panoptic_val2017/000000000011.png").unlink()
    with pytest.raises(BadSample, match=r"000000000011\.png: cannot be read"):
        prepare.coco_semantic(coco)


def test_cityscapes_train_ids(tmp_path):
    path = tmp_path / "gtFine/val/aachen/aachen_000001_000019_gtFine_labelIds.png"
    with pytest.raises(UserError, match="gtFine: no such folder"):
        prepare.cityscapes(tmp_path)
    save(path, np.array([[7, 8, 33], [0, 29, 24]]))
    prepare.cityscapes(tmp_path)
    assert read_values(path.with_name(path.name.replace("labelIds", "labelTrainIds"))).tolist() == [
        [0, 1, 18],
        [255, 255, 11],
    ]


@recorded
def test_recorded_cityscapes_pair(tmp_path):
    name = "frankfurt_000000_000294_gtFine_{}.png"
    (tmp_path / "gtFine").mkdir()
    shutil.copy(RECORDED / "semantic/cityscapes" / name.format("labelIds"), tmp_path / "gtFine")
    prepare.cityscapes(tmp_path)
    expected = read_values(RECORDED / "semantic/cityscapes" / name.format("labelTrainIds"))
    agree = read_values(tmp_path / "gtFine" / name.format("labelTrainIds")) == expected
    assert agree.mean() > 0.997  # the two recorded maps were made small separately, and differ along edges
