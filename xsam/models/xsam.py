"""X-SAM (arXiv 2508.04655): one picture, two encoders, a language model, and a mask decoder that listens to it.

    image --> vision encoder (SigLIP2) --> projector -------+
    image --> segmentation encoder (SAM) --> seg_projector -+--> LLM --> text
                  |                                               |
                  |                                               +--> <p>..</p> spans: conditions (the classifier)
                  +--> connector --> pixel decoder --> mask decoder <-- <SEG>: added to every query

The model never sees a task name. Whatever a task needs (spans, regions, candidates, targets) is data in the batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..structures import Batch, DecoderItems, ModelOutput
from .encoders import Encoder
from .language import Spliced, decode, splice, supervised_logits
from .mask_decoder import MaskDecoder
from .region_sampler import RegionSampler


class ImageFeatures(NamedTuple):
    """What the encoders know of I images; can be kept and asked again, `XSamModel.decode_pixels` once."""

    tokens: Tensor  # float[I, n, C_llm], vision tokens then segmentation tokens; [I, 0, 0] without a language model
    seg_tokens: Tensor  # float[I, N, C_llm], the segmentation tokens alone, for the region sampler
    maps: tuple[Tensor, ...]  # float[I, h, w, C], what the connector reads; empty without one, or once it has
    pixels: tuple[Tensor, ...] = ()  # float[I, C, h, w], mask features, then decoded levels, coarsest first; or empty


class XSamModel(nn.Module):
    """The whole model. Stage 1 is built without the language parts, stage 2 without the decoder parts.

    levels: hidden states of the segmentation encoder that feed the connector, finest branch first. seg_level: the one
    that feeds the language model. vision_encoder, projector, seg_projector, llm: the language parts. connector,
    pixel_decoder, mask_decoder, classifier: the decoder parts. phrase_projector: from the language model's width to the
    decoder's; where both are present."""

    def __init__(
        self, *, seg_encoder: Encoder, levels: Sequence[int] = (12, 18, 24), seg_level: int = 23,
        vision_encoder: Encoder | None = None, projector: nn.Module | None = None, llm: PreTrainedModel | None = None,
        seg_projector: nn.Module | None = None, connector: nn.Module | None = None, classifier: nn.Module | None = None,
        pixel_decoder: nn.Module | None = None, mask_decoder: nn.Module | None = None,
        phrase_projector: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.levels, self.seg_level = tuple(levels), seg_level
        self.seg_encoder, self.vision_encoder, self.projector = seg_encoder, vision_encoder, projector
        self.seg_projector, self.region_sampler, self.llm = seg_projector, RegionSampler(), llm
        self.phrase_projector, self.connector, self.pixel_decoder = phrase_projector, connector, pixel_decoder
        self.mask_decoder, self.classifier = mask_decoder, classifier

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "XSamModel":
        """Buffers move but keep their precision: rotary frequencies in bf16 would blur every position past a few."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if self.get_buffer(name).dtype != buffer.dtype:
                owner, _, leaf = name.rpartition(".")
                self.get_submodule(owner)._buffers[leaf] = buffer.to(self.get_buffer(name).device)
        return self

    @property
    def num_queries(self) -> int:
        return len(self.mask_decoder.query_features) if isinstance(self.mask_decoder, MaskDecoder) else 0

    def forward(self, batch: Batch, features: ImageFeatures | None = None, hidden: Tensor | None = None) -> ModelOutput:
        """Read the text, decode the masks; all outputs of the mask decoder in training, else the last (L is 1).
        features, hidden: of images and text, where they are known: what `encode` and `generate` give."""
        asked = len(batch.items)
        batch = self._complete(batch) if self.training else batch
        features = features or self.encode(batch)
        items, empty = batch.items, features.tokens.new_zeros
        text_logits, text_targets = empty(0, 0), batch.labels.new_zeros(0)
        mask_embeds = class_logits = mask_features = empty(0, len(items), 0, 0)
        if self.llm is not None and batch.input_ids.shape[1]:
            spliced = self.splice(batch, features)
            if hidden is None:
                hidden = self.llm.model(inputs_embeds=spliced.embeds, use_cache=False).last_hidden_state
            text_logits, text_targets = supervised_logits(self.llm, hidden, spliced, batch.labels)
        if len(items) and self.mask_decoder is not None and self.classifier is not None:
            # After the language model: when its backward pass begins, what these have kept for theirs is gone.
            last = int(items.image.max())  # behind it stand reference images, which nobody segments
            maps = tuple(each[: last + 1] for each in features.maps)
            mask_features, *levels = self.decode_pixels(features._replace(maps=maps)).pixels
            spans, seg_embeds = (mask_features.new_zeros(n, mask_features.shape[1]) for n in (0, len(items)))
            if hidden is not None and self.phrase_projector is not None:
                spans, seg_embeds = self.conditions(batch, hidden, spliced.positions)
            states, mask_embeds = self.mask_decoder(levels, mask_features, items.image, seg_embeds)
            if not self.training:
                states, mask_embeds = states[-1:], mask_embeds[-1:]
            padded = torch.cat([spans, spans.new_zeros(1, spans.shape[1])])  # candidate -1 is the row of zeros
            class_logits = self.classifier(states, padded[items.candidates], items.candidates >= 0)
        idle = empty(())
        if self.training and not asked:
            idle = 0 * (mask_embeds.sum() + class_logits.sum() + mask_features.sum())
        return ModelOutput(
            text_logits=text_logits, text_targets=text_targets, mask_embeds=mask_embeds, mask_features=mask_features,
            class_logits=class_logits, item_image=items.image, idle=idle,
        )  # fmt: skip

    def _complete(self, batch: Batch) -> Batch:
        """Add a black image to a batch without one, and an item to a batch without a `<SEG>`: so every training step
        runs every part, on every rank. ZeRO-3 would otherwise wait for parameters that another rank does not gather, or
        step with the gradients of the step before."""
        if not len(batch.seg_pixel_values):
            side, seen = self.seg_encoder.image_size, getattr(self.vision_encoder, "image_size", 0)
            batch = replace(
                batch, pixel_values=batch.pixel_values.new_zeros(1, 3, seen, seen),
                seg_pixel_values=batch.seg_pixel_values.new_zeros(1, 3, side, side),
                seg_sizes=batch.seg_sizes.new_full((1, 2), side),
            )  # fmt: skip
        if not len(batch.items) and self.mask_decoder is not None:
            first = batch.image_index.new_zeros(1)
            batch = replace(batch, items=DecoderItems(first, first, first - 1, first[:, None] - 1))
        return batch

    def encode(self, batch: Batch) -> ImageFeatures:
        """Run the encoders and projectors."""
        seg_pixels = normalize(batch.seg_pixel_values, self.seg_encoder, batch.seg_sizes)
        indices = list(self.levels) if self.connector is not None else []
        indices += [self.seg_level] if self.seg_projector is not None else []
        with torch.set_grad_enabled(_learns(self.seg_encoder)):
            maps = self.seg_encoder(seg_pixels, indices) if len(seg_pixels) else []
        tokens = seg_tokens = seg_pixels.new_zeros(len(seg_pixels), 0, 0)
        if self.seg_projector and len(seg_pixels):
            tokens = seg_tokens = self.seg_projector(maps.pop())
        if self.vision_encoder and self.projector and len(seg_pixels):
            with torch.set_grad_enabled(_learns(self.vision_encoder)):
                vision = self.vision_encoder(normalize(batch.pixel_values, self.vision_encoder))
            tokens = torch.cat([self.projector(vision), seg_tokens], dim=1)
        return ImageFeatures(tokens, seg_tokens, tuple(maps))

    def decode_pixels(self, features: ImageFeatures) -> ImageFeatures:
        """The same with `pixels` instead of `maps`, where the model has a mask decoder."""
        if features.pixels or self.connector is None or self.pixel_decoder is None:
            return features
        mask_features, levels = self.pixel_decoder(self.connector(features.maps))
        return features._replace(maps=(), pixels=(mask_features, *levels))

    def splice(self, batch: Batch, features: ImageFeatures) -> Spliced:
        """Token embeddings with image and region features in place."""
        assert self.llm is not None
        regions = self.region_sampler(features.seg_tokens, batch.region_points, batch.region_image)
        table = self.llm.get_input_embeddings()
        return splice(table, batch.input_ids, batch.lengths, features.tokens, batch.image_index, regions)

    def conditions(self, batch: Batch, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Condition embeddings float[S, C] of all spans of the batch (the mean over a span's projected states, tags
        included), and the projected states at the `<SEG>` of every item, float[D, C].

        hidden: float[B, T', C], last states. positions: int64[B, T], where each token of the batch stands there."""
        assert self.phrase_projector is not None
        rows, columns = (batch.span_ids >= 0).nonzero(as_tuple=True)
        counts = batch.span_ids.amax(1).clamp(min=-1) + 1
        first = counts.cumsum(0) - counts  # flat number of each row's first span
        spans = first[rows] + batch.span_ids[rows, columns]
        projected, total = self.phrase_projector(hidden[rows, positions[rows, columns]]), int(counts.sum())
        sizes = torch.bincount(spans, minlength=total).clamp(min=1).to(projected.dtype)
        means = projected.new_zeros(total, projected.shape[-1]).index_add(0, spans, projected) / sizes[:, None]
        is_seg = batch.seg_ids[batch.items.sample] == batch.items.seg[:, None]  # [D, T]
        at = positions[batch.items.sample, is_seg.long().argmax(1)]
        return means, self.phrase_projector(hidden[batch.items.sample, at])

    @torch.no_grad()
    def generate(
        self, batch: Batch, max_new_tokens: int, stop_ids: tuple[int, ...], features: ImageFeatures | None = None,
        tag_ids: tuple[int, int, int] | None = None,
    ) -> tuple[list[list[int]], Tensor]:  # fmt: skip
        """Greedy answers to the prompts of a batch: token ids of every row, up to and without the stop token; and the
        last states of prompts and answers, float[B, T', C], to read masks from (`hidden` of `forward`).
        tag_ids: as in `decode`."""
        assert self.llm is not None
        spliced = self.splice(batch, features or self.encode(batch))
        # One step beyond the answer: it gives the state of the last token.
        tokens, states = zip(*decode(self.llm, spliced, max_new_tokens + 1, stop_ids, tag_ids), strict=True)
        answers = torch.stack(tokens, 1)[:, :max_new_tokens].tolist()
        padding, hidden = spliced.embeds.shape[1] - spliced.lengths, torch.cat(states, 1)
        places = torch.arange(hidden.shape[1], device=hidden.device) + padding[:, None]
        hidden = hidden.take_along_dim(places[..., None] % hidden.shape[1], 1)  # the padding moves behind the answer
        return [list(takewhile(lambda token: token not in stop_ids, answer)) for answer in answers], hidden


def _learns(module: nn.Module) -> bool:
    """Whether any gradient is wanted inside; a frozen encoder then runs without building a graph."""
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())


def normalize(pixels: Tensor, encoder: Encoder, sizes: Tensor | None = None) -> Tensor:
    """uint8[I, 3, H, W] to what the encoder was pre-trained on, in its dtype; floats pass as already normalised.

    sizes: int64[I, 2], (h, w) of the image inside the frame; what lies outside becomes zero *after* normalisation."""
    dtype = next(encoder.parameters()).dtype
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (encoder.mean, encoder.std))
    images = (pixels.float() / 255 - mean) / std
    if sizes is not None:
        axes = zip(images.shape[-2:], sizes.T[..., None], strict=True)
        rows, columns = (torch.arange(n, device=pixels.device) < size for n, size in axes)
        images = images * (rows[:, :, None] & columns[:, None, :])[:, None]
    return images.to(dtype)
