"""Charts: round ticks within the axes, numbers where they belong."""

import math

import pytest

from fastkoop.experiments.chart import Axis


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 460, False, [0, 100, 200, 300, 400]), (-0.31, 0.22, False, [-0.2, 0.0, 0.2]),
        (0.04, 0.09, True, [0.04, 0.06, 0.08]), (0.9, 110, True, [1, 2, 5, 10, 20, 50, 100]),
        (2e-9, 0.5, True, [1e-8, 1e-6, 1e-4, 1e-2]), (3.0, 3.0, False, [3.0]),
    ],
)  # fmt: skip
def test_ticks_are_round_and_within(low, high, log, ticks):
    shown = Axis(low, high, log).ticks
    assert 1 <= len(shown) <= 7 and all(low - 1e-9 <= value <= high * (1 + 1e-9) for value in shown)
    assert {f"{value:.4g}" for value in map(float, ticks)} <= {f"{value + 0.0:.4g}" for value in shown}


@pytest.mark.parametrize("log", [False, True])
def test_what_lies_beyond_is_drawn_at_an_end(log):
    axis = Axis(0.1, 10.0, log)
    assert [axis.share(value) for value in (math.inf, math.nan, 1e300, -1.0, 0.0, 0.1, 10.0)] == [1, 1, 1, 0, 0, 0, 1]
    assert axis.share(1.0) == pytest.approx(0.5 if log else 1 / 11)
