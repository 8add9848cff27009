"""Visual grounded segmentation: regions show what is meant, every instance of it is to be found."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..data import submission
from ..data.coco import CocoRecord
from ..data.masks import encode_rle, pack, unpack
from ..data.region_records import CocoVgd
from ..data.regions import prompt_kinds
from ..metrics.detection import InstanceAP
from ..structures import BadSample, ItemOutput, Prediction, Region, Sample
from .base import Task, choose
from .generic import best_first

QUESTIONS = ("Segment everything of the same kind as {regions}.",
             "Here are some regions: {regions}. Please mark every object that is what one of them shows.",
             "Each of {regions} shows a kind of object. Find all objects of these kinds.",
             "Where is more of what you see in {regions}? Give me the masks.")  # fmt: skip
ANSWERS = ("<SEG>.", "Here you are: <SEG>.", "The masks are <SEG>.", "Done, <SEG>.")


class VisualGrounding(Task):
    """One split of prompted instances, a sample is an image.

    Training: all classes that the image shows are asked for, in every second sample up to `negatives` others too, in
    random order. A region may be drawn on any image of the contrast group (see `Sample.slots`).

    Evaluation: the classes with an instance that has a prompt of the kind, by id, each shown by one of these instances,
    which the sample id decides. They alone are the truth, as in X-SAM's benchmark (arXiv 2508.04655).

    Args:
        prompt: a kind of prompt; "" = any, in training only.
        cross: in evaluation every class is shown by another image of the split; one that no other shows is left out.
        absent: share of the evaluation's samples that ask for one more class, which only another image shows."""

    name = "visual_grounding"
    data: CocoVgd
    export, metric = staticmethod(submission.instances), staticmethod(InstanceAP)

    def __init__(self, *, data: CocoVgd, prompt: str = "", train: bool = False, cross: bool = False,
                 absent: float = 0.0, negatives: int = 5, questions: Sequence[str] = QUESTIONS,
                 answers: Sequence[str] = ANSWERS) -> None:  # fmt: skip
        self.data, self.kinds, self.train = data, prompt_kinds(prompt, train), train
        self.cross, self.absent, self.negatives = cross, absent, negatives
        self.questions, self.answers = questions, answers
        self.shown: dict[int, list[int]] = {}  # records of the evaluation that show a class
        if train:
            return
        found = [None if isinstance(row, BadSample) else set(_by_class(row, self.kinds)) for _, row in data.tried()]
        for i, classes in enumerate(found):
            for category in classes or ():
                self.shown.setdefault(category, []).append(i)
        alone = {category for category, records in self.shown.items() if cross and len(records) == 1}
        # with a class that can be asked for, and those that cannot be used
        self.rows = [i for i, classes in enumerate(found) if classes is None or classes - alone]

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        return self._training(index, rng) if self.train else self._evaluation(self.rows[index], rng)

    def _training(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.data[index]
        members = _by_class(record, self.kinds)
        present = {instance.category_id for instance in record.annotations if not instance.is_crowd}
        if rest := present - members.keys():
            raise BadSample(f"{self.data.path}: image {record.image_id}: no object of class {min(rest)} has a prompt")
        listed = sorted(present)
        if rng.random() < 0.5:
            listed += self._others(record, int(rng.integers(self.negatives + 1)), rng)
        listed = [listed[i] for i in rng.permutation(len(listed))]
        regions = [self._region(record, members[category], rng, category) for category in sorted(present)]
        targets = [place for place, instance in enumerate(record.annotations) if not instance.is_crowd]
        return self._sample(record, listed, targets, regions, rng, np.array(listed, np.int64))

    def _evaluation(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.data[index]
        members = _by_class(record, self.kinds)
        if self.cross:
            members = {category: places for category, places in members.items() if len(self.shown[category]) > 1}
        extra = self._others(record, int(rng.random() < self.absent), rng)
        listed = sorted([*members, *extra])
        abroad = listed if self.cross else extra
        regions = [self._reference(c, index, rng) if c in abroad else self._region(record, members[c], rng)
                   for c in listed]  # fmt: skip
        targets = sorted(place for places in members.values() for place in places)
        return self._sample(record, listed, targets, regions, rng, np.zeros(0, np.int64))

    def _sample(self, record: CocoRecord, listed: list[int], targets: list[int], regions: list[Region],
                rng: np.random.Generator, slots: np.ndarray) -> Sample:  # fmt: skip
        turn = self.turn(rng, regions=", ".join(["<p><region></p>"] * len(listed)))
        instances = [record.annotations[place] for place in targets]
        return Sample(id=record.image_id, image=record.image, turns=(turn,),
                      masks=pack(np.stack([record.mask(instance) for instance in instances])),
                      labels=np.array([listed.index(instance.category_id) for instance in instances], np.int64),
                      mask_segs=np.zeros(len(targets), np.int64), regions=tuple(regions), slots=slots,
                      truth={"categories": listed})  # fmt: skip

    def _others(self, record: CocoRecord, count: int, rng: np.random.Generator) -> list[int]:
        """Up to so many classes that the image does not have; in evaluation some record shows them."""
        present = {instance.category_id for instance in record.annotations}  # a crowd of it is not its absence
        others = [c for c in (self.data.categories if self.train else sorted(self.shown)) if c not in present]
        return [others[i] for i in rng.permutation(len(others))[:count]]

    def _region(self, record: CocoRecord, places: list[int], rng: np.random.Generator, label: int = -1) -> Region:
        """One of the instances, shown by one of its prompts."""
        instance = record.annotations[int(rng.choice(places))]
        kind = choose([kind for kind in self.kinds if kind in instance.prompts], rng)
        return Region(self.data.prompt(record, instance, kind), label)

    def _reference(self, category: int, index: int, rng: np.random.Generator) -> Region:
        """A region of the class on another image."""
        record = self.data[int(rng.choice([i for i in self.shown[category] if i != index]))]
        region = self._region(record, _by_class(record, self.kinds)[category], rng)
        return Region(region.mask, image=record.image)

    def found(self, output: ItemOutput, sample: Sample) -> Iterator[tuple[Tensor, int | str, float]]:
        return ((mask, sample.truth["categories"][column], score) for mask, column, score in best_first(output))

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        masks, categories = unpack(sample.masks), sample.truth["categories"]
        truth = [{"category": categories[label], "rle": encode_rle(mask), "crowd": False}
                 for mask, label in zip(masks, sample.labels, strict=True)]  # fmt: skip
        found = [{"category": s.label, "rle": s.segmentation, "score": s.score} for s in prediction.segments]
        metric.update(sample.id, masks.shape[1:], truth, found)


def _by_class(record: CocoRecord, kinds: Sequence[str]) -> dict[int, list[int]]:
    """Places of the instances that have a prompt of one of the kinds, by class in the order of their ids."""
    found: dict[int, list[int]] = {}
    for place in record.having(*kinds):
        found.setdefault(record.annotations[place].category_id, []).append(place)
    return dict(sorted(found.items()))
