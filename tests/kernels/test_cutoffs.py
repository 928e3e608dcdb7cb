"""The facts of the rules, against what they stand for."""

import math

import numpy as np
import pytest

from fastkoop.kernels import cutoffs, selection
from fastkoop.kernels.cutoffs import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_which_rules_need_the_largest_value_only(kind):
    """Two blocks that share their largest value alone have the same threshold under these rules, and only these."""
    thresholds = {
        selection.select(np.array(s) ** 2, 4, KINDS[kind], 2.0 if kind == "rank" else 0.9, 53, 1.0, 0.0, 0.0, 0.0)[1]
        for s in ([8.0, 4.0, 2.0, 1.0], [8.0, 7.9, 7.8, 7.7])
    }
    assert (len(thresholds) == 1) == cutoffs.needs_largest_only(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.2, 0.999, 1.0, 1.5, 4.0])
def test_which_rules_keep_a_constant(kind, value):
    """A constant trajectory has one singular value, alone or beside zeros."""
    number = max(1.0, value) if kind == "rank" else min(value, 1.0) if kind == "energy" else value
    for s in ([1.0], [1.0, 0.0], [1.0, 0.0, 0.0]):
        rank = selection.select(s, len(s), KINDS[kind], number, 53, 1.0, 0.0, 0.0, 0.0)[0]
        assert (rank == 1) == cutoffs.keeps_constant(KINDS[kind], number)


def test_counts_and_medians_stop_at_rounding():
    floors = {kind: cutoffs.floor(number, 100, 2.0) for kind, number in KINDS.items()}
    rounding = 100 * np.finfo(np.float64).eps * 2.0
    assert floors == {"relative": 0.0, "spacing": 0.0, "rank": rounding, "energy": rounding, "median": rounding}


@pytest.mark.parametrize("order", [1, 2, 8, 32])
def test_squaring_pays_once_it_takes_fewer_multiply_adds(order):
    """T steps take T products, or log2(T) squares and as many products; a square is half as dear per multiply-add."""
    for pays, product in ((cutoffs.squaring_pays, order**2), (cutoffs.companion_squaring_pays, order)):
        for steps in 2 ** np.arange(1, 40):
            squared = math.log2(steps) * (order**3 + order**2)
            if steps * product < squared / 2:
                assert not pays(steps, order)
            if steps * product > 8 * squared and steps > cutoffs.LEAST_SQUARED:
                assert pays(steps, order)
