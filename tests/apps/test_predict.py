"""`xsam predict`: every task, prompts typed as coordinates, files of many images, and output for machines."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from xsam import config
from xsam.cli import main
from xsam.data.masks import read_panoptic_png
from xsam.data.prompt import load_tokenizer
from xsam.engine import checkpoint, distributed


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    distributed.init()
    folder = tmp_path_factory.mktemp("run")
    settings = config.load("configs/shapes/stage3.py")
    torch.manual_seed(1)
    checkpoint.export(config.build(settings["model"]), folder, settings, load_tokenizer(f"{world}/base"))
    return folder


@pytest.fixture
def images(world: Path, tmp_path: Path) -> list[Path]:
    """Two images, the second in a folder of its own with the name of the first."""
    paths = [tmp_path / "a/x.jpg", tmp_path / "b/x.jpg"]
    for path, source in zip(paths, sorted((world / "val").glob("*.jpg")), strict=False):
        path.parent.mkdir()
        shutil.copy(source, path)
    return paths


def predict(run: Path, *arguments: object) -> int:
    return main(["predict", "--checkpoint", str(run), *map(str, arguments)])


@pytest.mark.parametrize(
    "arguments, question, masks",
    [
        (["panoptic", "--prompt", "circle, star; sky", "--score", "0"], "panoptic: circle, star, sky", None),
        (["instance", "--prompt", "circle, star", "--score", "0"], "instance: circle, star", None),
        (["semantic", "--prompt", "circle, star; sky"], "semantic: circle, star, sky", None),
        (["refer", "--prompt", "the red circle"], "the red circle", 1),
        (["refer", "--prompt", "the red circle", "--score", "1"], "the red circle", 0),
        (["reason", "--prompt", "What is round?"], "What is round?", 1),
        (["describe"], None, None),
        (["interact", "--point", "40,50"], "point", 1),
        (["interact", "--point", "40,50", "--point", "10.5,20"], "point", 1),
        (["interact", "--box", "20,30,60,70"], "box", 1),
        (["interact", "--scribble", "10,10,40,50,80,20"], "scribble", 1),
        (["ground", "--box", "20,30,60,70", "--score", "0"], "region 1", None),
        (["ground", "--point", "9,9", "--box", "20,30,60,70", "--prompt", "a, b", "--score", "0"], "a, b", None),
        (["chat", "--prompt", "How many?"], "How many?", 0),
    ],
)
def test_every_task(run, images, tmp_path, capsys, arguments, question, masks):
    assert predict(run, "--image", *images, "--out", tmp_path / "out", "--json", "--task", *arguments) == 0
    out, _ = capsys.readouterr()
    rows = json.loads(out)  # and nothing else stands there
    assert [Path(row["picture"]).name for row in rows] == ["x.png", "x_2.png"]
    for row, path in zip(rows, images, strict=True):
        assert row["image"] == path.name
        assert question is None or row["question"] == question
        assert masks is None or len(row["found"]) == masks
        coco = json.loads(Path(row["picture"]).with_suffix(".json").read_text())
        assert [a["segmentation"] for a in coco["annotations"]] == [found["segmentation"] for found in row["found"]]
        assert Image.open(row["picture"]).width == 96 * 7
    assert rows[0]["found"] != rows[1]["found"] or not masks


def test_masks_and_references_are_files(run, images, tmp_path, capsys):
    drawn = np.zeros((96, 96, 3), np.uint8)
    drawn[30:60, 20:50] = 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    common = ["--image", images[0], "--out", tmp_path / "out", "--json", "--mask", tmp_path / "drawn.png"]
    answers = []
    for task in (["interact"], ["ground", "--score", "0"], ["ground", "--score", "0", "--reference", images[1]]):
        assert predict(run, *common, "--task", *task) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["found"])
    assert len(answers[0]) == 1
    assert answers[1] != answers[2]


def test_a_score_of_0_leaves_nothing_out(images, tmp_path, capsys):
    counts = []
    for score in ([], ["--score", "0"]):
        common = ["--image", images[0], "--task", "instance", "--out", tmp_path / "out", "--json"]
        assert predict("data/shapes/model", *common, *score) == 0
        counts.append(len(json.loads(capsys.readouterr().out)[0]["found"]))
    assert 0 < counts[0] < counts[1]


def test_panoptic_files_fit_each_other(images, tmp_path, capsys):
    asked = ["--prompt", "circle, star; sky, grass"]
    assert predict("data/shapes/model", "--image", *images, "--out", tmp_path / "out", *asked) == 0
    for name in ("x", "x_2"):
        coco = COCO(tmp_path / f"out/{name}.json")
        assert coco.anns
        ids = read_panoptic_png(tmp_path / f"out/{name}_panoptic.png")
        assert sorted({*ids.ravel().tolist()} - {0}) == sorted(coco.anns)
        for number, row in coco.anns.items():
            assert ((ids == number) == coco.annToMask(row)).all()
        assert [row["id"] for row in coco.dataset["panoptic"]["segments_info"]] == [*coco.anns]
    assert "x_2.png: " in capsys.readouterr().out


def test_folders_patterns_and_names(run, images, tmp_path, capsys):
    (tmp_path / "a/notes.txt").write_text("no image")
    shutil.copy(images[0], tmp_path / "a/x_panoptic.png")
    common = ["--task", "refer", "--prompt", "a", "--out", tmp_path / "out", "--json"]
    assert predict(run, "--image", tmp_path / "a", tmp_path / "*/x.jpg", *common) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["image"], Path(row["picture"]).stem) for row in rows] == [
        ("x.jpg", "x"), ("x_panoptic.png", "x_panoptic_2"), ("x.jpg", "x_2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "refer"], "--task refer needs --prompt"),
        (["--task", "interact"], "here is none"),
        (["--task", "interact", "--point", "1,1", "--box", "1,1,5,5"], "here is ['point', 'box']"),
        (["--task", "interact", "--point", "96,1"], "leaves the image, which has 96 x 96 pixels"),
        (["--task", "interact", "--mask", "none.png"], "none.png: cannot be read as an image"),
        (["--task", "chat", "--prompt", "a", "--score", "1"], "--task chat has no use for --score; it takes --prompt"),
        (["--task", "describe", "--reference", "a.png"], "--task describe has no use for --reference"),
        (["--task", "chat", "--prompt", "a", "--point", "1,1"], "has no use for --point, --box, --scribble, --mask"),
        (["--task", "reason", "--prompt", "a", "--several"], "has no use for --several; it takes"),
        (["--task", "ground", "--box", "1,1,5,5", "--prompt", "a, b"], "a label for each; here are 1 and 2"),
        (["--prompt", "circle, circle"], "each once"),
        (["--image", "none/*.jpg"], "none/*.jpg: no image there"),
    ],
)
def test_a_mistake_is_one_line(run, images, tmp_path, capsys, arguments, message):
    assert predict(run, "--image", images[0], "--out", tmp_path / "out", *arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("xsam predict: ")
    assert message in line
    assert not [*tmp_path.glob("out/*")]


def test_images_are_not_overwritten(run, images, capsys):
    assert predict(run, "--image", images[0], "--out", images[0].parent, "--task", "refer", "--prompt", "a") == 2
    assert "give another folder as --out" in capsys.readouterr().err


def test_malformed_coordinates_are_usage(run, images, capsys):
    with pytest.raises(SystemExit, match="2"):
        predict(run, "--image", images[0], "--task", "interact", "--point", "a,b")
    assert "--point: 'a,b': give numbers with commas between" in capsys.readouterr().err


def test_dtype_and_the_embedded_model(run, images, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "data/shapes/model")
    monkeypatch.setenv("XSAM_DATA", str(tmp_path / "data"))
    asked = ["--task", "refer", "--prompt", "a", "--out", str(tmp_path / "out"), "--dtype", "bfloat16", "--json"]
    assert main(["predict", "--image", str(images[0]), *asked]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
