"""Reasoning segmentation: a question that asks for something without naming it, and its mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.masks import pack
from ..data.reasonseg import ReasonSeg
from ..metrics.iou import ReferringIoU
from ..structures import BadSample, Prediction, Sample, Turn, UserError
from .base import Task, choose, united

SHORT = ("Which part of the image is {phrase}? Mark it.", "Please segment {phrase}.",
         "Look for {phrase} and give me the mask.", "Find {phrase} and show its outline.")  # fmt: skip
LONG = ("{phrase} Please answer with a mask.", "{phrase} Show me where in the image.",
        "{phrase} Segment what is meant.", "{phrase} Mark it.")  # fmt: skip
WHY = ("Explain your answer too.", "Give the reason as well.", "Tell me why.")
ANSWERS = ("<SEG>.", "It is <SEG>.", "This is the mask: <SEG>.", "I found it: <SEG>.")
KINDS = {"all": None, "short": False, "long": True}  # -> `is_sentence`


class ReasoningSegmentation(Task):
    """One split of ReasonSeg. Training draws one of the rephrasings each time, so that none is a wrong answer to
    another; evaluation asks the first. Pixels to be ignored are background in training and do not count in the score.

    Args:
        questions: "short" questions (a phrase), "long" ones (a sentence), or "all".
        explained: share of the training samples with an explanation that ask for it.
        short, long, why, answers: wordings of a short and of a long question, of the wish for an explanation, and of
            the answer, which follows the explanation."""

    name = "reasoning"
    data: ReasonSeg
    metric = staticmethod(ReferringIoU)

    def __init__(self, *, data: ReasonSeg, train: bool = False, questions: str = "all", explained: float = 0.5,
                 short: Sequence[str] = SHORT, long: Sequence[str] = LONG, why: Sequence[str] = WHY,
                 answers: Sequence[str] = ANSWERS) -> None:  # fmt: skip
        if questions not in KINDS:
            raise UserError(f"questions={questions!r} is unknown; reasoning segmentation has {', '.join(KINDS)}")
        self.data, self.train, self.explained = data, train, explained
        self.short, self.long, self.why, self.answers = short, long, why, answers
        self.rows = [i for i in range(len(data)) if self._asked(i, KINDS[questions])]

    def _asked(self, index: int, is_sentence: bool | None) -> bool:
        """Whether a record is of a kind. One that cannot be used stays among the samples, to be counted."""
        try:
            return is_sentence is None or self.data[index].is_sentence == is_sentence
        except BadSample:
            return True

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.data[self.rows[index]]
        wordings = self.long if record.is_sentence else self.short
        question, answer, text = wordings[0], self.answers[0], record.texts[0]
        if self.train:
            question, answer, text = choose(wordings, rng), choose(self.answers, rng), choose(record.texts, rng)
            if record.explanation and rng.random() < self.explained:
                question, answer = f"{question} {choose(self.why, rng)}", f"{record.explanation} {answer}"
        labels = record.labels()
        turn = Turn("<image>\n" + question.format(phrase=f"<p>{text}</p>"), answer)
        return Sample(id=record.id, image=record.image, turns=(turn,), masks=pack(labels[None] == 1),
                      labels=np.zeros(1, np.int64), mask_segs=np.zeros(1, np.int64), shared_candidates=True,
                      truth={"ignore": labels == 255})  # fmt: skip

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        metric.update(*united(prediction, sample), sample.truth["ignore"], failed=prediction.failed)


def question(text: str, explain: bool) -> str:
    """The first wording, as in evaluation, of a phrase or of a sentence, which ends with a mark."""
    wording = (LONG if text.endswith(("?", ".", "!")) else SHORT)[0].format(phrase=f"<p>{text}</p>")
    return f"{wording} {WHY[0]}" if explain else wording
