"""Replay recorded tensors of the official program, and compare tensor by tensor.

A folder of recordings has `goldens.json`, and safetensors of weights and of cases; all under official names, at
tiny sizes, in fp32. A case becomes a `Batch`, its recorded random draws go where ours would be drawn, and every
tensor that was stored is compared. Nothing depends on what a case is called: what is there decides.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import postprocess
from ..data.images import fit_frame
from ..data.masks import pack, pad_ids, resize_ids, unpack
from ..models.connector import Connector
from ..models.criterion import Criterion, Draws
from ..models.encoders import SamEncoder, SiglipEncoder
from ..models.language import causal_lm
from ..models.mask_decoder import MaskDecoder
from ..models.mask_head import ClosedSetClassifier, ConditionClassifier
from ..models.matcher import Matcher, Matches
from ..models.pixel_decoder import PixelDecoder
from ..models.projector import Projector
from ..models.xsam import ImageFeatures, XSamModel, normalize
from ..structures import (
    IGNORE_INDEX,
    Batch,
    DecoderItems,
    ItemOutput,
    ModelOutput,
    SegmentMap,
    Target,
    UserError,
)
from .loading import read_tensors
from .released import to_official, translate

Report = dict[str, Any]

TOLERANCE = 1e-4  # of max(1, largest recorded value); of the value itself for a loss
PIXELS = 5e-4  # share of the pixels of a mask or an id map that may differ
GRADIENT = 1e-3  # of the norm of a gradient, unless that is below 1e-5 of the global norm; then 1e-6 absolute
REGION_POINTS = 256


class Recording:
    """A folder of recordings. Raises UserError where a file is missing or damaged, or an entry is unknown."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = self._json("goldens.json") or {}
        if not {"goldens", "tiny_config", "special_tokens"} <= index.keys():
            raise UserError(f"{folder / 'goldens.json'}: missing, or no index of recorded tensors; give their folder")
        self.entries: dict[str, Any] = index["goldens"]
        self.sizes: dict[str, Any] = index["tiny_config"]
        self.special: dict[str, int] = index["special_tokens"]
        self.cases = tuple(
            name
            for name, entry in self.entries.items()
            if "conditions" in entry or "raw_image.0" in entry.get("tensors", ())  # images alone: preprocessing
        )
        self.model = lru_cache(self._model)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What one entry of `goldens.json` stores."""
        if name not in self.entries:
            raise self.unknown(name)
        return read_tensors(self.folder / self.entries[name]["file"])

    def gradients(self, case: str) -> tuple[dict[str, float | None], dict[str, Tensor]]:
        """Norms of the gradients, None = the parameter had none, and some of the gradients; empty if not recorded."""
        name = f"{case}.grads"
        return self._json(f"{case}.grad_norms.json") or {}, self.tensors(name) if name in self.entries else {}

    def unknown(self, name: str) -> UserError:
        cases = ", ".join(self.cases)
        return UserError(f"{self.folder / 'goldens.json'}: has no case {name!r}; its cases are {cases}")

    def _json(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text()) if path.is_file() else None
        except ValueError as error:
            raise UserError(f"{path}: not valid JSON ({error}); the file is damaged") from None

    def _model(self, stage: int) -> XSamModel:
        weights = self.tensors("s3.state_dict")
        if listed := self._json(f"s{stage}.keys.json"):
            names = listed if isinstance(listed, list) else listed["all"]
            weights = {name: weights[name] for name in names if name in weights}
        if (extra := f"s{stage}.state_dict_extra") in self.entries:
            weights |= self.tensors(extra)
        ours = {new: weights[name] for name, new in translate(weights).items() if new is not None}
        model = build(self.sizes, ours).eval()
        model.load_state_dict(ours)
        return model


def build(sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> XSamModel:
    """The model that a `tiny_config` describes, with the parts that the weights (our names) are for."""
    sam, siglip, llm, m2f = (sizes[key] for key in ("sam", "siglip", "llm", "m2f"))
    C, width, pyramid = m2f["hidden_dim"], llm["hidden_size"], sizes["feature_channels"]
    heads, open_set = m2f["num_attention_heads"], "classifier.background" in weights
    own = {key: llm[key] for key in llm.keys() - {"type", "attention", "vocab_rows"}}
    makers: dict[str, Callable[[], nn.Module]] = {
        "seg_encoder": lambda: SamEncoder(
            image_size=sam["image_size"], patch_size=sam["patch_size"], channels=sam["hidden_size"],
            depth=sam["num_hidden_layers"], num_heads=sam["num_attention_heads"], mlp_ratio=sam["mlp_ratio"],
            window_size=sam["window_size"], global_blocks=sam["global_attn_indexes"],
        ),
        "vision_encoder": lambda: SiglipEncoder(
            image_size=siglip["image_size"], patch_size=siglip["patch_size"], channels=siglip["hidden_size"],
            depth=siglip["num_hidden_layers"], num_heads=siglip["num_attention_heads"],
            mlp_channels=siglip["intermediate_size"],
        ),
        "projector": lambda: Projector(siglip["hidden_size"], width),
        "seg_projector": lambda: Projector(sam["hidden_size"], width, unshuffle=True),
        "llm": lambda: causal_lm(
            model_type=llm["type"], vocab_size=len(weights["llm.model.embed_tokens.weight"]),
            pad_token_id=None, eos_token_id=None, **own,
        ),
        "phrase_projector": lambda: Projector(width, C),
        "connector": lambda: Connector(sam["hidden_size"], sizes["connector_hidden_dim"], pyramid),
        "pixel_decoder": lambda: PixelDecoder(
            pyramid, C, m2f["encoder_layers"], heads, m2f["encoder_feedforward_dim"]
        ),
        "mask_decoder": lambda: MaskDecoder(
            C, m2f["num_queries"], m2f["decoder_blocks"], heads, m2f["dim_feedforward"], m2f["levels"]
        ),
        "classifier": lambda: ConditionClassifier(C) if open_set else ClosedSetClassifier(C, m2f["num_labels"]),
    }  # fmt: skip
    present = {name.split(".")[0] for name in weights}
    parts: dict[str, Any] = {part: make() for part, make in makers.items() if part in present}
    return XSamModel(levels=sizes["seg_select_layers_used"], seg_level=sam["num_hidden_layers"] - 1, **parts)


@dataclass(frozen=True)
class _Case:
    conditions: str  # closed_set, none, per_image or whole_batch
    answer: tuple[int, ...]  # the tokens that generation was forced to give; empty if nothing was generated
    postprocess: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    pixels: Tensor  # float[I, 3, S, S] for the segmentation encoder
    masks: tuple[Tensor, ...]  # uint8[n, S, S] of each image, at least as many as it has targets
    special: Mapping[str, int]

    @property
    def images(self) -> int:
        return len(self.tensors["in.image_sizes"])

    def per_image(self, name: str) -> list[Tensor]:
        """`name.0`, `name.1`, .. of all images; an image without has an empty tensor."""
        return [self.tensors.get(f"{name}.{i}", torch.zeros(0, dtype=torch.long)) for i in range(self.images)]


class _Recorded:
    """The recorded draws in the order they were made. One that does not fit is counted and replaced by zeros."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        names = sorted((n for n in tensors if n.startswith("rng.")), key=lambda n: int(n.split(".")[1]))
        self.draws = [(name.split(".")[2], tensors[name]) for name in names]
        self.at = self.wrong = 0

    def next_is(self, kind: str, *shape: int) -> bool:
        if self.at == len(self.draws):
            return False
        drawn, value = self.draws[self.at]
        return drawn == kind and value.shape == shape

    def take(self, kind: str, *shape: int) -> Tensor:
        if not self.next_is(kind, *shape):
            self.wrong += math.prod(shape) > 0  # nothing to draw need not be recorded
            return torch.zeros(shape, dtype=torch.float32 if kind == "rand" else torch.long)
        self.at += 1
        return self.draws[self.at - 1][1]

    @property
    def left(self) -> int:
        """Draws that were due and not recorded, plus those recorded and not used."""
        return self.wrong + len(self.draws) - self.at


@dataclass(frozen=True)
class _Regions:
    points: Tensor  # float[M, P, 2] of every mask of the batch
    image: Tensor  # int64[M]
    masks: Tensor  # uint8[M, S, S]
    chosen: list[list[int]]  # of each image, the mask that fills each of its slots, -1 = none
    labels: list[list[int]]  # the label each slot got, -1 = none


def _regions(case: _Case, draws: _Recorded) -> _Regions:
    """Points of every mask, then a mask for every slot."""
    masks = case.per_image("in.vprompt_masks_u8")
    image = [i for i, own in enumerate(masks) for _ in own]
    points = [_region_points(mask, draws) for own in masks for mask in own]
    picks = []
    while draws.next_is("randint", 1):
        picks.append(int(draws.take("randint", 1)))
    side = case.pixels.shape[-1]
    shown = torch.cat([own.view(-1, side, side) for own in masks])
    slots = [labels.tolist() for labels in case.per_image("in.sampled_labels")]
    if any(slots):
        classes = [indices.tolist() for indices in case.per_image("in.class_labels")]
        labels = [slots[i][c] for i, own in enumerate(masks) for c in classes[i][: len(own)]]
        readings = [_fill(slots, labels, image, picks, *reading) for reading in READINGS]
        chosen, wrong = next((r for r in readings if not r[1] and _agrees(case, shown, r[0])), readings[0])
        draws.wrong += wrong
    else:  # every mask is a slot of its own
        labels = list(range(len(image)))
        chosen = [[m for m in labels if image[m] == i] for i in range(case.images)]
    return _Regions(
        points=torch.stack(points) if points else torch.zeros(0, REGION_POINTS, 2),
        image=torch.tensor(image, dtype=torch.long),
        masks=shown,
        chosen=chosen,
        labels=[[labels[m] if m >= 0 else -1 for m in row] for row in chosen],
    )


# A slot takes an instance of its label that is not yet used, else one whose label is neither used nor present in
# this image, else none. That leaves open: is a used instance used for the whole batch or for its image, is a used
# label, and do the labels of this image's other slots count as present. The first reading is the likely one; where
# the recording shows which masks were taken, it decides.
READINGS = ((True, False, False), *((a, b, c) for c in (False, True) for a in (True, False) for b in (False, True)))


def _fill(
    slots: Sequence[Sequence[int]], labels: Sequence[int], image: Sequence[int], picks: Sequence[int],
    instances_of_batch: bool, labels_of_batch: bool, slots_present: bool,
) -> tuple[list[list[int]], int]:  # fmt: skip
    """The mask of every slot, -1 = none, and how many of the recorded `picks` among candidates do not fit."""
    chosen: list[list[int]] = []
    made = wrong = 0
    for i, wanted in enumerate(slots):
        row: list[int] = []
        chosen.append(row)
        present = set(wanted) if slots_present else {labels[m] for m in range(len(image)) if image[m] == i}
        for label in wanted:
            everywhere = {m for taken in chosen for m in taken}
            used = everywhere if instances_of_batch else set(row)
            known = present | {labels[m] for m in (everywhere if labels_of_batch else row) if m >= 0}
            free = [m for m in range(len(image)) if m not in used]
            candidates = [m for m in free if labels[m] == label] or [m for m in free if labels[m] not in known]
            pick = picks[made] if candidates and made < len(picks) else 0
            made += bool(candidates)
            wrong += bool(candidates) and pick >= len(candidates)
            row.append(candidates[min(pick, len(candidates) - 1)] if candidates else -1)
    return chosen, wrong + abs(made - len(picks))


def _agrees(case: _Case, masks: Tensor, chosen: Sequence[Sequence[int]]) -> bool:
    """Whether these masks were taken, as far as the recording says."""
    recorded = case.per_image("vprompt.masks_u8")
    return all(
        (mask == masks[m]).all() if m >= 0 else not mask.any()
        for row, stored in zip(chosen, recorded, strict=True)
        for m, mask in zip(row, stored, strict=False)
    )


def _region_points(mask: Tensor, draws: _Recorded) -> Tensor:
    """float[P, 2], (x, y) over the frame of P pixels of a mask [S, S]: a subset, or all and repeats."""
    pixels, P = mask.nonzero(), REGION_POINTS
    n = len(pixels)
    if n > P:
        pixels = pixels[draws.take("randperm", n)[:P]]
    elif n < P:
        pixels = torch.cat([pixels, pixels[draws.take("randint", P - n)]])
    return (pixels / torch.tensor(mask.shape)).flip(1)


def _batch(case: _Case, regions: _Regions) -> Batch:
    """A case as a batch. After forced generation: the prompt, then the answer without its last token."""
    tensors, B = case.tensors, case.images
    ids = tensors.get("in.input_ids", torch.zeros(B, 0, dtype=torch.long))
    none = torch.full_like(ids, -1)
    labels = tensors.get("in.labels", torch.full_like(ids, IGNORE_INDEX))
    spans, segs = tensors.get("in.cond_ids", none), tensors.get("in.seg_ids", none)
    padding = (ids != 0).flip(1).cumsum(1).eq(0).sum(1)
    if case.answer:
        answer = torch.tensor([case.answer[:-1]])
        opened, closed, seg = (answer == case.special[token] for token in ("<p>", "</p>", "<SEG>"))
        inside = (opened.cumsum(1) > closed.cumsum(1)) | closed
        said = torch.where(inside, opened.cumsum(1) - 1, -1)
        ids = torch.cat([ids, answer], 1)
        labels = torch.full_like(ids, IGNORE_INDEX)
        spans = torch.cat([none if opened.any() else spans, said], 1)
        segs = torch.cat([segs, torch.where(seg, seg.cumsum(1) - 1, -1)], 1)
    slots = [(i, m) for i, row in enumerate(regions.chosen) for m in row]
    nowhere = torch.full((REGION_POINTS, 2), -1.0)  # outside of every map: the region sampler reads zeros
    points = [regions.points[m] if m >= 0 else nowhere for _, m in slots]
    shown = [int(regions.image[m]) if m >= 0 else i for i, m in slots]
    return Batch(
        ids=tuple(map(str, range(B))),
        input_ids=ids,
        labels=labels,
        span_ids=spans,
        seg_ids=segs,
        lengths=ids.shape[1] - padding,
        image_index=torch.arange(B),
        pixel_values=tensors.get("in.pixel_values", torch.zeros(B, 3, 0, 0)),
        seg_pixel_values=case.pixels,
        seg_sizes=tensors["in.scaled_sizes"],
        region_points=torch.stack(points) if points else regions.points,
        region_image=torch.tensor(shown, dtype=torch.long),
        items=_items(case, _counts(spans), _counts(segs)),
    )


def _counts(ids: Tensor) -> list[int]:
    """How many different numbers 0, 1, .. stand in each row of int64[B, T]."""
    return (F.pad(ids, (0, 1), value=-1).amax(1) + 1).tolist()


def _items(case: _Case, spans: Sequence[int], segs: Sequence[int]) -> DecoderItems:
    """Which `<SEG>` chooses from which spans, and what it should find, by the case's `conditions`.

    Args:
        spans, segs: how many spans and `<SEG>` each row has.
    """
    shared = case.conditions == "whole_batch"
    rows: list[tuple[int, int]] = []  # image, number of its <SEG>
    if case.conditions == "closed_set":
        rows = [(i, -1) for i in range(case.images)]
    elif shared:
        rows = [(i, turn) for i in range(case.images) for turn in range(segs[i])]
    elif case.conditions == "per_image" and all(spans) and all(count == 1 for count in segs):
        rows = [(i, 0) for i in range(case.images)]
    first = [sum(spans[:i]) for i in range(len(spans) + 1)]
    labels = case.per_image("in.class_labels")
    candidates, targets = [], []
    for i, turn in rows:
        masks = case.masks[i][: len(labels[i])]
        ids = torch.from_numpy(pack(masks.bool().numpy()).ids)
        index = torch.arange(len(masks))
        if shared:
            index = index[turn : turn + 1]
        candidates.append(torch.arange(first[-1]) if shared else torch.arange(first[i], first[i + 1]))
        targets.append(Target(ids, index, labels[i][index] + first[i] * shared))
    image, seg = torch.tensor(rows, dtype=torch.long).view(-1, 2).unbind(1)
    padded = torch.full((len(rows), max(map(len, candidates), default=0)), -1)
    for row, own in zip(padded, candidates, strict=True):
        row[: len(own)] = own
    return DecoderItems(image, image, seg, padded, tuple(targets))


class _Call(NamedTuple):
    inputs: tuple[Any, ...]
    output: Any


def _input(call: _Call) -> Any:
    return call.inputs[0]


def _output(call: _Call) -> Any:
    return call.output[0] if isinstance(call.output, tuple) else call.output


def _states(call: _Call) -> Any:
    return call.output[0].transpose(1, 2)


# Recorded name, the module of ours that makes it, which of its tensors and in which layout. `{k}` counts modules,
# or the members of a sequence; `{next}` is k + 1. The model knows nothing of this.
ACTIVATIONS: tuple[tuple[str, str, Callable[[_Call], Any]], ...] = (
    ("sam.hidden_states.0", "seg_encoder.layers.0", _input),
    ("sam.hidden_states.{next}", "seg_encoder.layers.{k}", _output),
    ("siglip.hidden_states.0", "vision_encoder.encoder.layers.0", _input),
    ("siglip.hidden_states.{next}", "vision_encoder.encoder.layers.{k}", _output),
    ("visual_projector.out", "projector", _output),
    ("seg_projector.out", "seg_projector", _output),
    ("llm.inputs_embeds", "llm.model.layers.0", _input),
    ("llm.hidden_states.{k}", "llm.model.layers.{k}", _input),
    ("llm.generated_last_hidden", "llm.model.norm", _output),
    ("connector.out.{k}", "connector", _output),
    ("pixel_decoder.enc.{k}.msdeform_attn", "pixel_decoder.layers.{k}.self_attn", _output),
    ("pixel_decoder.mask_features", "pixel_decoder", _output),
    ("pixel_decoder.multi_scale_features.{k}", "pixel_decoder", lambda call: call.output[1]),
    ("decoder.intermediate_hidden_states(Q,B,C).{k}", "mask_decoder", _states),
    ("decoder.class_logits_per_layer.{k}", "classifier", _output),
)


@dataclass(frozen=True)
class _Run:
    model: XSamModel
    case: _Case
    regions: _Regions
    batch: Batch
    features: ImageFeatures
    output: ModelOutput
    calls: Mapping[str, _Call]  # of every module that ran


def _run(model: XSamModel, case: _Case, regions: _Regions) -> _Run:
    calls: dict[str, _Call] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = _Call(inputs, output)

    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in model.named_modules()]
    batch = _batch(case, regions)
    features = model.encode(batch)
    output = model(batch, features)
    for hook in hooks:
        hook.remove()
    return _Run(model, case, regions, batch, features, output, calls)


def _activations(run: _Run) -> dict[str, Tensor]:
    """Recorded name -> our tensor, for what stands in the table."""
    values: dict[str, Tensor] = {}
    for recorded, module, pick in ACTIVATIONS:
        if "{k}" in module:
            for k in range(len(run.calls)):
                if call := run.calls.get(module.format(k=k)):
                    values[recorded.format(k=k, next=k + 1)] = pick(call)
        elif call := run.calls.get(module):
            picked = pick(call)
            several = enumerate(picked) if "{k}" in recorded else [(0, picked)]
            values |= {recorded.format(k=k): value for k, value in several}
    return values


def _text(run: _Run) -> dict[str, Tensor]:
    """Tensors of the language model's side, most of which the model never makes as a whole."""
    model, batch = run.model, run.batch
    if model.llm is None or not batch.input_ids.shape[1]:
        return {}
    positions = model.splice(batch, run.features).positions
    hidden = run.calls["llm.model.norm"].output
    labels = torch.full(hidden.shape[:2], IGNORE_INDEX).scatter(1, positions, batch.labels)
    values = {
        f"llm.hidden_states.{model.llm.config.num_hidden_layers}": hidden,
        "llm.logits": model.llm.lm_head(hidden),
        "llm.labels": labels,
        "llm.position_ids": torch.arange(hidden.shape[1]).expand(len(hidden), -1),
        "llm.sequences": torch.tensor([run.case.answer]),
    }
    if model.phrase_projector is None or not isinstance(model.classifier, ConditionClassifier):
        return values
    values["llm_projector.out"] = projected = model.phrase_projector(hidden)
    counts = _counts(batch.span_ids)
    spans, segs = model.conditions(batch, hidden, positions)
    values["local_cond_lens"] = torch.tensor(counts)
    for i, own in enumerate(spans.split(counts)):
        values[f"cond_embeds_raw.{i}"] = own
        values[f"seg_embeds_raw.{i}"] = projected[i, positions[i, batch.seg_ids[i] >= 0]]
    if len(batch.items):
        candidates = batch.items.candidates
        background = model.classifier.background.expand(len(candidates), -1, -1)
        values["cond_embeds"] = torch.cat([spans[candidates.clamp(min=0)], background], 1)
        values["embed_masks"] = F.pad((candidates >= 0).float(), (0, 1), value=1)
        values["seg_embeds"] = segs[:, None]
    return values


def _masks(run: _Run) -> dict[str, Tensor]:
    """Mask logits of every output, and the final output as the official program hands it out."""
    output, side = run.output, run.case.pixels.shape[-1]
    if not len(output.item_image) or not len(output.mask_embeds):
        return {}
    logits = torch.einsum("ldqc,dchw->ldqhw", output.mask_embeds, output.mask_features[output.item_image])
    values = {f"decoder.mask_logits_per_layer.{k}": layer for k, layer in enumerate(logits)}
    first = F.interpolate(logits[-1, :, :1], (side, side), mode="bilinear", align_corners=False)
    return values | {
        "out.class_queries_logits": output.class_logits[-1],
        "out.masks_queries_logits_upsampled[:, :1]": first,  # of the first query: more was not stored
    }


def _prompts(run: _Run) -> dict[str, Tensor]:
    """Features and masks of the visual prompts, of all and of those chosen for the slots."""
    regions = run.regions
    if not len(regions.image):
        return {}
    features = run.model.region_sampler(run.features.seg_tokens, regions.points, regions.image)
    values: dict[str, Tensor] = {}
    for i, row in enumerate(regions.chosen):
        slots = torch.tensor(row, dtype=torch.long)
        found, slots = slots >= 0, slots.clamp(min=0)
        values[f"vision_sampler.out.{i}"] = features[regions.image == i]
        values[f"vprompt.feats.{i}"] = features[slots] * found[:, None]
        values[f"vprompt.masks_u8.{i}"] = regions.masks[slots] * found[:, None, None]
        values[f"vprompt.new_sampled_labels.{i}"] = torch.tensor(regions.labels[i])
    return values


class _Matcher(Matcher):
    """Keeps what it assigned."""

    def assign(self, costs: Sequence[Tensor]) -> list[Matches]:
        self.matches = super().assign(costs)
        return self.matches


def _losses(run: _Run, sizes: Mapping[str, Any], recorded: _Recorded) -> dict[str, Tensor]:
    """Weighted losses and matches under the recorded points. The final output is call 0 and has no suffix, output
    K is call K + 1 and has the suffix _K."""
    weights = (sizes["class_weight"], sizes["mask_weight"], sizes["dice_weight"])
    criterion = Criterion(sizes["train_num_points"], sizes["no_object_weight"], *weights)
    criterion.matcher = matcher = _Matcher(*weights)
    counts = criterion.count(run.batch, run.model.num_queries)
    values: dict[str, Tensor] = {}
    total = torch.zeros(())
    if run.model.llm is not None:
        values["loss.loss_llm"] = total = criterion.text_loss(run.output, counts)
    if len(run.batch.items):
        draws = _points(run, criterion.num_points, recorded)
        layers = criterion.layer_losses(run.output, run.batch, counts, draws)
        final = len(run.output.mask_embeds) - 1
        for output in range(final + 1):
            suffix, call = ("", 0) if output == final else (f"_{output}", output + 1)
            values |= {f"loss.loss_{name}{suffix}": loss[output] for name, loss in layers.items()}
            for item, match in enumerate(matcher.matches):
                values[f"matcher.call{call}.b{item}.query_idx"] = match.queries[output]
                values[f"matcher.call{call}.b{item}.label_idx"] = match.targets[output]
        values["loss.loss_seg"] = torch.stack([loss.sum() for loss in layers.values()]).sum()
        total = total + values["loss.loss_seg"]
    return values | {"loss.loss": total}


def _points(run: _Run, P: int, recorded: _Recorded) -> Draws:
    """The criterion's points: for the final output first, then for outputs 0, 1, .."""
    outputs, Q = len(run.output.mask_embeds), run.model.num_queries
    M = sum(min(len(target.index), Q) for target in run.batch.items.targets)
    matcher, oversampled, uniform = [], [], []
    for _ in range(outputs):
        matcher.append(torch.cat([recorded.take("rand", 1, P, 2) for _ in run.batch.items.targets]))
        oversampled.append(recorded.take("rand", M, 3 * P, 2))
        uniform.append(recorded.take("rand", M, P - 3 * P // 4, 2))
    return Draws(*(torch.stack([*p[1:], p[0]]) for p in (matcher, oversampled, uniform)))


def _freeze(model: XSamModel, learned: Collection[str]) -> None:
    """Leave gradients to the parts that had some (official names); the others were frozen, or had no use."""
    learning = {ours.split(".")[0] for ours in translate(learned).values() if ours}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in learning)
        parameter.grad = None


def _gradients(model: XSamModel, norms: Mapping[str, float | None], grads: Mapping[str, Tensor]) -> Report:
    """Compare gradients by the norm of the difference, and all norms. Call after the backward pass."""
    made = {to_official(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = {name: norm or 0.0 for name, norm in norms.items()}
    expected |= {name: float(grad.norm()) for name, grad in grads.items()}
    small = 1e-5 * math.hypot(*expected.values())
    errors = {
        f"grads.{name}": float((made[name] - grad).norm()) if name in made else expected[name]
        for name, grad in grads.items()
    }
    for name, norm in norms.items():
        if name in made or norm is not None:
            errors[f"grad_norms.{name}"] = abs((float(made[name].norm()) if name in made else 0) - expected[name])
    report = {}
    for key, error in errors.items():
        norm = expected[key.split(".", 1)[1]]
        report[key] = _entry(error, norm, GRADIENT * norm if norm > small else 1e-6)
    return report


def _posted(run: _Run) -> dict[str, Tensor]:
    """What the official post-processing stored, from our own."""
    tensors = run.case.tensors
    values: dict[str, Tensor] = {}
    for item, image in enumerate(run.output.item_image.tolist()):
        h, w = tensors["in.scaled_sizes"][image].tolist()
        height, width = tensors["in.image_sizes"][image].tolist()
        answer = ItemOutput(
            mask_logits=run.output.mask_logits(item),
            class_logits=run.output.class_logits[-1, item],
            frame=run.case.pixels.shape[-1],
            seg_size=(h, w),
            image_size=(height, width),
        )
        for kind, options in run.case.postprocess.items():
            if kind == "panoptic":
                for each in options if isinstance(options, list) else [options]:
                    name = f"pan@{each['score']}" if isinstance(options, list) else "pan"
                    values[f"post.{name}.{item}.segmentation_i16"] = postprocess.panoptic(answer, **each)[0]
            elif kind == "semantic":
                values[f"post.sem.{item}.segmentation_i16"] = postprocess.semantic(answer)
            elif kind == "refer":
                best, _ = postprocess.best_mask(answer)
                values[f"post.ref.{item}.segmentation_i16"] = torch.where(best, 1, 255)
            elif kind in ("instance", "visual_grounded"):
                name = f"post.{'ins' if kind == 'instance' else 'vgd'}.{item}."
                values |= _instances(answer, options["score"], name, tensors)
    return values


def _instances(answer: ItemOutput, score: float, name: str, recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Instances from the best score down, and their map, painted in output order: the recorded one, if it has as
    many."""
    masks, classes, scores, boxes = postprocess.instances(answer, score=score)
    best = scores.argsort(descending=True)
    order = recorded.get(f"{name}scores", scores)
    rank = (order if len(order) == len(scores) else scores).argsort(descending=True).argsort()
    canvas = torch.full(answer.image_size, 255)
    for number, mask in enumerate(masks[best][rank]):
        canvas[mask] = number
    values = {"boxes": boxes, "classes": classes, "scores": scores, "mask_areas": masks.flatten(1).sum(1).float()}
    return {name + field: value[best] for field, value in values.items()} | {f"{name}segmentation_i16": canvas}


def _sorted_instances(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The recorded tensors with instances from the best score down."""
    values = dict(tensors)
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(post\.(?:ins|vgd)\.\d+\.)(boxes|classes|scores|mask_areas)", name):
            values[name] = tensor[tensors[f"{match[1]}scores"].argsort(descending=True)]
    return values


def _entry(error: float | None, largest: float, tolerance: float) -> Report:
    """How far off a tensor is; None if it was not made, or has another shape."""
    if error is None or not math.isfinite(error):
        return {"max_abs": None, "max_rel": None, "tol": tolerance, "passed": False}
    relative = error / largest if largest else float(error > 0)
    return {"max_abs": error, "max_rel": relative, "tol": tolerance, "passed": error <= tolerance}


def _compare(name: str, ours: Tensor, recorded: Tensor, where: Tensor) -> Report:
    """Compare one tensor where `where`, bool of its leading axes, is true. For masks and id maps the error is the
    share of pixels that differ."""
    exact = not recorded.is_floating_point()
    if ours.numel() == recorded.numel():
        ours = ours.reshape(recorded.shape)  # but for axes of length one
    elif ours.shape[1:] == recorded.shape[1:] and torch.equal(ours, ours[:1].expand_as(ours)):
        ours = ours[:1].expand_as(recorded)  # stored once for all items
    else:
        return _entry(None, 0, 0)
    keep = where.reshape((*where.shape, *[1] * (recorded.dim() - where.dim()))).expand_as(recorded)
    ours, recorded = ours.detach()[keep].double(), recorded[keep].double()
    if not len(recorded):
        return _entry(0, 0, 0)
    if name.endswith("segmentation_i16") or "masks_u8." in name:
        return _entry(float((ours != recorded).double().mean()), 1, PIXELS)
    largest, error = float(recorded.abs().max()), float((ours - recorded).abs().max())
    if exact:
        return _entry(error, largest, 0)
    return _entry(error, largest, TOLERANCE * (largest if name.startswith("loss.") else max(1, largest)))


def _where(name: str, recorded: Tensor, run: _Run) -> Tensor:
    """Where a tensor counts: text before its padding, conditions and class logits without theirs."""
    mask = run.case.tensors.get("embed_masks")
    if mask is not None and name == "cond_embeds":
        return mask.bool()
    if mask is not None and name.startswith(("decoder.class_logits", "out.class_queries")):
        return mask.bool()[:, None].expand_as(recorded)
    if name.startswith("llm") and name != "llm.sequences":
        lengths = run.model.splice(run.batch, run.features).lengths
        return torch.arange(recorded.shape[1]) < lengths[:, None]
    return torch.ones((), dtype=torch.bool)


def _compared(run: _Run, values: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> Iterator[tuple[str, Report]]:
    """An entry for every stored tensor; an empty one for what nothing of ours makes, on purpose: SAM's neck,
    SigLIP's last layer, an all-true mask."""
    dead_layer = f"siglip.hidden_states.{sizes['siglip']['num_hidden_layers']}"
    for name, recorded in _sorted_instances(run.case.tensors).items():
        if name.startswith(("in.", "rng.")):
            continue
        if name not in values:
            dead = name in ("sam.last_hidden_state", "llm.attention_mask", dead_layer)
            yield name, {} if dead else _entry(None, 0, 0)
            continue
        ours = values[name]
        if run.case.answer and name.startswith("llm") and ours.dim() == 3:
            ours = ours[:, : recorded.shape[1]]  # some are of the prompt alone
        yield name, _compare(name, ours, recorded, _where(name, recorded, run))


def _replay(recording: Recording, name: str) -> Report:
    tensors = recording.tensors(name)
    entry = recording.entries[name]
    if "conditions" not in entry:
        if "raw_image.0" not in tensors:
            raise recording.unknown(name)
        return _preprocess(recording, tensors)
    given, B = recording.tensors("s1.preprocess"), len(tensors["in.image_sizes"])
    case = _Case(
        conditions=entry["conditions"],
        answer=tuple(entry.get("forced_answer_ids", ())),
        postprocess=entry.get("postprocess", {}),
        tensors=tensors,
        pixels=given["processed.extra_pixel_values"][:B],
        masks=tuple(given[f"processed.mask_labels_u8.{i}"] for i in range(B)),
        special=recording.special,
    )
    model, draws = recording.model(entry["stage"]), _Recorded(tensors)
    norms, grads = recording.gradients(name)
    _freeze(model, {name for name, norm in norms.items() if norm is not None} | grads.keys())
    with torch.set_grad_enabled(bool(norms or grads)):
        run = _run(model, case, _regions(case, draws))
        blocks = len(run.output.mask_embeds) - 1 if draws.draws else 0
        for _ in range(blocks):
            draws.take("rand")  # layer drop, at rate 0
        losses = _losses(run, recording.sizes["m2f"], draws) if "loss.loss" in tensors else {}
    with torch.no_grad():
        values = _activations(run) | _text(run) | _masks(run) | _prompts(run) | losses | _posted(run)
        compared = dict(_compared(run, values, recording.sizes))
    report = {key: result for key, result in compared.items() if result}
    if draws.draws:
        report["rng"] = _entry(draws.left, 0, 0)
    if norms or grads:
        losses["loss.loss"].backward()
        report |= _gradients(model, norms, grads)
    return _result(report, [key for key, result in compared.items() if not result])


def _result(tensors: Report, not_computed: Sequence[str] = ()) -> Report:
    passed = all(entry["passed"] for entry in tensors.values())
    return {"passed": passed, "tensors": tensors, "not_computed": list(not_computed)}


def _preprocess(recording: Recording, tensors: Mapping[str, Tensor]) -> Report:
    """Images and masks as files hold them -> the segmentation frame."""
    encoder = recording.model(3).seg_encoder
    side = recording.sizes["sam"]["image_size"]
    report, everywhere = {}, torch.ones((), dtype=torch.bool)
    frames = []
    for i in range(sum(name.startswith("raw_image.") for name in tensors)):
        frame, size = fit_frame(tensors[f"raw_image.{i}"].numpy(), side)
        frames.append(normalize(torch.from_numpy(frame)[None], encoder, torch.tensor([size]))[0])
        packed = pack(tensors[f"raw_masks_u8.{i}"].bool().numpy())
        masks = unpack(SegmentMap(pad_ids(resize_ids(packed.ids, *size), side), packed.count))
        name = f"processed.mask_labels_u8.{i}"
        report[name] = _compare(name, torch.from_numpy(masks), tensors[name], everywhere)
    name = "processed.extra_pixel_values"
    report[name] = _compare(name, torch.stack(frames), tensors[name], everywhere)
    return _result(report)


def replay(folder: str | Path, cases: Sequence[str] = ()) -> Report:
    """Replay the cases of a folder, all by default.

    Returns:
        `{"cases": {name: {"passed", "tensors": {name: {"max_abs", "max_rel", "tol", "passed"}}, "not_computed"}}}`
        `max_abs` is, for masks and id maps, the share of pixels that differ, and for `grads.*` the norm of the
        difference; None if a tensor was not made or has another shape. `rng` counts draws that did not fit.

    Raises:
        UserError: the folder or a file of it is missing or damaged, or there is no such case.
    """
    recording = Recording(Path(folder))
    return {"cases": {name: _replay(recording, name) for name in cases or recording.cases}}


def run(directory: Path, case: str | None, as_json: bool) -> int:
    """`xsam parity`: print a table, or JSON; 0 if everything is within tolerance, else 1. Raises as `replay`."""
    report = replay(directory, [case] if case else [])
    print(json.dumps(report, indent=1) if as_json else "\n".join(_table(report, every=case is not None)))
    return 0 if all(result["passed"] for result in report["cases"].values()) else 1


def _table(report: Report, every: bool) -> Iterator[str]:
    """A line for every case, and one for every tensor that failed, or for every tensor."""
    for name, result in report["cases"].items():
        tensors = result["tensors"]
        good = sum(entry["passed"] for entry in tensors.values())
        yield f"{'pass' if result['passed'] else 'FAIL'}  {name}  {good} of {len(tensors)} tensors within tolerance"
        for tensor, entry in tensors.items():
            if every or not entry["passed"]:
                found = "absent" if entry["max_abs"] is None else f"{entry['max_abs']:.2e}"
                yield f"{'   ' if entry['passed'] else '  !'} {tensor:<70} {found:>9}  tol {entry['tol']:.1e}"
        if result["not_computed"]:
            yield f"    not computed: {', '.join(result['not_computed'])}"
