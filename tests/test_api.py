"""Loading through the public door: what a folder or file holds decides, and what does not fit is one line."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xsam import api, config
from xsam.checkpoints.released import to_official
from xsam.data.coco import CocoInstances
from xsam.data.images import read_image
from xsam.data.masks import decode_rle
from xsam.data.prompt import load_tokenizer
from xsam.data.reasonseg import ReasonSeg
from xsam.data.refer import RefCoco
from xsam.data.region_records import CocoInteractive, CocoVgd
from xsam.engine import checkpoint, distributed
from xsam.engine.evaluator import answers
from xsam.models.encoders import SamEncoder
from xsam.models.xsam import XSamModel
from xsam.structures import BadSample, Prediction, Sample, Turn, UserError
from xsam.tasks.base import Task
from xsam.tasks.generic import GenericSegmentation
from xsam.tasks.grounded_conversation import QUESTIONS
from xsam.tasks.interactive import InteractiveSegmentation
from xsam.tasks.reasoning import ReasoningSegmentation
from xsam.tasks.referring import ReferringSegmentation
from xsam.tasks.visual_grounding import VisualGrounding

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


@pytest.fixture(scope="module")
def model(run: Path) -> api.XSam:
    return api.XSam.from_pretrained(str(run), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> api.XSam:
    """A stage-1 model of 10 classes."""
    folder, settings = tmp_path_factory.mktemp("closed"), config.load(STAGE1)
    torch.manual_seed(0)
    checkpoint.export(config.build(settings["model"]), folder, settings)
    return api.XSam.from_pretrained(folder, device="cpu")


THINGS, STUFF = ["circle", "square", "star"], ["sky", "grass"]
BOX, LINE = (20, 30, 60, 70), [(10, 10), (40, 50), (80, 20)]
CALLS = {
    "panoptic": lambda m, x: m.segment(x, things=THINGS, stuff=STUFF, score=0.0),
    "instance": lambda m, x: m.segment(x, THINGS, kind="instance", score=0.0),
    "semantic": lambda m, x: m.segment(x, THINGS, kind="semantic"),
    "refer": lambda m, x: m.refer(x, "the red circle"),
    "several": lambda m, x: m.refer(x, "the red circle", several=True),
    "reason": lambda m, x: m.reason(x, "What is round?"),
    "explain": lambda m, x: m.reason(x, "What is round?", explain=True),
    "describe": lambda m, x: m.describe(x, max_new_tokens=8),
    "point": lambda m, x: m.interact(x, point=(40, 50)),
    "points": lambda m, x: m.interact(x, points=LINE),
    "box": lambda m, x: m.interact(x, box=BOX),
    "scribble": lambda m, x: m.interact(x, scribble=LINE),
    "ground": lambda m, x: m.ground(x, [{"box": BOX}, {"scribble": LINE}], labels=["a", "b"], score=0.0),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_is_answered_as_one_by_one(
    name: str, model: api.XSam, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BATCH", 2)
    results = CALLS[name](model, [*map(str, pictures), pictures[0]])
    alone = [CALLS[name](model, path) for path in pictures]
    for ours, theirs in zip(results, [*alone, alone[0]], strict=True):
        same(ours, theirs)
        assert (ours.text, ours.question, ours.name) == (theirs.text, theirs.question, theirs.name)
    for result, path in zip(results, pictures, strict=False):
        assert result.name == path.name
        assert (result.image == read_image(path)).all()
        assert all(found.mask.any() and found.mask.shape == result.image.shape[:2] for found in result.found)
    assert results[0].seconds == results[1].seconds > 0
    assert CALLS[name](model, []) == []


def test_pictures_come_in_any_form(model: api.XSam, pictures: list[Path]) -> None:
    pixels = read_image(pictures[0])
    forms = [pictures[0], Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    forms += [forms[-1] / 255]
    results = model.segment(forms, THINGS, kind="semantic")
    assert [result.name for result in results] == [pictures[0].name, "", "", "", ""]
    for result in results[1:]:
        same(result, results[0])
        assert (result.image == pixels).all()
    with pytest.raises(UserError, match="an image is a path"):
        model.refer(pixels / 255, "a")
    with pytest.raises(BadSample, match="nothing.png: cannot be read as an image"):
        model.refer("nothing.png", "a")


def benchmark(model: api.XSam, task: Task, index: int) -> tuple[Sample, Prediction]:
    """What the evaluation would keep, in the paper's protocol."""
    sample = task.sample(index, np.random.default_rng(0))
    return sample, task.postprocess(model.ask([sample])[0], "", sample)


def agree(result: api.Result, prediction: Prediction, names: dict[int, str] | None = None) -> None:
    ours = sorted(zip(result.scores, result.labels, map(np.ndarray.tobytes, result.masks), strict=True))
    kept = [s for s in prediction.segments if decode_rle(s.segmentation).any()]
    theirs = sorted((s.score, names[int(s.label)] if names else "", decode_rle(s.segmentation).tobytes()) for s in kept)
    assert len(ours) == len(theirs) > 0
    for (score, label, mask), (expected, name, truth) in zip(ours, theirs, strict=True):
        assert score == pytest.approx(expected, abs=1e-5)
        assert label == name or names is None
        assert mask == truth


@pytest.mark.parametrize("kind", ["point", "scribble", "box", "mask"])
def test_prompts_are_answered_as_in_the_benchmarks(kind: str, model: api.XSam, world: Path) -> None:
    """A benchmark's prompt, given as a mask, means the same; only the choice among masks knows the kind."""
    interactive = CocoInteractive(world / "interactive/val.json", world / "val", scale=0)
    sample, prediction = benchmark(model, InteractiveSegmentation(data=interactive, prompt=kind), 0)
    if kind == "mask":
        agree(model.interact(sample.image, mask=decode_rle(sample.regions[0].mask)), prediction)
    vgd = VisualGrounding(data=CocoVgd(world / "vgd/val.json", world / "val"), prompt=kind)
    sample, prediction = benchmark(model, vgd, 0)
    regions = [{"mask": decode_rle(region.mask)} for region in sample.regions]
    names = {category: str(category) for category in sample.truth["categories"]}
    agree(model.ground(sample.image, regions, labels=[*names.values()], score=0.0), prediction, names)


def test_a_reference_image(model: api.XSam, world: Path) -> None:
    vgd = CocoVgd(world / "vgd/val.json", world / "val")
    task = VisualGrounding(data=vgd, prompt="box", cross=True)
    sample = task.sample(0, np.random.default_rng(0))
    region, category = sample.regions[0], sample.truth["categories"][0]
    turn = task.turn(np.random.default_rng(0), regions="<p><region></p>")
    sample = replace(sample, turns=(turn,), regions=(region,), truth={"categories": [category]})
    prediction = task.postprocess(model.ask([sample])[0], "", sample)
    given = {"regions": [{"mask": decode_rle(region.mask)}], "score": 0.0}
    result = model.ground(sample.image, reference=Image.open(region.image), **given)
    agree(result, prediction, {category: "region 1"})
    other = model.ground(sample.image, **given)
    assert other.scores != result.scores
    large = np.zeros((200, 300, 3), np.uint8)  # the coordinates are those of the reference
    assert model.ground(sample.image, [{"point": (290, 190)}], reference=large, score=0.0).found
    with pytest.raises(UserError, match="which has 300 x 200 pixels"):
        model.ground(sample.image, [{"point": (290, 210)}], reference=large)


def test_words_are_answered_as_in_the_benchmarks(model: api.XSam, world: Path) -> None:
    data = RefCoco(world / "refer/refs(shapes).p", world / "refer/instances.json", world, "val")
    sample, prediction = benchmark(model, ReferringSegmentation(data=data), 0)
    phrase = sample.turns[0].question.split("<p>")[1].split("</p>")[0]
    agree(model.refer(sample.image, phrase), prediction)
    reason = ReasonSeg(world / "reason/val")
    for index in range(len(reason)):
        sample, prediction = benchmark(model, ReasoningSegmentation(data=reason), index)
        record = reason[index]
        assert record.is_sentence == record.texts[0].endswith("?")
        agree(model.reason(sample.image, record.texts[0]), prediction)
    instances = CocoInstances(world / "annotations/instances_val.json", world / "val")
    task = GenericSegmentation(data=instances)
    sample, prediction = benchmark(model, task, 0)
    names = {category.id: category.name for category in instances.categories}
    agree(model.segment(sample.image, [*names.values()], kind="instance", score=0.0), prediction, names)


def test_a_score_makes_a_target_absent(model: api.XSam, pictures: list[Path]) -> None:
    (found,) = model.refer(pictures[0], "the red circle").found
    assert model.refer(pictures[0], "the red circle", score=found.score).labels == ["the red circle"]
    assert model.refer(pictures[0], "the red circle", score=found.score + 1e-3).found == ()
    assert model.reason(pictures[0], "What is round?", score=1.0).found == ()


def say(model: api.XSam, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let the language model answer so, whatever is asked."""
    ids = [model.processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    monkeypatch.setattr(XSamModel, "generate", lambda *_: (ids, None))


def test_a_description_links_phrases_to_masks(
    model: api.XSam, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "<p>a red ring</p> , over <p>a star</p> and <p>a star</p> . It looks like this: <SEG>."
    for text in (good, "no mask at all.", "<p>a ring</p> <SEG> <SEG>", "<p>a ring <SEG>.", ""):
        say(model, monkeypatch, text, good)
        first, second = model.describe(pictures[:2])
        assert second.text == "a red ring, over a star and a star."
        assert second.question == QUESTIONS[0]
        assert [second.text[slice(*found.span)] for found in second.found] == second.labels
        assert {found.span for found in second.found} <= {(0, 10), (17, 23), (28, 34)}
        assert (first.found == ()) == (text != good)
        assert "<" not in first.text
    assert len(second.found) == 3
    sample = Sample(id="", image=str(pictures[1]), turns=(Turn(f"<image>\n{QUESTIONS[0]}", good),))
    ((outputs,),) = model.ask([sample])  # one `<SEG>`, as if the answer had been given
    expected = outputs.class_logits.softmax(-1)[:, :3].amax(0)
    torch.testing.assert_close(torch.tensor(second.scores), expected, rtol=1e-4, atol=1e-5)


def test_a_reason_comes_before_the_mask(model: api.XSam, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    say(model, monkeypatch, "A circle is round. It is <SEG>.")
    result = model.reason(pictures[0], "What is round?", explain=True)
    assert result.text == "A circle is round."
    assert len(result.found) == 1
    say(model, monkeypatch, "Nothing is.")
    silent = model.reason(pictures[0], "What is round?", explain=True)
    assert (silent.text, silent.found) == ("Nothing is.", ())


def test_evaluator_and_api_share_one_function() -> None:
    assert api.answers is answers


def test_a_conversation(model: api.XSam, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    prompt = model.processor.prompt
    monkeypatch.setattr(model.processor, "prompt", lambda sample, key: seen.append(sample.turns) or prompt(sample, key))
    messages = [
        {"role": "user", "content": "How many rings are there?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And stars?"},
    ]
    result = model.chat(pictures[0], messages, max_new_tokens=4)
    assert seen == [(Turn("<image>\nHow many rings are there?", "2"), Turn("And stars?", ""))]
    assert result.question == "And stars?"
    assert result.text == "".join(model.chat(pictures[0], messages, 4, stream=True))
    for wrong in ([], messages[:2], messages[1:], [messages[0]] * 3, ["hello"], [{"role": "user"}], [{"content": "a"}]):
        with pytest.raises(UserError, match="messages have|words are needed"):
            model.chat(pictures[0], wrong)
    with pytest.raises(BadSample, match="more than max_length=512"):
        model.chat(pictures[0], "word " * 600)


def test_tags_of_the_model_are_no_words(model: api.XSam, pictures: list[Path]) -> None:
    for word in ("<p>", "a </p>", "<SEG>", "<image>", "<region>", "a<|end|>", "<|assistant|>"):
        for call in (model.refer, model.reason, model.chat, lambda x, word: model.segment(x, ["sky", word])):
            with pytest.raises(UserError, match="has a meaning of its own"):
                call(pictures[0], word)
    for nothing in ("", " ", None, 5):
        with pytest.raises(UserError, match="words are needed"):
            model.refer(pictures[0], nothing)


def test_what_cannot_be_asked_is_one_line(model: api.XSam, pictures: list[Path]) -> None:
    image = pictures[0]
    for wrong in ({"kind": "panoptics", "things": ["a"]}, {}, {"things": ["a"], "stuff": ["a"]}):
        with pytest.raises(UserError, match="give a kind of"):
            model.segment(image, **wrong)
    for regions, labels in (([], []), ([{"box": BOX}], ["a", "b"])):
        with pytest.raises(UserError, match="give one region or more"):
            model.ground(image, regions, labels=labels)
    with pytest.raises(UserError, match="here is none"):
        model.interact(image)
    with pytest.raises(UserError, match="which has 96 x 96 pixels"):
        model.interact([image, np.zeros((200, 200, 3), np.uint8)], point=(150, 10))


def test_a_closed_set_only_segments(closed: api.XSam, pictures: list[Path]) -> None:
    names = [f"class {n}" for n in range(10)]
    first, second = closed.segment(pictures[:2], names, kind="semantic")
    assert set(first.labels) <= set(names)
    assert first.masks.sum(0).min() == first.masks.sum(0).max() == 1
    same(second, closed.segment(pictures[1], names, kind="semantic"))
    with pytest.raises(UserError, match="a closed set of 10 classes, 2 were named"):
        closed.segment(pictures[0], names[:2])
    for name in ("refer", "reason", "describe", "point", "ground"):
        with pytest.raises(UserError, match=r"can only segment \(stage 1\)"):
            CALLS[name](closed, pictures[0])
    with pytest.raises(UserError, match="no language model"):
        closed.chat(pictures[0], "Hello?")


def test_a_model_without_a_mask_decoder_only_chats(
    model: api.XSam, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.model, "mask_decoder", None)
    assert isinstance(model.chat(pictures[0], "Hello?", max_new_tokens=2).text, str)
    for name in ("panoptic", "refer", "describe"):
        with pytest.raises(UserError, match=r"can only chat \(stage 2\)"):
            CALLS[name](model, pictures[0])


def test_without_a_name_the_embedded_model_is_asked(
    run: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSAM_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"no embedded model in {tmp_path}/shapes/model; give --checkpoint"):
        api.XSam.from_pretrained()
    (tmp_path / "shapes").mkdir()
    shutil.copytree(run, tmp_path / "shapes/model")
    assert api.XSam.from_pretrained().segment(pictures[0], THINGS, kind="semantic").found
