"""The whole tiny model: what it must not depend on, and what every row gets."""

import copy
from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn

from xsam import config
from xsam.data.collate import collate
from xsam.engine.stages import compile_parts
from xsam.models.criterion import Criterion
from xsam.structures import IGNORE_INDEX, IMAGE_TOKEN, REGION_TOKEN, Encoded

SEG, OPEN, CLOSE = 637, 638, 639


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return config.build(config.load("configs/_base_/models/xsam_tiny.py")["model"]).eval()


def row(name: str, tokens: list[int], seed: int, shown: bool = True, size: tuple[int, int] = (96, 96)) -> Encoded:
    ids = np.array(tokens)
    rng = np.random.default_rng(seed)
    opened, closed = ids == OPEN, ids == CLOSE
    inside = (opened.cumsum() - closed.cumsum() == 1) | closed
    seg = ids == SEG
    frame = np.zeros((3, 96, 96), np.uint8)
    frame[:, : size[0], : size[1]] = rng.integers(0, 255, (3, *size))
    targets = np.full((1, 96, 96), -1, np.int16)
    targets[0, :20, :30] = 0
    none = np.zeros((3, 0, 0), np.uint8)
    regions = (ids == REGION_TOKEN).sum()
    return Encoded(
        id=name, key=seed, input_ids=ids, labels=np.where(seg, ids, IGNORE_INDEX), span_ids=np.where(inside, opened.cumsum() - 1, -1),
        seg_ids=np.where(seg, seg.cumsum() - 1, -1), pixel_values=rng.integers(0, 255, (3, 96, 96)).astype(np.uint8) if shown else none,
        seg_pixel_values=frame if shown else none, seg_size=size if shown else (0, 0), image_size=size, target_ids=targets,
        target_labels=np.zeros(int(seg.any()), np.int64), target_segs=np.zeros(int(seg.any()), np.int64), shared_candidates=False,
        region_points=rng.random((regions, 256, 2)).astype(np.float32), region_labels=np.full(regions, -1), region_images=np.full(regions, -1),
    )  # fmt: skip


A = row("a", [1, IMAGE_TOKEN, 30, OPEN, 31, CLOSE, 20, OPEN, 32, 33, CLOSE, 5, SEG], 1)
B = row("b", [1, 40, 41, 42], 2, shown=False)
C = row("c", [1, IMAGE_TOKEN, OPEN, REGION_TOKEN, CLOSE, 21, SEG], 3, size=(60, 96))


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours(model):
    """Padding, a text-only row between two images, and other candidate counts change nothing."""
    together = collate([A, B, C])
    out = model(together)
    assert out.class_logits.shape == (1, 2, 16, 3)  # the last output of the decoder alone
    assert out.mask_embeds.shape[:3] == (1, 2, 16)
    for item, alone in ((0, collate([A])), (1, collate([C]))):
        single = model(alone)
        columns = single.class_logits.shape[-1] - 1
        torch.testing.assert_close(out.mask_logits(item), single.mask_logits(0), rtol=1e-4, atol=1e-4)
        ours = out.class_logits[:, item][..., [*range(columns), -1]]
        torch.testing.assert_close(ours, single.class_logits[:, 0], rtol=1e-4, atol=1e-4)
    assert (out.class_logits[:, 1, :, 1] == -1e9).all()  # the second item has one condition of two


@torch.no_grad()
def test_text_logits_are_those_of_the_full_head(model):
    batch = collate([A, C])
    features = model.encode(batch)
    spliced = model.splice(batch, features)
    assert spliced.embeds.shape[1] == 13 - 1 + 36 + 36
    assert spliced.lengths.tolist() == [13 + 71, 7 + 71]
    hidden = model.llm.model(inputs_embeds=spliced.embeds).last_hidden_state
    full = model.llm.lm_head(hidden)
    out = model(batch)
    expected = torch.stack([full[0, 13 + 71 - 2], full[1, 7 + 71 - 2]])  # one before each <SEG>
    torch.testing.assert_close(out.text_logits, expected)
    assert out.text_targets.tolist() == [SEG, SEG]
    # image tokens first, then the text behind them; the region token holds its feature
    torch.testing.assert_close(spliced.embeds[0, 1:73], features.tokens[0])
    torch.testing.assert_close(spliced.embeds[0, 73], model.llm.get_input_embeddings()(torch.tensor(30)))
    region = model.region_sampler(features.seg_tokens, batch.region_points, batch.region_image)[0]
    torch.testing.assert_close(spliced.embeds[1, 74], region)


@torch.no_grad()
def test_conditions_are_the_mean_of_projected_states(model):
    batch = collate([A, B, C])
    features = model.encode(batch)
    spliced = model.splice(batch, features)
    hidden = model.llm.model(inputs_embeds=spliced.embeds).last_hidden_state
    spans, segs = model.conditions(batch, hidden, spliced.positions)
    projected = model.phrase_projector(hidden)
    torch.testing.assert_close(spans[1], projected[0, 71 + 7 : 71 + 11].mean(0))
    torch.testing.assert_close(spans[2], projected[2, 71 + 2 : 71 + 5].mean(0))
    torch.testing.assert_close(segs, torch.stack([projected[0, 71 + 12], projected[2, 71 + 6]]))


@torch.no_grad()
def test_generation_with_a_cache_equals_reading_again(model):
    """Greedy tokens of a padded batch are the arg-max of a forward pass over prompt and answer."""
    prompts = [A, row("d", [1, IMAGE_TOKEN, 50, 51], 4)]
    answers, _ = model.generate(collate(prompts), 6, stop_ids=(10**6,))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == 6
        ids = np.concatenate([prompt.input_ids, answer])
        batch = collate([row("x", ids.tolist(), prompt.key)])
        spliced = model.splice(batch, model.encode(batch))
        logits = model.llm.lm_head(model.llm.model(inputs_embeds=spliced.embeds).last_hidden_state)
        n = len(prompt.input_ids) + 71
        assert logits[0, n - 1 : n + 5].argmax(-1).tolist() == answer
    stopped, _ = model.generate(collate(prompts), 6, stop_ids=(answers[0][2],))
    assert stopped[0] == answers[0][: answers[0].index(answers[0][2])]


@torch.no_grad()
def test_masks_come_from_the_states_of_the_generation(model):
    """The states in which an answer was written give the masks that reading it again gives, of rows of any length and
    up to the last token; nothing is read or seen twice."""
    prompts = [A, B, row("d", [1, IMAGE_TOKEN, 50, 51, 52], 4)]
    features = model.encode(collate(prompts))
    answers, hidden = model.generate(collate(prompts), 6, (10**6,), features)
    answered = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.append(prompt.input_ids, answer)
        spans, segs = np.full((2, len(ids)), -1)
        spans[[2, 3, -4, -2]] = 0, 0, 1, 1  # one in the question, one in the answer
        segs[-1:] = -1 if prompt is B else 0
        labels = np.full_like(ids, IGNORE_INDEX)
        answered.append(replace(prompt, input_ids=ids, labels=labels, span_ids=spans, seg_ids=segs))
    batch, ran = collate(answered), []
    again = model(batch)
    parts = {
        name: model.get_submodule(name) for name in ("llm.model", "seg_encoder", "vision_encoder", "pixel_decoder")
    }
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, part in parts.items()]
    ours = model(batch, features, hidden)
    torch.testing.assert_close(vars(model(batch, model.decode_pixels(features), hidden)), vars(ours))
    [hook.remove() for hook in hooks]
    assert ran == ["pixel_decoder", "pixel_decoder"]
    assert ours.class_logits.shape == (1, 2, 16, 3)
    torch.testing.assert_close(ours.class_logits, again.class_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mask_embeds, again.mask_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.mask_features, again.mask_features)


def test_pixels_are_decoded_behind_the_language_model(model):
    """So that its backward pass begins when theirs is over and what they kept is gone."""
    order = []
    layers = (model.llm.model.layers[0], model.pixel_decoder.layers[0], model.seg_encoder.layers[0])
    parts = dict(zip(("llm", "fpn", "encoder"), layers, strict=True))
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name, part in parts.items()]
    hooks += [
        part.register_full_backward_hook(lambda *_, name=name: order.append(name)) for name, part in parts.items()
    ]
    batch, criterion = collate([A, C]), Criterion(64)
    sum(criterion(model(batch), batch, criterion.count(batch, model.num_queries)).values()).backward()
    [hook.remove() for hook in hooks]
    model.zero_grad()
    assert order == ["encoder", "llm", "fpn", "fpn", "llm", "encoder"]


def test_frozen_encoders_build_no_graph_and_every_part_learns(model):
    batch, criterion = collate([A, C]), Criterion(64)
    model.seg_encoder.requires_grad_(False)
    features = model.encode(batch)
    assert features.tokens.requires_grad
    model.projector.requires_grad_(False), model.seg_projector.requires_grad_(False)
    model.vision_encoder.requires_grad_(False)
    assert not model.encode(batch).tokens.requires_grad
    model.requires_grad_(True)
    losses = criterion(model(batch), batch, criterion.count(batch, model.num_queries))
    assert losses.keys() == {"text", "cls", "mask", "dice"}
    sum(losses.values()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
    model.zero_grad()


def test_frozen_parts_let_the_same_gradient_through(model, monkeypatch):
    """Stage 2: encoders and language model learn nothing, the projectors what they would learn anyway."""
    # ZeRO-3, once used in this process, leaves a linear function behind that keeps its weight.
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    grads, sizes, batch, criterion = [], [], collate([A, C]), Criterion(64)
    for frozen in ((), ("seg_encoder", "vision_encoder", "llm")):
        other = copy.deepcopy(model).train()
        for name in frozen:
            other.get_submodule(name).requires_grad_(False)
        kept = []  # what the language model keeps for the backward pass
        other.llm.model.register_forward_pre_hook(lambda *_, kept=kept: kept.clear())
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            other.llm.model.register_forward_hook(lambda *_, kept=kept: sizes.append(sum(kept)))
            losses = criterion(other(batch), batch, criterion.count(batch, other.num_queries))
        sum(losses.values()).backward()
        grads.append({name: p.grad for name, p in other.named_parameters() if p.grad is not None})
    learned, alone = grads
    assert sizes[1] < 0.8 * sizes[0]
    assert {name.split(".")[0] for name in alone}.isdisjoint(frozen)
    torch.testing.assert_close(alone, {name: learned[name] for name in alone})


@pytest.mark.parametrize(
    "rows", [[A, C], [B], [row("chat", [1, IMAGE_TOKEN, 50, 51, SEG], 4)]], ids=["masks", "text", "chat"]
)
def test_every_training_step_gives_every_parameter_a_gradient(model, rows):
    """ZeRO-3 needs the same graph on every rank, whatever a batch holds."""
    batch, criterion = (
        collate([replace(r, seg_ids=-np.ones_like(r.seg_ids)) if len(rows) == 1 else r for r in rows]),
        Criterion(64),
    )
    model.train()
    output = model(batch)
    losses = criterion(output, batch, criterion.count(batch, model.num_queries))
    sum(losses.values()).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
    if len(rows) == 1:
        assert set(losses) == {"text"}
        assert output.idle == 0
        assert model.mask_decoder.query_features.grad.eq(0).all()
    model.zero_grad()
    model.eval()


@torch.no_grad()
def test_two_items_of_one_image_share_its_features(model):
    """A second <SEG> in the same row is a second item that reads the same image."""
    two = row("two", [1, IMAGE_TOKEN, OPEN, 31, CLOSE, SEG, 20, OPEN, 32, CLOSE, SEG], 1)
    out = model(collate([two]))
    assert out.item_image.tolist() == [0, 0]
    assert len(out.mask_features) == 1
    first = model(collate([row("one", [1, IMAGE_TOKEN, OPEN, 31, CLOSE, SEG], 1)]))
    torch.testing.assert_close(out.mask_logits(0), first.mask_logits(0), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_of_the_frame_is_zero_after_normalising(model):
    """What lies outside the image inside the frame must not matter, whatever bytes are there."""
    dirty = C.seg_pixel_values.copy()
    dirty[:, 60:] = 200
    clean, soiled = (model(collate([replace(C, seg_pixel_values=p)])) for p in (C.seg_pixel_values, dirty))
    torch.testing.assert_close(clean.mask_logits(0), soiled.mask_logits(0))


def test_recomputing_activations_changes_nothing(model):
    batch, criterion = collate([A, C]), Criterion(64)
    results = []
    for recompute in (False, True):
        other = copy.deepcopy(model).train()
        if recompute:
            for part in (other.llm, other.seg_encoder, other.vision_encoder):
                part.gradient_checkpointing_enable()
        total = sum(criterion(other(batch), batch, criterion.count(batch, other.num_queries)).values())
        total.backward()
        results.append((total, {name: p.grad for name, p in other.named_parameters()}))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    "backend, compiled, batches",
    [
        ("aot_eager", ["seg_encoder"], [[A, C]]),
        pytest.param("inductor", ["seg_encoder", "llm"], [[A, C], [A], [B]], marks=pytest.mark.slow),
    ],
    ids=["traced", "compiled"],
)
def test_compiled_modules_learn_alike(model, backend, compiled, batches, monkeypatch):
    """A training step, with activations kept and recomputed. `aot_eager` traces without making C++ code of it."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    criterion, results = Criterion(64), []
    for parts in ((), compiled):
        other = copy.deepcopy(model).train()
        other.llm.gradient_checkpointing_enable()
        compile_parts(other, parts)
        for batch in map(collate, batches):
            total = sum(criterion(other(batch), batch, criterion.count(batch, other.num_queries)).values())
            total.backward()
        results.append((total.item(), {name: p.grad for name, p in other.named_parameters()}))
    (loss, grads), (loss_compiled, grads_compiled) = results
    assert loss_compiled == pytest.approx(loss, rel=1e-5)
    assert grads.keys() == grads_compiled.keys()
    size = torch.stack([grad.norm() for grad in grads.values()]).norm()
    for name, grad in grads.items():
        assert (grad - grads_compiled[name]).norm() < 1e-5 * size, name


def test_stage_models_are_parts_of_the_whole():
    for stage, absent in (("stage1", "llm"), ("stage2", "mask_decoder")):
        part = config.build(config.load(f"configs/shapes/{stage}.py")["model"])
        assert getattr(part, absent) is None
    batch = collate([A])
    out = part(batch)  # stage 2: text only, whatever the batch asks of a decoder
    assert out.mask_embeds.numel() == 0
    assert len(out.text_logits) == 1
