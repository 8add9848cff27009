"""Validation: what is wrong in files written here is found, counted and explained."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from xsam.apps import datasets
from xsam.apps.datasets import PUBLISHED, Report, check_sample, read, spread, validate
from xsam.cli import main
from xsam.data.masks import encode_rle, pack, write_panoptic_png
from xsam.structures import BadSample, Region, Sample, UserError

MASK = np.zeros((8, 10), bool)
MASK[2:5, 3:7] = True


def check(target, **options) -> Report:
    """The report of the only row of a file."""
    ((name, row),) = read(str(target), images=options.pop("images", ""))[0].items()
    return datasets.check(name, row, **options)


def image(path, height=8, width=10):
    Image.new("RGB", (width, height), "grey").save(path)
    return path.name


@pytest.fixture
def coco(tmp_path):
    """Six images; two are good, every other has one thing wrong."""
    names = {1: "a.png", 2: "b.png", 3: "c.png", 4: "gone.png", 5: "d.png", 6: "e.png"}
    for number, name in names.items():
        if name != "gone.png":
            image(tmp_path / name, *((9, 10) if number == 6 else (8, 10)))
    segmentations = dict.fromkeys(names, encode_rle(MASK))
    segmentations[2] = encode_rle(np.zeros((8, 10), bool))
    segmentations[5] = encode_rle(MASK.T)
    content = {
        "images": [{"id": n, "file_name": name, "height": 8, "width": 10} for n, name in names.items()],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 9 if n == 3 else 1, "segmentation": s, "area": 12}
            for n, s in segmentations.items()
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    return path


def test_kinds_are_counted_and_explained(coco, capsys):
    assert validate(str(coco)) == 1
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == f"{coco}: trains the task generic, read by CocoInstances"
    assert lines[3].split() == [str(coco), "6", "-", "6", "5"]
    found = {lines[i].partition(f"{coco}: ")[2]: lines[i + 2].strip() for i, line in enumerate(lines) if " x " in line}
    assert found == {
        "image N, annotation N: category_id N is not in the file's list of categories": "remedy: add the category to `categories`, or remove its annotations",
        "image N, annotation N: the mask is empty": "remedy: draw the mask anew, or remove its record",
        "cannot be read as an image (No such file or directory); replace or remove the file": "remedy: fetch the images, or name the folder that they are in (--images for a file of your own)",
        "image N, annotation N: the RLE has the size [N, N], the image [N, N]": "remedy: encode masks anew at the size of the image as it is stored (EXIF apart)",
        re.sub(
            r"\d+", "N", f"is (N, N), {coco} says (N, N)"
        ): "remedy: encode masks anew at the size of the image as it is stored (EXIF apart)",
    }


def test_a_good_file_has_no_findings(coco, capsys):
    content = json.loads(coco.read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:1]
    coco.write_text(json.dumps(content))
    assert main(["data", "validate", str(coco)]) == 0
    assert "no findings" in capsys.readouterr().out


def test_only_full_sees_damaged_pixels(coco, capsys):
    content = json.loads(coco.read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:1]
    coco.write_text(json.dumps(content))
    noise = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(noise).save(coco.parent / "a.png")
    (coco.parent / "a.png").write_bytes((coco.parent / "a.png").read_bytes()[:150])
    assert validate(str(coco)) == 0
    assert validate(str(coco), full=True) == 1
    assert "cannot be read as an image" in capsys.readouterr().out


def test_images_elsewhere(coco, tmp_path):
    (tmp_path / "annotations").mkdir()
    moved = coco.rename(tmp_path / "annotations/own.json")
    assert check(moved, images=str(tmp_path)).records == 6
    assert "gone" not in str(check(moved, images=str(tmp_path), limit=2).findings)


def test_a_panoptic_file_has_its_maps_beside_it(tmp_path):
    (tmp_path / "pan").mkdir()
    image(tmp_path / "a.png")
    write_panoptic_png(tmp_path / "pan/a.png", np.where(MASK, 5, 6))
    segments = [{"id": 5, "category_id": 1, "area": 12}, {"id": 7, "category_id": 1, "area": 68}]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 10}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "pan.json").write_text(json.dumps(content))
    report = check(tmp_path / "pan.json")
    assert list(report.findings) == ["segment N is in the PNG but not in the file"]


def test_every_expression_of_a_jsonl_file_is_looked_at(tmp_path):
    image(tmp_path / "a.png")
    good, empty = encode_rle(MASK), encode_rle(np.zeros((8, 10), bool))
    other = [encode_rle(np.roll(MASK, n, 1)) for n in (1, 2)]  # a phrase for the same objects would not be drawn
    lines = [{"image": "a.png", "text": f"thing {n}", "segmentation": s} for n, s in enumerate([good, *other] * 3)]
    lines += [{"image": "a.png", "text": "nothing", "segmentation": None}]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert check(path).findings == {}
    lines += [{"image": "a.png", "text": "the last", "segmentation": empty}]
    path.write_text("\n".join([*map(json.dumps, lines), "{"]))
    findings = check(path).findings
    assert sorted(finding.remedy for finding in findings.values()) == [
        "correct the line, each has to be one JSON object",
        "draw the mask anew, or remove its record",
    ]


def test_numbers_of_records_and_ids(coco, monkeypatch):
    monkeypatch.setitem(PUBLISHED, str(coco), "6")
    assert "another number of records" not in check(coco).findings
    monkeypatch.setitem(PUBLISHED, str(coco), "7")
    finding = check(coco).findings["another number of records"]
    assert finding.first == f"{coco}: 6 records, published are 7"


def test_ids_that_are_not_unique(coco, monkeypatch):
    monkeypatch.setattr("xsam.tasks.generic.GenericSegmentation.id", lambda task, index: "same")
    assert check(coco).findings["an id is not unique"].count == 5


def test_spread(monkeypatch):
    assert spread(5, None) == spread(5, 0) == spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(11, 3) == [0, 5, 10]
    assert spread(0, None) == []
    monkeypatch.setattr(datasets, "MANY", 10)
    monkeypatch.setattr(datasets, "SOME", 2)
    assert spread(11, None) == [0, 10]
    assert spread(11, 0) == list(range(11))


@pytest.mark.parametrize(
    "region, message",
    [(encode_rle(MASK[:, :9]), "region 0 has the size"), (encode_rle(np.zeros((8, 10), bool)), "region 0 is empty")],
)
def test_regions(tmp_path, region, message):
    path = str(tmp_path / image(tmp_path / "a.png"))
    sample = Sample(id="1", image=path, masks=pack(MASK[None]), regions=(Region(encode_rle(MASK), image=path),))
    check_sample(sample, full=False)
    with pytest.raises(BadSample, match=message):
        check_sample(Sample(id="1", image=path, masks=pack(MASK[None]), regions=(Region(region),)), full=False)


def test_the_embedded_world_is_in_order(world, tmp_path, monkeypatch, capsys):
    (tmp_path / "shapes").symlink_to(world)
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    assert main(["data", "validate", "shapes", "--limit", "3"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert next(row for row in rows if row.startswith("mixture.sources.panoptic ")).split()[1:] == [
        "24", "-", "3", "spread", "0",
    ]  # fmt: skip
    assert main(["data", "validate", "configs/shapes/stage1.py", "--limit", "1"]) == 0


def test_what_is_missing_is_one_line_with_its_source(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    assert main(["data", "validate", "reasonseg"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"{tmp_path}/reasonseg/train: no such folder" in lines[0]
    assert "get it from github.com/dvlab-research/LISA" in lines[0]


@pytest.mark.parametrize(
    "target, message",
    [
        ("nowhere", "nowhere: no file or folder, nor a dataset; those are: shapes,"),
        ("no.json", "no.json: no such file"),
    ],
)
def test_targets_that_are_nothing(target, message):
    with pytest.raises(UserError, match=message):
        read(target)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "coco", "vgd", "refer"])
def test_prepare_without_its_source_says_where_that_is(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    assert main(["data", "prepare", name]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert str(tmp_path) in lines[0]
    assert "it comes from" in lines[0]


def test_prepare_vgd_and_refer(coco, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data"
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/val2017").symlink_to(tmp_path)
    (root / "coco/train2014").symlink_to(tmp_path)
    content = json.loads(coco.read_text())
    content["annotations"] = content["annotations"][:1]
    (root / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))
    monkeypatch.setenv("XSAM_DATA", str(root))
    assert main(["data", "prepare", "vgd"]) == 0
    made = json.loads((root / "coco/annotations/coco_vgdseg_val.json").read_text())
    assert [len(record["annotations"]) for record in made] == [1]

    (root / "refer/grefcoco").mkdir(parents=True)
    refs = [
        {
            "image_id": 1,
            "ann_id": [1],
            "no_target": False,
            "split": split,
            "sentences": [{"sent": "a cat"}, {"sent": "it"}],
        }
        for split in ("train", "val", "testA", "testB")
    ]
    (root / "refer/grefcoco/grefs(unc).json").write_text(json.dumps(refs))
    (root / "refer/grefcoco/instances.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["data", "prepare", "refer"]) == 0
    out = capsys.readouterr().out
    assert "grefcoco testB: 1 images, 2 sentences" in out
    assert "not there: " in out


def test_a_row_that_is_no_task():
    with pytest.raises(UserError, match="benchmarks.shapes_refer: needs a task as `type`"):
        read("configs/shapes/stage3.py", ["benchmarks.shapes_refer=3"])
