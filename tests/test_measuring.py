"""Intervals: Student's t without SciPy."""

import math
import statistics

import pytest

from course_lib.measuring import mean_interval, prediction_interval


@pytest.mark.parametrize(
    ("values", "level", "t"),
    [([0, 1], 0.95, 12.706), ([0, 1, 2], 0.95, 4.303), (range(8), 0.99, 3.499),
     (range(9), 0.99, 3.355), (range(31), 0.9, 1.697)],
)  # fmt: skip
def test_intervals_have_the_quantiles_of_the_table(values, level, t):
    """Every textbook prints t(n - 1): 12.706 for two values and 95 %, 3.499 for eight and 99 %.

    The half width of the mean's interval is t · s / √n, that of the prediction √(n + 1) as much.
    The normal quantile (1.96 for 95 %), the likely wrong one, is far off for few values.
    """
    values = list(values)
    spread = statistics.stdev(values)
    mean, low, high = mean_interval(values, level)
    assert (high - low) / 2 == pytest.approx(t * spread / math.sqrt(len(values)), rel=2e-4)
    assert mean == pytest.approx((low + high) / 2)
    low, high = prediction_interval(values, level)
    wide = t * spread * math.sqrt(1 + 1 / len(values))
    assert (high - low) / 2 == pytest.approx(wide, rel=2e-4)
