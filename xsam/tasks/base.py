"""What a task is: a dataset, the words around it, what its answer means, and its score. One file each."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import config
from ..data import submission
from ..data.masks import decode_rle, encode_rle
from ..data.postprocess import best_mask
from ..metrics.base import Metric
from ..structures import ItemOutput, Prediction, Sample, Segment, Turn


class Task(ABC):
    """One source of samples. The same class trains (`train=True` in a mixture row) and evaluates (a benchmark row)."""

    name: str  # in `results.json`
    generates = False  # whether the answer is generated in every protocol, not given (chat, grounded conversations)
    may_be_empty = False  # whether an answer without a mask can be right; elsewhere the strict protocol has it failed
    max_new_tokens = 32  # of a generated answer
    data: Any  # a reader
    rows: Any = None  # records of `data` that are the samples; None: all of them
    lengths = np.zeros(0, np.int64)  # int64[N], of each sample's text in any unit, for batches of like lengths
    train: bool
    questions: Sequence[str]
    answers: Sequence[str]

    def __len__(self) -> int:
        return len(self.data if self.rows is None else self.rows)

    def id(self, index: int) -> str:
        """Unique name of a sample; all its draws in evaluation depend on it alone."""
        return self.data.id(index if self.rows is None else self.rows[index])

    @abstractmethod
    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """A sample with its question, answer and truth; `rng` decides wordings, order and negatives."""

    def postprocess(self, outputs: Sequence[ItemOutput], text: str, sample: Sample) -> Prediction:
        """What the model's answer means. `outputs` has one entry per `<SEG>`; empty when the model gave none."""
        if len(outputs) != 1:
            return Prediction(id=sample.id, text=text, failed=True)
        found = self.found(outputs[0], sample)
        segments = tuple(Segment(encode_rle(mask.cpu().numpy()), label, score) for mask, label, score in found)
        return Prediction(id=sample.id, text=text, segments=segments)

    def found(self, output: ItemOutput, sample: Sample) -> Iterable[tuple[Tensor, int | str, float]]:
        """Mask bool[H, W], label and score of each segment in the answer to the one `<SEG>`; here the best mask."""
        mask, score = best_mask(output)
        return [(mask, "", score)]

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh metric."""

    def export(self, answered: submission.Answered, path: Path) -> None:
        """Write predictions in the format that the benchmark itself takes."""
        submission.masks(answered, path)

    def category(self, label: int | str) -> str:
        """How the label of a segment is called."""
        return str(label)

    def per_category(self, metric: Metric) -> dict[str, dict[str, float | None]]:
        """The metric's figures by name of the class."""
        return {self.category(label): figures for label, figures in metric.per_category().items()}

    def baselines(self, indices: Sequence[int]) -> dict[str, dict[str, float | None]]:
        """Scores that need no model, by the name of the trick; what a model must beat."""
        return {}

    @abstractmethod
    def score(self, metric: Any, prediction: Prediction, sample: Sample) -> None:
        """Add one prediction to the metric. A failed one counts as nothing predicted."""

    def turn(self, rng: np.random.Generator, start: str = "<image>\n", **words: str) -> Turn:
        """A question and its answer, drawn in training, the first of each in evaluation; `words` fill their gaps."""
        texts = self.questions, self.answers
        question, answer = (choose(some, rng) if self.train else some[0] for some in texts)
        return Turn(start + question.format(**words), answer.format(**words))


def build(row: Mapping[str, Any], **changes: Any) -> Task:
    """The task of a row of a mixture or of the benchmarks, whose `published` figures are for the reader alone.

    Raises UserError where its files are missing or foreign."""
    return config.build({key: value for key, value in row.items() if key != "published"} | changes)


def choose(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of several wordings."""
    return options[int(rng.integers(len(options)))]


def united(prediction: Prediction, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """The predicted masks and the true ones, each united, bool[H, W]."""
    truth = np.any(sample.masks.ids >= 0, axis=0)
    return np.any([np.zeros_like(truth), *(decode_rle(s.segmentation) for s in prediction.segments)], axis=0), truth
