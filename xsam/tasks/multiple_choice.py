"""Multiple choice: a question about an image with lettered options, or one whose answer is yes or no."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..data import submission
from ..data.tsv import TsvQuestions
from ..metrics.choice import MEASURES, ChoiceScore, chosen
from ..structures import ItemOutput, Prediction, Sample, Turn, UserError
from .base import Task


class MultipleChoice(Task):
    """One table of questions. A prompt has the hint, the question, the options and how to answer, a line each.

    Args:
        measure, sums: see `ChoiceScore`; "circular" asks each question once with every rotation of its options.
        letter: the last line of a question with options.
        yes_no: that of others, unless the question itself says "yes or no"."""

    name = "multiple_choice"
    generates = may_be_empty = True
    data: TsvQuestions
    export = staticmethod(submission.texts)

    def __init__(self, *, data: TsvQuestions, train: bool = False, measure: str = "accuracy",
                 sums: Mapping[str, Sequence[str]] | None = None,
                 letter: str = "Answer with the letter of the right option.",
                 yes_no: str = "Answer yes or no.") -> None:  # fmt: skip
        if measure not in MEASURES:
            raise UserError(f"measure={measure!r} is unknown; multiple choice has {', '.join(MEASURES)}")
        self.data, self.train, self.measure, self.sums = data, train, measure, sums or {}
        self.letter, self.yes_no = letter, yes_no
        turns = np.maximum(data.options, 1) if measure == "circular" else np.ones(len(data), int)
        self.rows = [(row, rotation) for row, count in enumerate(turns) for rotation in range(count)]

    def id(self, index: int) -> str:
        row, rotation = self.rows[index]
        return f"{self.data.id(row)}/{rotation}" if self.measure == "circular" else self.data.id(row)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        row, rotation = self.rows[index]
        asked = self.data[row]
        lines = ["<image>", asked.hint, asked.question]
        if asked.options:
            letters, texts = list(asked.options), list(asked.options.values())
            options = dict(zip(letters, texts[rotation:] + texts[:rotation], strict=True))
            asked = replace(asked, options=options, answer=letters[letters.index(asked.answer) - rotation])
            lines += [*(f"{letter}. {text}" for letter, text in options.items()), self.letter]
        elif "yes or no" not in asked.question.lower():
            lines.append(self.yes_no)
        turn = Turn("\n".join(filter(None, lines)), asked.answer)
        return Sample(id=self.id(index), image=asked.image, turns=(turn,), truth={"asked": asked})

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        return Prediction(id=sample.id, text=text, failed=not chosen(text, sample.truth["asked"].options))

    def metric(self) -> ChoiceScore:
        return ChoiceScore(self.measure, self.sums)

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        asked = sample.truth["asked"]
        group = asked.id if self.measure == "circular" else str(asked.picture)
        metric.update(asked.categories, group, chosen(prediction.text, asked.options), asked.answer)
