"""Generic segmentation: every thing and all stuff of the listed categories; panoptic, instance and semantic scores.

Open-vocabulary segmentation is this task with other rows. In stage 1 there is no text: the classes are a closed set."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data import submission
from ..data.coco import Category, CocoInstances, CocoPanoptic, ImageSegments, clean_name
from ..data.label_maps import LabelMaps
from ..data.masks import encode_rle, select, unpack
from ..data.postprocess import instances, panoptic, semantic
from ..data.records import read_mask
from ..metrics.base import Metric
from ..metrics.detection import InstanceAP
from ..metrics.panoptic import PanopticQuality
from ..metrics.semantic import IGNORE, NOTHING, SemanticIoU
from ..structures import BadSample, ItemOutput, Prediction, Sample, UserError
from .base import Task

KINDS = ("panoptic", "instance", "semantic")
QUESTIONS = (
    "Segment everything that belongs to these categories: {categories}.",
    "Here is a list of categories: {categories}. Please mark every region of the image that shows one of them.",
    "Which parts of the image are {categories}? Give me a mask for each.",
    "Divide the image into {categories}.",
)
ANSWERS = ("<SEG>.", "Here you are: <SEG>.", "The masks are <SEG>.", "Done, <SEG>.")


class GenericSegmentation(Task):
    """One split of a dataset. Rows that differ in `metric` alone are answered by one forward pass.

    Args:
        instances: COCO instances of the same images, the truth of the instance score; else the things of `data` are.
        metric: "panoptic", "instance" or "semantic"; default: the first that `data` can be the truth of.
        closed_set: no text; labels are class indices (stage 1).
        train: categories come shuffled.
        partial: share of the training samples whose list leaves out some of the absent categories.
        max_categories: most names in a training sample's list, 0 = all; what the image shows always stays."""

    name = "generic"
    data: CocoPanoptic | CocoInstances | LabelMaps

    def __init__(self, *, data: CocoPanoptic | CocoInstances | LabelMaps, instances: CocoInstances | None = None,
                 metric: str = "", closed_set: bool = False, train: bool = False, partial: float = 0.5,
                 max_categories: int = 0, questions: Sequence[str] = QUESTIONS,
                 answers: Sequence[str] = ANSWERS) -> None:  # fmt: skip
        self.data, self.instances, self.categories = data, instances, data.categories
        self.kind, self.closed_set, self.train = metric or data.metrics[0], closed_set, train
        self.partial, self.max_categories, self.questions, self.answers = partial, max_categories, questions, answers
        self.column: dict[int | str, int] = {category.id: i for i, category in enumerate(self.categories)}
        self.things = {category.id for category in self.categories if category.is_thing}
        if self.kind not in data.metrics:
            possible = f"{type(data).__name__} can be scored by {', '.join(data.metrics)} only"
            raise UserError(f"metric={self.kind!r}: {possible}")
        if self.kind == "instance" and not self.things:
            raise UserError("metric='instance': no category of this dataset is a thing")
        if self.kind == "semantic" and len(self.categories) > IGNORE:
            raise UserError(f"metric='semantic': {len(self.categories)} categories are more than {IGNORE}")
        if instances is not None and (unasked := {c.id for c in instances.categories} - self.things):
            raise UserError(f"{instances.path}: category {min(unasked)} is not a thing of `data`")
        if instances is not None and (strays := instances.strays):
            raise UserError(f"{instances.path}: {strays[0]} is on no image; as the truth it would be missed")

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        shown = self.data.segments(index)
        truth = self._true_instances(shown) if self.kind == "instance" and not self.train else []
        targets = np.flatnonzero(~np.array(shown.crowd, bool))
        wanted = [shown.category_ids[i] for i in targets]
        listed = self._listed(set(wanted), rng)
        column = {category.id: i for i, category in enumerate(listed)}
        categories = ", ".join(f"<p>{clean_name(category.name)}</p>" for category in listed)
        turns = () if self.closed_set else (self.turn(rng, categories=categories),)
        return Sample(id=shown.image_id, image=shown.image, turns=turns, masks=select(shown.masks, targets),
                      labels=np.array([column[id] for id in wanted], np.int64),
                      mask_segs=np.zeros(len(wanted), np.int64),
                      truth={"shown": shown, "instances": truth})  # fmt: skip

    def _listed(self, present: set[int], rng: np.random.Generator) -> list[Category]:
        """The categories in the order of the question: all, or in training those that are there and some others."""
        if self.closed_set or not self.train:
            return self.categories
        absent = [c for c in self.categories if c.id not in present]
        count = int(rng.integers(len(absent) + 1)) if rng.random() < self.partial else len(absent)
        if self.max_categories:
            count = min(count, max(0, self.max_categories - len(present)))
        some = [absent[i] for i in rng.choice(len(absent), count, replace=False)]
        listed = [c for c in self.categories if c.id in present] + some
        return [listed[i] for i in rng.permutation(len(listed))]

    def found(self, output: ItemOutput, sample: Sample) -> Iterator[tuple[Tensor, int | str, float]]:
        found = segments(output, self.kind, [category.is_thing for category in self.categories])
        return ((mask, self.categories[column].id, score) for mask, column, score in found)

    def metric(self) -> Any:
        if self.kind == "panoptic":
            return PanopticQuality({category.id: category.is_thing for category in self.categories})
        return SemanticIoU(len(self.categories)) if self.kind == "semantic" else InstanceAP()

    def export(self, answered: submission.Answered, path: Path) -> None:
        if self.kind == "semantic":
            submission.labels(answered, path, self.column)
        else:
            (submission.panoptic if self.kind == "panoptic" else submission.instances)(answered, path)

    def category(self, label: int | str) -> str:
        return next(category.name for category in self.categories if category.id == label)

    def per_category(self, metric: Metric) -> dict[str, dict[str, float | None]]:
        if self.kind == "semantic":  # its labels are columns
            return {self.categories[column].name: figures for column, figures in metric.per_category().items()}
        return super().per_category(metric)

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        shown: ImageSegments = sample.truth["shown"]
        ids, labels = shown.masks.ids[0], [segment.label for segment in prediction.segments]
        if self.kind == "instance":
            predicted = [{"category": p.label, "rle": p.segmentation, "score": p.score} for p in prediction.segments]
            metric.update(sample.id, ids.shape, sample.truth["instances"], predicted)
        elif self.kind == "panoptic":
            metric.update(submission.painted(prediction, sample), dict(enumerate(labels, 1)), ids + 1,
                          dict(enumerate(shown.category_ids, 1)), set(np.flatnonzero(shown.crowd) + 1))  # fmt: skip
        else:
            true_column = np.array([*(self.column[id] for id in shown.category_ids), IGNORE])  # -1, nothing, is last
            found = np.array([NOTHING, *(self.column[label] for label in labels)])
            metric.update(found[submission.painted(prediction, sample)], true_column[ids])

    def _true_instances(self, shown: ImageSegments) -> list[dict[str, Any]]:
        if self.instances is None:
            areas = shown.areas or [None] * shown.masks.count
            rows = list(zip(unpack(shown.masks), shown.category_ids, shown.crowd, areas, strict=True))
        else:
            record, (height, width) = self.instances.of_image(shown.image_id), shown.masks.ids.shape[1:]
            if (record.height, record.width) != (height, width):
                raise BadSample(f"{self.instances.path}: image {shown.image_id} is not {height} x {width}")
            items = record.annotations
            masks = [read_mask(i.segmentation, height, width, f"annotation {i.id}", empty=True) for i in items]
            rows = [(mask, i.category_id, i.is_crowd, i.area) for mask, i in zip(masks, items, strict=True)]
        return [{"category": id, "rle": encode_rle(mask), "crowd": crowd, "area": area}
                for mask, id, crowd, area in rows if id in self.things]  # fmt: skip


def segments(output: ItemOutput, kind: str, things: Sequence[bool],
             score: float = 0.0) -> Iterator[tuple[Tensor, int, float]]:  # fmt: skip
    """Mask bool[H, W], column and score of each segment of one kind of answer.

    things: of each column whether it is one. score: least class probability, which a semantic answer does not have."""
    stuff = [column for column, thing in enumerate(things) if not thing]
    if kind == "semantic":
        labels = semantic(output)
        yield from ((labels == column, column, 1.0) for column in labels.unique().tolist())
    elif kind == "instance":
        yield from best_first(output, score, stuff)
    else:
        ids, found = panoptic(output, stuff=stuff, score=score)
        yield from ((ids == number, column, value) for number, column, value in found)


def best_first(output: ItemOutput, score: float = 0.0, without: Sequence[int] = ()) -> Iterator[Any]:
    """Mask bool[H, W], column and score of up to 100 instances (COCO's maxDets), see `instances`."""
    masks, columns, scores, _ = instances(output, score=score, without=without)
    best = scores.argsort(descending=True, stable=True)[:100]
    rows = zip(best.tolist(), columns[best].tolist(), scores[best].tolist(), strict=True)
    return ((masks[place], column, value) for place, column, value in rows)
