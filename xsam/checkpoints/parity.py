"""Replay recorded tensors of the official program, and compare tensor by tensor.

A folder of recordings has `goldens.json`, and safetensors of weights and of cases; all under official names, at
tiny sizes, in fp32. A case becomes a `Batch`, its recorded random draws go where ours would be drawn, and every
tensor that was stored is compared. Nothing depends on what a case is called: what is there decides.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import postprocess
from ..data.collate import collate, uncollate
from ..data.images import fit_frame
from ..data.masks import pack, pad_ids, resize_ids, unpack
from ..data.records import read_json
from ..models.connector import Connector
from ..models.criterion import Criterion, Draws
from ..models.encoders import SamEncoder, SiglipEncoder
from ..models.language import causal_lm
from ..models.mask_decoder import MaskDecoder
from ..models.mask_head import ClosedSetClassifier, ConditionClassifier
from ..models.matcher import Matcher, Matches
from ..models.pixel_decoder import PixelDecoder
from ..models.projector import Projector
from ..models.xsam import XSamModel, normalize
from ..structures import IGNORE_INDEX, Batch, Encoded, ItemOutput, SegmentMap, UserError
from .loading import EMBEDDING, read_tensors
from .released import to_official, translate

Report = dict[str, Any]
Tensors = Mapping[str, Tensor]

TOLERANCE = 1e-4  # of max(1, largest recorded value); of the value itself for a loss
PIXELS = 5e-4  # share of the pixels of a mask or an id map that may differ
GRADIENT = 1e-3  # of the norm of a gradient, unless that is below 1e-5 of the global norm; then 1e-6 absolute
REGION_POINTS = 256


class Recording:
    """A folder of recordings. Raises UserError where a file is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = self._json("goldens.json")
        if not isinstance(index, dict) or not {"goldens", "tiny_config", "special_tokens"} <= index.keys():
            raise UserError(f"{folder / 'goldens.json'}: missing, or no index of recorded tensors; give their folder")
        self.entries: dict[str, Any] = index["goldens"]
        self.sizes: dict[str, Any] = index["tiny_config"]
        self.special: dict[str, int] = index["special_tokens"]
        self.cases = tuple(
            name
            for name, entry in self.entries.items()
            if "conditions" in entry or "raw_image.0" in entry.get("tensors", ())  # images alone: preprocessing
        )
        self.model = cache(self._model)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What one entry of `goldens.json` stores."""
        return read_tensors(self.folder / self.entries.get(name, {}).get("file", name))

    def gradients(self, case: str) -> tuple[dict[str, float | None], dict[str, Tensor]]:
        """Norms of the gradients, None = the parameter had none, and some of the gradients; empty if not recorded."""
        name = f"{case}.grads"
        return self._json(f"{case}.grad_norms.json"), self.tensors(name) if name in self.entries else {}

    def _json(self, name: str) -> Any:
        return read_json(self.folder / name) if (self.folder / name).is_file() else {}

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


def build(sizes: Mapping[str, Any], weights: Tensors) -> XSamModel:
    """The model that a `tiny_config` describes, with the parts that the weights (our names) are for."""
    sam, siglip, llm, m2f = (sizes[key] for key in ("sam", "siglip", "llm", "m2f"))
    C, width, heads = m2f["hidden_dim"], llm["hidden_size"], m2f["num_attention_heads"]
    pyramid, open_set = sizes["feature_channels"], "classifier.background" in weights
    parts: dict[str, nn.Module] = {
        "seg_encoder": SamEncoder(
            image_size=sam["image_size"], patch_size=sam["patch_size"], channels=sam["hidden_size"],
            depth=sam["num_hidden_layers"], num_heads=sam["num_attention_heads"], mlp_ratio=sam["mlp_ratio"],
            window_size=sam["window_size"], global_blocks=sam["global_attn_indexes"],
        ),
        "vision_encoder": SiglipEncoder(
            image_size=siglip["image_size"], patch_size=siglip["patch_size"], channels=siglip["hidden_size"],
            depth=siglip["num_hidden_layers"], num_heads=siglip["num_attention_heads"],
            mlp_channels=siglip["intermediate_size"],
        ),
        "projector": Projector(siglip["hidden_size"], width),
        "seg_projector": Projector(sam["hidden_size"], width, unshuffle=True),
        "phrase_projector": Projector(width, C),
        "connector": Connector(sam["hidden_size"], sizes["connector_hidden_dim"], pyramid),
        "pixel_decoder": PixelDecoder(pyramid, C, m2f["encoder_layers"], heads, m2f["encoder_feedforward_dim"]),
        "mask_decoder": MaskDecoder(
            C, m2f["num_queries"], m2f["decoder_blocks"], heads, m2f["dim_feedforward"], m2f["levels"]
        ),
        "classifier": ConditionClassifier(C) if open_set else ClosedSetClassifier(C, m2f["num_labels"]),
    }  # fmt: skip
    if EMBEDDING in weights:
        own = {key: llm[key] for key in llm.keys() - {"type", "attention", "vocab_rows"}}
        rows = len(weights[EMBEDDING])
        parts["llm"] = causal_lm(model_type=llm["type"], vocab_size=rows, pad_token_id=None, eos_token_id=None, **own)
    present = {name.split(".")[0] for name in weights}
    given: dict[str, Any] = {name: part for name, part in parts.items() if name in present}
    return XSamModel(levels=sizes["seg_select_layers_used"], seg_level=sam["num_hidden_layers"] - 1, **given)


class _Recorded:
    """The recorded draws in the order they were made. One that does not fit is counted and replaced by zeros."""

    def __init__(self, tensors: Tensors) -> None:
        names = sorted((n for n in tensors if n.startswith("rng.")), key=lambda n: int(n.split(".")[1]))
        self.draws = [(name.split(".")[2], tensors[name]) for name in names]
        self.missing = 0

    def take(self, kind: str, *shape: int) -> Tensor:
        if self.draws and self.draws[0][0] == kind and self.draws[0][1].shape == shape:
            return self.draws.pop(0)[1]
        self.missing += math.prod(shape) > 0  # nothing to draw need not be recorded
        return torch.zeros(shape, dtype=torch.float32 if kind == "rand" else torch.long)


# Recorded name, the module of ours that makes it, and what of it: its input, its output, or the second of two.
# `{k}` counts modules, or the members of a sequence; `{next}` is k + 1. The model knows nothing of this.
INPUT, OUTPUT, SECOND = 0, 1, 2
ACTIVATIONS = (
    ("sam.hidden_states.0", "seg_encoder.layers.0", INPUT),
    ("sam.hidden_states.{next}", "seg_encoder.layers.{k}", OUTPUT),
    ("siglip.hidden_states.0", "vision_encoder.encoder.layers.0", INPUT),
    ("siglip.hidden_states.{next}", "vision_encoder.encoder.layers.{k}", OUTPUT),
    ("visual_projector.out", "projector", OUTPUT),
    ("seg_projector.out", "seg_projector", OUTPUT),
    ("llm.inputs_embeds", "llm.model.layers.0", INPUT),
    ("llm.hidden_states.{k}", "llm.model.layers.{k}", INPUT),
    ("llm.generated_last_hidden", "llm.model.norm", OUTPUT),
    ("connector.out.{k}", "connector", OUTPUT),
    ("pixel_decoder.enc.{k}.msdeform_attn", "pixel_decoder.layers.{k}.self_attn", OUTPUT),
    ("pixel_decoder.mask_features", "pixel_decoder", OUTPUT),
    ("pixel_decoder.multi_scale_features.{k}", "pixel_decoder", SECOND),
    ("decoder.class_logits_per_layer.{k}", "classifier", OUTPUT),
)


class _Matcher(Matcher):
    """Keeps what it assigned."""

    def assign(self, costs: Sequence[Tensor]) -> list[Matches]:
        self.matches = super().assign(costs)
        return self.matches


class _Case:
    """A recorded case as our batch, run once; then the methods give our tensors under the recorded names."""

    def __init__(self, recording: Recording, name: str) -> None:
        entry, given = recording.entries[name], recording.tensors("s1.preprocess")
        self.tensors, self.sizes, self.special = recording.tensors(name), recording.sizes, recording.special
        self.conditions: str = entry["conditions"]  # closed_set, none, per_image or whole_batch
        self.answer: list[int] = entry.get("forced_answer_ids", [])  # empty if nothing was generated
        self.postprocess: dict[str, Any] = entry.get("postprocess", {})
        self.pixels = given["processed.extra_pixel_values"][: len(self.tensors["in.image_sizes"])]
        self.masks = [given[f"processed.mask_labels_u8.{i}"] for i in range(len(self.pixels))]
        self.model, self.draws = recording.model(entry["stage"]), _Recorded(self.tensors)
        self.samples = self._samples()
        self._choose_regions()
        self.batch = self._batch()

        self.calls: dict[str, tuple[Any, ...]] = {}  # of every module that ran: the first input, then the outputs
        modules = self.model.named_modules()
        hooks = [module.register_forward_hook(partial(self._keep, name)) for name, module in modules]
        self.features = self.model.encode(self.batch)
        self.output = self.model(self.batch, self.features)
        for hook in hooks:
            hook.remove()
        has_text = self.model.llm is not None and self.batch.input_ids.shape[1] > 0
        self.spliced = self.model.splice(self.batch, self.features) if has_text else None

    def _keep(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.calls[name] = (next(iter(inputs), None), *(output if isinstance(output, tuple) else [output]))

    def _per_image(self, name: str) -> list[Tensor]:
        """`name.0`, `name.1`, .. of all images; an image without has an empty tensor."""
        return [self.tensors.get(f"{name}.{i}", torch.zeros(0, dtype=torch.long)) for i in range(len(self.pixels))]

    def _choose_regions(self) -> None:
        """M masks, and a mask for every slot: the recorded one, or without slots each mask of the image.

        As number -1 stands no region: its points are outside of every map, where its features are zero.
        """
        masks, slots = self._per_image("in.vprompt_masks_u8"), self._per_image("in.sampled_labels")
        points = [_region_points(mask, self.draws) for own in masks for mask in own]
        image = [i for i, own in enumerate(masks) for _ in own]
        side, labels = self.pixels.shape[-1], list(range(len(image)))
        shown = torch.cat([*(own.view(-1, side, side) for own in masks), torch.zeros(1, side, side, dtype=torch.uint8)])
        chosen = [[m for m in labels if image[m] == i] for i in range(len(masks))]
        if any(map(len, slots)):
            classes, taken = self._per_image("in.class_labels"), self._per_image("vprompt.masks_u8")
            labels = torch.cat([slots[i][classes[i][: len(own)]] for i, own in enumerate(masks)]).tolist()
            chosen = [[_number(mask, shown[:-1]) for mask in own] for own in taken]
            for _ in [m for row in chosen for m in row if m >= 0]:
                self.draws.take("randint", 1)  # which of the candidates was taken
        self.region_points = torch.stack([*points, torch.full((REGION_POINTS, 2), -1.0)])  # float[M + 1, P, 2]
        self.region_image = torch.tensor([*image, -1])
        self.region_labels = torch.tensor([*labels, -1])
        self.region_masks = shown  # uint8[M + 1, S, S]
        self.chosen = chosen  # of each image, the mask that fills each of its slots

    def _samples(self) -> list[Encoded]:
        """The images as the data side gives them. After forced generation: the prompt, then the answer without its
        last token."""
        tensors, B, shared = self.tensors, len(self.pixels), self.conditions == "whole_batch"
        ids = tensors.get("in.input_ids", torch.zeros(B, 0, dtype=torch.long))
        none = torch.full_like(ids, -1)
        labels = tensors.get("in.labels", torch.full_like(ids, IGNORE_INDEX))
        spans, segs = tensors.get("in.cond_ids", none), tensors.get("in.seg_ids", none)
        if self.answer:
            answer = torch.tensor([self.answer[:-1]])
            opened, closed, seg = (answer == self.special[token] for token in ("<p>", "</p>", "<SEG>"))
            inside = (opened.cumsum(1) > closed.cumsum(1)) | closed
            said = torch.where(inside, opened.cumsum(1) - 1, -1)
            ids = torch.cat([ids, answer], 1)
            labels = torch.full_like(ids, IGNORE_INDEX)
            spans = torch.cat([none if opened.any() else spans, said], 1)
            segs = torch.cat([segs, torch.where(seg, seg.cumsum(1) - 1, -1)], 1)
        pixels = tensors.get("in.pixel_values", torch.zeros(B, 3, 0, 0)).numpy()
        sizes, image_sizes = tensors["in.scaled_sizes"].tolist(), tensors["in.image_sizes"].tolist()
        samples = []
        for i, targets in enumerate(self._per_image("in.class_labels")):
            T, N = len(np.trim_zeros(ids[i].numpy(), "b")), len(targets)
            sample = Encoded(
                id=str(i), key=0, input_ids=ids[i, :T].numpy(), labels=labels[i, :T].numpy(),
                span_ids=spans[i, :T].numpy(), seg_ids=segs[i, :T].numpy(), pixel_values=pixels[i],
                seg_pixel_values=self.pixels[i].numpy(), seg_size=sizes[i], image_size=image_sizes[i],
                target_ids=pack(self.masks[i][:N].bool().numpy()).ids, target_labels=targets.numpy(),
                target_segs=np.arange(N) if shared else np.zeros(N, np.int64), shared_candidates=shared,
                region_points=np.zeros((0, REGION_POINTS, 2), np.float32), region_labels=np.zeros(0, np.int64),
                region_images=np.zeros(0, np.int64),
            )  # fmt: skip
            samples.append(sample)
        return samples

    def _batch(self) -> Batch:
        batch = collate(self.samples)
        clear = all(s.span_ids.max(initial=-1) >= 0 and s.seg_ids.max(initial=-1) == 0 for s in self.samples)
        if self.conditions == "none" or (self.conditions == "per_image" and not clear):
            batch = replace(batch, items=collate([]).items)
        slots = [m for row in self.chosen for m in row]
        return replace(batch, region_points=self.region_points[slots], region_image=self.region_image[slots])

    def activations(self) -> dict[str, Tensor]:
        """What stands in the table."""
        values: dict[str, Tensor] = {}
        for recorded, module, part in ACTIVATIONS:
            for k in range(len(self.calls) if "{k}" in module else 1):
                if call := self.calls.get(module.format(k=k)):
                    several = "{k}" in recorded and "{k}" not in module
                    made = enumerate(call[part]) if several else [(k, call[part])]
                    values |= {recorded.format(k=n, next=n + 1): value for n, value in made}
        return values

    def text(self) -> dict[str, Tensor]:
        """The language model's side, most of which the model never makes as a whole."""
        model, batch = self.model, self.batch
        if self.spliced is None or model.llm is None:
            return {}
        positions, hidden = self.spliced.positions, self.calls["llm.model.norm"][OUTPUT]
        values = {
            f"llm.hidden_states.{model.llm.config.num_hidden_layers}": hidden,
            "llm.logits": model.llm.lm_head(hidden),
            "llm.labels": torch.full(hidden.shape[:2], IGNORE_INDEX).scatter(1, positions, batch.labels),
            "llm.position_ids": torch.arange(hidden.shape[1]).expand(len(hidden), -1),
            "llm.sequences": torch.tensor([self.answer]),
        }
        if model.phrase_projector is None or not isinstance(model.classifier, ConditionClassifier):
            return values
        values["llm_projector.out"] = projected = model.phrase_projector(hidden)
        values["local_cond_lens"] = counts = batch.span_ids.amax(1) + 1
        spans, segs = model.conditions(batch, hidden, positions)
        for i, own in enumerate(spans.split(counts.tolist())):
            values[f"cond_embeds_raw.{i}"] = own
            values[f"seg_embeds_raw.{i}"] = projected[i, positions[i, batch.seg_ids[i] >= 0]]
        if len(batch.items):
            candidates = batch.items.candidates
            background = model.classifier.background.expand(len(candidates), -1, -1)
            values["cond_embeds"] = torch.cat([spans[candidates.clamp(min=0)], background], 1)
            values["embed_masks"] = F.pad((candidates >= 0).float(), (0, 1), value=1)
            values["seg_embeds"] = segs[:, None]
        return values

    def decoded(self) -> dict[str, Tensor]:
        """States and mask logits of every output, and the final output as the official program hands it out."""
        output, side = self.output, self.pixels.shape[-1]
        if not len(output.mask_embeds):
            return {}
        logits = torch.einsum("ldqc,dchw->ldqhw", output.mask_embeds, output.mask_features[output.item_image])
        states = self.calls["mask_decoder"][OUTPUT].transpose(1, 2)
        first = F.interpolate(logits[-1, :, :1], (side, side), mode="bilinear", align_corners=False)
        return {
            **{f"decoder.mask_logits_per_layer.{k}": layer for k, layer in enumerate(logits)},
            **{f"decoder.intermediate_hidden_states(Q,B,C).{k}": layer for k, layer in enumerate(states)},
            "out.class_queries_logits": output.class_logits[-1],
            "out.masks_queries_logits_upsampled[:, :1]": first,  # of the first query: more was not stored
        }

    def prompts(self) -> dict[str, Tensor]:
        """Features and masks of the visual prompts, of all and of those chosen for the slots."""
        values: dict[str, Tensor] = {}
        if len(self.region_image) == 1:
            return values
        features = self.model.region_sampler(self.features.seg_tokens, self.region_points, self.region_image)
        for i, row in enumerate(self.chosen):
            values[f"vision_sampler.out.{i}"] = features[self.region_image == i]
            values[f"vprompt.feats.{i}"] = features[row]
            values[f"vprompt.masks_u8.{i}"] = self.region_masks[row]
            values[f"vprompt.new_sampled_labels.{i}"] = self.region_labels[row]
        return values

    def losses(self) -> dict[str, Tensor]:
        """Weighted losses and matches under the recorded points. The final output is call 0 and has no suffix, output
        K is call K + 1 and has the suffix _K."""
        if "loss.loss" not in self.tensors:
            return {}
        m2f, values, total = self.sizes["m2f"], dict[str, Tensor](), torch.zeros(())
        weights = (m2f["class_weight"], m2f["mask_weight"], m2f["dice_weight"])
        criterion = Criterion(m2f["train_num_points"], m2f["no_object_weight"], *weights)
        criterion.matcher = matcher = _Matcher(*weights)
        counts = criterion.count(self.batch, self.model.num_queries)
        if self.model.llm is not None:
            values["loss.loss_llm"] = total = criterion.text_loss(self.output, counts)
        if len(self.batch.items):
            layers = criterion.layer_losses(self.output, self.batch, counts, self._points(criterion.num_points))
            final = len(self.output.mask_embeds) - 1
            for output in range(final + 1):
                suffix, call = ("", 0) if output == final else (f"_{output}", output + 1)
                values |= {f"loss.loss_{name}{suffix}": loss[output] for name, loss in layers.items()}
                for item, match in enumerate(matcher.matches):
                    values[f"matcher.call{call}.b{item}.query_idx"] = match.queries[output]
                    values[f"matcher.call{call}.b{item}.label_idx"] = match.targets[output]
            values["loss.loss_seg"] = torch.stack([loss.sum() for loss in layers.values()]).sum()
            total = total + values["loss.loss_seg"]
        return values | {"loss.loss": total}

    def _points(self, P: int) -> Draws:
        """The criterion's points: for the final output first, then for outputs 0, 1, .."""
        take, targets = self.draws.take, self.batch.items.targets
        M = sum(min(len(target.index), self.model.num_queries) for target in targets)
        draws = []
        for _ in self.output.mask_embeds:
            matcher = torch.cat([take("rand", 1, P, 2) for _ in targets])
            draws.append((matcher, take("rand", M, 3 * P, 2), take("rand", M, P - 3 * P // 4, 2)))
        return Draws(*(torch.stack([*points[1:], points[0]]) for points in zip(*draws, strict=True)))

    def posted(self) -> dict[str, Tensor]:
        """What the official post-processing stored, from our own."""
        values: dict[str, Tensor] = {}
        answers = itertools.chain(*uncollate(self.output, self.batch, self.samples)) if self.postprocess else ()
        for (item, answer), (kind, options) in itertools.product(enumerate(answers), self.postprocess.items()):
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
                values |= _instances(answer, options["score"], name, self.tensors)
        return values

    def where(self, name: str) -> Tensor | None:
        """Where a recorded tensor counts: text before its padding, conditions and class logits without theirs."""
        mask, recorded = self.tensors.get("embed_masks"), self.tensors[name]
        if mask is not None and name == "cond_embeds":
            return mask.bool()
        if mask is not None and name.startswith(("decoder.class_logits", "out.class_queries")):
            return mask.bool()[:, None].expand_as(recorded)
        if self.spliced is not None and name.startswith("llm") and name != "llm.sequences":
            return torch.arange(recorded.shape[1]) < self.spliced.lengths[:, None]
        return None


def _number(mask: Tensor, masks: Tensor) -> int:
    """Which of the masks this one is, -1 = none."""
    return next((m for m, own in enumerate(masks) if (own == mask).all()), -1)


def _region_points(mask: Tensor, draws: _Recorded) -> Tensor:
    """float[P, 2], (x, y) over the frame of P pixels of a mask [S, S]: a subset, or all and repeats."""
    pixels, P = mask.nonzero(), REGION_POINTS
    n = len(pixels)
    if n > P:
        pixels = pixels[draws.take("randperm", n)[:P]]
    elif n < P:
        pixels = torch.cat([pixels, pixels[draws.take("randint", P - n)]])
    return (pixels / torch.tensor(mask.shape)).flip(1)


def _gradients(model: XSamModel, norms: Mapping[str, float | None], grads: Tensors) -> Report:
    """Compare gradients by the norm of the difference, and all norms. Call after the backward pass.

    Parts of which no parameter had a gradient were frozen, or had no use: there ours do not count.
    """
    made = {to_official(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    parts = {to_official(name): name.split(".")[0] for name, _ in model.named_parameters()}
    learned = {parts.get(name) for name, norm in norms.items() if norm is not None}
    none = torch.zeros(())
    expected = {name: norm or 0.0 for name, norm in norms.items()}
    expected |= {name: float(grad.norm()) for name, grad in grads.items()}
    small = 1e-5 * math.hypot(*expected.values())

    def entry(name: str, error: float) -> Report:
        return _entry(error, expected[name], GRADIENT * expected[name] if expected[name] > small else 1e-6)

    report = {f"grads.{name}": entry(name, float((made.get(name, none) - grad).norm())) for name, grad in grads.items()}
    for name, norm in norms.items():
        if norm is not None or (name in made and parts[name] in learned):
            report[f"grad_norms.{name}"] = entry(name, abs(float(made.get(name, none).norm()) - expected[name]))
    return report


def _instances(answer: ItemOutput, score: float, name: str, recorded: Tensors) -> dict[str, Tensor]:
    """Instances in the recorded order, by rank of their scores, and their map, painted in that order."""
    masks, classes, scores, boxes = postprocess.instances(answer, score=score)
    order, stored = scores.argsort(descending=True), recorded.get(f"{name}scores", scores)
    if len(order) == len(stored):
        order = order[stored.argsort(descending=True).argsort()]
    canvas = torch.full(answer.image_size, 255)
    for number, mask in enumerate(masks[order]):
        canvas[mask] = number
    values = {"boxes": boxes, "classes": classes, "scores": scores, "mask_areas": masks.flatten(1).sum(1).float()}
    return {name + field: value[order] for field, value in values.items()} | {f"{name}segmentation_i16": canvas}


def _entry(error: float | None, largest: float, tolerance: float) -> Report:
    """How far off a tensor is; None if it was not made, or has another shape."""
    if error is None or not math.isfinite(error):
        return {"max_abs": None, "max_rel": None, "tol": tolerance, "passed": False}
    relative = error / largest if largest else float(error > 0)
    return {"max_abs": error, "max_rel": relative, "tol": tolerance, "passed": error <= tolerance}


def _compare(name: str, ours: Tensor | None, recorded: Tensor, where: Tensor | None = None) -> Report:
    """Compare one tensor where `where`, bool of its leading axes, is true. For masks and id maps the error is the
    share of pixels that differ."""
    if ours is None:
        return _entry(None, 0, 0)
    if ours.numel() == recorded.numel():
        ours = ours.reshape(recorded.shape)  # but for axes of length one
    elif ours.shape[1:] == recorded.shape[1:] and torch.equal(ours, ours[:1].expand_as(ours)):
        ours = ours[:1].expand_as(recorded)  # stored once for all items
    else:
        return _entry(None, 0, 0)
    exact, ours, recorded = not recorded.is_floating_point(), ours.detach().double(), recorded.double()
    if where is not None:
        ours, recorded = ours[where], recorded[where]
    if not recorded.numel():
        return _entry(0, 0, 0)
    if name.endswith("segmentation_i16") or "masks_u8." in name:
        return _entry(float((ours != recorded).double().mean()), 1, PIXELS)
    largest, error = float(recorded.abs().max()), float((ours - recorded).abs().max())
    scale = largest if name.startswith("loss.") else max(1, largest)
    return _entry(error, largest, 0 if exact else TOLERANCE * scale)


def _replay(recording: Recording, name: str) -> Report:
    if "conditions" not in recording.entries[name]:
        return _result(_preprocess(recording, recording.tensors(name)))
    norms, grads = recording.gradients(name)
    with torch.set_grad_enabled(bool(norms or grads)):
        case = _Case(recording, name)
        for _ in case.output.mask_embeds[1:]:
            case.draws.take("rand")  # layer drop of a block, at rate 0
        losses = case.losses()
    with torch.no_grad():
        values = case.activations() | case.text() | case.decoded() | case.prompts() | losses | case.posted()
    # What nothing of ours makes, on purpose: SAM's neck, an all-true mask, SigLIP's last layer.
    dead = {"sam.last_hidden_state", "llm.attention_mask"}
    dead.add(f"siglip.hidden_states.{recording.sizes['siglip']['num_hidden_layers']}")
    report = {}
    for key, recorded in case.tensors.items():
        ours = values.get(key)
        if case.answer and ours is not None and key.startswith("llm") and ours.dim() == 3:
            ours = ours[:, : recorded.shape[1]]  # some are of the prompt alone
        if not key.startswith(("in.", "rng.")) and key not in dead:
            report[key] = _compare(key, ours, recorded, case.where(key))
    if any(key.startswith("rng.") for key in case.tensors):
        report["rng"] = _entry(case.draws.missing + len(case.draws.draws), 0, 0)
    if norms or grads:
        case.model.zero_grad()
        losses["loss.loss"].backward()
        report |= _gradients(case.model, norms, grads)
    return _result(report, [key for key in case.tensors if key in dead])


def _result(tensors: Report, not_computed: Sequence[str] = ()) -> Report:
    passed = all(entry["passed"] for entry in tensors.values())
    return {"passed": passed, "tensors": tensors, "not_computed": list(not_computed)}


def _preprocess(recording: Recording, tensors: Tensors) -> Report:
    """Images and masks as files hold them -> the segmentation frame."""
    encoder, side = recording.model(3).seg_encoder, recording.sizes["sam"]["image_size"]
    values, frames = {}, []
    for i in range(sum(name.startswith("raw_image.") for name in tensors)):
        frame, size = fit_frame(tensors[f"raw_image.{i}"].numpy(), side)
        frames.append(normalize(torch.from_numpy(frame)[None], encoder, torch.tensor([size]))[0])
        packed = pack(tensors[f"raw_masks_u8.{i}"].bool().numpy())
        masks = unpack(SegmentMap(pad_ids(resize_ids(packed.ids, *size), side), packed.count))
        values[f"processed.mask_labels_u8.{i}"] = torch.from_numpy(masks)
    values["processed.extra_pixel_values"] = torch.stack(frames)
    return {name: _compare(name, ours, tensors[name]) for name, ours in values.items()}


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
    if unknown := [name for name in cases if name not in recording.cases]:
        known = ", ".join(recording.cases)
        raise UserError(f"{recording.folder / 'goldens.json'}: has no case {unknown[0]!r}; its cases are {known}")
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
