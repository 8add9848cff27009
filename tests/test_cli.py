"""The command line: what a user can get wrong is one clear line and exit code 2."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from xsam.cli import main


def error(capsys) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    return lines[-1]


VERBS = ("train", "evaluate", "predict", "score", "data", "convert", "doctor", "benchmark", "parity", "demo")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert f"xsam {verb} " in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "configs/no.py"], "configs/no.py: no such config"),
        (["train", "configs/shapes/stage1.py", "stage.lrr=1"], "config key stage.lrr is not known"),
        (["train", "configs/shapes/stage1.py", "stages.lr=1"], "unknown config key 'stages'"),
        (["train", "configs/shapes/stage3.py", "--init-from", "runs/typo"], "runs/typo does not exist"),
        (["evaluate", "configs/shapes/stage3.py", "--checkpoint", "runs/typo"], "checkpoint runs/typo: no such file or folder"),
        (["evaluate", "configs/shapes/stage3.py"], "give --checkpoint"),
        (["evaluate", "configs/shapes/stage3.py", "--checkpoint", "random", "--benchmarks", "coco"], "no benchmark coco"),
        (["predict", "--checkpoint", "random", "--image", "a.png"], "holds no config.json"),
        (["evaluate", "--compare", "runs/typo", "runs/typo"], "no results"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    assert main(arguments) == 2
    assert message in error(capsys)


def test_a_full_gpu_is_one_line_with_the_remedy(capsys, monkeypatch):
    def full(options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total ..")

    monkeypatch.setattr("xsam.cli._doctor", full)
    full.__name__ = "_doctor"
    assert main(["doctor"]) == 2
    assert error(capsys).startswith("xsam doctor: CUDA out of memory; `xsam doctor CONFIG` computes what fits")


def test_a_missing_dataset_names_the_command(world, capsys):
    source = "mixture.sources.panoptic.data"
    paths = [f"{source}.images={world}/train", f"{source}.segments={world}/panoptic_train"]
    options = [*paths, f"{source}.annotations=/no/panoptic.json", "stage.init_from=[]"]
    assert main(["train", "configs/shapes/stage1.py", *options]) == 2
    message = error(capsys)
    assert "/no/panoptic.json: cannot be read" in message
    assert "`xsam data prepare shapes`" in message


def test_a_missing_stage_names_the_command(capsys):
    assert main(["train", "configs/shapes/stage2.py", "stage.init_from=['runs/nowhere/stage1']"]) == 2
    assert "run `xsam train configs/nowhere/stage1.py` first" in error(capsys)


def test_a_truncated_picture_in_training(world, tmp_path, capsys):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    for picture in (root / "train").iterdir():
        picture.write_bytes(picture.read_bytes()[:500])
    source = "mixture.sources.panoptic.data"
    paths = [
        f"{source}.annotations={root}/annotations/panoptic_train.json",
        f"{source}.segments={root}/panoptic_train",
        f"{source}.images={root}/train",
    ]
    options = [*paths, "stage.init_from=[]", "--work-dir", str(tmp_path / "run")]
    assert main(["train", "configs/shapes/stage1.py", *options]) == 2
    assert "cannot be read as an image" in error(capsys)


def test_predict_draws_and_writes_coco(world, tmp_path, capsys, monkeypatch):
    image = next((world / "val").iterdir())
    tokenizer = f"processor.tokenizer={world}/base"
    common = ["predict", "configs/shapes/stage3.py", "--checkpoint", "random", tokenizer, "--out", str(tmp_path)]
    assert main([*common, "--image", str(image), "--prompt", "circle, star; sky", "--score", "0.0"]) == 0
    drawn = np.asarray(Image.open(tmp_path / f"{image.stem}.png"))
    assert drawn.shape[0] >= 96
    coco = json.loads((tmp_path / f"{image.stem}.json").read_text())
    assert coco["images"][0]["file_name"] == image.name
    assert {a["category_id"] for a in coco["annotations"]} <= {c["id"] for c in coco["categories"]}
    assert main([*common, "--image", str(image), "--task", "refer", "--prompt", "the red circle"]) == 0
    assert len(json.loads((tmp_path / f"{image.stem}.json").read_text())["annotations"]) == 1
    assert main([*common, "--image", str(image), "--task", "refer"]) == 2
    assert "needs --prompt" in error(capsys)
    assert main([*common, "--image", str(image), "--task", "refer", "--prompt", "a <p> b"]) == 2
    assert "<p> has a meaning of its own" in error(capsys)
    monkeypatch.setenv("XSAM_DATA", str(tmp_path / "nowhere"))
    assert main([*common[:2], "--image", str(image)]) == 2
    assert "give --checkpoint" in error(capsys)
    broken = tmp_path / "in/broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"\xff\xd8\xff" + b"0" * 50)
    assert main([*common, "--image", str(broken), "--prompt", "star"]) == 2
    assert "broken.jpg: cannot be read as an image" in error(capsys)


def test_predict_takes_its_categories_from_the_first_generic_benchmark(world, tmp_path, monkeypatch):
    (tmp_path / "shapes").symlink_to(world)
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    image = next((world / "val").iterdir())
    common = ["predict", "configs/shapes/stage3.py", "--checkpoint", "random", "--out", str(tmp_path / "out")]
    published = "benchmarks.shapes_panoptic.published={'PQ':1.0}"  # is of the row, not of its task
    assert main([*common, "--image", str(image), "--score", "0", published]) == 0
    found = json.loads((tmp_path / f"out/{image.stem}.json").read_text())
    names = {c["name"] for c in json.loads((world / "annotations/panoptic_val.json").read_text())["categories"]}
    assert {c["name"] for c in found["categories"]} <= names
    assert found["info"]["question"].startswith("panoptic: ")
    assert all(name in found["info"]["question"] for name in names)
