"""The small dense algebra against LAPACK: factors, certificates, eigenpairs, also of matrices that break others."""

import mpmath
import numpy as np
import pytest
from cases import EPS64, dense, dying, kernel_eigh, orthogonal, tile, tile_of

ORDERS = (1, 2, 3, 5, 8, 31, 64, 96)


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
        d, Z = kernel_eigh(A)
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
        d, Z = kernel_eigh(G / np.trace(G))
        assert np.isfinite(d).all(), seed
        assert np.isfinite(Z).all(), seed
        np.testing.assert_allclose(d[2:], 0, atol=1e-14)
        np.testing.assert_allclose(Z @ Z.T, np.eye(len(Z)), rtol=0, atol=1e-13)


def test_eigenvalues_against_higher_precision(rng):
    for n in (4, 12):
        A = symmetric(rng, np.geomspace(1, 1e-12, n))
        with mpmath.workdps(50):
            exact = sorted((float(v) for v in mpmath.eigsy(mpmath.matrix(A.tolist()), eigvals_only=True)), reverse=True)
        np.testing.assert_allclose(kernel_eigh(A)[0], exact, rtol=0, atol=(4 + np.sqrt(n)) * EPS64)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 31, 64, 96])
def test_tridiagonal_form_last_first(n, rng):
    A = symmetric(rng, rng.uniform(size=n))
    reflectors, d, e, beta = tile(A), np.empty(n), np.empty(n), np.zeros(n)
    dense.tridiagonalize(reflectors, n, d, e, beta, tile_of(3, n))
    T = np.diag(d) + np.diag(e[:-1], 1) + np.diag(e[:-1], -1)
    Qt = tile_of(n, n)
    dense.accumulate(reflectors, n, beta, Qt)
    Qt = Qt[:, :n]
    np.testing.assert_allclose(Qt @ A @ Qt.T, T, rtol=0, atol=8 * EPS64 * n)
    x = rng.normal(size=n)
    y = x.copy()
    dense.reflect(reflectors, n, beta, y, True)
    np.testing.assert_allclose(y[::-1], Qt @ x, rtol=0, atol=1e-13 * n)
    dense.reflect(reflectors, n, beta, y, False)
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-13 * n)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 64, 96])
def test_logged_rotations_are_those_of_the_eigenvectors(n, rng):
    for name, A in hard(rng, n).items():
        reflectors, d, e, beta = tile(A), np.empty(n), np.empty(n), np.zeros(n)
        dense.tridiagonalize(reflectors, n, d, e, beta, tile_of(3, n))
        T = np.diag(d) + np.diag(e[:-1], 1) + np.diag(e[:-1], -1)
        x = rng.normal(size=n)
        y, rotations = x.copy(), np.empty((2, dense.ROTATIONS * n * n))
        sweeps = np.empty((dense.QL_ITERATIONS * n, 3), np.int64)
        converged, swept = dense.ql(d, e, n, False, np.empty((0, 0)), y, rotations, sweeps)
        assert converged, name
        np.testing.assert_allclose(np.linalg.norm(y), np.linalg.norm(x), rtol=1e-12, err_msg=name)
        y *= d  # T x = Z (d (Z^T x))
        dense.unrotate(y, rotations, sweeps, swept)
        size = max(np.abs(T).max(), 1e-300) * n
        np.testing.assert_allclose(y, T @ x, rtol=0, atol=64 * EPS64 * size, err_msg=name)


def test_a_full_log_is_no_answer(rng):
    A = symmetric(rng, rng.uniform(size=12))
    reflectors, d, e, beta = tile(A), np.empty(12), np.empty(12), np.zeros(12)
    dense.tridiagonalize(reflectors, 12, d, e, beta, tile_of(3, 12))
    for room in ((5, 720), (432, 1)):
        rotations, sweeps = np.empty((2, room[0])), np.empty((room[1], 3), np.int64)
        assert not dense.ql(d.copy(), e.copy(), 12, False, np.empty((0, 0)), np.ones(12), rotations, sweeps)[0]


@pytest.mark.parametrize("n", ORDERS)
def test_cholesky_and_its_right_hand_side(n, rng):
    G = symmetric(rng, rng.uniform(0.1, 1, size=n))
    h = rng.normal(size=n)
    R = tile(np.column_stack([np.triu(G) + np.tril(np.full((n, n), 7.0), -1), h]))  # the lower triangle is not read
    assert dense.cholesky(R, n, n + 1)
    upper = np.triu(R[:, :n])
    np.testing.assert_allclose(upper.T @ upper, G, rtol=0, atol=4 * EPS64 * n)
    np.testing.assert_allclose(upper.T @ R[:, n], h, rtol=0, atol=1e-13 * n)
    c, y = np.empty(n), np.empty(n)
    dense.solve_upper(R, n, R[:, n].copy(), c)
    np.testing.assert_allclose(G @ c, h, rtol=0, atol=1e-12 * n)
    dense.solve_lower(R, n, h.copy(), y)
    np.testing.assert_allclose(y, R[:, n], rtol=0, atol=1e-12 * n)


@pytest.mark.parametrize("n", [2, 5, 31])
def test_cholesky_refuses_what_is_not_positive(n, rng):
    values = np.ones(n)
    for last in (-1e-3, -1.0, np.nan):
        values[-1] = last
        A = symmetric(rng, values) if np.isfinite(last) else np.full((n, n), np.nan)
        assert not dense.cholesky(tile(A), n, n)
    assert not dense.cholesky(tile_of(n, n), n, n)


def test_products(rng):
    for n in (1, 3, 7, 33):
        A, B, C = rng.normal(size=(3, 40, 40))
        dense.matmul(A, B, n, C)
        np.testing.assert_allclose(C[:n, :n], A[:n, :n] @ B[:n, :n], atol=1e-12)
        np.testing.assert_allclose(dense.dot(A[0], B[0], n), A[0, :n] @ B[0, :n], atol=1e-12)
        y = np.full(40, np.nan)
        dense.matvec(A, B[0], n, n, y)
        np.testing.assert_allclose(y[:n], A[:n, :n] @ B[0, :n], atol=1e-12)


def test_nan_is_not_optimised_away():
    a = np.array([1.0, np.nan, 2.0])
    assert np.isnan(dense.dot(a, np.ones(3), 3))
    assert dense.dot(np.array([np.inf, 1.0]), np.ones(2), 2) == np.inf
