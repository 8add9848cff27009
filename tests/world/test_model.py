"""The trained model that ships: it is the one of the docs, and it can do what they say."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from world import shapes
from xsam import XSam
from xsam.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data/shapes/model"


def test_the_docs_name_its_hash():
    sha256 = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert sha256 in (ROOT / "docs/shapes.md").read_text()


def test_the_examples_are_the_first_val_images(world):
    for number in range(1, 9):
        example = (ROOT / f"data/shapes/examples/{number}.jpg").read_bytes()
        assert example == (world / f"val/{1000000 + number}.jpg").read_bytes()


def test_it_names_no_folder_of_another_machine():
    for path in ("config.json", "tokenizer_config.json"):
        assert not re.search(r'"/|\.\./|~', (MODEL / path).read_text())


@pytest.fixture(scope="module")
def model():
    return XSam.from_pretrained(MODEL, device="cpu")


def test_it_segments_and_refers(world, tmp_path, monkeypatch):
    (tmp_path / "shapes").symlink_to(world)
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    rows = ["shapes_panoptic", "shapes_refer", "shapes_gcg", "shapes_interactive_point"]
    given = ["--checkpoint", str(MODEL), "--benchmarks", *rows, "--protocol", "strict", "--out", str(tmp_path / "eval")]
    assert main(["evaluate", *given]) == 0
    found = json.loads((tmp_path / "eval/results.json").read_text())["benchmarks"]
    assert found["shapes_panoptic"]["metrics"]["PQ"] > 75
    assert found["shapes_refer"]["metrics"]["Pr@0.5_attribute"] > 75
    assert found["shapes_gcg"]["metrics"]["mIoU"] > 35
    assert found["shapes_interactive_point"]["metrics"]["mIoU"] > 65


def test_it_answers_questions(model, world):
    right = []
    for number in range(8):
        for question, answer in shapes.questions(shapes.compose(0, "val", number)):
            right.append(model.chat(world / f"val/{1000001 + number}.jpg", question).text == answer)
    assert sum(right) > 0.65 * len(right)
