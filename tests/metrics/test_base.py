"""Replicates of every metric that is a sum: what it would give if images were really counted that often."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xsam.metrics import base
from xsam.metrics.base import Metric
from xsam.metrics.choice import ChoiceScore
from xsam.metrics.iou import ReferringIoU
from xsam.metrics.panoptic import PanopticQuality
from xsam.metrics.semantic import SemanticIoU

WEIGHTS = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 3]])


def masks(image: int) -> tuple[np.ndarray, np.ndarray]:
    pred, gt = np.random.default_rng(image).random((2, 4, 6)) < 0.6
    return pred, gt & (image != 1)  # the second image has no target


def count_iou(metric: Any, image: int) -> None:
    metric.update(*masks(image))


def count_kind(metric: Any, image: int) -> None:
    metric.update(*masks(image), kind="many" if image == 2 else "")
    metric.update(*masks(image + 3), kind="one")


def count_segments(metric: Any, image: int) -> None:
    pred, gt = (mask.astype(int) + 1 for mask in masks(image))
    metric.update(pred, {1: 5, 2: 7}, gt, dict(zip(np.unique(gt), (5, 7), strict=False)))


def count_labels(metric: Any, image: int) -> None:
    metric.update(*(mask.astype(int) + 2 * (image == 1) for mask in masks(image)))


def count_answers(metric: Any, image: int) -> None:
    metric.update(("",), str(image), "yes", "yes" if image else "no")


@pytest.mark.parametrize(
    "fresh, count",
    [
        (ReferringIoU, count_iou),
        (ReferringIoU, count_kind),
        (lambda: PanopticQuality({5: True, 7: False}), count_segments),
        (lambda: SemanticIoU(4), count_labels),
        (ChoiceScore, count_answers),
    ],
)
def test_replicates_are_those_of_repeated_images(
    fresh: Callable[[], Metric], count: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "BYTES", 100)  # in pieces
    parts = [fresh() for _ in range(3)]
    for image, part in enumerate(parts):
        count(part, image)
    found = parts[0].resample(parts, WEIGHTS)
    for row, values in zip(WEIGHTS, found, strict=True):
        repeated = fresh()
        for image in np.repeat(range(3), row):
            count(repeated, image)
        known = dict.fromkeys(values) | repeated.compute()  # a kind that is in none of its images is not there
        assert values == {name: value if value is None else pytest.approx(value) for name, value in known.items()}
    assert parts[0].headline() == next(iter(parts[0].compute().values()))
