from dataclasses import replace

import numpy as np

from benchmarks import evaluation


def test_both_ways_find_the_same(tiny, monkeypatch):
    monkeypatch.setattr(evaluation, "IMAGES", 4)
    monkeypatch.setattr(evaluation, "DISTINCT", 2)
    report = evaluation.report("cpu", replace(tiny, image=256), rounds=1)
    found = {name: next(iter(rows.values())) for name, rows in report.items() if isinstance(rows, dict)}
    assert all(len(report[name]) == 2 for name in found)
    assert found["PQ of 4 images"]["rms"] < 1e-12
    assert found["image to all results"]["rms"] < 1e-4  # class and mask logits
    # The share of pixels that differ: theirs are resized twice, instances by the nearest pixel.
    assert 0 < found["panoptic"]["rms"] < 5e-4
    assert 0 < found["semantic"]["rms"] < 1e-3
    assert 0 < found["instance"]["rms"] < 0.02
    assert len(found) == 5


def test_the_loop_counts_what_the_metric_counts(monkeypatch):
    monkeypatch.setattr(evaluation, "DISTINCT", 3)
    maps = evaluation.scored_maps()
    sums = evaluation.by_loop(maps)
    assert (sums.sum(0) > 0).all()  # there are matches, wrong segments and missed ones
    assert (sums.astype(int)[:, 1:] == evaluation.by_metric(maps)[:, 1:]).all()
    np.testing.assert_allclose(evaluation.by_metric(maps), sums, rtol=1e-12)
