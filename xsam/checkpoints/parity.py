"""Replay recorded tensors of the official program, and compare tensor by tensor.

A folder of recordings has `goldens.json`, and safetensors of weights and of cases; under official names, in fp32. A
case becomes a `Batch`, recorded random draws go where ours would be drawn, and every stored tensor is compared."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .. import config as configs
from ..data import postprocess
from ..data.collate import collate, uncollate
from ..data.images import fit_frame
from ..data.masks import pack, pad_ids, resize_ids, unpack
from ..data.records import read_json
from ..data.regions import sample_points
from ..models.criterion import Criterion, Draws
from ..models.language import causal_lm
from ..models.mask_head import ConditionClassifier
from ..models.matcher import Matcher, Matches
from ..models.xsam import XSamModel, normalize
from ..structures import IGNORE_INDEX, REGION_POINTS, Encoded, ItemOutput, SegmentMap, UserError
from .loading import EMBEDDING, read_tensors
from .released import part_of, to_official, translate

Report = dict[str, Any]
Tensors = Mapping[str, Tensor]
Named = Iterator[tuple[str, Tensor]]

TOLERANCE = 1e-4  # of max(1, largest recorded value); of the value itself for a loss
PIXELS = 5e-4  # share of the pixels of a mask or an id map that may differ
GRADIENT = 1e-3  # of the norm of a gradient, unless that is below 1e-5 of the global norm; then 1e-6 absolute
OUTPUT = 1  # of what is kept of a module's call: its input, then its outputs
# `parts`: the config of each part of the model, by what its weights' names begin with; the values are places in the
# `tiny_config`. `made`: recorded names, in which {k} counts, and the calls of modules that make them: name, place.
TABLES = read_json(Path(__file__).with_suffix(".json"))


class Recording:
    """A folder of recordings. Raises UserError where a file is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, keys = self.json("goldens.json"), ("goldens", "tiny_config", "special_tokens")
        if not isinstance(index, dict) or not index.keys() >= {*keys}:
            raise UserError(f"{folder / 'goldens.json'}: missing, or no index of recorded tensors; give their folder")
        self.entries, self.sizes, self.special = (index[key] for key in keys)
        images = [name for name, entry in self.entries.items() if "raw_image.0" in entry.get("tensors", ())]
        self.cases = [name for name, entry in self.entries.items() if "conditions" in entry or name in images]
        self.model = cache(self._model)

    def tensors(self, name: str, optional: bool = False) -> dict[str, Tensor]:
        """What one entry of `goldens.json` stores; of an optional one that is not there, nothing."""
        absent = optional and name not in self.entries
        return {} if absent else read_tensors(self.folder / self.entries.get(name, {}).get("file", name))

    def json(self, name: str) -> Any:
        """What a JSON file holds, {} if there is none."""
        return read_json(self.folder / name) if (self.folder / name).is_file() else {}

    def _model(self, stage: int) -> XSamModel:
        weights = self.tensors("s3.state_dict")
        if listed := self.json(f"s{stage}.keys.json"):
            names = listed if isinstance(listed, list) else listed["all"]
            weights = {name: weights[name] for name in names if name in weights}
        weights |= self.tensors(f"s{stage}.state_dict_extra", optional=True)
        ours = {new: weights[name] for name, new in translate(weights).items() if new is not None}
        model = build(self.sizes, ours).train()  # then the decoder gives all its outputs; nothing else differs
        model.load_state_dict(ours)
        return model


def build(sizes: Mapping[str, Any], weights: Tensors) -> XSamModel:
    """The model that a `tiny_config` describes, with the parts that the weights (our names) are for."""

    def placed(value: Any) -> Any:
        return reduce(getitem, value.split("."), sizes) if isinstance(value, str) else value

    parts: dict[str, Any] = {}
    for start, node in TABLES["parts"].items():
        if any(name.startswith(start) for name in weights):
            values = {key: placed(value) for key, value in node.items() if key != "type"}
            parts[part_of(start)] = configs.build({"type": node["type"], **values})
    if EMBEDDING in weights:
        llm, rows = sizes["llm"], len(weights[EMBEDDING])
        own = {key: llm[key] for key in llm.keys() - {"type", "attention", "vocab_rows"}}
        parts["llm"] = causal_lm(model_type=llm["type"], vocab_size=rows, pad_token_id=None, eos_token_id=None, **own)
    return XSamModel(levels=sizes["seg_select_layers_used"], seg_level=sizes["sam"]["num_hidden_layers"] - 1, **parts)


class _Recorded:
    """The recorded draws in the order they were made. One that does not fit is counted and replaced by zeros."""

    def __init__(self, tensors: Tensors) -> None:
        names = sorted((n for n in tensors if n.startswith("rng.")), key=lambda n: int(n.split(".")[1]))
        self.draws, self.missing = [(name.split(".")[2], tensors[name]) for name in names], 0

    def take(self, kind: str, *shape: int) -> Tensor:
        if self.draws and self.draws[0][0] == kind and self.draws[0][1].shape == shape:
            return self.draws.pop(0)[1]
        self.missing += math.prod(shape) > 0  # nothing to draw need not be recorded
        return torch.zeros(shape, dtype=torch.float32 if kind == "rand" else torch.long)

    def permutation(self, n: int) -> np.ndarray:  # these two as numpy's generators have them, for `sample_points`
        return self.take("randperm", n).numpy()

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        return self.take("randint", size).numpy()


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
        self.conditions = entry["conditions"]  # closed_set, none, per_image or whole_batch
        self.answer, self.postprocess = entry.get("forced_answer_ids", []), entry.get("postprocess", {})  # or empty
        self.pixels = given["processed.extra_pixel_values"][: len(self.tensors["in.image_sizes"])]
        self.draws, self.model = _Recorded(self.tensors), recording.model(entry["stage"])
        self.samples = [*self._samples(given)]
        self._choose_regions()
        batch, slots = collate(self.samples), [m for row in self.chosen for m in row]
        clear = all(s.span_ids.max(initial=-1) >= 0 and s.seg_ids.max(initial=-1) == 0 for s in self.samples)
        if self.conditions == "none" or (self.conditions == "per_image" and not clear):
            batch = replace(batch, items=collate([]).items)
        self.batch = replace(batch, region_points=self.region_points[slots], region_image=self.region_image[slots])

        self.calls: dict[str, tuple[Any, ...]] = {}  # of every module that ran: the first input, then the outputs
        names = {module: name for name, module in self.model.named_modules()}

        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.calls[names[module]] = (next(iter(inputs), None), *(output if isinstance(output, tuple) else [output]))

        with register_module_forward_hook(keep):
            self.features = self.model.encode(self.batch)
            self.output = self.model(self.batch, self.features)
        self.spliced = self.model.splice(self.batch, self.features) if "llm.model" in self.calls else None

    def _per_image(self, name: str) -> list[Tensor]:
        """`name.0`, `name.1`, .. of all images; an image without has an empty tensor."""
        return [self.tensors.get(f"{name}.{i}", torch.zeros(0, dtype=torch.long)) for i in range(len(self.pixels))]

    def _choose_regions(self) -> None:
        """M masks, and a mask for every slot: the recorded one, or without slots each mask of the image. Number -1 is
        no region: its points are outside of every map, where features are zero."""
        masks, slots = self._per_image("in.vprompt_masks_u8"), self._per_image("in.sampled_labels")
        points = [torch.from_numpy(sample_points(m.numpy(), cast(Any, self.draws))) for own in masks for m in own]
        image, side = [i for i, own in enumerate(masks) for _ in own], self.pixels.shape[-1]
        labels = list(range(len(image)))
        shown = torch.cat([own.view(-1, side, side) for own in masks])
        self.chosen = [[m for m in labels if image[m] == i] for i in range(len(masks))]  # of each image, for its slots
        if any(map(len, slots)):
            classes, taken = self._per_image("in.class_labels"), self._per_image("vprompt.masks_u8")
            labels = torch.cat([slots[i][classes[i][: len(own)]] for i, own in enumerate(masks)]).tolist()
            number = {mask.numpy().tobytes(): m for m, mask in reversed([*enumerate(shown)])}
            self.chosen = [[number.get(mask.numpy().tobytes(), -1) for mask in own] for own in taken]
            for _ in [m for row in self.chosen for m in row if m >= 0]:
                self.draws.take("randint", 1)  # which of the candidates was taken
        self.region_points = torch.stack([*points, torch.full((REGION_POINTS, 2), -1.0)])  # float[M + 1, P, 2]
        self.region_image, self.region_labels = torch.tensor([*image, -1]), torch.tensor([*labels, -1])
        self.region_masks = F.pad(shown, (0, 0, 0, 0, 0, 1))  # uint8[M + 1, S, S]

    def _samples(self, given: Tensors) -> Iterator[Encoded]:
        """The images as the data side gives them. With a forced answer it follows, but for its last token."""
        tensors, B, shared = self.tensors, len(self.pixels), self.conditions == "whole_batch"
        none = torch.full_like(ids := tensors.get("in.input_ids", torch.zeros(B, 0, dtype=torch.long)), -1)
        labels = tensors.get("in.labels", torch.full_like(ids, IGNORE_INDEX))
        spans, segs = tensors.get("in.cond_ids", none), tensors.get("in.seg_ids", none)
        if self.answer:
            answer = torch.tensor([self.answer[:-1]])
            opened, closed, seg = (answer == self.special[token] for token in ("<p>", "</p>", "<SEG>"))
            said = torch.where((opened.cumsum(1) > closed.cumsum(1)) | closed, opened.cumsum(1) - 1, -1)
            labels = torch.full_like(ids := torch.cat([ids, answer], 1), IGNORE_INDEX)
            spans = torch.cat([none if opened.any() else spans, said], 1)
            segs = torch.cat([segs, torch.where(seg, seg.cumsum(1) - 1, -1)], 1)
        pixels = tensors.get("in.pixel_values", torch.zeros(B, 3, 0, 0)).numpy()
        sizes, image_sizes = tensors["in.scaled_sizes"].tolist(), tensors["in.image_sizes"].tolist()
        for i, targets in enumerate(self._per_image("in.class_labels")):
            T, N = len(np.trim_zeros(ids[i].numpy(), "b")), len(targets)
            yield Encoded(
                id=str(i), key=0, input_ids=ids[i, :T].numpy(), labels=labels[i, :T].numpy(),
                span_ids=spans[i, :T].numpy(), seg_ids=segs[i, :T].numpy(), pixel_values=pixels[i],
                seg_pixel_values=self.pixels[i].numpy(), seg_size=sizes[i], image_size=image_sizes[i],
                target_ids=pack(given[f"processed.mask_labels_u8.{i}"][:N].bool().numpy()).ids,
                target_labels=targets.numpy(), target_segs=np.arange(N) if shared else np.zeros(N, np.int64),
                shared_candidates=shared,
            )  # fmt: skip

    def made(self, pattern: str, part: int = OUTPUT) -> list[Any]:
        """What went into, or came out of, the modules with such names, in the order in which they ran."""
        found = [call[part] for name, call in self.calls.items() if re.fullmatch(pattern, name)]
        return [each for value in found for each in (value if isinstance(value, list) else [value])]

    def ours(self) -> Named:
        """Our tensors under the recorded names, in which {k} counts them. The model knows nothing of these names."""
        batch, model, output = self.batch, self.model, self.output
        named: dict[str, Iterable[Tensor]] = {
            name: itertools.chain(*(self.made(*call) for call in calls)) for name, calls in TABLES["made"].items()
        }
        if len(output.mask_embeds):
            logits = torch.einsum("ldqc,dchw->ldqhw", output.mask_embeds, output.mask_features[output.item_image])
            first = F.interpolate(logits[-1, :, :1], self.pixels.shape[-2:], mode="bilinear", align_corners=False)
            named |= {
                "decoder.intermediate_hidden_states(Q,B,C).{k}": self.calls["mask_decoder"][OUTPUT].transpose(1, 2),
                "decoder.mask_logits_per_layer.{k}": logits,
                "decoder.class_logits_per_layer.{k}": output.class_logits,
                "out.class_queries_logits": output.class_logits[-1:],
                "out.masks_queries_logits_upsampled[:, :1]": [first],  # of the first query: more was not stored
            }
        if len(self.region_image) > 1:
            features = model.region_sampler(self.features.seg_tokens, self.region_points, self.region_image)
            named["vision_sampler.out.{k}"] = [features[self.region_image == i] for i in range(len(self.chosen))]
            shown = {"feats": features, "masks_u8": self.region_masks, "new_sampled_labels": self.region_labels}
            named |= {"vprompt." + key + ".{k}": [value[row] for row in self.chosen] for key, value in shown.items()}
        if self.spliced is not None and model.llm is not None:
            positions, hidden = self.spliced.positions, self.calls["llm.model.norm"][OUTPUT]
            named |= {
                "llm.logits": [model.llm.lm_head(hidden)],
                "llm.labels": [torch.full(hidden.shape[:2], IGNORE_INDEX).scatter(1, positions, batch.labels)],
                "llm.position_ids": [torch.arange(hidden.shape[1]).expand(len(hidden), -1)],
                "llm.sequences": [torch.tensor([self.answer])],
            }  # fmt: skip
            if model.phrase_projector is not None and isinstance(model.classifier, ConditionClassifier):
                projected, counts = model.phrase_projector(hidden), batch.span_ids.amax(1) + 1
                spans, segs = model.conditions(batch, hidden, positions)
                asked, candidates = batch.seg_ids >= 0, batch.items.candidates
                background = model.classifier.background.expand(len(candidates), -1, -1)
                named |= {
                    "llm_projector.out": [projected], "local_cond_lens": [counts], "seg_embeds": [segs[:, None]],
                    "cond_embeds_raw.{k}": spans.split(counts.tolist()),
                    "seg_embeds_raw.{k}": [projected[i, at[asked[i]]] for i, at in enumerate(positions)],
                    "cond_embeds": [torch.cat([F.pad(spans, (0, 0, 0, 1))[candidates], background], 1)],
                    "embed_masks": [F.pad((candidates >= 0).float(), (0, 1), value=1)],
                }  # fmt: skip
        return ((name.format(k=k), value) for name, values in named.items() for k, value in enumerate(values))

    def losses(self) -> Named:
        """Weighted losses and matches. The final output is call 0, without a suffix, output K is call K + 1, _K."""
        if "loss.loss" not in self.tensors:
            return
        m2f, total = self.sizes["m2f"], torch.zeros(())
        weights = (m2f["class_weight"], m2f["mask_weight"], m2f["dice_weight"])
        criterion = Criterion(m2f["train_num_points"], m2f["no_object_weight"], *weights)
        matcher, counts = _Matcher(*weights), criterion.count(self.batch, self.model.num_queries)
        criterion.matcher = matcher
        if self.model.llm is not None:
            yield "loss.loss_llm", (total := criterion.text_loss(self.output, counts))
        if len(self.batch.items):
            layers = criterion.layer_losses(self.output, self.batch, counts, self._points(criterion.num_points))
            final = len(self.output.mask_embeds) - 1
            for call, output in enumerate([final, *range(final)]):
                suffix = f"_{output}" if call else ""
                yield from ((f"loss.loss_{name}{suffix}", loss[output]) for name, loss in layers.items())
                for item, match in enumerate(matcher.matches):
                    yield f"matcher.call{call}.b{item}.query_idx", match.queries[output]
                    yield f"matcher.call{call}.b{item}.label_idx", match.targets[output]
            yield "loss.loss_seg", (seg := torch.stack([loss.sum() for loss in layers.values()]).sum())
            total = total + seg
        yield "loss.loss", total

    def _points(self, P: int) -> Draws:
        """The criterion's points: for the final output first, then for outputs 0, 1, .."""
        take, targets = self.draws.take, self.batch.items.targets
        M = sum(min(len(target.index), self.model.num_queries) for target in targets)
        draws = []
        for _ in self.output.mask_embeds:
            matcher = torch.cat([take("rand", 1, P, 2) for _ in targets])
            draws.append((matcher, take("rand", M, 3 * P, 2), take("rand", M, P - 3 * P // 4, 2)))
        return Draws(*(torch.stack([*points[1:], points[0]]) for points in zip(*draws, strict=True)))

    def posted(self) -> Named:
        """What the official post-processing stored, from our own."""
        answers = itertools.chain(*uncollate(self.output, self.batch, self.samples))
        for (item, answer), (kind, options) in itertools.product(enumerate(answers), self.postprocess.items()):
            if kind == "panoptic":
                for each in options if isinstance(options, list) else [options]:
                    name = f"pan@{each['score']}" if isinstance(options, list) else "pan"
                    yield f"post.{name}.{item}.segmentation_i16", postprocess.panoptic(answer, **each)[0]
            elif kind == "semantic":
                yield f"post.sem.{item}.segmentation_i16", postprocess.semantic(answer)
            elif kind == "refer":
                yield f"post.ref.{item}.segmentation_i16", torch.where(postprocess.best_mask(answer)[0], 1, 255)
            elif kind in ("instance", "visual_grounded"):
                name = f"post.{'ins' if kind == 'instance' else 'vgd'}.{item}."
                yield from _instances(answer, options["score"], name, self.tensors)

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


def _gradients(model: XSamModel, norms: Mapping[str, float | None], grads: Tensors) -> Report:
    """Compare gradients by the norm of the difference, and all norms. Where no parameter of a part had a gradient, it
    was frozen, or had no use: there ours do not count."""
    made = {to_official(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    parts = {to_official(name): part_of(name) for name, _ in model.named_parameters()}
    learned, none = {parts.get(name) for name, norm in norms.items() if norm is not None}, torch.zeros(())
    expected = {name: norm or 0.0 for name, norm in norms.items()}
    expected |= {name: float(grad.norm()) for name, grad in grads.items()}
    errors = {f"grads.{name}": float((made.get(name, none) - grad).norm()) for name, grad in grads.items()}
    for name, norm in norms.items():
        if norm is not None or (name in made and parts[name] in learned):
            errors[f"grad_norms.{name}"] = abs(float(made.get(name, none).norm()) - expected[name])
    small, sizes = 1e-5 * math.hypot(*expected.values()), {key: expected[key.split(".", 1)[1]] for key in errors}
    return {key: _entry(errors[key], n, GRADIENT * n if n > small else 1e-6) for key, n in sizes.items()}


def _instances(answer: ItemOutput, score: float, name: str, recorded: Tensors) -> Named:
    """Instances in the recorded order, by rank of their scores, and their map, painted in that order."""
    masks, classes, scores, boxes = postprocess.instances(answer, score=score)
    order, stored = scores.argsort(descending=True), recorded.get(f"{name}scores", scores)
    if len(order) == len(stored):
        order = order[stored.argsort(descending=True).argsort()]
    canvas = torch.full(answer.image_size, 255)
    for number, mask in enumerate(masks[order]):
        canvas[mask] = number
    yield f"{name}segmentation_i16", canvas
    values = {"boxes": boxes, "classes": classes, "scores": scores, "mask_areas": masks.flatten(1).sum(1).float()}
    yield from ((name + field, value[order]) for field, value in values.items())


def _entry(error: float | None, largest: float, tolerance: float) -> Report:
    """How far off a tensor is; None if it was not made, or has another shape."""
    if error is None or not math.isfinite(error):
        return {"max_abs": None, "max_rel": None, "tol": tolerance, "passed": False}
    relative = error / largest if largest else float(error > 0)
    return {"max_abs": error, "max_rel": relative, "tol": tolerance, "passed": error <= tolerance}


def _compare(name: str, ours: Tensor | None, recorded: Tensor, where: Tensor | None = None) -> Report:
    """Compare where `where`, bool of the leading axes, is true; masks and id maps by the share of other pixels."""
    if ours is not None and ours.numel() == recorded.numel():
        ours = ours.reshape(recorded.shape)  # but for axes of length one
    elif ours is not None and ours.shape[1:] == recorded.shape[1:] and torch.equal(ours, ours[:1].expand_as(ours)):
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


def _replay(recording: Recording, name: str) -> tuple[Report, list[str]]:
    """The entries of all tensors of a case, and the names of those that were not computed."""
    if "conditions" not in recording.entries[name]:
        return _preprocess(recording, recording.tensors(name)), []
    norms: dict[str, float | None] = recording.json(f"{name}.grad_norms.json")  # None = the parameter had no gradient
    grads = recording.tensors(f"{name}.grads", optional=True)
    with torch.set_grad_enabled(bool(norms or grads)):
        case = _Case(recording, name)
        for _ in case.output.mask_embeds[1:]:
            case.draws.take("rand")  # layer drop of a block, at rate 0
        losses = dict(case.losses())
    with torch.no_grad():
        values = losses | dict(itertools.chain(case.ours(), case.posted()))
    # What nothing of ours makes, on purpose: SAM's neck, an all-true mask, SigLIP's last layer.
    report, depth = {}, recording.sizes["siglip"]["num_hidden_layers"]
    dead = {"sam.last_hidden_state", "llm.attention_mask", f"siglip.hidden_states.{depth}"}
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
    return report, [key for key in case.tensors if key in dead]


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

    Returns `{"cases": {name: {"passed", "tensors": {name: {"max_abs", "max_rel", "tol", "passed"}}, "not_computed"}}}`.
    `max_abs` is, for masks and id maps, the share of pixels that differ, for `grads.*` the norm of the difference; None
    if a tensor was not made or has another shape. `rng` counts draws that did not fit. Raises UserError for a missing
    or damaged folder or file, and where there is no such case."""
    recording = Recording(Path(folder))
    if unknown := [name for name in cases if name not in recording.cases]:
        problem = f"has no case {unknown[0]!r}; its cases are {', '.join(recording.cases)}"
        raise UserError(f"{recording.folder / 'goldens.json'}: {problem}")
    replayed = {name: _replay(recording, name) for name in cases or recording.cases}
    return {"cases": {
        name: {"passed": all(e["passed"] for e in tensors.values()), "tensors": tensors, "not_computed": dead}
        for name, (tensors, dead) in replayed.items()}}  # fmt: skip


def run(directory: Path, case: str | None, as_json: bool) -> int:
    """Print JSON, or a line for each case and each tensor that failed or is of `case`; returns exit code 0 or 1."""
    report = replay(directory, [case] if case else [])
    if as_json:
        print(json.dumps(report, indent=1))
    for name, result in report["cases"].items() if not as_json else ():
        tensors = result["tensors"]
        good = sum(entry["passed"] for entry in tensors.values())
        print(f"{'pass' if result['passed'] else 'FAIL'}  {name}  {good} of {len(tensors)} tensors within tolerance")
        for tensor, entry in tensors.items():
            if case or not entry["passed"]:
                found = "absent" if entry["max_abs"] is None else f"{entry['max_abs']:.2e}"
                print(f"{'   ' if entry['passed'] else '  !'} {tensor:<70} {found:>9}  tol {entry['tol']:.1e}")
        if result["not_computed"]:
            print(f"    not computed: {', '.join(result['not_computed'])}")
    return 0 if all(result["passed"] for result in report["cases"].values()) else 1
