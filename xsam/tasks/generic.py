"""Generic segmentation: every thing and all stuff of the listed categories; panoptic, instance and semantic scores.

Open-vocabulary segmentation is this task with other rows. In stage 1 there is no text: the classes are a closed set.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..data.coco import Category, CocoInstances, ImageSegments, clean_name
from ..data.masks import decode_rle, encode_rle, unpack
from ..data.postprocess import instances, panoptic, semantic
from ..data.records import read_mask
from ..metrics.detection import InstanceAP
from ..metrics.panoptic import PanopticQuality
from ..metrics.semantic import IGNORE, NOTHING, SemanticIoU
from ..structures import BadSample, ItemOutput, Prediction, Sample, SegmentMap, Turn, UserError
from .base import Task

QUESTIONS = (
    "Segment everything that belongs to these categories: {categories}.",
    "Here is a list of categories: {categories}. Please mark every region of the image that shows one of them.",
    "Which parts of the image are {categories}? Give me a mask for each.",
    "Divide the image into {categories}.",
)
ANSWERS = ("<SEG>.", "Here you are: <SEG>.", "The masks are <SEG>.", "Done, <SEG>.")


class SegmentReader(Protocol):
    """What this task needs of a dataset: `CocoPanoptic`, `CocoInstances`, `LabelMaps`."""

    categories: list[Category]
    metrics: tuple[str, ...]  # that its masks can be the truth of

    def __len__(self) -> int: ...
    def id(self, index: int) -> str: ...
    def segments(self, index: int) -> ImageSegments: ...


class GenericSegmentation(Task):
    """One split of a dataset. Rows that differ in `metric` alone are answered by one forward pass.

    Args:
        instances: COCO instances of the same images, the truth of the instance score; else the things of `data` are.
        metric: "panoptic", "instance" or "semantic"; default: the first that `data` can be the truth of.
        closed_set: no text; labels are class indices (stage 1).
        train: categories come shuffled.
        partial: share of the training samples whose list leaves out some of the absent categories.
        max_categories: most names in a training sample's list, for long vocabularies; what the image shows always
            stays. 0 = all.
        score: least class probability of a panoptic segment.
    """

    name = "generic"
    data: SegmentReader

    def __init__(
        self, *, data: SegmentReader, instances: CocoInstances | None = None, metric: str = "",
        closed_set: bool = False, train: bool = False, partial: float = 0.5, max_categories: int = 0,
        score: float = 0.0, questions: Sequence[str] = QUESTIONS, answers: Sequence[str] = ANSWERS,
    ) -> None:  # fmt: skip
        self.data, self.instances = data, instances
        self.kind, self.closed_set, self.train = metric or data.metrics[0], closed_set, train
        self.partial, self.max_categories, self.threshold = partial, max_categories, score
        self.questions, self.answers = questions, answers
        self.categories: list[Category] = data.categories
        self._check()

    def _check(self) -> None:
        things = {category.id for category in self.categories if category.is_thing}
        if self.kind not in self.data.metrics:
            reader = type(self.data).__name__
            raise UserError(f"metric={self.kind!r}: {reader} can be scored by {', '.join(self.data.metrics)} only")
        if self.kind == "instance" and not things:
            raise UserError("metric='instance': no category of this dataset is a thing")
        if self.kind == "semantic" and len(self.categories) > IGNORE:
            raise UserError(f"metric='semantic': {len(self.categories)} categories are more than {IGNORE}")
        if self.instances is not None and (unasked := {c.id for c in self.instances.categories} - things):
            raise UserError(f"{self.instances.path}: category {min(unasked)} is not a thing of `data`")
        if self.instances is not None and (strays := self.instances.strays):
            raise UserError(f"{self.instances.path}: {strays[0]} is on no image; as the truth it would be missed")

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        shown = self.data.segments(index)
        truth: dict[str, Any] = {"shown": shown}
        if self.kind == "instance" and not self.train:
            truth["instances"] = self._true_instances(shown)
        targets = np.flatnonzero(~np.array(shown.crowd, bool))
        wanted = [shown.category_ids[i] for i in targets]
        listed = self._listed(set(wanted), rng)
        column = {category.id: i for i, category in enumerate(listed)}
        turns: tuple[Turn, ...] = ()
        if not self.closed_set:
            categories = ", ".join(f"<p>{clean_name(category.name)}</p>" for category in listed)
            question, answer = self.wording(rng)
            turns = (Turn(f"<image>\n{question.format(categories=categories)}", answer),)
        return Sample(
            id=shown.image_id,
            image=shown.image,
            turns=turns,
            masks=_select(shown.masks, targets),
            labels=np.array([column[id] for id in wanted], np.int64),
            mask_segs=np.zeros(len(wanted), np.int64),
            truth=truth,
        )

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

    def found(self, output: ItemOutput, sample: Sample) -> Iterator[tuple[np.ndarray, int | str, float]]:
        found: Iterable[tuple[np.ndarray, int, float]]
        if self.kind == "panoptic":
            stuff = [i for i, category in enumerate(self.categories) if not category.is_thing]
            painted, segments = panoptic(output, stuff=stuff, score=self.threshold)
            ids = painted.cpu().numpy()
            found = ((ids == id, column, score) for id, column, score in segments)
        elif self.kind == "semantic":
            labels = semantic(output).cpu().numpy()
            found = ((labels == column, int(column), 1.0) for column in np.unique(labels))
        else:
            masks, columns, scores, _ = instances(output)
            rows = zip(masks.cpu().numpy(), columns.tolist(), scores.tolist(), strict=True)
            things = (row for row in rows if self.categories[row[1]].is_thing)
            found = sorted(things, key=lambda row: -row[2])[:100]  # COCO's maxDets
        return ((mask, self.categories[column].id, score) for mask, column, score in found)

    def metric(self) -> Any:
        if self.kind == "panoptic":
            return PanopticQuality({category.id: category.is_thing for category in self.categories})
        return SemanticIoU(len(self.categories)) if self.kind == "semantic" else InstanceAP()

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        shown: ImageSegments = sample.truth["shown"]
        ids = shown.masks.ids[0]
        if self.kind == "instance":
            predicted = [{"category": p.label, "rle": p.segmentation, "score": p.score} for p in prediction.segments]
            metric.update(sample.id, ids.shape, sample.truth["instances"], predicted)
            return
        painted = np.zeros(ids.shape, np.int32)
        for number, segment in enumerate(prediction.segments, start=1):
            painted[decode_rle(segment.segmentation)] = number
        if self.kind == "panoptic":
            metric.update(
                painted,
                {number: segment.label for number, segment in enumerate(prediction.segments, start=1)},
                ids + 1,
                dict(enumerate(shown.category_ids, start=1)),
                {number for number, crowd in enumerate(shown.crowd, start=1) if crowd},
            )
            return
        column: dict[int | str, int] = {category.id: i for i, category in enumerate(self.categories)}
        true_column = np.array([*(column[id] for id in shown.category_ids), IGNORE])  # -1, nothing, is the last
        found: np.ndarray = np.array([NOTHING, *(column[segment.label] for segment in prediction.segments)])
        metric.update(found[painted], true_column[ids])

    def _true_instances(self, shown: ImageSegments) -> list[dict[str, Any]]:
        if self.instances is not None:
            record, (height, width) = self.instances.of_image(shown.image_id), shown.masks.ids.shape[1:]
            if (record.height, record.width) != (height, width):
                raise BadSample(f"{self.instances.path}: image {shown.image_id} is not {height} x {width}")
            masks = [
                read_mask(item.segmentation, height, width, f"annotation {item.id}", empty=True)
                for item in record.annotations
            ]
            rows = [(item.category_id, item.is_crowd, item.area) for item in record.annotations]
        else:
            masks = list(unpack(shown.masks))
            areas = shown.areas or [mask.sum() for mask in masks]
            rows = list(zip(shown.category_ids, shown.crowd, areas, strict=True))
        things = {category.id for category in self.categories if category.is_thing}
        return [
            {"category": id, "rle": encode_rle(mask), "crowd": crowd, "area": area}
            for mask, (id, crowd, area) in zip(masks, rows, strict=True)
            if id in things
        ]


def _select(masks: SegmentMap, chosen: np.ndarray) -> SegmentMap:
    """Some of the masks, numbered anew."""
    if len(chosen) == masks.count:
        return masks
    number = np.full(masks.count + 1, -1, np.int16)  # the last stands for -1, no mask
    number[chosen] = np.arange(len(chosen))
    return SegmentMap(number[masks.ids], len(chosen))
