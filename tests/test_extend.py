"""docs/architecture.md, "Adding to it": a task, a benchmark, an encoder and a language model that are not part of xsam.

The page shows the classes of this file, and the configs in which they are named; these are used as they stand there."""

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

from xsam import config
from xsam.cli import main
from xsam.data.coco import CocoInstances
from xsam.data.masks import select, unpack
from xsam.metrics.iou import ReferringIoU
from xsam.models.encoders import Encoder
from xsam.structures import BadSample, Prediction, Sample, UserError
from xsam.tasks.base import Task, build, united

ROOT = Path(__file__).parents[1]
ONE_STEP = ["stage.init_from=[]", "stage.batch_size=4", "--max-steps", "1"]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
TASK, ROWS, ENCODER, SWAP, LLAMA = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STAGE3 = ROWS[: ROWS.index("from mine")]


class LargestThing(Task):
    """The largest thing of a COCO image."""

    name = "largest"
    data: CocoInstances
    questions, answers = ("Segment {phrase}.", "Where is {phrase}?"), ("<SEG>.",)
    metric = staticmethod(ReferringIoU)

    def __init__(self, *, data: CocoInstances, train: bool = False) -> None:
        self.data, self.train = data, train

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        shown = self.data.segments(index)
        if not shown.masks.count:
            raise BadSample(f"image {shown.image_id}: has no thing")
        largest = np.array([np.argmax(shown.areas)])
        return Sample(
            id=self.id(index), image=shown.image, turns=(self.turn(rng, phrase="<p>the largest thing</p>"),),
            masks=select(shown.masks, largest), labels=np.zeros(1, np.int64), mask_segs=np.zeros(1, np.int64),
        )  # fmt: skip

    def score(self, metric: ReferringIoU, prediction: Prediction, sample: Sample) -> None:
        metric.update(*united(prediction, sample), failed=prediction.failed)


class Grid(Encoder):
    """A patch embedding and nothing behind it, as segmentation encoder: all hidden states are the same."""

    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, *, image_size: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        self.embed = nn.Conv2d(3, channels, patch_size, stride=patch_size)

    def forward(self, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
        self._check_size(images)
        return [self.embed(images).permute(0, 2, 3, 1)] * len(indices)


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a fresh clone's, with a small world; this file's package may be named in configs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("_base_", "shapes"):
        (tmp_path / "configs" / name).symlink_to(ROOT / "configs" / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shapes").symlink_to(world)
    monkeypatch.setenv("XSAM_PACKAGES", f"other {__name__.split('.')[0]}")
    return tmp_path


def write(name: str, text: str) -> str:
    """A config beside the shipped ones, in which this file is called "mine"; its path."""
    path = Path(f"configs/{name}.py")
    path.write_text(text.replace("from mine", f"from {__name__}"))
    return str(path)


def test_the_page_shows_this_file() -> None:
    assert inspect.getsource(LargestThing) == TASK
    assert inspect.getsource(Grid) == ENCODER


def test_a_task_and_a_benchmark(here: Path) -> None:
    mine = write("largest", ROWS)
    task = build(config.load(mine)["benchmarks"]["largest"])
    file = json.loads((here / "data/shapes/annotations/instances_val.json").read_text())
    for index, image in enumerate(file["images"]):
        areas = [item["area"] for item in file["annotations"] if item["image_id"] == image["id"]]
        sample = task.sample(index, np.random.default_rng(0))
        assert unpack(sample.masks).sum() == max(areas)
        assert sample.turns[0].question == "<image>\nSegment <p>the largest thing</p>."
    assert main(["train", mine, *ONE_STEP]) == 0
    (line,) = map(json.loads, (here / "runs/largest/log.jsonl").read_text().splitlines())
    assert line["sources"].keys() == {"largest"}
    assert line["losses"]["dice"] > 0
    assert main(["evaluate", "--checkpoint", "runs/largest"]) == 0
    ((name, scored),) = json.loads((here / "runs/largest/eval/paper/results.json").read_text())["benchmarks"].items()
    assert name == scored["task"] == "largest"
    assert scored["samples"] == scored["scored"] == len(file["images"])
    assert 0 <= scored["metrics"]["gIoU"] <= 100


def test_an_encoder(here: Path) -> None:
    assert main(["train", write("grid", STAGE3 + SWAP), *ONE_STEP]) == 0
    stored = load_file(here / "runs/grid/model.safetensors")
    names = {name for name in stored if name.startswith("seg_encoder.")}
    assert names == {"seg_encoder.embed.weight", "seg_encoder.embed.bias"}
    assert main(["evaluate", "--checkpoint", "runs/grid", "--benchmarks", "shapes_panoptic", "--limit", "2"]) == 0


def test_a_language_model(here: Path) -> None:
    assert main(["train", write("llama", STAGE3 + LLAMA), *ONE_STEP]) == 0
    stored = load_file(here / "runs/llama/model.safetensors")
    assert stored["llm.model.layers.1.self_attn.k_proj.weight"].shape == (64, 128)
    asked = ["--benchmarks", "shapes_refer", "shapes_chat", "--protocol", "strict", "--limit", "2"]
    assert main(["evaluate", "--checkpoint", "runs/llama", *asked]) == 0
    scored = json.loads((here / "runs/llama/eval/strict/results.json").read_text())["benchmarks"]
    assert [scored[name]["samples"] for name in ("shapes_refer", "shapes_chat")] == [2, 2]


def test_a_package_that_nobody_named_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"type": f"{__name__}.Grid", "image_size": 96, "patch_size": 8, "channels": 4}
    assert isinstance(config.build(node), Grid)
    for named in ("", "other", f"not{__name__}"):
        monkeypatch.setenv("XSAM_PACKAGES", named)
        with pytest.raises(UserError, match=f"not part of xsam; XSAM_PACKAGES={__name__.split('.')[0]} lets it in"):
            config.build(node)
