"""The timm examples train and predict: the adapters fit loading, training, export and the run folder."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from xsam.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the embedded world where the configs look for it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shapes").symlink_to(world)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("role", ["seg_encoder", "vision_encoder"])
def test_a_step_and_a_prediction(role: str, here: Path) -> None:
    config = ROOT / f"configs/examples/timm_{role}.py"
    run, drawn = here / f"runs/examples/timm_{role}", here / "drawn"
    assert main(["train", str(config), "stage.init_from=[]", "stage.batch_size=2", "--max-steps", "1"]) == 0
    trained = [name for name in load_file(run / "model.safetensors") if name.startswith(f"{role}.")]
    assert trained
    assert all(name.startswith(f"{role}.vit.") for name in trained)
    (image, *_) = sorted((here / "data/shapes/val").iterdir())
    asked = ["--image", str(image), "--task", "semantic", "--out", str(drawn)]
    assert main(["predict", "--checkpoint", str(run), *asked]) == 0
    assert (drawn / f"{image.stem}.png").is_file()
    assert json.loads((drawn / f"{image.stem}.json").read_text())["annotations"]


def test_a_new_vision_encoder_takes_the_rest_from_earlier_stages(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`stage.new` of the example covers what other encoders left in the checkpoints it starts from."""
    common = ["stage.batch_size=2", "--max-steps", "1"]
    assert main(["train", str(ROOT / "configs/shapes/stage1.py"), "stage.init_from=[]", *common]) == 0
    assert main(["train", str(ROOT / "configs/shapes/stage2.py"), "stage.init_from=[]", *common]) == 0
    capsys.readouterr()
    assert main(["train", str(ROOT / "configs/examples/timm_vision_encoder.py"), *common]) == 0
    report = {line.split()[0]: line.split()[1:4] for line in capsys.readouterr().out.splitlines() if " / " in line}
    assert report["vision_encoder"][0] == "0"
    assert report["projector"] == report["seg_projector"] == ["4", "/", "4"]
