"""Chat: conversations about an image, or without one. Text only; scored by exact matching where answers are short."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data import submission
from ..data.conversations import Conversations
from ..metrics.choice import ChoiceScore, normalize_answer
from ..structures import ItemOutput, Prediction, Sample
from .base import Task


class Chat(Task):
    """A LLaVA-style file of conversations. Evaluation asks the first question of each and compares the answer."""

    name = "chat"
    generates = may_be_empty = True
    data: Conversations
    export, metric = staticmethod(submission.texts), staticmethod(ChoiceScore)

    def __init__(self, *, data: Conversations, train: bool = False, max_new_tokens: int = 32) -> None:
        self.data, self.train, self.max_new_tokens, self.lengths = data, train, max_new_tokens, data.lengths

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.data[index]
        return Sample(id=record.id, image=record.image, turns=record.turns if self.train else record.turns[:1])

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        return Prediction(id=sample.id, text=text, failed=not text)

    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        said, expected = (normalize_answer(text) for text in (prediction.text, sample.turns[0].answer))
        metric.update(("",), sample.id, said, expected)
