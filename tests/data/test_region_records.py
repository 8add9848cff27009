"""Prompted instances: both file layouts, prompts drawn where there are none, and records that cannot be used."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from xsam.data.masks import decode_rle, encode_rle, mask_box
from xsam.data.region_records import CocoInteractive, CocoVgd, write_vgd
from xsam.data.regions import KINDS
from xsam.structures import BadSample, UserError

REFDATA = Path(__file__).parents[2] / "../shared/refdata"


def rectangle(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[y0:y1, x0:x1] = True
    return mask


EMPTY = encode_rle(rectangle(0, 0, 0, 0))
MASKS = {11: rectangle(2, 3, 12, 23), 12: rectangle(20, 10, 30, 40), 13: rectangle(5, 30, 10, 45)}


def annotation(id: int, category: int, **more):
    square = [3.0, 2.0, 23.0, 2.0, 23.0, 12.0, 3.0, 12.0]
    segmentation = [square] if id == 11 else encode_rle(MASKS[id])
    return {"id": id, "category_id": category, "segmentation": segmentation, "area": 200.0, "iscrowd": 0} | more


def prompts(id: int, **other):
    drawn = {"point": rectangle(8, 8, 9, 9), "scribble": rectangle(8, 5, 9, 15), "box": MASKS[id], "mask": MASKS[id]}
    return {kind: other.get(kind, encode_rle(mask)) for kind, mask in drawn.items()}


def vgd(image_id: int, *annotations):
    info = {"file_name": f"{image_id}.jpg", "image_id": image_id, "height": 40, "width": 50}
    about = {"image_file": f"{image_id}.jpg", "image_id": image_id, "image_size": [40, 50], "image_info": info}
    return about | {"annotations": list(annotations)}


def stored(id: int, **other):
    return {"visual_prompts": {f"{kind}_visual_prompt": rle for kind, rle in prompts(id, **other).items()}}


@pytest.fixture
def records():
    return [
        vgd(1, annotation(11, 7) | stored(11, point=EMPTY, scribble=None), annotation(12, 9) | stored(12)),
        vgd(2),
        vgd(3, annotation(13, 7)),
    ]


def read(tmp_path, content, reader=CocoVgd, **options):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    return reader(path, tmp_path, **options)


def test_coco_vgd(tmp_path, records):
    data = read(tmp_path, records)
    assert [data.id(i) for i in range(len(data))] == ["1", "3"]  # an image without instances is no record
    assert data.categories == (7, 9)
    record = data[0]
    assert (record.image, record.image_id, record.height, record.width) == (str(tmp_path / "1.jpg"), "1", 40, 50)
    assert [(i.id, i.category_id, i.is_crowd) for i in record.annotations] == [(11, 7, False), (12, 9, False)]
    for instance in record.annotations:
        assert (record.mask(instance) == MASKS[instance.id]).all()
    assert set(record.annotations[0].prompts) == {"box", "mask"}  # an empty one and a missing one are not there
    assert (record.having("point"), record.having("point", "box"), record.having()) == ([1], [0, 1], [])
    assert decode_rle(data.prompt(record, record.annotations[1], "scribble")).sum() == 10  # as stored
    drawn = {kind: data.prompt(data[1], data[1].annotations[0], kind) for kind in KINDS}  # none are stored
    assert all(decode_rle(rle).any() for rle in drawn.values())
    assert drawn == {kind: data.prompt(data[1], data[1].annotations[0], kind) for kind in KINDS}
    with pytest.raises(IndexError):
        data[2]


def test_crowds_are_kept_apart(tmp_path):
    crowd = annotation(12, 9, iscrowd=1)
    data = read(tmp_path, [vgd(1, annotation(11, 7), crowd), vgd(2, annotation(13, 8, iscrowd=1))])
    assert len(data) == 1  # an image with nothing but a crowd is no record
    assert [i.is_crowd for i in data[0].annotations] == [False, True]
    assert data[0].having(*KINDS) == [0]
    assert data.categories == (7,)


def test_coco_interactive_gives_points_and_scribbles_their_brush(tmp_path):
    found = annotation(11, 7) | {f"{kind}_visual_prompt_mask": rle for kind, rle in prompts(11).items()}
    image = {
        "image": "1.jpg",
        "image_info": {"file_name": "1.jpg", "height": 40, "width": 50, "id": 1},
        "new_img_id": 0,
    }
    content = [image | {"anns": [found]}]
    data = read(tmp_path, content, CocoInteractive)
    record, instance = data[0], data[0].annotations[0]
    areas = {kind: int(decode_rle(data.prompt(record, instance, kind)).sum()) for kind in KINDS}
    rows = np.arange(40)[:, None] - 8
    columns = np.arange(50)[None] - 8
    assert areas["point"] == (rows**2 + columns**2 <= 100).sum()
    assert areas["scribble"] == 11 * 10 + 81 - 11  # a strip under 10 columns, and at its ends the halves of a disc
    assert areas["box"] == areas["mask"] == 200
    as_they_are = read(tmp_path, content, CocoInteractive, scale=0)
    assert decode_rle(as_they_are.prompt(record, instance, "point")).sum() == 1


@pytest.mark.skipif(not REFDATA.is_dir(), reason="reference data are not here")
def test_psalms_file(tmp_path):
    data = CocoInteractive(REFDATA / "interactive/coco_interactive_val_psalm.json", tmp_path, scale=0)
    expected = json.loads((REFDATA / "interactive/expected_prompt_areas.json").read_text())["items"]
    found = [(record, instance) for _, record in data.tried() for instance in record.annotations]
    assert len(data) == 6
    for (record, instance), item in zip(found, expected, strict=True):
        truth = record.mask(instance)
        assert (instance.id, truth.sum()) == (item["ann_id"], item["gt_area"])
        for kind in KINDS:
            prompt = decode_rle(data.prompt(record, instance, kind))
            area = item[f"{kind}_visual_prompt_mask"]
            assert (prompt.sum(), (prompt & truth).sum()) == (area["area"], area["inside_gt"])


def coco(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 50} for i in (5, 1, 2, 3)]
    annotations = [
        annotation(11, 7, image_id=1), annotation(12, 9, image_id=1), annotation(13, 7, image_id=3),
        annotation(12, 7, image_id=3, iscrowd=1) | {"id": 14},
    ]  # fmt: skip
    categories = [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_any_coco_instances_have_prompts(tmp_path):
    data = CocoVgd(coco(tmp_path), tmp_path, scale=0.2)
    assert [data.id(i) for i in range(len(data))] == ["1", "3"]
    assert data.categories == (7, 9)
    assert (data[1].mask(data[1].annotations[0]) == MASKS[13]).all()
    x0, y0, x1, y1 = mask_box(decode_rle(data.prompt(data[1], data[1].annotations[0], "box")))
    assert (x1 - x0, y1 - y0) == (pytest.approx(15, abs=2), pytest.approx(5, abs=1))
    assert data[1].having(*KINDS) == [0]  # not the crowd


def test_a_written_file_holds_what_would_be_drawn(tmp_path):
    source, out = coco(tmp_path), tmp_path / "vgd.json"
    write_vgd(source, tmp_path, out, scale=0.2)
    drawn, written = CocoVgd(source, tmp_path, scale=0.2), CocoVgd(out, tmp_path)
    assert [written.id(i) for i in range(len(written))] == ["1", "3"]
    for i in range(2):
        for place in written[i].having(*KINDS):
            for kind in KINDS:
                mine = written.prompt(written[i], written[i].annotations[place], kind)
                assert mine == drawn.prompt(drawn[i], drawn[i].annotations[place], kind)
    row = json.loads(out.read_text())[0]
    assert (row["image_id"], row["image_size"], row["image_file"]) == (1, [40, 50], "1.jpg")
    assert row["annotations"][0]["bbox"] == [3, 2, 20, 10]
    assert len(json.loads(out.read_text())[1]["annotations"]) == 1  # no crowd


def test_writing_goes_on_where_it_was_stopped(tmp_path):
    source, out = coco(tmp_path), tmp_path / "vgd.json"
    write_vgd(source, tmp_path, out)
    whole = out.read_bytes()
    for end in range(0, len(whole), 97):
        out.unlink(missing_ok=True)
        out.with_suffix(".partial").write_bytes(whole[:end])
        write_vgd(source, tmp_path, out)
        assert out.read_bytes() == whole
    out.with_suffix(".partial").write_bytes(whole)  # killed before the last step
    out.unlink()
    write_vgd(source, tmp_path, out)
    assert out.read_bytes() == whole
    source.write_text("{}")  # done is done


def change(record, path, value):
    record = copy.deepcopy(record)
    *parents, last = path
    node = record
    for part in parents:
        node = node[part]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return record


FIRST = ("annotations", 0)
POINT = (*FIRST, "visual_prompts", "box_visual_prompt")


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("image_info",), KeyError, "record 0: has no 'image_info'"),
        (("image_info", "image_id"), 1.5, "record 0: 'image_id' is 1.5"),
        (("image_info", "height"), 0, "image 1: 'height' is 0"),
        (("image_info", "height"), 10**9, "more than an image can have"),
        (("image_info", "file_name"), None, "image 1: 'file_name' is None"),
        (("annotations",), {}, "image 1: 'annotations' is {}"),
        (("annotations",), ["x"], "image 1: is 'x', not an object"),
        ((*FIRST, "id"), "11", "image 1: 'id' is '11'"),
        ((*FIRST, "id"), 12, "image 1: an annotation id stands in the file twice"),
        ((*FIRST, "id"), 13, "image 3: an annotation id stands in the file twice"),
        ((*FIRST, "category_id"), None, "annotation 11: 'category_id' is None"),
        ((*FIRST, "category_id"), 10**30, "image 1: category_id 10+ is too large"),
        ((*FIRST, "iscrowd"), 3, "annotation 11: 'iscrowd' is '3'"),
        ((*FIRST, "segmentation"), None, "annotation 11: 'segmentation' is None"),
        ((*FIRST, "visual_prompts"), [], r"annotation 11: 'visual_prompts' is \[\]"),
        (POINT, KeyError, "annotation 11: has no 'box_visual_prompt'"),
        (POINT, {"size": [40, 50]}, "annotation 11, box prompt: has no 'counts'"),
        (POINT, {"size": [40, 50], "counts": [2000]}, r"box prompt: 'counts' is \[2000\]"),
        (POINT, {"size": [40, 50], "counts": ""}, "box prompt: the RLE has 0 pixels"),
        (POINT, {"size": [40, 50], "counts": "\ud800"}, "box prompt: "),
        (POINT, {"size": 4, "counts": ""}, "box prompt: its size is 4"),
    ],
)
def test_a_broken_record_is_named_and_the_others_are_read(tmp_path, records, path, value, message):
    data = read(tmp_path, [change(records[0], path, value), *records[1:]])
    assert len(data) == 2
    broken = next(i for i, (_, record) in enumerate(data.tried()) if isinstance(record, BadSample))
    with pytest.raises(BadSample, match=message):
        data[broken]
    assert [i.id for i in data[1 - broken].annotations][-1] in (12, 13)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (
            POINT,
            {"size": [40, 50], "counts": encode_rle(MASKS[11])["counts"][:-4]},
            "image 1, annotation 11: box prompt: the RLE",
        ),
        ((*FIRST, "segmentation"), EMPTY, "image 1, annotation 11: the mask is empty"),
        (
            (*FIRST, "segmentation"),
            EMPTY | {"size": [50, 40]},
            r"11: the RLE has the size \[50, 40\], the image \[40, 50\]",
        ),
        ((*FIRST, "segmentation"), [[1, 2, 3]], "image 1, annotation 11: a polygon needs three points"),
        ((*FIRST, "segmentation"), EMPTY | {"counts": "zz"}, "image 1, annotation 11: "),
    ],
)
def test_a_broken_mask_is_named_when_it_is_asked_for(tmp_path, records, path, value, message):
    data = read(tmp_path, [change(records[0], path, value)])
    instance = data[0].annotations[0]

    def ask():
        return data[0].mask(instance), data.prompt(data[0], instance, "box")

    with pytest.raises(BadSample, match=message):
        ask()


def test_files_that_are_not_of_this_kind(tmp_path, records):
    with pytest.raises(UserError, match="none of its records can be used, the last: .*record 0: is 1, not an object"):
        read(tmp_path, [1])
    with pytest.raises(UserError, match="none of its records can be used, the last: it has no instance"):
        read(tmp_path, [vgd(1)])
    with pytest.raises(UserError, match="has no 'image_id'"):
        read(tmp_path, [{"image_info": {"id": 1}}])
    with pytest.raises(UserError, match="has no list"):
        read(tmp_path, {"images": []})
    with pytest.raises(UserError, match="nowhere"):
        CocoVgd(tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        CocoVgd(tmp_path / "prompts.json", tmp_path / "nowhere")
    twice = read(tmp_path, [records[0], vgd(1, annotation(13, 7))])
    assert len({twice.id(i) for i in range(len(twice))}) == 2
    with pytest.raises(BadSample, match="image 1: is listed twice"):
        twice[1]
