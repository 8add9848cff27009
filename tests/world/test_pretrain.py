"""The command that makes the tiny base weights, in miniature."""

import pytest

from world.pretrain import pretrain
from xsam import config
from xsam.checkpoints.loading import load_weights, read_weights


@pytest.mark.slow
def test_pretraining_writes_what_the_stages_load(tmp_path):
    pretrain("configs/shapes/stage3.py", tmp_path, scenes=16, steps=60, text_steps=60)
    assert (tmp_path / "model.safetensors").stat().st_size < 6e6
    model = config.build(config.load("configs/shapes/stage3.py")["model"])
    report = load_weights(
        model,
        {str(tmp_path): read_weights(tmp_path)},
        ["projector", "seg_projector", "phrase_projector", "connector", "*decoder", "classifier"],
    )
    for part in ("seg_encoder", "vision_encoder", "llm"):
        assert report.loaded[part] == report.total[part]
