"""What a task is: a dataset, the words around it, what its answer means, and its score. One file each."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from ..data.masks import decode_rle, encode_rle
from ..structures import ItemOutput, Prediction, Sample, Segment


class Metric(Protocol):
    """Small state that merges by addition; `compute` gives percentages, None where there was nothing to measure."""

    def merge(self, other: Any) -> None: ...
    def compute(self) -> dict[str, float | None]: ...


class Task(ABC):
    """One source of samples. The same class trains (`train=True` in a mixture row) and evaluates (a benchmark row).

    Attributes:
        name: what `results.json` calls the task.
        generates: the answer is generated in every protocol, not given (chat, grounded conversations).
        max_new_tokens: longest generated answer.
    """

    name: str
    generates = False
    max_new_tokens = 32
    data: Any  # a reader; its records are the samples unless the task says otherwise
    train: bool
    questions: Sequence[str]
    answers: Sequence[str]

    def __len__(self) -> int:
        return len(self.data)

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], how long each sample's text is, in any unit: training batches samples of like lengths.

        Empty where that is not known.
        """
        return np.zeros(0, np.int64)

    def id(self, index: int) -> str:
        """Unique name of a sample; all its draws in evaluation depend on it alone."""
        return self.data.id(index)

    @abstractmethod
    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """A sample with its question, answer and truth; `rng` decides wordings, order and negatives."""

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        """What the model's answer means. `outputs` has one entry per `<SEG>`; empty when the model gave none."""
        if len(outputs) != 1:
            return Prediction(id=sample.id, text=text, failed=True)
        found = self.found(outputs[0], sample)
        segments = tuple(Segment(encode_rle(mask), label, score) for mask, label, score in found)
        return Prediction(id=sample.id, text=text, segments=segments)

    def found(self, output: ItemOutput, sample: Sample) -> Iterable[tuple[np.ndarray, int | str, float]]:
        """Mask bool[H, W], label and score of each segment in the answer to the one `<SEG>`."""
        raise NotImplementedError

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh metric."""

    def baselines(self, indices: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """Scores that need no model, by the name of the trick; what a model must beat."""
        return {}

    @abstractmethod
    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        """Add one prediction to the metric. A failed one counts as nothing predicted."""

    def wording(self, rng: np.random.Generator) -> tuple[str, str]:
        """A question and an answer: drawn in training, the first of each in evaluation."""
        if self.train:
            return choose(self.questions, rng), choose(self.answers, rng)
        return self.questions[0], self.answers[0]


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of several wordings."""
    return options[int(rng.integers(len(options)))]


def united(prediction: Prediction, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The predicted masks and the true ones, each united, bool[H, W]."""
    truth = np.any(sample.masks.ids >= 0, axis=0)
    found = [decode_rle(segment.segmentation) for segment in prediction.segments]
    return np.any([np.zeros_like(truth), *found], axis=0), truth
