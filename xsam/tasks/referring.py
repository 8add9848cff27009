"""Referring segmentation: an expression, and what it means in the image: one object, several, or nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..data.masks import pack
from ..data.mixture import key
from ..data.postprocess import above_background, best_mask
from ..data.refer import Expressions, ReferredImage
from ..metrics.iou import ReferringIoU
from ..structures import BadSample, ItemOutput, Prediction, Sample
from .base import Task, choose, united

QUESTIONS = ("Can you segment {phrase} in this image?", "Where is {phrase}? Show me its mask.",
             "Please find and outline {phrase}.", "Highlight {phrase}.")  # fmt: skip
ANSWERS = ("<SEG>.", "It is <SEG>.", "Here it is: <SEG>.", "Sure, <SEG>.")


class ReferringSegmentation(Task):
    """One split of a dataset of expressions: the RefCOCO family, gRefCOCO, or one's own JSON lines.

    Training: a sample is an image, its expressions are turns in random order, each by one of its sentences; the
    phrases of all turns (and of the other images of the contrast group) are the candidates. Evaluation: a sample is
    one sentence; where the file says of what kind it is, as the embedded world does, kinds are scored apart too.

    Args:
        several: an expression may mean several objects, or none: the answer is the union of all masks that are more
            probable than the background, absent where there is none; else it is the most probable mask.
        score: what is less probable is absent, too.
        absent: share of the training samples with one more turn: a phrase of another image, which means nothing here.
        max_turns: most expressions of an image in one training sample."""

    name = "referring"
    data: Expressions
    metric = staticmethod(ReferringIoU)

    def __init__(self, *, data: Expressions, train: bool = False, several: bool = False, score: float = 0.0,
                 absent: float = 0.0, max_turns: int = 5, questions: Sequence[str] = QUESTIONS,
                 answers: Sequence[str] = ANSWERS) -> None:  # fmt: skip
        self.data, self.train, self.several, self.absent, self.max_turns = data, train, several, absent, max_turns
        self.questions, self.answers, self.least = questions, answers, score
        self.may_be_empty = several or score > 0
        self.rows = None if train else data.questions()

    def id(self, index: int) -> str:
        return self.data.id(index) if self.train else self.data.id(*self.rows[index].tolist())

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        truth: dict[str, str] = {}
        if self.train:
            image = self.data[index]
            asked = self._drawn(image, rng)
            if rng.random() < self.absent:
                asked += self._foreign(index, image, rng)
        else:
            image, asked, truth["kind"] = self._asked(index)
        turns = [self.turn(rng, "" if n else "<image>\n", phrase=f"<p>{p}</p>") for n, (p, _) in enumerate(asked)]
        masks = [meant for _, meant in asked]
        numbers = np.repeat(np.arange(len(asked)), [len(meant) for meant in masks])
        return Sample(id=self.id(index), image=image.image, turns=tuple(turns), masks=pack(np.concatenate(masks)),
                      labels=numbers, mask_segs=numbers, shared_candidates=True, truth=truth)  # fmt: skip

    def _asked(self, index: int) -> tuple[ReferredImage, list[tuple[str, np.ndarray]], str]:
        row, number, sentence = self.rows[index].tolist()
        image = self.data[row]
        expression = image.expressions[number]
        return image, [(expression.sentences[sentence], image.masks(expression.objects))], expression.kinds[sentence]

    def _drawn(self, image: ReferredImage, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
        """Some expressions of an image with their masks: no phrase twice, nor two phrases for the same objects, which
        would be wrong answers to each other."""
        chosen: dict[str, tuple[int, ...]] = {}
        for number in rng.permutation(len(image.expressions)):
            expression = image.expressions[number]
            phrase = choose(expression.sentences, rng)
            known = expression.objects and expression.objects in chosen.values()
            if len(chosen) < self.max_turns and phrase not in chosen and not known:
                chosen[phrase] = expression.objects
        return [(phrase, image.masks(objects)) for phrase, objects in chosen.items()]

    def _foreign(self, index: int, image: ReferredImage, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
        """A phrase of another image, unless that is the same image or this one has the phrase too."""
        other = int(rng.integers(len(self.data)))
        expressions = self.data[other].expressions
        phrase = choose(expressions[int(rng.integers(len(expressions)))].sentences, rng)
        here = {sentence for expression in image.expressions for sentence in expression.sentences}
        return [] if other == index or phrase in here else [(phrase, image.masks(()))]

    def found(self, output: ItemOutput, sample: Sample) -> Iterable[tuple[Tensor, int | str, float]]:
        return [(mask, "", score) for mask, score in meant(output, self.several, self.least)]

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        metric.update(*united(prediction, sample), kind=sample.truth["kind"], failed=prediction.failed)

    def baselines(self, indices: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """Three ways to answer without reading the expression: the whole image, the largest object, any object."""
        metrics = {name: ReferringIoU() for name in ("whole image", "largest thing", "random thing")}
        known, things = "", np.zeros((0, 0, 0), bool)  # the sentences of an image follow each other
        for index in indices:
            try:
                image, [(_, masks)], kind = self._asked(index)
                if image.image != known:
                    known, things = image.image, image.masks(range(len(image.objects)))
            except BadSample:  # what has no truth says nothing about guessing
                continue
            whole = np.ones((image.height, image.width), bool)
            rng = np.random.default_rng(key("blind", self.id(index)))
            guesses = [whole, ~whole, ~whole]
            if len(things):
                guesses[1:] = things[things.sum((1, 2)).argmax()], things[rng.integers(len(things))]
            for metric, guess in zip(metrics.values(), guesses, strict=True):
                metric.update(guess, np.any(masks, axis=0), kind=kind)
        return {name: metric.compute() for name, metric in metrics.items()}


def meant(output: ItemOutput, several: bool = False, score: float = 0.0) -> list[tuple[Tensor, float]]:
    """What an expression means: one mask bool[H, W] and its probability, or nothing; see `ReferringSegmentation`."""
    mask, probability = above_background(output) if several else best_mask(output)
    return [(mask, probability)] if probability >= score and (mask.any() or not several) else []
