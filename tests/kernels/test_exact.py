"""Operators by the singular vectors of their pairs, against 50 digits."""

import mpmath
import numpy as np
import pytest
from cases import orbit, special_blocks, time_major, with_singular_values

from fastkoop import kernels
from fastkoop.kernels import observed
from fastkoop.kernels.observed import Observed

AFFINE = Observed(1, True)


def slow(X, rank: int, steps: int) -> np.ndarray:
    """Where the affine operator of this rank is after so many steps, less the last snapshot; X (n, m+1), full rank."""
    with mpmath.workdps(50):
        exact = mpmath.matrix(X.astype(np.float64).tolist())
        n, m = exact.rows, exact.cols - 1
        centre = [[mpmath.fsum(exact[i, k] for k in range(at, at + m)) / m for i in range(n)] for at in (0, 1)]
        F = mpmath.matrix(n, m)
        Fp = mpmath.matrix(n, m)
        for i in range(n):
            for k in range(m):
                F[i, k], Fp[i, k] = exact[i, k] - centre[0][i], exact[i, k + 1] - centre[1][i]
        squares, V = mpmath.eigsy(F.T * F)
        W = mpmath.matrix(m, rank)
        for j in range(rank):
            at = m - 1 - j  # eigenvalues ascend
            for k in range(m):
                W[k, j] = V[k, at] / mpmath.sqrt(squares[at])
        last = mpmath.matrix([exact[i, m] for i in range(n)])
        before, after = mpmath.matrix(centre[0]), mpmath.matrix(centre[1])
        U = F * W
        y, A, drift = U.T * (last - before), U.T * (Fp * W), U.T * (after - before)
        for _ in range(steps - 1):
            y = A * y + drift
        return np.array((after + Fp * (W * y) - last).T.tolist()[0], np.float64)


def moved(op, X, steps: int) -> np.ndarray:
    """The same by factors, unrounded: combinations of snapshots less the last."""
    factors = observed.augmented(kernels, op, X.shape[1] - 1, AFFINE, False)
    coefficients = kernels.evolve(factors, np.array([steps]))[0, 0]
    return (X[:, 1:].astype(np.float64) - X[:, -1:]) @ coefficients


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("smallest", [1e-6, 1e-10])
def test_many_steps_keep_the_digits_of_one(smallest, far, rng):
    """What a constant adds at each step is computed without cancellation: it lost 1e-8 and more, times every step."""
    n, m, rank = 40, 8, 5
    values = np.append(np.geomspace(1.0, smallest, rank), 1e-3 * smallest * np.ones(m + 1 - rank))
    X = (far + with_singular_values(rng, n, m + 1, values)).astype(np.float64)
    op = observed.fit(kernels, time_major(X)[:, None], ("rank", rank), AFFINE, refine=True)
    for steps in (1, 4):
        expected = slow(X, rank, steps)
        error = np.linalg.norm(moved(op, X, steps) - expected) / np.linalg.norm(expected)
        assert error <= 1e-9 * 1e-6 / smallest


@pytest.mark.parametrize("n", [60, 785, 3000])
def test_bits_are_a_blocks_own(n, dtype, rng):
    special = special_blocks(rng, 60, 12, dtype).values()
    blocks = [np.tile(block, (-(-n // 60), 1))[:n] for block in (orbit(rng, 60, 12, dtype), *special)]
    X = time_major(np.array(blocks)).copy()
    whole = observed.fit(kernels, X, ("rank", 4.0), AFFINE, refine=True, gains=True)
    for b in range(len(blocks)):
        alone = observed.fit(kernels, X[:, b : b + 1], ("rank", 4.0), AFFINE, refine=True, gains=True)
        rank = int(alone.factors.rank[0])
        assert whole.factors.rank[b] == rank
        np.testing.assert_array_equal(whole.factors.readout[b, :, :rank], alone.factors.readout[0])
        np.testing.assert_array_equal(whole.factors.operator[b, :rank, :rank], alone.factors.operator[0])
        np.testing.assert_array_equal(whole.drift[b, :rank], alone.drift[0])
        np.testing.assert_array_equal(whole.gains[b, :rank, :rank], alone.gains[0])


@pytest.mark.parametrize("n", [6, 60, 3000])
def test_what_centring_leaves_nothing_of_has_no_operator(n, dtype, rng):
    """F is constant and the last snapshot far away: rounding of its Gram matrix was taken for eight directions."""
    X = np.zeros((10, 1, n), dtype)
    X[-1] = rng.normal(size=n)
    op = observed.fit(kernels, X, ("rank", 8.0), AFFINE)
    assert op.factors.rank[0] == 0
