"""A state on, in one kernel: the bits of `advance` and `combine`, and a bound that holds."""

import numpy as np
import pytest

from fastkoop import kernels
from fastkoop.kernels.cutoffs import LEAST_SQUARED


@pytest.mark.parametrize(("n", "m"), [(60, 7), (7, 60), (5, 1)])
@pytest.mark.parametrize("steps", [0, 1, 9, LEAST_SQUARED + 900])
def test_one_call_for_two(n, m, steps, rng):
    X = rng.normal(size=(m + 1, 4, n)).cumsum(axis=0)
    X[:, 1] = X[0, 1]
    factors = kernels.fit(X, ("relative", 1e-3))
    coefficients = np.ascontiguousarray(factors.readout.swapaxes(1, 2))
    rows = kernels.reconstruct(X, coefficients, products=False)
    largest = np.ascontiguousarray(np.abs(rows).max(axis=2).T)
    start = factors.start.copy()
    states, y, bound = kernels.follow(kernels.rows_of(rows), factors, largest, start, steps)
    expected = kernels.advance(factors, start, steps)
    assert np.array_equal(y, expected) and np.array_equal(start, factors.start)
    assert np.array_equal(states, kernels.combine(rows, expected[:, None], products=False)[0])
    assert np.abs(states).max() <= bound * (1 + 1e-12)
    used = np.full_like(states, np.nan)
    again, _, _ = kernels.follow(kernels.rows_of(rows), factors, largest, start, steps, used)
    assert again is used and np.array_equal(used, states)


def test_states_that_are_not_finite_have_no_bound(rng):
    X = rng.normal(size=(5, 2, 9)).cumsum(axis=0)
    factors = kernels.fit(X, ("relative", 1e-3))
    start = factors.start.copy()
    start[1, 0] = np.nan
    rows = np.ones((factors.start.shape[1], 2, 9))
    _, _, bound = kernels.follow(kernels.rows_of(rows), factors, np.ones(start.shape), start, 1)
    assert bound == np.inf
