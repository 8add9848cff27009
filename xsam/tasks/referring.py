"""Referring segmentation: one expression, the one thing it means."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.masks import decode_rle, encode_rle, pack
from ..data.mixture import key
from ..data.postprocess import best_mask
from ..data.refer import RefCoco
from ..metrics.iou import ReferringIoUByKind
from ..structures import ItemOutput, Prediction, Sample, Segment, Turn
from .base import Task, choose

QUESTIONS = (
    "Can you segment {phrase} in this image?",
    "Where is {phrase}? Show me its mask.",
    "Please find and outline {phrase}.",
    "Highlight {phrase}.",
)
ANSWERS = ("<SEG>.", "It is <SEG>.", "Here it is: <SEG>.", "Sure, <SEG>.")


class ReferringSegmentation(Task):
    """One split of a RefCOCO-style dataset.

    Training: a sample is an image, its objects are turns in random order, each named by one of its sentences; the
    phrases of all turns (and of the other images of the contrast group) are the candidates. Evaluation: a sample is
    one sentence; where the file says of what kind it is, as the embedded world does, kinds are scored apart too.

    Args:
        data: a reader of expressions.
        max_turns: most objects of an image in one training sample.
    """

    name = "referring"

    def __init__(
        self, *, data: RefCoco, train: bool = False, max_turns: int = 5,
        questions: Sequence[str] = QUESTIONS, answers: Sequence[str] = ANSWERS,
    ) -> None:  # fmt: skip
        self.data = data
        self.train, self.max_turns = train, max_turns
        self.questions, self.answers = questions, answers
        self.rows: list[tuple[int, ...]]  # the objects of an image, or (object, sentence)
        if train:
            self.rows = list(self.data.by_image)
        else:
            self.rows = [(i, j) for i in range(len(self.data)) for j in range(len(self.data[i].sentences))]

    def __len__(self) -> int:
        return len(self.rows)

    def id(self, index: int) -> str:
        first = self.data[self.rows[index][0]]
        return first.image_id if self.train else f"{first.instance.id}-{self.rows[index][1]}"

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        if self.train:
            chosen = rng.permutation(self.rows[index])[: self.max_turns]
            pairs = [(int(i), choose(self.data[i].sentences, rng)) for i in chosen]
            pairs = list({phrase: (i, phrase) for i, phrase in pairs}.values())  # one phrase cannot mean two things
        else:
            i, sentence = self.rows[index]
            pairs = [(i, self.data[i].sentences[sentence])]
        turns = []
        for number, (_, phrase) in enumerate(pairs):
            question = choose(self.questions, rng) if self.train else self.questions[0]
            answer = choose(self.answers, rng) if self.train else self.answers[0]
            image = "" if number else "<image>\n"
            turns.append(Turn(image + question.format(phrase=f"<p>{phrase}</p>"), answer))
        return Sample(
            id=self.id(index),
            image=self.data[pairs[0][0]].image,
            turns=tuple(turns),
            masks=pack(np.stack([self.data[i].mask() for i, _ in pairs])),
            labels=np.arange(len(pairs)),
            mask_segs=np.arange(len(pairs)),
            shared_candidates=True,
            truth={} if self.train else {"kind": self.data[self.rows[index][0]].kinds[self.rows[index][1]]},
        )

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        if len(outputs) != 1:
            return Prediction(id=sample.id, text=text, failed=True)
        mask, score = best_mask(outputs[0])
        return Prediction(id=sample.id, text=text, segments=(Segment(encode_rle(mask.cpu().numpy()), "", score),))

    def metric(self) -> ReferringIoUByKind:
        return ReferringIoUByKind()

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        truth = sample.masks.ids[0] == 0
        found = [decode_rle(segment.segmentation) for segment in prediction.segments]
        metric.update(np.any(found, axis=0) if found else np.zeros_like(truth), truth, sample.truth["kind"])

    def baselines(self, indices: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """Three ways to answer without reading the expression: the whole image, the largest object, any object."""
        metrics = {name: ReferringIoUByKind() for name in ("whole image", "largest thing", "random thing")}
        all_things = self.data.masks_by_image()
        for index in indices:
            i, sentence = self.rows[index]
            referred = self.data[i]
            truth, things = referred.mask(), all_things[referred.image_id]
            rng = np.random.default_rng(key("blind", self.id(index)))
            guesses = (np.ones_like(truth), max(things, key=np.sum), things[int(rng.integers(len(things)))])
            for metric, guess in zip(metrics.values(), guesses, strict=True):
                metric.update(guess, truth, referred.kinds[sentence])
        return {name: metric.compute() for name, metric in metrics.items()}
