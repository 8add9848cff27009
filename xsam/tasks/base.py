"""What a task is: a dataset, the words around it, what its answer means, and its score. One file each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..structures import ItemOutput, Prediction, Sample


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

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """int64[N], how long each sample's text is, in any unit: training batches samples of like lengths.

        Empty where that is not known.
        """
        return np.zeros(0, np.int64)

    @abstractmethod
    def id(self, index: int) -> str:
        """Unique name of a sample; all its draws in evaluation depend on it alone."""

    @abstractmethod
    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """A sample with its question, answer and truth; `rng` decides wordings, order and negatives."""

    @abstractmethod
    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        """What the model's answer means. `outputs` has one entry per `<SEG>`; empty when the model gave none."""

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh metric."""

    def baselines(self, indices: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """Scores that need no model, by the name of the trick; what a model must beat."""
        return {}

    @abstractmethod
    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        """Add one prediction to the metric. A failed one counts as nothing predicted."""


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of several wordings."""
    return options[int(rng.integers(len(options)))]
