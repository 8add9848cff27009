import math

import pytest

from xsam.engine import optim
from xsam.structures import UserError


def test_cosine_after_linear_warmup():
    factor = optim.schedule("cosine", 100, warmup=0.05)
    # Five steps of warm-up from 1e-5 to 1, then 95 steps of half a cosine.
    assert factor(0) == 1e-5
    assert factor(2) == pytest.approx((1 + 1e-5) / 2)
    assert factor(4) == factor(5) == 1.0
    assert factor(5 + 19) == pytest.approx((1 + math.cos(math.pi / 5)) / 2)
    assert factor(99) == pytest.approx((1 - math.cos(math.pi / 95)) / 2)
    assert factor(100) == pytest.approx(0, abs=1e-12)


def test_multistep_counts_from_the_end_of_the_warmup():
    # The official stage 1, 36 epochs, here of 100 steps: 108 steps of warm-up, drops at 25.08 and 31.08.
    factor = optim.schedule("multistep", 3600, warmup=0.03, milestones=[24 / 36, 30 / 36], gamma=0.1)
    assert factor(107) == factor(2507) == 1.0
    assert factor(2508) == factor(3107) == pytest.approx(0.1)
    assert factor(3108) == factor(3599) == pytest.approx(0.01)


def test_no_warmup_starts_at_once():
    assert optim.schedule("cosine", 3, warmup=0.0)(0) == 1.0
    assert optim.schedule("cosine", 3)(0) == 1.0  # too short for a step of warm-up


def test_unknown_schedule():
    with pytest.raises(UserError, match="linear"):
        optim.schedule("linear", 10)
