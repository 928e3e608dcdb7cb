"""The reference itself, against SciPy and against higher precision."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
from cases import graded, orbit, with_singular_values

from fastkoop.kernels import reference

RULES = (("relative", 1e-2), ("spacing", 2.0**45), ("rank", 3.0), ("energy", 0.99), ("median", 1.5))


def exact_pinv(F, rank):
    """F^+ of the `rank` largest singular values, in 60 digits."""
    with mpmath.workdps(60):
        U, s, V = mpmath.svd_r(mpmath.matrix(np.asarray(F, np.float64).tolist()))
        total = sum((V[k, :].T * U[:, k].T / s[k] for k in range(rank)), mpmath.zeros(F.shape[1], F.shape[0]))
        return np.array(total.tolist(), dtype=np.float64)


@pytest.mark.parametrize(("n", "m"), [(6, 4), (4, 6), (5, 5), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("cutoff", RULES)
def test_pinv_against_higher_precision(n, m, cutoff, dtype, rng):
    F = with_singular_values(rng, n, m, np.geomspace(1, 1e-3, min(n, m))).astype(dtype)
    rank = len(reference.truncated_svd(F, cutoff)[1])
    np.testing.assert_allclose(reference.pinv(F, cutoff), exact_pinv(F, rank), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(30, 7), (7, 30), (9, 9)])
def test_pinv_against_scipy(n, m, rng):
    F = graded(rng, n, m)[:, :-1]
    for c in (1e-3, 1e-5):
        np.testing.assert_allclose(
            reference.pinv(F, ("relative", c)), scipy.linalg.pinv(F, rtol=c), rtol=0, atol=1e-12 / c**2
        )


@pytest.mark.parametrize(
    ("cutoff", "rank"),
    [(("relative", 0.2), 3), (("relative", 0.25), 2), (("rank", 2.0), 2), (("rank", 99.0), 5), (("energy", 0.7), 1),
     (("energy", 0.95), 3), (("median", 1.0), 2), (("spacing", 2.0**50), 2)],
)  # fmt: skip
def test_rules(cutoff, rank):
    F = np.diag([8.0, 4.0, 2.0, 1.0, 0.5])
    if cutoff[0] == "spacing":
        rank = np.count_nonzero(cutoff[1] * np.spacing(8.0) < np.diag(F))
    assert len(reference.truncated_svd(F, cutoff)[1]) == rank


def test_the_spacing_is_that_of_the_datas_dtype():
    F = np.diag([1.5, 1e-6]).astype(np.float32)
    assert len(reference.truncated_svd(F, ("spacing", 5.0))[1]) == 2
    assert len(reference.truncated_svd(F, ("spacing", 10.0))[1]) == 1


@pytest.mark.parametrize("cutoff", [("rank", 1.0), ("rank", 2.0), ("energy", 0.3)])
def test_equal_singular_values_are_counted_not_compared(cutoff):
    count = 1 if cutoff == ("rank", 1.0) else 2
    assert len(reference.truncated_svd(np.eye(4), cutoff)[1]) == count


def test_zero():
    assert not reference.pinv(np.zeros((3, 4)), ("relative", 1e-6)).any()
    assert not reference.predict(np.zeros((3, 4)), 2, ("rank", 2.0)).any()


@pytest.mark.parametrize(("n", "m"), [(6, 3), (3, 6), (4, 4)])
def test_predict_is_the_power_of_fit(n, m, dtype, rng):
    X = orbit(rng, n, m, dtype)
    K = reference.fit(X, ("relative", 1e-5))
    for steps in (0, 1, 2, 9):
        expected = np.linalg.matrix_power(K, steps) @ X[:, -1].astype(float)
        np.testing.assert_allclose(reference.predict(X, steps, ("relative", 1e-5)), expected, atol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(6, 3), (3, 6)])
def test_gram(n, m, dtype, rng):
    X = rng.integers(-9, 9, size=(n, m + 1)).astype(dtype)
    S = reference.gram(X)
    assert S.dtype == np.float64
    F, Fp = X[:, :-1], X[:, 1:]
    if n > m:
        np.testing.assert_array_equal(S, X.T @ X)
    else:
        np.testing.assert_array_equal(S, np.vstack([F @ F.T, Fp @ F.T, X[:, -1:].T]))
