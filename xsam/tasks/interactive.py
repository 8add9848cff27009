"""Interactive segmentation: a point, scribble, box or mask, and the one object that it means."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..data.masks import decode_rle, mask_box, pack
from ..data.postprocess import instances
from ..data.region_records import CocoVgd
from ..data.regions import prompt_kinds
from ..metrics.iou import ReferringIoU
from ..structures import BadSample, ItemOutput, Prediction, Region, Sample
from .base import Task, choose, united

QUESTIONS = ("Can you segment the object at {region} in this image?",
             "Which object is marked by {region}? Show me its mask.", "Please outline what {region} points to.",
             "Segment {region}.")  # fmt: skip
ANSWERS = ("<SEG>.", "It is <SEG>.", "Here it is: <SEG>.", "Sure, <SEG>.")


class InteractiveIoU(ReferringIoU):
    """`mIoU`, the mean of the samples' IoU, and `cIoU`, in percent."""

    def figures(self, counted: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        values = super().figures(counted)
        return {"mIoU": values["gIoU"], "cIoU": values["cIoU"]}


class InteractiveSegmentation(Task):
    """Objects shown by visual prompts. Training: a sample is an image, its object and the kind of its prompt are drawn.
    Evaluation: a sample is an object that has a prompt of the kind `prompt`; crowds are no objects."""

    name = "interactive"
    data: CocoVgd
    metric = staticmethod(InteractiveIoU)

    def __init__(self, *, data: CocoVgd, prompt: str = "", train: bool = False, questions: Sequence[str] = QUESTIONS,
                 answers: Sequence[str] = ANSWERS) -> None:  # fmt: skip
        self.data, self.kinds, self.train = data, prompt_kinds(prompt, train), train
        self.questions, self.answers = questions, answers
        if not train:  # record and instance; a record that cannot be used stands there once
            shown = ([0] if isinstance(row, BadSample) else row.having(*self.kinds) for _, row in data.tried())
            self.rows = np.array([(i, j) for i, own in enumerate(shown) for j in own], np.int64).reshape(-1, 2)

    def id(self, index: int) -> str:
        if self.train:
            return self.data.id(index)
        record, instance = self.rows[index]
        return f"{self.data.id(record)}-{instance}"

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        i, j = (index, -1) if self.train else self.rows[index]
        record = self.data[i]
        if self.train and not (objects := record.having(*self.kinds)):
            raise BadSample(f"{self.data.path}: image {record.image_id}: no object has a visual prompt")
        target = record.annotations[int(rng.choice(objects)) if self.train else j]
        kind = choose([kind for kind in self.kinds if kind in target.prompts], rng)
        return Sample(id=self.id(index), image=record.image, turns=(self.turn(rng, region="<p><region></p>"),),
                      masks=pack(record.mask(target)[None]), labels=np.zeros(1, np.int64),
                      mask_segs=np.zeros(1, np.int64),
                      regions=(Region(self.data.prompt(record, target, kind)),))  # fmt: skip

    def found(self, output: ItemOutput, sample: Sample) -> list[tuple[Tensor, int | str, float]]:
        chosen = marked(output, decode_rle(sample.regions[0].mask), self.kinds[0])
        return [(mask, "", score) for mask, score in chosen]

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        metric.update(*united(prediction, sample))

    def baselines(self, indices: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """The prompt itself as the answer."""
        metric = InteractiveIoU()
        for index in indices:
            with suppress(BadSample):  # what has no truth says nothing about the prompt
                sample = self.sample(index, np.random.default_rng(0))
                metric.update(decode_rle(sample.regions[0].mask), sample.masks.ids[0] == 0)
        return {"the prompt itself": metric.compute()}


def marked(output: ItemOutput, prompt: np.ndarray, kind: str) -> list[tuple[Tensor, float]]:
    """The mask bool[H, W] that a prompt bool[H, W] of a kind means, and its score, or nothing: of those with a score of
    0.5 or the highest, the one with the highest score x `agreement`."""
    masks, _, scores, boxes = instances(output)
    kept = scores >= scores.max().clamp(max=0.5) if len(scores) else scores > 0
    if not kept.any():
        return []
    masks, scores, boxes = masks[kept], scores[kept], boxes[kept]
    best = int((scores * agreement(masks, boxes, prompt, kind)).argmax())
    return [(masks[best], scores[best].item())]


def agreement(masks: Tensor, boxes: Tensor, prompt: np.ndarray, kind: str) -> Tensor:
    """How well masks fit what was drawn, float[n] in [0, 1].

    For a mask the IoU; for a box the IoU of the boxes; for a point or scribble the share of it that a mask covers,
    where a pixel weighs as much as it is far from the edge of the stroke: the brush may be wider than the object.

    masks: bool[n, H, W]. boxes: float[n, 4], of the masks. prompt: bool[H, W]."""
    if kind == "box":
        own = boxes.new_tensor(mask_box(prompt))
        sides = (torch.minimum(boxes, own)[:, 2:] - torch.maximum(boxes, own)[:, :2]).clamp(min=0)
        inter = sides.prod(1)
        return inter / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (own[2:] - own[:2]).prod() - inter)
    drawn = torch.from_numpy(prompt).to(masks.device)
    covered = masks[:, drawn]
    if kind == "mask":
        inter = covered.sum(1)
        return inter / (masks.flatten(1).sum(1) + drawn.sum() - inter)
    weight = torch.from_numpy(ndimage.distance_transform_edt(np.pad(prompt, 1))[1:-1, 1:-1][prompt]).to(boxes)
    return covered.to(weight) @ (weight / weight.sum())
