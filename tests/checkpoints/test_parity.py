"""Recordings of our own, made step by step without the code that replays them, and the official ones if at hand."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from xsam.checkpoints import parity
from xsam.checkpoints.released import to_official
from xsam.data import postprocess
from xsam.data.masks import pack
from xsam.models.criterion import Criterion, Draws
from xsam.models.xsam import XSamModel
from xsam.structures import Batch, DecoderItems, ItemOutput, ModelOutput, Target, UserError

OFFICIAL = Path(__file__).parents[2] / "../shared/parity"
SIDE, C, POINTS, BLOCKS = 64, 32, 8, 2
SEG, OPEN, CLOSE, END = 40, 41, 42, 6
SIZES: dict[str, Any] = {
    "sam": {
        "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16,
        "window_size": 3, "global_attn_indexes": [1, 3], "mlp_ratio": 2.0,
    },
    "siglip": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    },
    "llm": {
        "hidden_size": C, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "type": "phi3", "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "sliding_window": 2047,
        "attention": "plain", "vocab_rows": {"stage3": 50}, "tie_word_embeddings": False,
    },
    "m2f": {
        "hidden_dim": C, "encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1,
        "num_attention_heads": 8, "num_queries": 6, "train_num_points": POINTS, "num_labels": 7, "levels": 3,
        "decoder_blocks": BLOCKS, "no_object_weight": 0.1, "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0,
    },
    "seg_select_layers_used": [2, 3, 4], "connector_hidden_dim": 16, "feature_channels": [8, 16, 32],
}  # fmt: skip
IMAGE_SIZES, SCALED = torch.tensor([[48, 40], [32, 32]]), torch.tensor([[64, 53], [64, 64]])


def rectangles() -> list[Tensor]:
    """Masks of both images, with 400, and with 256, 60 and 1 pixels."""
    masks = [torch.zeros(2, SIDE, SIDE, dtype=torch.uint8), torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)]
    masks[0][0, 3:23, 5:25] = 1
    masks[0][1, 30:50, 5:30] = 1
    masks[1][0, 8:24, 8:24] = 1
    masks[1][1, 20:30, 40:46] = 1
    masks[1][2, 50, 10] = 1
    return masks


@dataclass
class Tape:
    """Tensors of one case, with the draws in the order in which they are made."""

    entry: dict[str, Any]
    tensors: dict[str, Tensor]
    count: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(3))

    def rand(self, *shape: int) -> Tensor:
        return self._draw("rand", torch.rand(shape, generator=self.generator))

    def randperm(self, n: int) -> Tensor:
        return self._draw("randperm", torch.randperm(n, generator=self.generator))

    def randint(self, high: int, size: int = 1) -> Tensor:
        return self._draw("randint", torch.randint(high, (size,), generator=self.generator))

    def pick(self, index: int) -> None:
        self._draw("randint", torch.tensor([index]))

    def _draw(self, kind: str, value: Tensor) -> Tensor:
        self.tensors[f"rng.{self.count:03}.{kind}"] = value
        self.count += 1
        return value


@dataclass
class World:
    """A tiny model and two images, and what can be said about them before any text."""

    model: XSamModel
    pixels: Tensor
    vision_pixels: Tensor
    masks: list[Tensor]

    def embeds(self, ids: Tensor, regions: list[Tensor]) -> tuple[Tensor, list[list[int]]]:
        """Token embeddings with features in place, made token by token; and where each token went."""
        maps = self.model.seg_encoder(self.pixels[: len(ids)], [3])[0]
        vision = self.model.projector(self.model.vision_encoder(self.vision_pixels[: len(ids)]))
        image = torch.cat([vision, self.model.seg_projector(maps)], 1)
        left = iter(regions)
        rows, places = [], []
        for row, tokens in enumerate(ids.tolist()):
            parts: list[Tensor] = []
            places.append([])
            for token in tokens:
                places[-1].append(sum(map(len, parts)))
                if token == -200:
                    parts.append(image[row])
                elif token == -300:
                    parts.append(next(left)[None])
                else:
                    parts.append(self.model.llm.get_input_embeddings()(torch.tensor([token])))
            rows.append(torch.cat(parts))
        return torch.stack(rows), places

    def read(self, tape: Tape, ids: Tensor, regions: list[Tensor]) -> tuple[Tensor, list[list[int]]]:
        """Run the language model and record what it says; the last states, and where each token went."""
        embeds, places = self.embeds(ids, regions)
        out = self.model.llm(inputs_embeds=embeds, output_hidden_states=True)
        tape.tensors |= {f"llm.hidden_states.{k}": state for k, state in enumerate(out.hidden_states)}
        tape.tensors |= {"llm.logits": out.logits, "llm.inputs_embeds": embeds}
        tape.tensors["llm_projector.out"] = self.model.phrase_projector(out.hidden_states[-1])
        return out.hidden_states[-1], places

    def decode(self, tape: Tape, image: list[int], segs: Tensor, conditions: Tensor) -> ModelOutput:
        """Decode items whose candidates have all one number, and record every output."""
        maps = self.model.seg_encoder(self.pixels[: max(image) + 1], [2, 3, 4])
        features, levels = self.model.pixel_decoder(self.model.connector(maps))
        states, embeds = self.model.mask_decoder(levels, features, torch.tensor(image), segs)
        logits = self.model.classifier(states, conditions, torch.ones(conditions.shape[:2], dtype=torch.bool))
        for k in range(BLOCKS + 1):
            tape.tensors[f"decoder.intermediate_hidden_states(Q,B,C).{k}"] = states[k].transpose(0, 1)
            tape.tensors[f"decoder.class_logits_per_layer.{k}"] = logits[k]
            masks = [embeds[k, d] @ features[i].flatten(1) for d, i in enumerate(image)]
            tape.tensors[f"decoder.mask_logits_per_layer.{k}"] = torch.stack(masks).view(len(image), 6, 8, 8)
        tape.tensors["seg_embeds"] = segs[:, None]
        none = self.model.classifier.background.expand(len(image), 1, -1)
        tape.tensors["cond_embeds"] = torch.cat([conditions, none], 1)
        for _ in range(BLOCKS):
            tape.rand()
        return ModelOutput(
            text_logits=torch.zeros(0, 1), text_targets=torch.zeros(0), mask_embeds=embeds, mask_features=features,
            class_logits=logits, item_image=torch.tensor(image), idle=torch.zeros(()),
        )  # fmt: skip

    def learn(self, tape: Tape, output: ModelOutput, targets: tuple[Target, ...], text: Tensor) -> Tensor:
        """Draw the criterion's points and record losses, matches and the total's gradients."""
        items, M = len(targets), sum(len(target.index) for target in targets)
        calls = [
            (torch.cat([tape.rand(1, POINTS, 2) for _ in range(items)]), tape.rand(M, 24, 2), tape.rand(M, 2, 2))
            for _ in range(BLOCKS + 1)
        ]
        draws = Draws(*(torch.stack(points) for points in zip(*calls[1:], calls[0], strict=True)))
        empty = torch.zeros(items, dtype=torch.long)
        decoder = DecoderItems(output.item_image, empty, empty, empty[:, None], targets)
        tensors = dict.fromkeys(
            ("input_ids", "labels", "span_ids", "seg_ids", "lengths", "image_index", "pixel_values", "seg_pixel_values",
             "seg_sizes", "region_points", "region_image"), torch.zeros(1, 1),
        )  # fmt: skip
        batch = Batch(ids=(), items=decoder, **tensors)
        criterion = Criterion(POINTS)
        losses = criterion.layer_losses(output, batch, criterion.count(batch, 6), draws)
        for name, loss in losses.items():
            for k, value in enumerate(loss):
                tape.tensors[f"loss.loss_{name}" + (f"_{k}" if k < BLOCKS else "")] = value
        return self.total(tape, text, torch.stack(list(losses.values())).sum())

    def total(self, tape: Tape, text: Tensor, seg: Tensor) -> Tensor:
        tape.tensors |= {"loss.loss_llm": text, "loss.loss_seg": seg, "loss.loss": text + seg}
        return text + seg


def text_loss(tape: Tape, labels: Tensor, places: list[list[int]]) -> Tensor:
    rows = [
        F.cross_entropy(tape.tensors["llm.logits"][row, places[row][t] - 1][None], labels[row, t][None])
        for row, t in (labels != -100).nonzero().tolist()
    ]
    return torch.stack(rows).mean()


def spans(tape: Tape, ids: Tensor, places: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Projected means between each <p> and </p>, and projected states of each <SEG>, over all rows in order."""
    conditions, segs = [], []
    for row, tokens in enumerate(ids.tolist()):
        projected = tape.tensors["llm_projector.out"][row]
        starts = [t for t, token in enumerate(tokens) if token == OPEN]
        ends = [t for t, token in enumerate(tokens) if token == CLOSE]
        own = [projected[[places[row][t] for t in range(a, b + 1)]].mean(0) for a, b in zip(starts, ends, strict=True)]
        at = [projected[places[row][t]] for t, token in enumerate(tokens) if token == SEG]
        if own:
            tape.tensors[f"cond_embeds_raw.{row}"] = torch.stack(own)
        if at:
            tape.tensors[f"seg_embeds_raw.{row}"] = torch.stack(at)
        conditions += own
        segs += at
    return conditions, segs


def numbers(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Span and <SEG> number of every token."""
    span, seg = torch.full_like(ids, -1), torch.full_like(ids, -1)
    for row, tokens in enumerate(ids.tolist()):
        opened = asked = inside = 0
        for t, token in enumerate(tokens):
            if token == OPEN:
                inside, opened = 1, opened + 1
            if inside:
                span[row, t] = opened - 1
            inside &= token != CLOSE
            if token == SEG:
                seg[row, t] = asked
                asked += 1
    return span, seg


def start(world: World, ids: Tensor, answer_length: int, **entry: Any) -> Tape:
    """Inputs of a case; the last `answer_length` tokens before the padding are supervised."""
    labels = torch.full_like(ids, -100)
    for row, length in enumerate((ids != 0).sum(1).tolist()):
        labels[row, length - answer_length : length] = ids[row, length - answer_length : length]
    span, seg = numbers(ids)
    tensors = {
        "in.input_ids": ids, "in.labels": labels, "in.cond_ids": span, "in.seg_ids": seg,
        "in.pixel_values": world.vision_pixels[: len(ids)], "in.image_sizes": IMAGE_SIZES[: len(ids)],
        "in.scaled_sizes": SCALED[: len(ids)],
    }  # fmt: skip
    return Tape({"stage": 3} | entry, tensors)


def referring(world: World) -> Tape:
    """Two turns about image 0, one about image 1; every phrase is a candidate of every turn."""
    ids = torch.tensor([
        [1, -200, 9, OPEN, 10, 11, CLOSE, 7, SEG, END, 8, OPEN, 12, CLOSE, 7, SEG, END],
        [1, -200, 9, OPEN, 13, CLOSE, 7, 7, SEG, END, 0, 0, 0, 0, 0, 0, 0],
    ])  # fmt: skip
    tape = start(world, ids, 2, conditions="whole_batch")
    _, places = world.read(tape, ids, [])
    conditions, segs = spans(tape, ids, places)
    shared = torch.stack(conditions).expand(3, -1, -1)
    output = world.decode(tape, [0, 0, 1], torch.stack(segs), shared)
    del tape.tensors["cond_embeds"]  # stored once for all items
    tape.tensors["cond_embeds"] = torch.cat([torch.stack(conditions), world.model.classifier.background])[None]
    tape.tensors |= {"in.class_labels.0": torch.tensor([0, 1]), "in.class_labels.1": torch.tensor([0])}
    maps = [torch.from_numpy(pack(m.bool().numpy()).ids) for m in world.masks]
    targets = tuple(
        Target(maps[image], torch.tensor([turn]), torch.tensor([label]))
        for image, turn, label in ((0, 0, 0), (0, 1, 1), (1, 0, 2))
    )
    world.learn(tape, output, targets, text_loss(tape, tape.tensors["in.labels"], places))
    return tape


def region_points(tape: Tape, mask: Tensor) -> Tensor:
    pixels = mask.nonzero()
    n = len(pixels)
    if n > 256:
        pixels = pixels[tape.randperm(n)[:256]]
    elif n < 256:
        pixels = torch.cat([pixels, pixels[tape.randint(n, 256 - n)]])
    return pixels / SIDE


def region_feature(world: World, image: int, points: Tensor) -> Tensor:
    tokens = world.model.seg_projector(world.model.seg_encoder(world.pixels[image][None], [3])[0])
    grid = (points.flip(1) * 2 - 1)[None, None]
    sampled = F.grid_sample(tokens[0].T.view(1, C, 2, 2), grid, align_corners=True)
    return sampled[0, :, 0].max(1).values


def visual_prompts(world: World) -> Tape:
    """Slots filled from the other image, by a negative, and by nothing at all."""
    ids = torch.tensor([
        [1, -200, 9, OPEN, -300, CLOSE, 5, OPEN, -300, CLOSE, 7, SEG, END, 0, 0, 0, 0],
        [1, -200, 9, OPEN, -300, CLOSE, 5, OPEN, -300, CLOSE, 5, OPEN, -300, CLOSE, 7, SEG, END],
    ])  # fmt: skip
    tape = start(world, ids, 2, conditions="per_image")
    masks = [world.masks[0][:1], world.masks[1]]
    tape.tensors |= {f"in.vprompt_masks_u8.{i}": m for i, m in enumerate(masks)}
    tape.tensors |= {"in.sampled_labels.0": torch.tensor([7, 3]), "in.sampled_labels.1": torch.tensor([7, 9, 5])}
    tape.tensors |= {"in.class_labels.0": torch.tensor([0]), "in.class_labels.1": torch.tensor([0, 0, 1])}
    all_masks, image = torch.cat(masks), [0, 1, 1, 1]  # labels 7 | 7 7 9
    features = torch.stack(
        [region_feature(world, i, region_points(tape, m)) for i, m in zip(image, all_masks, strict=True)]
    )
    tape.pick(1)  # image 0, label 7: masks 0, 1, 2 -> 1
    tape.pick(0)  # image 0, label 3: nowhere; neither used nor present is mask 3 alone
    tape.pick(1)  # image 1, label 7: masks 0 and 2 are left -> 2
    # image 1, label 9: used up, and the label of mask 0 is present: nothing; label 5 the same
    chosen, labels = [[1, 3], [2, -1, -1]], [[7, 9], [7, -1, -1]]
    picked: list[Tensor] = []
    for i, row in enumerate(chosen):
        tape.tensors[f"vision_sampler.out.{i}"] = features[[0] if i == 0 else [1, 2, 3]]
        slots = [features[m] if m >= 0 else torch.zeros(C) for m in row]
        tape.tensors[f"vprompt.feats.{i}"] = torch.stack(slots)
        shown = [all_masks[m] if m >= 0 else torch.zeros_like(all_masks[0]) for m in row]
        tape.tensors[f"vprompt.masks_u8.{i}"] = torch.stack(shown)
        tape.tensors[f"vprompt.new_sampled_labels.{i}"] = torch.tensor(labels[i])
        picked += slots
    _, places = world.read(tape, ids, picked)
    tape.tensors["local_cond_lens"] = torch.tensor([2, 3])
    conditions, segs = spans(tape, ids, places)
    padded = torch.stack([torch.stack([*conditions[:2], torch.zeros(C)]), torch.stack(conditions[2:])])
    # Decoded one by one, without padding: its column holds any very negative value.
    parts = [Tape({}, {}), Tape({}, {})]
    single = [
        world.decode(parts[0], [0], segs[0][None], padded[:1, :2]),
        world.decode(parts[1], [1], segs[1][None], padded[1:]),
    ]
    mask = torch.tensor([[1.0, 1, 0, 1], [1, 1, 1, 1]])
    none = world.model.classifier.background[0]
    padding = torch.full((C,), 99.0)
    rows = [torch.stack([*conditions[:2], padding, none]), torch.stack([*conditions[2:], none])]
    tape.tensors["cond_embeds"] = torch.stack(rows)
    tape.tensors |= {"embed_masks": mask, "in.contiguous_labels.0": torch.tensor([3, 7])}
    logits = single[0].class_logits
    wide = torch.cat([logits[..., :2], torch.full_like(logits[..., :1], -5e8), logits[..., 2:]], -1)
    output = ModelOutput(
        text_logits=torch.zeros(0, 1), text_targets=torch.zeros(0),
        mask_embeds=torch.cat([s.mask_embeds for s in single], 1), item_image=torch.tensor([0, 1]),
        mask_features=single[1].mask_features, class_logits=torch.cat([wide, single[1].class_logits], 1), idle=torch.zeros(()),
    )  # fmt: skip
    for k, layer in enumerate(output.class_logits):
        tape.tensors[f"decoder.class_logits_per_layer.{k}"] = layer
    for _ in range(BLOCKS):
        tape.rand()
    targets = tuple(
        Target(torch.from_numpy(pack(m.bool().numpy()).ids), torch.arange(len(m)), tape.tensors[f"in.class_labels.{i}"])
        for i, m in enumerate(masks)
    )
    world.learn(tape, output, targets, text_loss(tape, tape.tensors["in.labels"], places))
    return tape


@torch.no_grad()
def generated(world: World) -> Tape:
    """A caption whose phrases replace the span of the prompt, with every post-processing; one interactive region."""
    prompt = torch.tensor([[1, -200, 9, OPEN, -300, CLOSE, 7]])
    answer = [10, OPEN, 11, CLOSE, 12, OPEN, 13, 14, CLOSE, SEG, END]
    kinds = {
        "panoptic": {"score": 0.0, "mask": 0.05, "overlap": 0.3, "stuff": [1]}, "instance": {"score": 0.0},
        "semantic": {}, "refer": {}, "visual_grounded": {"score": 0.0},
    }  # fmt: skip
    tape = start(world, prompt, 0, conditions="per_image", forced_answer_ids=answer, postprocess=kinds)
    tape.tensors |= {"in.class_labels.0": torch.tensor([0]), "in.vprompt_masks_u8.0": world.masks[0][:1]}
    feature = region_feature(world, 0, region_points(tape, world.masks[0][0]))
    ids = torch.cat([prompt, torch.tensor([answer[:-1]])], 1)
    hidden, places = world.read(tape, ids, [feature])
    for name in [n for n in tape.tensors if n.startswith(("llm.hidden", "llm.logits"))]:
        del tape.tensors[name]
    length = places[0][prompt.shape[1]]
    tape.tensors |= {"llm.inputs_embeds": tape.tensors["llm.inputs_embeds"][:, :length]}
    tape.tensors |= {"llm.generated_last_hidden": hidden, "llm.sequences": torch.tensor([answer])}
    said = ids.clone()
    said[:, : prompt.shape[1]] = 9  # the prompt's own span counts no more
    conditions, segs = spans(tape, said, places)
    output = world.decode(tape, [0], torch.stack(segs), torch.stack(conditions)[None])
    tape.tensors["embed_masks"] = torch.ones(1, 3)
    tape.tensors["out.class_queries_logits"] = output.class_logits[-1]
    full = F.interpolate(output.mask_logits(0)[None], (SIDE, SIDE), mode="bilinear", align_corners=False)
    tape.tensors["out.masks_queries_logits_upsampled[:, :1]"] = full[:, :1]
    item = ItemOutput(
        mask_logits=output.mask_logits(0), class_logits=output.class_logits[-1, 0], frame=SIDE, seg_size=(64, 53),
        image_size=(48, 40),
    )  # fmt: skip
    tape.tensors["post.pan.0.segmentation_i16"] = postprocess.panoptic(item, **kinds["panoptic"])[0].short()
    tape.tensors["post.sem.0.segmentation_i16"] = postprocess.semantic(item).short()
    tape.tensors["post.ref.0.segmentation_i16"] = torch.where(postprocess.best_mask(item)[0], 1, 255).short()
    masks, classes, scores, boxes = postprocess.instances(item, score=0.0)
    assert len(scores) > 2
    mixed = torch.randperm(len(scores), generator=tape.generator)  # stored in any order
    for name in ("ins", "vgd"):
        stored = {"classes": classes, "scores": scores, "boxes": boxes, "mask_areas": masks.sum((1, 2)).float()}
        tape.tensors |= {f"post.{name}.0.{field}": value[mixed] for field, value in stored.items()}
    painted = torch.full((48, 40), 255, dtype=torch.int16)
    for number, mask in enumerate(masks[mixed]):
        painted[mask] = number
    tape.tensors["post.vgd.0.segmentation_i16"] = painted
    return tape


def chat(world: World) -> Tape:
    """Text only, with gradients: the decoder's parts have none."""
    ids = torch.tensor([[1, -200, 9, 10, 11, 12, END], [1, -200, 8, 10, END, 0, 0]])
    tape = start(world, ids, 2, conditions="none")
    del tape.tensors["in.seg_ids"], tape.tensors["in.cond_ids"]
    _, places = world.read(tape, ids, [])
    world.model.zero_grad()
    loss = text_loss(tape, tape.tensors["in.labels"], places)
    loss.backward()
    tape.tensors |= {"loss.loss": loss, "loss.loss_llm": loss}
    return tape


CASES = {"a": referring, "b": visual_prompts, "c": generated, "d": chat}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings in the official format, with a case of every kind."""
    path = tmp_path_factory.mktemp("recordings")
    torch.manual_seed(0)
    parts = (
        "seg_encoder.x", "vision_encoder.x", "projector.x", "seg_projector.x", "phrase_projector.x", "connector.x",
        "pixel_decoder.x", "mask_decoder.x", "classifier.background",
    )  # fmt: skip
    model = parity.build(
        SIZES, dict.fromkeys(parts, torch.zeros(0)) | {"llm.model.embed_tokens.weight": torch.zeros(50, C)}
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {to_official(name): tensor for name, tensor in model.state_dict().items()}
    save_file({name: t.contiguous() for name, t in weights.items()}, path / "s3.state_dict.safetensors")
    world = World(model, torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 3, 28, 28), rectangles())
    images = {f"processed.mask_labels_u8.{i}": m for i, m in enumerate(world.masks)}
    save_file(images | {"processed.extra_pixel_values": world.pixels}, path / "s1.preprocess.safetensors")
    goldens: dict[str, Any] = {name: {"file": f"{name}.safetensors"} for name in ("s3.state_dict", "s1.preprocess")}
    for name, make in CASES.items():
        tape = make(world)
        save_file(
            {key: t.detach().clone().contiguous() for key, t in tape.tensors.items()}, path / f"{name}.safetensors"
        )
        goldens[name] = tape.entry | {"file": f"{name}.safetensors"}
    grads = {to_official(n): p.grad for n, p in model.named_parameters()}
    norms = {name: None if grad is None else float(grad.norm()) for name, grad in grads.items()}
    (path / "d.grad_norms.json").write_text(json.dumps(norms))
    save_file({n: g for n, g in grads.items() if g is not None and "projector" in n}, path / "d.grads.safetensors")
    goldens["d.grads"] = {"file": "d.grads.safetensors"}
    special = {"<SEG>": SEG, "<p>": OPEN, "</p>": CLOSE}
    index = {"goldens": goldens, "tiny_config": SIZES, "special_tokens": special}
    (path / "goldens.json").write_text(json.dumps(index))
    return path


def failing(result: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in result["tensors"].items() if not entry["passed"]}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_case_replays(folder: Path, case: str) -> None:
    result = parity.replay(folder, [case])["cases"][case]
    assert failing(result) == {}
    assert result["passed"]
    stored = load_file(folder / f"{case}.safetensors")
    assert {name for name in stored if not name.startswith(("in.", "rng."))} <= result["tensors"].keys()
    assert result["not_computed"] == []


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that changes tensors of a case and replays it."""

    def edit(case: str, **changes: Tensor) -> dict[str, Any]:
        for file in folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        tensors = load_file(tmp_path / f"{case}.safetensors")
        save_file(tensors | changes, tmp_path / f"{case}.safetensors")
        return parity.replay(tmp_path, [case])["cases"][case]

    return edit


def test_one_wrong_tensor_is_named(edited: Any, folder: Path) -> None:
    stored = load_file(folder / "a.safetensors")
    wrong = {
        "llm.logits": stored["llm.logits"] + 0.01,
        "loss.loss_dice_1": stored["loss.loss_dice_1"] * 1.001,
        "in.class_labels.9": torch.zeros(1),
        "made.up": torch.zeros(2),
        "seg_embeds_raw.0": stored["seg_embeds_raw.0"][:1],
    }
    result = edited("a", **wrong)
    assert failing(result).keys() == wrong.keys() - {"in.class_labels.9"}
    assert not result["passed"]
    assert result["tensors"]["llm.logits"]["max_abs"] == pytest.approx(0.01, rel=1e-2)
    assert result["tensors"]["made.up"]["max_abs"] is None


def test_text_after_its_end_and_padded_candidates_do_not_count(edited: Any, folder: Path) -> None:
    stored = load_file(folder / "b.safetensors")
    states = stored["llm.hidden_states.1"].clone()
    states[0, -1] = 100
    assert edited("b", **{"llm.hidden_states.1": states})["passed"]
    states[1, -1] = 100
    assert failing(edited("b", **{"llm.hidden_states.1": states})).keys() == {"llm.hidden_states.1"}


def test_a_slot_with_a_mask_that_no_image_shows_is_named(edited: Any, folder: Path) -> None:
    masks = load_file(folder / "b.safetensors")["vprompt.masks_u8.0"]
    masks[0] = 1 - masks[0]
    assert failing(edited("b", **{"vprompt.masks_u8.0": masks})).keys() >= {
        "vprompt.masks_u8.0",
        "vprompt.feats.0",
        "rng",
    }


def test_draws_must_fit_exactly(edited: Any) -> None:
    assert failing(edited("c", **{"rng.900.rand": torch.zeros(3)})).keys() == {"rng"}


def test_command_prints_and_tells_by_exit_code(folder: Path, edited: Any, tmp_path: Path, capsys: Any) -> None:
    assert parity.run(folder, None, True) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["cases"]
    assert list(report["cases"]) == list(CASES)
    entry = report["cases"]["a"]["tensors"]["loss.loss"]
    assert set(entry) == {"max_abs", "max_rel", "tol", "passed"}
    edited("d", **{"loss.loss_llm": torch.tensor(1.0)})
    capsys.readouterr()
    assert parity.run(tmp_path, "d", False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAIL  d ")
    assert [line.split()[1] for line in lines if line.startswith("  !")] == ["loss.loss_llm"]


def test_wrong_folder_or_case_is_a_user_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"goldens\.json"):
        parity.run(tmp_path, None, False)
    for name in ("z", "s3.state_dict"):
        with pytest.raises(UserError, match="its cases are a, b, c, d"):
            parity.run(folder, name, False)
    (tmp_path / "goldens.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        parity.run(tmp_path, None, False)


def test_official_recordings_replay() -> None:
    if not (OFFICIAL / "goldens.json").is_file():
        pytest.skip("no recordings here")
    cases = parity.Recording(OFFICIAL).cases
    report = parity.replay(OFFICIAL, ["s1.preprocess", *cases])["cases"]
    assert [name for result in report.values() for name in failing(result)] == []
    dead = {"sam.last_hidden_state", "llm.attention_mask", "siglip.hidden_states.3"}
    assert {name for result in report.values() for name in result["not_computed"]} <= dead
