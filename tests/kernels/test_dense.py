"""The small dense algebra against LAPACK: factors, certificates, eigenpairs, also of matrices that break others."""

import mpmath
import numpy as np
import pytest
from cases import EPS64, dying, orthogonal
from fastkoop.kernels import dense

ORDERS = (1, 2, 3, 5, 8, 31, 64, 96)


def eigh(A):
    n = len(A)
    d, Z = np.full(n, np.nan), np.full((n, n), np.nan)
    assert dense.eigh(A.copy(), n, d, Z, np.empty((4, n + 1)))
    return d, Z


def symmetric(rng, values):
    Q = orthogonal(rng, len(values))
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def hard(rng, n):
    """Name -> symmetric matrices, traces near 1 as the kernels scale them."""
    tiny = rng.normal(size=(n, n)) * 1e-157
    tiny[0, 0] = 1.0
    v = rng.normal(size=n)
    v /= np.linalg.norm(v)
    decay = 10.0 ** -np.linspace(0, 160, n)
    return {
        "random": symmetric(rng, rng.uniform(size=n)),
        "graded": symmetric(rng, np.geomspace(1, 1e-14, n)),
        "equal": np.eye(n),
        "nearly equal": np.eye(n) + 1e-15 * symmetric(rng, rng.normal(size=n)),
        "zero": np.zeros((n, n)),
        "diagonal": np.diag(rng.uniform(size=n)),
        "rank one": np.outer(v, v),
        "cluster": symmetric(rng, np.r_[1.0, np.full(n - 1, 1e-12)]),
        "block": np.kron(np.eye(n), 1.0) * np.where(np.arange(n) < n // 2, 1.0, 0.0),
        "one large": (tiny + tiny.T) / 2,
        "scaled rows": np.outer(decay, decay) + np.diag(decay**2),
    }  # fmt: skip


@pytest.mark.parametrize("n", ORDERS)
def test_eigh(n, rng):
    for name, A in hard(rng, n).items():
        d, Z = eigh(A)
        size = max(np.abs(A).max(), 1e-300) * n
        assert (np.diff(d) <= 0).all(), name
        np.testing.assert_allclose(d, np.linalg.eigvalsh(A)[::-1], rtol=0, atol=8 * EPS64 * size, err_msg=name)
        np.testing.assert_allclose(Z @ Z.T, np.eye(n), rtol=0, atol=32 * EPS64 * n, err_msg=name)
        np.testing.assert_allclose((Z.T * d) @ Z, A, rtol=0, atol=32 * EPS64 * size, err_msg=name)


def test_eigh_of_what_cascades_into_underflow():
    """Every reflector of a matrix of rank 2 leaves a rest smaller by eps, until squares are denormal."""
    for seed in range(60):
        X = dying(np.random.default_rng(seed), 200, 20 + seed, np.float64)[:, :-1]
        G = X.T @ X
        d, Z = eigh(G / np.trace(G))
        assert np.isfinite(d).all(), seed
        assert np.isfinite(Z).all(), seed
        np.testing.assert_allclose(d[2:], 0, atol=1e-14)
        np.testing.assert_allclose(Z @ Z.T, np.eye(len(Z)), rtol=0, atol=1e-13)


def test_eigenvalues_against_higher_precision(rng):
    for n in (4, 12):
        A = symmetric(rng, np.geomspace(1, 1e-12, n))
        with mpmath.workdps(50):
            exact = sorted((float(v) for v in mpmath.eigsy(mpmath.matrix(A.tolist()), eigvals_only=True)), reverse=True)
        np.testing.assert_allclose(eigh(A)[0], exact, rtol=0, atol=(4 + np.sqrt(n)) * EPS64)


def test_only_the_leading_part_is_used(rng):
    A = symmetric(rng, np.geomspace(1, 0.1, 5))
    padded = np.full((8, 8), np.nan)
    padded[:5, :5] = A
    d, Z = np.empty(5), np.empty((5, 5))
    assert dense.eigh(padded, 5, d, Z, np.empty((4, 6)))
    np.testing.assert_allclose(d, np.geomspace(1, 0.1, 5), atol=1e-14)


@pytest.mark.parametrize("n", ORDERS)
def test_cholesky_and_its_right_hand_side(n, rng):
    G = symmetric(rng, rng.uniform(0.1, 1, size=n))
    A = np.full((n + 1, n + 1), np.nan)
    A[:n, :n] = np.tril(G) + np.triu(np.full((n, n), np.nan), 1)  # only the lower triangle may be read
    h = A[n, :n] = rng.normal(size=n)
    L = np.full((n + 1, n + 1), np.nan)
    assert dense.cholesky(A, n, 1, L)
    lower = np.tril(L[:n, :n])
    np.testing.assert_allclose(lower @ lower.T, G, rtol=0, atol=4 * EPS64 * n)
    np.testing.assert_allclose(lower @ L[n, :n], h, rtol=0, atol=1e-13 * n)
    c = np.empty(n)
    dense.solve_upper(L, n, L[n, :n].copy(), c)
    np.testing.assert_allclose(G @ c, h, rtol=0, atol=1e-12 * n)
    inverse = np.linalg.inv(lower)
    np.testing.assert_allclose(dense.inverse_norm2(L, n, np.full((n, n), np.nan)), (inverse**2).sum(), rtol=1e-10)


@pytest.mark.parametrize("n", [2, 5, 31])
def test_cholesky_refuses_what_is_not_positive(n, rng):
    values = np.ones(n)
    for last in (-1e-3, -1.0, np.nan):
        values[-1] = last
        A = symmetric(rng, values) if np.isfinite(last) else np.full((n, n), np.nan)
        assert not dense.cholesky(A, n, 0, np.empty((n + 1, n + 1)))
    assert not dense.cholesky(np.zeros((n, n)), n, 0, np.empty((n + 1, n + 1)))


def test_products(rng):
    for n in (1, 3, 7, 33):
        A, B, C = rng.normal(size=(3, 40, 40))
        dense.matmul(A, B, n, C)
        np.testing.assert_allclose(C[:n, :n], A[:n, :n] @ B[:n, :n], atol=1e-12)
        np.testing.assert_allclose(dense.dot(A[0], B[0], n), A[0, :n] @ B[0, :n], atol=1e-12)


def test_nan_is_not_optimised_away():
    a = np.array([1.0, np.nan, 2.0])
    assert np.isnan(dense.dot(a, np.ones(3), 3))
    assert dense.dot(np.array([np.inf, 1.0]), np.ones(2), 2) == np.inf
