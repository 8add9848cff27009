"""Shapes in which a comparison takes seconds."""

import pytest
import torch

from benchmarks.baselines import Sizes


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # two stall on a busy machine
    return Sizes(
        image=64, channels=64, heads=2, finest=32, width=32, queries=24, classes=5, points=64, llm=64,
        head=(32, 100), supervised=(3, 60),
    )  # fmt: skip
