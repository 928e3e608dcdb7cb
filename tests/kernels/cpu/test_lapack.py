"""The few LAPACK routines that are called without the GIL: right, in windows of arrays too, and strict."""

import threading
import time

import numpy as np
import pytest
from cases import EPS64

from fastkoop.kernels.cpu import lapack

SIZES = [1, 2, 3, 31, 64, 100]


def symmetric(rng, n, window=False):
    """A positive definite matrix of which only the upper triangle says so, and all of it."""
    lines = rng.normal(size=(n + 5, n))
    full = lines.T @ lines
    A = np.full((n + 2, n + 3), np.nan)[1:-1, 2:-1] if window else np.empty((n, n))
    A[:] = np.where(np.triu(np.ones((n, n))), full, np.nan)
    return A, full


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 5), (40, 1), (40, 33), (33, 40)])
def test_gram(k, n, window, across, rng):
    lines = rng.normal(size=(k, n + 4))[:, 2:-2] if window else rng.normal(size=(k, n))
    order = k if across else n
    start = rng.normal(size=(order, order))
    G = start.copy()
    lapack.add_gram(lines, G, across)
    expected = lines @ lines.T if across else lines.T @ lines
    np.testing.assert_allclose(np.triu(G), np.triu(start + expected), rtol=0, atol=100 * EPS64 * max(k, n))
    np.testing.assert_array_equal(np.tril(G, -1), np.tril(start, -1))


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_eigenpairs(n, window, rng):
    A, full = symmetric(rng, n, window)
    expected = np.linalg.eigvalsh(full)[::-1]
    atol = 20 * n * EPS64 * expected[0]
    d, e, beta = lapack.tridiagonalize(A)
    np.testing.assert_allclose(lapack.eigenvalues(d, e), expected, rtol=0, atol=atol)
    for count in {1, max(1, n // lapack.FEW), n}:  # one by one, and all at once
        Z = lapack.leading_vectors(d, e, count)
        lapack.rotate_back(A, beta, Z)
        np.testing.assert_allclose(full @ Z.T, Z.T * expected[:count], rtol=0, atol=atol)
        np.testing.assert_allclose(Z @ Z.T, np.eye(count), rtol=0, atol=2e3 * EPS64)


@pytest.mark.parametrize("values", [np.ones(60), np.zeros(60), np.r_[np.ones(30), np.full(30, 1e-9)]])
def test_vectors_of_repeated_eigenvalues_are_orthogonal(values, rng):
    Q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    full = (Q * values) @ Q.T
    A = full.copy()
    d, e, beta = lapack.tridiagonalize(A)
    for count in (10, 60):
        Z = lapack.leading_vectors(d, e, count)
        lapack.rotate_back(A, beta, Z)
        np.testing.assert_allclose(Z @ Z.T, np.eye(count), rtol=0, atol=2e3 * EPS64)
        np.testing.assert_allclose(full @ Z.T, Z.T * values[:count], rtol=0, atol=2e3 * EPS64)


def test_vectors_that_one_by_one_fails_for_come_from_all(rng, monkeypatch):
    A, _ = symmetric(rng, 60)
    d, e, _ = lapack.tridiagonalize(A)
    few = lapack.leading_vectors(d, e, 5)
    monkeypatch.setattr(lapack, "_dstemr", lambda *arguments: 1)
    np.testing.assert_allclose(np.abs(lapack.leading_vectors(d, e, 5)), np.abs(few), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", SIZES)
def test_cholesky_tells_positive_matrices(n, rng):
    A, full = symmetric(rng, n)
    assert lapack.is_positive(A)
    full -= 1.0001 * np.linalg.eigvalsh(full)[0] * np.eye(n)
    assert not lapack.is_positive(full)


def test_other_threads_run_meanwhile(rng):
    """SciPy's own wrapper would keep them waiting from the first to the last moment of the call."""
    A, inside, ticks = np.eye(1000) + rng.normal(size=(1000, 1000)), threading.Event(), 0

    def work():
        inside.set()
        lapack.tridiagonalize(A)
        inside.clear()

    worker = threading.Thread(target=work)
    worker.start()
    inside.wait()
    while inside.is_set():
        time.sleep(1e-4)
        ticks += 1
    worker.join()
    assert ticks > 5


def test_what_lapack_cannot_take_as_it_lies():
    square = np.eye(4)
    with pytest.raises(ValueError, match="A: expected a float64 square matrix"):
        lapack.tridiagonalize(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="A: expected a float64 square matrix"):
        lapack.is_positive(np.ones((4, 3)))
    with pytest.raises(ValueError, match="with entries"):
        lapack.is_positive(np.ones((0, 0)))
    for bad in (np.asfortranarray(np.arange(16.0).reshape(4, 4)), np.eye(8)[::2, ::2], np.eye(4)[::-1]):
        with pytest.raises(ValueError, match="rows of neighbouring numbers"):
            lapack.is_positive(bad)
    with pytest.raises(ValueError, match="read-only"):
        frozen = square.copy()
        frozen.flags.writeable = False
        lapack.tridiagonalize(frozen)
    with pytest.raises(ValueError, match=r"G: expected \(3, 3\)"):
        lapack.add_gram(np.ones((5, 3)), square)
    with pytest.raises(ValueError, match="Z: expected rows of 4"):
        lapack.rotate_back(square, np.zeros(3), np.ones((2, 3)))
    with pytest.raises(RuntimeError, match="dpotrf: argument 2"):
        lapack._dpotrf(b"L", -1, square, 4)
