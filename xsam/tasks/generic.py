"""Generic segmentation: every thing and all stuff of the listed categories; panoptic, instance and semantic scores.

Open-vocabulary segmentation is this task with other rows. In stage 1 there is no text: the classes are a closed set.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.coco import Category, CocoInstances, CocoPanoptic, annotation_mask, clean_name
from ..data.masks import decode_rle, encode_rle, from_label_map
from ..data.postprocess import instances, panoptic, semantic
from ..metrics.detection import InstanceAP
from ..metrics.panoptic import PanopticQuality
from ..metrics.semantic import NOTHING, SemanticIoU
from ..structures import ItemOutput, Prediction, Sample, Segment, Turn, UserError
from .base import Task, choose

QUESTIONS = (
    "Segment everything that belongs to these categories: {categories}.",
    "Here is a list of categories: {categories}. Please mark every region of the image that shows one of them.",
    "Which parts of the image are {categories}? Give me a mask for each.",
    "Divide the image into {categories}.",
)
ANSWERS = ("<SEG>.", "Here you are: <SEG>.", "The masks are <SEG>.", "Done, <SEG>.")
METRICS = ("panoptic", "instance", "semantic")


class GenericSegmentation(Task):
    """One split of a COCO-panoptic-style dataset. Rows that differ in `metric` alone are answered by one forward pass.

    Args:
        data: a reader of panoptic segments.
        instances: COCO instances of the same images, the truth of the instance score; else the panoptic things are.
        metric: "panoptic", "instance" or "semantic".
        closed_set: no text; labels are class indices (stage 1).
        train: categories come shuffled.
        partial: share of the training samples whose list leaves out some of the absent categories.
        score: least class probability of a panoptic segment.
    """

    name = "generic"

    def __init__(
        self, *, data: CocoPanoptic, instances: CocoInstances | None = None, metric: str = "panoptic",
        closed_set: bool = False, train: bool = False, partial: float = 0.5, score: float = 0.0,
        questions: Sequence[str] = QUESTIONS, answers: Sequence[str] = ANSWERS,
    ) -> None:  # fmt: skip
        if metric not in METRICS:
            raise UserError(f"metric={metric!r} is unknown; generic segmentation has {', '.join(METRICS)}")
        self.data, self.instances = data, instances
        self.kind, self.closed_set, self.train = metric, closed_set, train
        self.partial, self.threshold = partial, score
        self.questions, self.answers = questions, answers
        self.categories: list[Category] = self.data.categories

    def __len__(self) -> int:
        return len(self.data)

    def id(self, index: int) -> str:
        return self.data[index].image_id

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.data[index]
        ids = self.data.label_map(index)
        kept = [s for s in record.segments if not s.is_crowd]
        listed = self._listed({s.category_id for s in kept}, rng)
        column = {category.id: i for i, category in enumerate(listed)}
        turns: tuple[Turn, ...] = ()
        if not self.closed_set:
            categories = ", ".join(f"<p>{clean_name(category.name)}</p>" for category in listed)
            question = choose(self.questions, rng) if self.train else self.questions[0]
            answer = choose(self.answers, rng) if self.train else self.answers[0]
            turns = (Turn(f"<image>\n{question.format(categories=categories)}", answer),)
        return Sample(
            id=record.image_id,
            image=record.image,
            turns=turns,
            masks=from_label_map(ids, [s.id for s in kept]),
            labels=np.array([column[s.category_id] for s in kept], np.int64),
            mask_segs=np.zeros(len(kept), np.int64),
            truth={"ids": ids, "segments": record.segments},
        )

    def _listed(self, present: set[int], rng: np.random.Generator) -> list[Category]:
        if self.closed_set or not self.train:
            return self.categories
        listed = self.categories
        if rng.random() < self.partial:
            absent = [c for c in self.categories if c.id not in present]
            some = rng.choice(len(absent), int(rng.integers(len(absent) + 1)), replace=False)
            listed = [c for c in self.categories if c.id in present] + [absent[i] for i in some]
        return [listed[i] for i in rng.permutation(len(listed))]

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        if len(outputs) != 1:
            return Prediction(id=sample.id, text=text, failed=True)
        output = outputs[0]
        if self.kind == "panoptic":
            stuff = [i for i, category in enumerate(self.categories) if not category.is_thing]
            painted, segments = panoptic(output, stuff=stuff, score=self.threshold)
            ids = painted.cpu().numpy()
            found = [(ids == id, column, score) for id, column, score in segments]
        elif self.kind == "semantic":
            labels = semantic(output).cpu().numpy()
            found = [(labels == column, int(column), 1.0) for column in np.unique(labels)]
        else:
            masks, columns, scores, _ = instances(output)
            rows = zip(masks.cpu().numpy(), columns.tolist(), scores.tolist(), strict=True)
            things = (row for row in rows if self.categories[row[1]].is_thing)
            found = sorted(things, key=lambda row: -row[2])[:100]  # COCO's maxDets
        return Prediction(
            id=sample.id,
            text=text,
            segments=tuple(
                Segment(encode_rle(mask), self.categories[column].id, score) for mask, column, score in found
            ),
        )

    def metric(self) -> Any:
        if self.kind == "panoptic":
            return PanopticQuality({category.id: category.is_thing for category in self.categories})
        return SemanticIoU(len(self.categories)) if self.kind == "semantic" else InstanceAP()

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        truth: np.ndarray = sample.truth["ids"]
        segments = sample.truth["segments"]
        if self.kind == "instance":
            predicted = [{"category": p.label, "rle": p.segmentation, "score": p.score} for p in prediction.segments]
            metric.update(sample.id, truth.shape, self._true_instances(sample), predicted)
            return
        painted = np.zeros(truth.shape, np.int32)
        for number, segment in enumerate(prediction.segments, start=1):
            painted[decode_rle(segment.segmentation)] = number
        if self.kind == "panoptic":
            metric.update(
                painted,
                {number: segment.label for number, segment in enumerate(prediction.segments, start=1)},
                truth,
                {s.id: s.category_id for s in segments},
                {s.id for s in segments if s.is_crowd},
            )
            return
        column: dict[int | str, int] = {category.id: i for i, category in enumerate(self.categories)}
        expected = np.full(truth.shape, 255)
        for s in segments:
            expected[truth == s.id] = column[s.category_id]
        lut: np.ndarray = np.array([NOTHING, *(column[segment.label] for segment in prediction.segments)])
        metric.update(lut[painted], expected)

    def _true_instances(self, sample: Sample) -> list[dict[str, Any]]:
        if self.instances is None:
            things = {category.id for category in self.categories if category.is_thing}
            return [
                {
                    "category": s.category_id,
                    "rle": encode_rle(sample.truth["ids"] == s.id),
                    "crowd": s.is_crowd,
                }
                for s in sample.truth["segments"]
                if s.category_id in things
            ]
        record = self.instances.of_image(sample.id)
        return [
            {
                "category": i.category_id,
                "rle": encode_rle(annotation_mask(i, record.height, record.width)),
                "crowd": i.is_crowd,
                "area": i.area,
            }
            for i in record.instances
        ]
