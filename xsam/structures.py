"""The types that flow between the rooms. Imports nothing of ours. Absent means empty, never None.

Shape symbols, used throughout the package: B samples (rows of text), I images, T tokens, D decoder items (one `<SEG>`
each), Q queries, C channels, K candidate conditions, N targets of one item, M targets of a batch, L supervised decoder
outputs, P points, H x W an image, h x w a feature grid, S the side of the square segmentation frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE_INDEX = -100  # label of a token that is not supervised
IMAGE_TOKEN = -200  # placeholder ids, never in a vocabulary: `<image>` becomes all tokens of one image,
REGION_TOKEN = -300  # `<region>` the feature of one visual prompt,
REGION_POINTS = 256  # which is taken at so many points

RLE = dict[str, Any]  # COCO run-length encoding: {"size": [H, W], "counts": str}
_no_ints = partial(np.zeros, 0, np.int64)


class UserError(Exception):
    """Something only the user can change: one clear line that names the file and the remedy; exit code 2."""


class BadSample(ValueError):
    """One record that cannot be used, and why. Training counts it and takes another; in evaluation it failed."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, with `<image>`, `<region>`, `<p>..</p>` and `<SEG>` written out."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Region:
    """One visual prompt: a point, scribble, box or mask, drawn on the sample's image or on a reference image."""

    mask: RLE  # at the size of the image it is drawn on
    label: int = -1  # what it shows, a category id; only where the sample has `slots`
    image: str = ""  # path of the reference image; "" = the sample's own


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """N masks of one image as a few small integer maps: mask i is `(ids == i).any(0)`, overlapping ones stand in
    different layers."""

    ids: np.ndarray = field(default_factory=lambda: np.full((1, 0, 0), -1, np.int16))  # int16[layers, H, W], -1 = none
    count: int = 0  # N; a mask may be empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One conversation about at most one image, before tokenisation and resizing. Made by `task.sample`.

    Every `<SEG>` of an answer is one decoder item. Its candidates are the `<p>..</p>` spans of this sample in the order
    of the text, or with `shared_candidates` those of its whole contrast group. Without turns (closed-set training) the
    sample is one decoder item and labels are class indices."""

    id: str  # unique within its source
    image: str = ""  # path or data URI; "" = a conversation without an image
    turns: tuple[Turn, ...] = ()
    masks: SegmentMap = field(default_factory=SegmentMap)  # targets at the size of the image
    labels: np.ndarray = field(default_factory=_no_ints)  # int64[N], span number (or class index) of each mask
    mask_segs: np.ndarray = field(default_factory=_no_ints)  # int64[N], number of the <SEG> that asks for the mask
    shared_candidates: bool = False
    regions: tuple[Region, ...] = ()  # visual prompts, one per `<region>` in text order
    # int64[n], label that the n-th `<region>` asks for: it becomes one of the contrast group's regions of that label,
    # or of something this sample does not show; `regions` then holds one per label shown. Empty: as they stand.
    slots: np.ndarray = field(default_factory=_no_ints)
    truth: Mapping[str, Any] = field(default_factory=dict)  # what the task's own metric needs beyond the masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A sample as arrays: token ids, two images, targets in the segmentation frame. Made by `data.prompt.encode`."""

    id: str
    image: str = ""  # path or data URI; rows of a batch that show the same image share it
    key: int  # seeds every draw that the model side makes for this sample (criterion points)
    input_ids: np.ndarray  # int64[T], with IMAGE_TOKEN and REGION_TOKEN
    labels: np.ndarray  # int64[T], IGNORE_INDEX where not supervised
    span_ids: np.ndarray  # int64[T], number of the <p>..</p> span a token belongs to (both tags included), else -1
    seg_ids: np.ndarray  # int64[T], number of the <SEG>, else -1
    pixel_values: np.ndarray  # uint8[3, s, s] for the vision encoder; [3, 0, 0] without an image
    seg_pixel_values: np.ndarray  # uint8[3, S, S] for the segmentation encoder, padded right and below
    seg_size: tuple[int, int]  # (h, w) of the image inside the S x S frame
    image_size: tuple[int, int]  # (H, W) on disk
    target_ids: np.ndarray  # int16[layers, S, S], the SegmentMap in the frame
    target_labels: np.ndarray  # int64[N]
    target_segs: np.ndarray  # int64[N]
    shared_candidates: bool = False
    # float32[R, P, 2], (x, y) in [0, 1] of the frame of the image they are drawn on
    region_points: np.ndarray = field(default_factory=partial(np.zeros, (0, REGION_POINTS, 2), np.float32))
    region_labels: np.ndarray = field(default_factory=_no_ints)  # int64[R]
    region_images: np.ndarray = field(default_factory=_no_ints)  # int64[R], -1 = the sample's own, else the reference's
    slots: np.ndarray = field(default_factory=_no_ints)  # int64[n], see `Sample.slots`
    references: tuple[tuple[np.ndarray, np.ndarray, tuple[int, int]], ...] = ()  # pixels, seg_pixels, seg_size as above


@dataclass(frozen=True, slots=True)
class Target:
    """What one decoder item should find: a selection of the masks in its image's id maps."""

    ids: Tensor  # int16[layers, S, S], id maps of the image in the frame, -1 = none
    index: Tensor  # int64[N], which ids of the map are this item's masks
    labels: Tensor  # int64[N], column of each mask's condition among the item's candidates


@dataclass(frozen=True, slots=True)
class DecoderItems:
    """D questions to the mask decoder. An item without text (closed set) has `seg` -1 and no candidates."""

    image: Tensor  # int64[D], index of its image
    sample: Tensor  # int64[D], row of the batch that holds its <SEG>
    seg: Tensor  # int64[D], number of the <SEG> in that row, -1 = none
    candidates: Tensor  # int64[D, K], flat span numbers (spans of row 0, then row 1, ...), -1 = padding
    targets: tuple[Target, ...] = ()  # empty at inference; else one per item
    keys: tuple[int, ...] = ()  # seeds of the criterion's points, one per item

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the model sees. It holds no task name: what a task needs is said in tensors."""

    ids: tuple[str, ...]  # sample ids, for logs
    input_ids: Tensor  # int64[B, T], padded on the right; [B, 0] without text
    labels: Tensor  # int64[B, T]
    span_ids: Tensor  # int64[B, T]
    seg_ids: Tensor  # int64[B, T]
    lengths: Tensor  # int64[B], tokens of each row without padding
    image_index: Tensor  # int64[B], image of each row, -1 = none
    pixel_values: Tensor  # uint8[I, 3, s, s], or float: then already normalised
    seg_pixel_values: Tensor  # uint8[I, 3, S, S], or float: then already normalised and zero in the padding
    seg_sizes: Tensor  # int64[I, 2], (h, w) of each image inside the frame
    region_points: Tensor  # float32[R, P, 2], one row per REGION_TOKEN in reading order
    region_image: Tensor  # int64[R], the image each region was drawn on
    items: DecoderItems

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; copies asynchronously from pinned memory."""
        return _to(self, device)


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Batch | DecoderItems | Target):
        return replace(value, **{f.name: _to(getattr(value, f.name), device) for f in fields(value)})
    return tuple(_to(v, device) for v in value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)  # without slots: ZeRO-3 looks for tensors in vars() of what a module returns
class ModelOutput:
    """What the model says. A part that was not asked for is an empty tensor."""

    text_logits: Tensor  # float[T', V], only at supervised positions (those that predict a supervised token)
    text_targets: Tensor  # int64[T']
    mask_embeds: Tensor  # float[L, D, Q, C]; the last is the final output, outside of training the only one (L is 1)
    mask_features: Tensor  # float[I, C, h, w]
    class_logits: Tensor  # float[L, D, Q, K + 1]; the last column is "none of these"; padding is very negative
    item_image: Tensor  # int64[D]
    idle: Tensor  # float[], zero; ties the parts that this batch does not use into the graph when training

    def mask_logits(self, item: int) -> Tensor:
        """Mask logits of the final output of one item, float[Q, h, w] on the grid of the mask features."""
        return torch.einsum("qc,chw->qhw", self.mask_embeds[-1, item], self.mask_features[self.item_image[item]])


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemOutput:
    """One decoder item's answer, cut out of a ModelOutput for `task.postprocess`."""

    mask_logits: Tensor  # float[Q, h, w], on the grid of the whole S x S frame
    class_logits: Tensor  # float[Q, K + 1]
    frame: int  # S
    seg_size: tuple[int, int]  # (h, w) of the image inside the frame
    image_size: tuple[int, int]  # (H, W) of the image


@dataclass(frozen=True, slots=True)
class Segment:
    """One predicted mask at the size of the image; `label` is a category id, a phrase, or empty."""

    segmentation: RLE
    label: int | str = ""
    score: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a task's postprocess hands to its metric, and what is stored per sample."""

    id: str
    text: str = ""
    segments: tuple[Segment, ...] = ()
    failed: bool = False  # no usable answer: scores zero and is counted
    error: str = ""  # why the sample could not be asked at all; then it failed, too
