"""Loading through the public door: what a folder or file holds decides, and what does not fit is one line."""

import json
import shutil
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xsam import api, config
from xsam.checkpoints.released import to_official
from xsam.data.prompt import load_tokenizer
from xsam.engine import checkpoint, distributed
from xsam.models.encoders import SamEncoder
from xsam.structures import Sample, Turn, UserError

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


@pytest.fixture
def pictures(world: Path) -> list[Path]:
    return sorted((world / "val").glob("*.*"))[:3]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the segmentation encoder has looked at, call by call."""
    counts: list[int] = []
    plain = SamEncoder.forward

    def look(self: SamEncoder, images: Tensor, indices: list[int]) -> list[Tensor]:
        counts.append(len(images))
        return plain(self, images, indices)

    monkeypatch.setattr(SamEncoder, "forward", look)
    return counts


def same(ours: api.Result, theirs: api.Result) -> None:
    for a, b in zip(ours.found, theirs.found, strict=True):
        assert a.label == b.label
        assert a.score == pytest.approx(b.score, abs=1e-5)
        assert (a.mask != b.mask).mean() < 1e-3


def test_an_image_is_encoded_once(
    run: Path, pictures: list[Path], seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked about it, and whatever its name is; the last two are kept."""
    monkeypatch.setattr(api, "KEPT", 2)
    one, two, three = pictures
    model = api.XSam.from_pretrained(str(run), dtype=torch.float32)
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    model.refer(one, "the red circle")
    second = model.refer(one, "the small green ring")
    model.chat(one, "What is this?", max_new_tokens=2)
    shutil.copy(one, tmp_path / "again.png")
    model.refer(tmp_path / "again.png", "the red circle")
    assert seen == [1]
    same(second, api.XSam(model.model, model.processor).refer(one, "the small green ring"))
    seen.clear()
    model.refer(two, "a")
    model.refer(one, "a")  # used last, so the next one takes the place of `two`
    model.refer(three, "a")
    model.refer(one, "a")
    assert seen == [1, 1]
    model.refer(two, "a")
    assert seen == [1, 1, 1]
    assert {len(part) for part in model._kept[next(iter(model._kept))].pixels} == {1}


def test_many_samples_in_one_pass(run: Path, pictures: list[Path], seen: list[int]) -> None:
    model = api.XSam.from_pretrained(str(run), dtype=torch.float32)
    phrases = ["the red circle", "a ring", "the large blue square on the left"]
    turns = [Turn(f"<image>\nFind <p>{phrase}</p>.", "It is <SEG>.") for phrase in phrases]
    rows = zip(turns, [pictures[0], pictures[1], pictures[0]], strict=True)
    samples = [Sample(id="", image=str(path), turns=(turn,)) for turn, path in rows]
    samples += [Sample(id="", turns=(Turn("Hello.", "Hello."),))]
    model.ask(samples[:1])
    answers = model.ask(samples)
    assert seen == [1, 1]  # of three rows with two images one was known
    assert [len(answer) for answer in answers] == [1, 1, 1, 0]
    assert model.ask(samples[3:]) == [[]]
    for sample, answer in zip(samples[:3], answers, strict=False):
        ((alone,),) = api.XSam(model.model, model.processor).ask([sample])
        torch.testing.assert_close(answer[0].class_logits, alone.class_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answer[0].mask_logits, alone.mask_logits, rtol=1e-4, atol=1e-4)


def test_streamed_text(run: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece the same text, and never a part of a character."""
    model = api.XSam.from_pretrained(str(run), dtype=torch.float32)
    whole = model.chat(pictures[0], "What is this?", max_new_tokens=6)
    assert "".join(model.chat(pictures[0], "What is this?", max_new_tokens=6, stream=True)) == whole.text
    text = "größer 🙂, naïve 日本"
    tokens = [*model.processor.tokenizer(text, add_special_tokens=False).input_ids, model.processor.stop_ids[0]]
    asked = []

    def spoken(*_: object) -> Iterator[tuple[Tensor, Tensor]]:
        for token in tokens:
            asked.append(token)
            yield torch.tensor([token]), torch.zeros(0)

    monkeypatch.setattr(api, "decode", spoken)
    stream = model.chat(pictures[0], "What is this?", stream=True)
    assert not asked  # nothing is made before it is wanted
    pieces = [next(stream)]
    assert len(asked) == 1
    pieces += stream
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert 10 < len(pieces) < len(tokens)
    del tokens[-2:]  # it ends in the middle of a character
    assert model.chat(pictures[0], "What is this?").text == text[:-1] + "\ufffd"


def test_compiled_modules_answer_alike(run: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))  # without C++
    plain, traced = (
        api.XSam.from_pretrained(str(run), dtype=torch.float32, compile=parts) for parts in ((), ("seg_encoder", "llm"))
    )
    assert list(plain.model.state_dict()) == list(traced.model.state_dict())
    assert traced.model.seg_encoder._compiled_call_impl
    assert traced.model.llm.model._compiled_call_impl
    same(plain.refer(pictures[0], "the red circle"), traced.refer(pictures[0], "the red circle"))
    with pytest.raises(UserError, match="compile: no module 'sam'; there is: seg_encoder, "):
        api.load(str(run), compile=["sam"])


def test_weights_in_fewer_bits(run: Path, pictures: list[Path]) -> None:
    pytest.importorskip("bitsandbytes")
    plain, eight, four = (api.XSam.from_pretrained(str(run), dtype=torch.float32, bits=bits) for bits in (0, 8, 4))
    sizes = [
        sum(p.numel() * p.element_size() for p in m.model.llm.model.layers.parameters()) for m in (plain, eight, four)
    ]
    assert sizes[1] < 0.27 * sizes[0]
    assert sizes[2] < 0.14 * sizes[0]
    assert [p.dtype for p in eight.model.llm.lm_head.parameters()] == [torch.float32]
    exact, *others = (m.refer(pictures[0], "the red circle").found[0] for m in (plain, eight, four))
    for other, tolerance in zip(others, (0.02, 0.2), strict=True):
        assert other.score == pytest.approx(exact.score, abs=tolerance)


def test_fewer_bits_need_a_library(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="bits=4 needs bitsandbytes; pip install bitsandbytes"):
        api.load(str(run), bits=4)
