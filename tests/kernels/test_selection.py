"""The selection rule by itself: which values count, the threshold, the edge."""

import numpy as np
import pytest

from fastkoop.kernels import selection
from fastkoop.kernels.cutoffs import KINDS

S = np.array([8.0, 4.0, 2.0, 1.0, 0.5])


def select(kind, value, s=S, digits=53, scale=1.0, blur=0.0, slack=0.0, floor=0.0):
    squares = np.asarray(s, float) ** 2
    return selection.select(squares, len(s), KINDS[kind], float(value), digits, scale, blur, slack, floor)


@pytest.mark.parametrize(
    ("kind", "value", "rank", "threshold"),
    [
        ("relative", 0.2, 3, 1.6), ("relative", 0.25, 2, 2.0), ("relative", 0.0, 5, 0.0), ("relative", 1.0, 0, 8.0),
        ("relative", 3.0, 0, 24.0), ("rank", 2, 2, 2.0), ("rank", 5, 5, 0.0), ("rank", 1000, 5, 0.0),
        ("energy", 0.7, 1, 4.0), ("energy", 1.0, 5, 0.0), ("energy", 1e-9, 1, 4.0), ("median", 1.0, 2, 2.0),
        ("median", 0.3, 4, 0.6), ("spacing", 2.0**52, 3, 8 * 0.125 + 0.6), ("spacing", 2.0**49, 3, 1.0),
    ],
)  # fmt: skip
def test_rules(kind, value, rank, threshold):
    got, limit, edge = select(kind, value)
    if kind == "spacing":
        threshold = value * np.spacing(8.0)
        rank = np.count_nonzero(threshold < S)
    assert got == rank
    assert limit == pytest.approx(threshold)
    assert edge == any(threshold == S) if kind in ("relative", "spacing", "median") else True


def test_strictly_above():
    assert select("relative", 0.5)[0] == 1
    assert select("relative", np.nextafter(0.5, 0))[0] == 2


@pytest.mark.parametrize("s", [[1.0], [1.0, 0.9], [1.0, 0.99, 0.98], [3.0, 2.9, 2.8, 2.7]])
def test_a_multiple_of_the_median_keeps_the_largest_value(s):
    rank, threshold, edge = select("median", 2.0, s, blur=1e-15)
    assert (rank, threshold, edge) == (1, s[1] if len(s) > 1 else 0.0, False)
    assert select("median", 2.0, [1.0, 1.0], blur=1e-15)[2]  # which of two equals is arbitrary
    assert select("median", 2.0, [0.0, 0.0])[0] == 0


def test_the_median_of_an_even_number():
    assert select("median", 1.0, [8, 4, 2, 1])[1] == pytest.approx(3.0)


@pytest.mark.parametrize(("digits", "dtype"), [(24, np.float32), (53, np.float64)])
def test_spacing_is_numpys(digits, dtype):
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    exponents = rng.uniform(np.log10(info.smallest_normal), np.log10(info.max), size=500)
    for x in [*(10.0**exponents), 1.0, 2.0, 1 - 2.0**-26, 1 - 2.0**-24, 1 - 2.0**-25, np.nextafter(2.0, 0), 0.1]:
        assert selection.spacing(float(x), digits) == float(np.spacing(dtype(x))), x


@pytest.mark.parametrize(("digits", "x", "dtype"), [(24, 1e-41, np.float32), (53, 1e-310, np.float64)])
def test_spacing_of_denormal_numbers(digits, x, dtype):
    assert selection.spacing(x, digits) == float(np.spacing(dtype(x)))


@pytest.mark.parametrize("kind", ["relative", "spacing"])
def test_scale_is_a_power_of_two_aside(kind):
    value = 0.2 if kind == "relative" else 2.0**20
    plain = select(kind, value, digits=24)
    scaled = select(kind, value, S / 64, digits=24, scale=64.0)
    assert scaled[0] == plain[0]
    assert scaled[1] * 64 == plain[1]


class TestEdge:
    def test_blur_of_squares(self):
        assert select("relative", 0.26, blur=0.4)[2]  # threshold^2 = 4.33, a square is 4
        assert not select("relative", 0.26, blur=0.3)[2]

    def test_slack_of_values(self):
        assert select("relative", 0.26, slack=0.09)[2]
        assert not select("relative", 0.26, slack=0.07)[2]

    def test_rank_in_a_cluster(self):
        s = [1.0, 0.5, 0.5, 0.1]
        assert select("rank", 2, s, blur=1e-15)[2]
        assert not select("rank", 1, s, blur=1e-15)[2]
        assert not select("rank", 3, s, blur=1e-15)[2]

    def test_energy_exactly_met(self):
        assert select("energy", 64 / (S**2).sum(), blur=1e-12)[2]
        assert not select("energy", 0.8, blur=1e-12)[2]

    def test_a_cutoff_of_zero_on_zeros(self):
        assert select("relative", 0.0, [1.0, 1e-17], slack=1e-15)[2]

    def test_spacing_jumps_at_a_power_of_two(self):
        assert select("spacing", 1e3, [1.0, 0.5], slack=1e-15)[2]
        assert not select("spacing", 1e3, [1.5, 0.5], slack=1e-15)[2]


def test_counts_never_reach_zeros():
    s = [1.0, 0.5, 1e-17, 0.0]
    for kind, value in (("rank", 4), ("energy", 1.0), ("median", 1e-9)):
        assert select(kind, value, s, floor=1e-15)[0] == 2
    assert select("rank", 4, s, floor=2.0)[0] == 0
    assert select("relative", 0.1, [0.0, 0.0])[0] == 0


def test_resolved():
    squares = S**2

    def resolve(kind, value, rank, threshold, least):
        return selection.resolved(squares, 5, KINDS[kind], value, rank, threshold, least)

    assert resolve("relative", 0.5, 3, 1.6, 1.0)
    assert not resolve("relative", 0.5, 3, 0.9, 1.0)  # what is dropped may hide anything
    assert resolve("relative", 0.5, 5, 0.1, 0.2)  # nothing is dropped
    assert not resolve("rank", 5, 5, 0.0, 0.3)  # the smallest kept is below what the Gram matrix resolves
    assert resolve("rank", 4, 4, 0.5, 0.3)
    assert not resolve("rank", 5, 4, 0.5, 0.3)  # the fifth looked like zero, which rounding may have made
    assert resolve("rank", 9, 5, 0.1, 0.2)
