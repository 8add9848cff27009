"""One's own data: what a file or folder is taken for, and that every mistake in it is one line."""

import json

import numpy as np
import pytest
from PIL import Image

from xsam import config
from xsam.apps import datasets
from xsam.cli import main
from xsam.data import own
from xsam.data.label_maps import read_names
from xsam.data.masks import encode_rle, unpack
from xsam.structures import BadSample, UserError
from xsam.tasks.base import build

CLASSES = np.array([[0, 1, 1, 0], [0, 1, 1, 2]], np.uint8)
OBJECTS = np.array([[0, 5, 6, 0], [0, 5, 6, 9]], np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two images with maps of classes and of objects; the suffixes differ."""
    for name in ("a.jpg", "deep/b.PNG"):
        save(tmp_path / "images" / name, np.zeros((2, 4, 3)))
    for name in ("a.png", "deep/b.png"):
        save(tmp_path / "masks" / name, CLASSES)
        save(tmp_path / "objects" / name, OBJECTS)
    (tmp_path / "classes.txt").write_text("background\nscrew\nwing nut\n")
    return tmp_path


def only(target, **options):
    ((name, row),) = datasets.read(str(target), **options)[0].items()
    return datasets.check(name, row)


def findings(target):
    return [finding.first for finding in only(target).findings.values()]


def test_a_folder_of_maps_has_objects_and_classes(folder):
    task = build(own.row(folder, train=False))
    assert [task.id(index) for index in range(len(task))] == ["a", "deep/b"]
    assert [(c.name, c.is_thing) for c in task.categories] == [
        ("background", False),
        ("screw", True),
        ("wing nut", True),
    ]
    shown = task.data.segments(1)
    assert shown.image == str(folder / "images/deep/b.PNG")
    found = {
        (category, tuple(map(tuple, mask.astype(int))))
        for category, mask in zip(shown.category_ids, unpack(shown.masks), strict=True)
    }
    assert found == {
        (0, ((1, 0, 0, 1), (1, 0, 0, 0))),
        (1, ((0, 1, 0, 0), (0, 1, 0, 0))),
        (1, ((0, 0, 1, 0), (0, 0, 1, 0))),
        (2, ((0, 0, 0, 0), (0, 0, 0, 1))),
    }
    assert task.kind == "panoptic"


def test_numbers_of_16_bits(folder):
    Image.fromarray(OBJECTS.astype(np.uint16) * 7281).save(folder / "objects/a.png")  # 9 * 7281 = 65529
    assert findings(folder) == []
    assert sorted(build(own.row(folder)).data.segments(0).category_ids) == [0, 1, 1, 2]


def test_without_object_numbers_a_class_is_one_mask(folder):
    (folder / "objects").rename(folder / "unused")
    task = build(own.row(folder))
    assert (task.kind, task.things) == ("semantic", set())
    assert task.data.segments(0).category_ids == (0, 1, 2)
    assert findings(folder) == []


def test_the_layout_of_voc_and_labelme(folder):
    for old, new in (("images", "JPEGImages"), ("masks", "SegmentationClassPNG"), ("objects", "SegmentationObjectPNG")):
        (folder / old).rename(folder / new)
    (folder / "classes.txt").unlink()
    (folder / "class_names.txt").write_text("_background_\nscrew\nwing_nut\n")
    edge = np.where(CLASSES == 2, 255, CLASSES)
    save(folder / "SegmentationClassPNG/a.png", edge)  # what does not count
    save(folder / "SegmentationObjectPNG/a.png", np.where(CLASSES == 2, 255, OBJECTS))
    task = build(own.row(folder))
    assert [c.name for c in task.categories] == ["background", "screw", "wing_nut"]
    shown = task.data.segments(0)
    assert sorted(shown.category_ids) == [0, 1, 1]
    assert (unpack(shown.masks).any(0) == (edge != 255)).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / "masks/a.png").unlink(), r"masks/a\.png: cannot be read as a label map"),
        (lambda f: (f / "objects/a.png").unlink(), r"objects/a\.png: cannot be read as a label map"),
        (lambda f: (f / "images/a.jpg").unlink(), r"images/a\.jpg: cannot be read as an image"),
        (lambda f: save(f / "masks/a.png", CLASSES * 127), r"masks/a\.png: has the value 127; classes are 0 to 2"),
        (lambda f: save(f / "objects/a.png", OBJECTS[:, :3]), r"objects/a\.png: is \(2, 3\), the map of classes \(2, 4\)"),
        (lambda f: save(f / "objects/a.png", OBJECTS > 0), r"objects/a\.png: object 1 has more than one class"),
        (lambda f: save(f / "images/a.jpg", np.zeros((3, 4, 3))), r"images/a\.jpg: is \(3, 4\), its masks are \(2, 4\)"),
        (lambda f: save(f / "masks/a.png", np.zeros((2, 4, 3))), r"masks/a\.png: is RGB; a label map has one channel"),
    ],
)  # fmt: skip
def test_mistakes_in_a_folder_are_counted_one_by_one(folder, change, message, capsys):
    change(folder)
    (finding,) = only(folder).findings.values()
    with pytest.raises(BadSample, match=message):
        raise BadSample(finding.first)
    assert finding.count == 1
    assert main(["data", "validate", str(folder)]) == 1
    assert finding.first in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / "classes.txt").unlink(), r"classes\.txt: no list of class names"),
        (lambda f: (f / "classes.txt").write_text(""), r"classes\.txt: names no class"),
        (lambda f: (f / "classes.txt").write_text("a\n\nb"), r"classes\.txt: category number 1"),
        (lambda f: (f / "images").rename(f / "photos"), r"images: no such folder"),
        (lambda f: (f / "masks").rename(f / "maps"), r"has no masks/, SegmentationClass/"),
        (lambda f: save(f / "images/a.png", np.zeros((2, 4, 3))), r"a\.png: .*a\.jpg has this name, too"),
    ],
)
def test_mistakes_of_the_whole_folder_end_it(folder, change, message, capsys):
    change(folder)
    assert main(["data", "validate", str(folder)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    with pytest.raises(UserError, match=message):
        raise UserError(line)


def test_an_empty_folder_of_images(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("background")
    with pytest.raises(UserError, match="images: names no image"):
        build(own.row(tmp_path))


def test_images_may_lie_elsewhere(folder):
    (folder / "images").rename(folder / "photos")
    assert only(folder, images=str(folder / "photos")).findings == {}


def test_names_are_read_without_their_marks(tmp_path):
    (tmp_path / "names.txt").write_text("_background_\n*fire_truck\n")
    assert [(c.name, c.is_thing) for c in read_names(tmp_path / "names.txt")] == [
        ("background", False),
        ("fire_truck", True),
    ]


LINE = {"image": "a.png", "text": "the screw", "segmentation": None}
COCO = {"images": [], "annotations": [], "categories": []}


@pytest.mark.parametrize(
    "name, content, task, reader",
    [
        ("my.jsonl", LINE, "referring.ReferringSegmentation", "jsonl.JsonLines"),
        ("my.json", COCO, "generic.GenericSegmentation", "coco.CocoInstances"),
        (
            "my.json",
            COCO | {"annotations": [{"segments_info": []}]},
            "generic.GenericSegmentation",
            "coco.CocoPanoptic",
        ),
        ("my.jsonl", {"image": "a.png", "conversations": []}, "chat.Chat", "conversations.Conversations"),
        ("my.json", [{"conversations": []}], "chat.Chat", "conversations.Conversations"),
        ("my.json", "\n [", "chat.Chat", "conversations.Conversations"),
    ],
)
def test_the_content_decides(tmp_path, name, content, task, reader):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    row = own.row(tmp_path / name, "photos")
    assert (row["type"], row["data"]["type"]) == (f"xsam.tasks.{task}", f"xsam.data.{reader}")
    assert (row["data"]["images"], row["train"]) == ("photos", True)
    assert datasets.read(str(tmp_path / name), images="photos")[0] == {str(tmp_path / name): row}


def test_a_folder_as_reasonseg_has_it(world):
    row = own.row(world / "reason/train")
    assert row["type"] == "xsam.tasks.reasoning.ReasoningSegmentation"
    assert len(build(row))


def test_conversations_train_chat(world):
    task = build(own.row(world / "conversations/train.json", str(world)))
    assert len(task) == 24
    assert task.sample(0, np.random.default_rng(0)).turns[0].question.startswith("<image>\n")


@pytest.mark.parametrize(
    "name, message",
    [("none.jsonl", "no such file or folder"), ("my.csv", "neither .json nor .jsonl"), (".", "of COCO give the .json")],
)
def test_what_is_nothing_says_so(tmp_path, name, message):
    (tmp_path / "my.csv").write_text("")
    with pytest.raises(UserError, match=message):
        own.row(tmp_path / name)


def test_an_override_adds_the_source_and_the_benchmark(tmp_path):
    (tmp_path / "my.jsonl").write_text(json.dumps(LINE))
    (tmp_path / "val.json").write_text(json.dumps(COCO))
    path = "configs/finetune/own_data.py"
    given = [f"data={tmp_path}/my.jsonl", f"val={tmp_path}/val.json", "mixture.sources.own.max_turns=2"]
    loaded = config.load(path, given)
    assert loaded["mixture"]["sources"] == {"own": own.row(tmp_path / "my.jsonl") | {"max_turns": 2}}
    assert loaded["benchmarks"] == {"own": own.row(tmp_path / "val.json", train=False)}
    (tmp_path / "config.json").write_text(json.dumps(loaded))  # as a run keeps it: another file may be scored later
    again = config.load(tmp_path, [f"val={tmp_path}/my.jsonl"])
    assert again["benchmarks"]["own"]["several"] is True
    assert again["mixture"] == loaded["mixture"]
    mixed = config.load("configs/finetune/own_data_mixed.py", given[:1])
    assert mixed["mixture"]["sources"].keys() > {"own", "panoptic", "refer"}
    with pytest.raises(UserError, match="unknown config key 'data'"):
        config.load("configs/_base_/models/xsam_tiny.py", given[:1])


def test_a_recipe_without_data_asks_for_it(capsys):
    assert main(["train", "configs/finetune/own_data.py", "stage.init_from=[]"]) == 2
    assert "give data=FILE" in capsys.readouterr().err


def test_a_page_of_a_folder(folder, tmp_path, capsys):
    assert main(["data", "preview", str(folder), "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page/index.html").read_text()
    assert "screw" in page
    assert page.count("4 masks; image (2, 4)") == 2


def test_lines_with_masks_train_as_they_validate(tmp_path):
    save(tmp_path / "a.png", np.zeros((2, 4, 3)))
    line = LINE | {"segmentation": encode_rle(CLASSES == 1)}
    (tmp_path / "my.jsonl").write_text(json.dumps(line))
    sample = build(own.row(tmp_path / "my.jsonl")).sample(0, np.random.default_rng(0))
    assert "<p>the screw</p>" in sample.turns[0].question
    assert (unpack(sample.masks)[0] == (CLASSES == 1)).all()
