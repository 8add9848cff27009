from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from benchmarks.measure import compare, differences, gradients, table


def test_ways_take_turns_on_their_threads():
    calls = []
    work = {name: lambda name=name: calls.append((name, torch.get_num_threads())) for name in ("a", "b")}
    rows = compare(work, rounds=2)
    assert torch.get_num_threads() == 1  # as before
    assert [name for name, _ in calls] == ["a", "b"] * 3  # the first calls only warm up
    assert {threads for _, threads in calls} == {2}
    assert (rows["b"]["faster"], rows["b"]["less_cpu"]) == (1, 1)
    assert rows["a"]["faster"] == rows["b"]["wall_ms"] / rows["a"]["wall_ms"]


def test_a_long_call_needs_no_warming_up(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: 2.0 * next(clock))
    calls = []
    rows = compare({name: lambda name=name: calls.append(name) for name in ("a", "b")}, rounds=3, threads=1)
    assert calls == ["a", "b"] * 3
    assert rows["a"]["wall_ms"] == 2000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
def test_peak_is_what_a_call_takes_beyond_what_is_held():
    held = np.ones(8_000_000)
    rows = compare({"64 MB": lambda: np.ones(8_000_000).sum(), "nothing": held.sum}, rounds=1)
    assert rows["64 MB"]["peak_mb"] == pytest.approx(64, abs=8)
    assert rows["nothing"]["peak_mb"] < 8


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    rows = compare({"a": list, "b": list}, rounds=1)
    assert (rows["a"]["peak_mb"], rows["a"]["memory"]) == (0, None)


def test_differences_by_hand():
    zero, one = torch.zeros(2), torch.ones(3)
    assert differences({"x": one}, [one * 1.25]) == (0.25, 0.2)
    # 0.2 where all is zero: of a thousandth of the largest value there is.
    assert differences([one * 100, zero + 0.2], [one * 100, zero]) == pytest.approx((0.2, 2))
    assert differences([one], [zero]) == (None, None)
    assert differences([zero[:0]], [zero[:0]]) == (None, None)
    ids = torch.tensor([[1, 2], [3, 0]])
    assert differences((ids, [7]), [{"map": ids + (ids == 2), "more": one}]) == (0.25, 0.25)
    assert differences([ids > 0], [(ids > 2).float()]) == (0.5, 0.5)
    assert differences([1.0], ["a"]) == (None, None)


def test_random_numbers_are_the_same_where_results_are_compared():
    fixed = patch.object(torch, "rand", lambda *shape: torch.full(shape, 0.5))
    rows = compare({"a": lambda: torch.rand(3), "b": lambda: torch.rand(3)}, fixed, rounds=1)
    assert rows["a"]["max_abs"] == 0
    assert torch.rand(1) != 0.5


def test_gradients_of_a_call():
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    square, by_x = gradients(lambda: x * x, [x])
    assert square.tolist() == [1, 4]
    torch.testing.assert_close(by_x, 2 * x * square.sin())
    assert [t.item() for t in gradients(lambda: {"loss": 4 * y}, [y])] == [12, 4]


def test_table_has_facts_and_rows():
    text = table(
        {"machine": "mine", "parts": {"one": {"ms": 1.23456, "peak_mb": None}, "two": {"ms": 2.0, "peak_mb": 3}}}
    )
    head, _, columns, one, two = text.splitlines()
    assert head == "machine: mine"
    assert columns.split() == ["parts", "ms", "peak_mb"]
    assert (one.split(), two.split()) == (["one", "1.235", "None"], ["two", "2", "3"])
    assert len(columns) == len(one) == len(two)
