"""Intervals against those that theory gives for means."""

import numpy as np
import pytest

from xsam.metrics.bootstrap import draws, interval, paired


def means(samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ samples / weights.sum(1)


def test_draws_have_as_many_images_and_depend_on_the_seed_alone() -> None:
    weights = draws(50, seed=3, repeats=2000)
    assert weights.shape == (2001, 50)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 50).all()
    assert weights[1:].mean(0) == pytest.approx(np.ones(50), abs=0.15)
    assert weights[1:].var() == pytest.approx(1 - 1 / 50, rel=0.05)  # of a multinomial count
    assert (draws(50, 3, 2000) == weights).all()
    assert (draws(50, 4, 2000) != weights).any()


def test_interval_of_a_normal_mean() -> None:
    samples = np.random.default_rng(0).normal(30, 8, 400)
    low, high = interval(means(samples, draws(400, 1)))
    half = 1.96 * samples.std() / 20
    assert (low, high) == (
        pytest.approx(samples.mean() - half, abs=0.15),
        pytest.approx(samples.mean() + half, abs=0.15),
    )


def test_intervals_contain_the_truth_95_times_of_100() -> None:
    rng, weights = np.random.default_rng(5), draws(80, 2, repeats=400)
    inside = 0
    for _ in range(300):
        low, high = interval(means((rng.random(80) < 0.3).astype(float), weights))
        inside += low <= 0.3 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_a_difference_of_the_same_images_is_narrower() -> None:
    rng, weights = np.random.default_rng(6), draws(300, 7)
    hard = rng.normal(0, 10, 300)  # what images have in common
    first, second = (means(hard + rng.normal(mean, 1, 300), weights) for mean in (50, 51))
    low, high = paired(first, second)
    assert 0.5 < low < second[0] - first[0] < high < 1.5
    assert high - low < (interval(first)[1] - interval(first)[0]) / 5


def test_the_interval_is_about_the_figure_and_leaves_out_what_has_no_value() -> None:
    biased = [10.0, *np.linspace(11, 13, 1001)]  # as an AP has them
    assert interval(biased) == pytest.approx((10 - 0.95, 10 + 0.95))
    assert interval([5.0, None, 4.0, None, 6.0]) == pytest.approx((5 - 0.95, 5 + 0.95))
    assert interval([None, 1.0, 2.0]) is None
    assert interval([1.0, None]) is None
    assert paired([1.0, 2.0, 3.0], [None, 2.0, 3.0]) is None
