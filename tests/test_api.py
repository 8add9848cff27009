"""Loading through the public door: what a folder or file holds decides, and what does not fit is one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from xsam import api, config
from xsam.checkpoints.released import to_official
from xsam.data.prompt import load_tokenizer
from xsam.engine import checkpoint, distributed
from xsam.structures import UserError

STAGE1, STAGE3 = "configs/shapes/stage1.py", "configs/shapes/stage3.py"


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the tiny model in bf16, with a config that says fp32 and a tokenizer that is gone."""
    distributed.init()
    folder = tmp_path_factory.mktemp("run")
    settings = config.load(STAGE3, ["processor.tokenizer=/gone", "model.llm.vocab_size=700"])
    torch.manual_seed(1)
    model = config.build(config.load(STAGE3)["model"]).bfloat16()
    checkpoint.export(model, folder, settings, load_tokenizer(f"{world}/base"))
    return folder


@pytest.fixture(scope="module")
def official(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as the official program stores it: one pickle, nothing beside it."""
    model, _, _ = api.load(str(run))
    path = tmp_path_factory.mktemp("official") / "pytorch_model.bin"
    torch.save({to_official(name): tensor for name, tensor in model.state_dict().items()}, path)
    return path


def test_a_run_folder_needs_nothing_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor, settings = api.load(str(run))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert len(processor.tokenizer) == settings["model"]["llm"]["vocab_size"] == 640
    report = capsys.readouterr().out
    total = len(model.llm.state_dict())
    assert ["llm", f"{total}", "/", f"{total}"] in [line.split() for line in report.splitlines()]
    assert "model.llm.vocab_size: 640 instead of 700" in report


def test_an_official_file_needs_a_config(run: Path, official: Path, world: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        api.load(str(official))
    tokenizer = f"processor.tokenizer={world}/base"
    model, _, _ = api.load(str(official), STAGE3, [tokenizer])
    same, _, _ = api.load(str(run))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_what_may_be_missing_is_named(run: Path, official: Path, world: Path, tmp_path: Path) -> None:
    arguments = STAGE3, [f"processor.tokenizer={world}/base"]
    stage2 = {n: t for n, t in torch.load(official).items() if not n.startswith(("bg_embeds", "segmentor.logit_scale"))}
    torch.save(stage2, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"no source has classifier\.logit_scale, classifier\.background"):
        api.load(str(tmp_path / "x.bin"), *arguments)
    model, _, _ = api.load(str(tmp_path / "x.bin"), *arguments, new=["classifier"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_wrong_tokenizer_or_stage_is_one_line(run: Path, world: Path, tmp_path: Path) -> None:
    other = load_tokenizer(f"{world}/base")
    other.add_tokens(["one", "more"])
    other.save_pretrained(tmp_path / "words")
    with pytest.raises(UserError, match="640 token embeddings, the tokenizer 642 tokens"):
        api.load(str(run), overrides=[f"processor.tokenizer={tmp_path}/words"])
    closed = config.load(STAGE1)
    shutil.copytree(run, tmp_path / "stage1")
    checkpoint.export(config.build(closed["model"]), tmp_path / "stage1", closed)
    with pytest.raises(UserError, match="looks like stage 1: a segmentor with a closed set of classes"):
        api.load(str(tmp_path / "stage1"), STAGE3, [f"processor.tokenizer={world}/base"])


def test_a_folder_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3"}))
    with pytest.raises(UserError, match=r"config\.json: describes no model of X-SAM"):
        api.load(str(tmp_path))
