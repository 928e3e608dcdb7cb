"""The BLAS and LAPACK engine by itself: tiles, scaling, and what it says of each block."""

import numpy as np
import pytest
from cases import EPS64, assert_states, graded, orbit, with_singular_values

from fastkoop.kernels import plan, reference
from fastkoop.kernels.cpu import library
from fastkoop.kernels.plan import EIGEN, NON_FINITE, SVD, ZERO, resolution

DIGITS = {"float32": 24, "float64": 53}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Every block takes several tiles."""
    monkeypatch.setattr(library, "TILE_ENTRIES", 64)
    monkeypatch.setattr(library, "TILE_LINES", 1)


def test_tiles_cover_everything_once():
    for length in (0, 1, 5, 64, 65, 1000):
        for other in (0, 1, 7, 64, 1000):
            parts = [np.arange(length)[part] for part in library.tiles(length, other)]
            np.testing.assert_array_equal(np.concatenate([*parts, []]), np.arange(length))


@pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 40), (6, 6), (1, 5), (5, 1)])
def test_gram_matrices(n, m, dtype, rng):
    X = rng.normal(size=(n, m + 1)).astype(dtype)
    make = library.gram_snapshots if n > m else library.gram_weights
    np.testing.assert_allclose(make(X.T), reference.gram(X), rtol=0, atol=8 * max(n, m) * EPS64 * 16)


@pytest.mark.parametrize("reduce", ["gram", "block", "svd"])
@pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 40), (6, 6)])
def test_all_reductions_are_the_same_operator(n, m, reduce, dtype, rng):
    X = orbit(rng, n, m, dtype)
    bounds, rule = resolution(n, m, dtype), ("relative", 1e-4)
    if reduce == "gram":
        make = library.gram_snapshots if n > m else library.gram_weights
        part = library.reduce_gram(make(X.T), n <= m, rule, DIGITS[dtype.name], bounds)
        assert part.route == EIGEN
    elif reduce == "block":
        part = library.reduce_block(X.T, n <= m, rule, DIGITS[dtype.name], bounds)
        assert part.route == EIGEN
    else:
        part = library.reduce_svd(X.T, rule, DIGITS[dtype.name], bounds)
        assert part.route == SVD
    F, Fp = X[:, :-1].astype(float), X[:, 1:].astype(float)
    U, left = (F @ part.basis, Fp @ part.readout) if n > m else (part.basis, part.readout)
    np.testing.assert_allclose(left @ U.T, reference.fit(X, rule), rtol=0, atol=1e-8)
    np.testing.assert_allclose(U.T @ U, np.eye(part.rank), rtol=0, atol=1e-8)
    np.testing.assert_allclose(part.start, U.T @ X[:, -1], rtol=0, atol=1e-7)
    s = np.linalg.svd(F, compute_uv=False)
    np.testing.assert_allclose([part.largest, part.smallest], [s[0], s[part.rank - 1]], rtol=1e-8)


@pytest.mark.parametrize("wide", [False, True])
def test_what_a_gram_matrix_cannot_tell_goes_to_the_svd(wide, rng):
    n, m = (6, 30) if wide else (30, 6)
    X = graded(rng, n, m, low=1e-9)
    S = reference.gram(X)

    def status(S, c):
        return library.reduce_gram(S, wide, ("relative", c), 53, resolution(n, m, np.float64)).route

    assert status(S, 1e-12) == SVD
    assert status(S, 0.05) == EIGEN
    assert status(S * 0, 0.05) == ZERO
    assert status(S * np.nan, 0.05) == NON_FINITE
    assert status(S * 1e-150, 0.05) == SVD
    assert status(S * 1e150, 0.05) == SVD


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-200, 1.0, 1e200, 2.0**1023, np.finfo(float).max])
def test_scale_of(value):
    status, scale = library.scale_of(np.array([[0.0, -value], [value / 2, 0.0]]))
    assert status == EIGEN
    assert 0.25 <= value / scale <= 2.0
    assert np.frexp(scale)[0] == 0.5  # a power of two


@pytest.mark.parametrize(("bad", "expected"), [(0.0, ZERO), (np.nan, NON_FINITE), (np.inf, NON_FINITE)])
def test_statuses_of_the_svd_route(bad, expected):
    block = np.zeros((4, 5))
    block[1, 2] = bad
    bounds = resolution(5, 3, np.float64)
    part = library.reduce_svd(block, ("relative", 1e-6), 53, bounds)
    assert (part.route, part.rank) == (expected, 0)
    out = np.full((4, 5), 7.0)
    assert library.pinv_svd(block, ("relative", 1e-6), 53, bounds, out) == expected
    assert np.isnan(out).all() if expected == NON_FINITE else not out.any()


@pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 40), (6, 6)])
def test_inverses(n, m, dtype, rng):
    F = graded(rng, n, m, dtype, low=1e-2)[:, :-1]
    expected = reference.pinv(F, ("relative", 5e-2))
    bounds = resolution(n, m, dtype)
    for call in (lambda out: library.pinv_gram(F.T, n <= m, ("relative", 5e-2), DIGITS[dtype.name], bounds, out),
                 lambda out: library.pinv_svd(F.T, ("relative", 5e-2), DIGITS[dtype.name], bounds, out)):  # fmt: skip
        out = np.full((m, n), np.nan, dtype)
        assert call(out) in (EIGEN, SVD)
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e3 * np.finfo(dtype).eps)


def test_combine(dtype, rng):
    rows, coefficients = rng.normal(size=(9, 50)).astype(dtype), rng.normal(size=(4, 9))
    out = np.full((4, 50), np.nan, dtype)
    library.combine(rows, coefficients, out)
    np.testing.assert_allclose(out, coefficients @ rows.astype(float), rtol=0, atol=20 * np.finfo(dtype).eps)


def test_the_plan_sends_large_blocks_here():
    assert plan(1, 500, 97, np.float32).engine == "library"


@pytest.mark.parametrize("cutoff", [("relative", 2e-2), ("rank", 3.0), ("energy", 0.99), ("median", 1.5)])
@pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 40), (6, 6), (130, 60), (60, 130)])
def test_one_step_without_eigenvectors(n, m, cutoff, dtype, rng):
    X = graded(rng, n, m, dtype, low=1.3e-4)
    out = np.full(n, np.nan, dtype)
    status = library.step_block(X.T, n <= m, cutoff, DIGITS[dtype.name], resolution(n, m, dtype), out)
    assert status == EIGEN
    assert_states(out[None], X[None], 1, cutoff)


def test_one_step_of_blocks_with_nothing_to_solve(dtype, rng):
    X = rng.normal(size=(6, 41)).astype(dtype)
    for block, expected in ((np.zeros_like(X), ZERO), (np.where(X == X[2, 3], np.nan, X).astype(dtype), NON_FINITE)):
        for snapshots in (block.T, block.T.T.copy()):
            out = np.full(snapshots.shape[1], 7.0, dtype)
            m, n = snapshots.shape[0] - 1, snapshots.shape[1]
            bounds = resolution(n, m, dtype)
            assert library.step_block(snapshots, n <= m, ("relative", 1e-3), 24, bounds, out) == expected
            np.testing.assert_array_equal(out, 0.0 if expected == ZERO else np.nan)


@pytest.mark.parametrize("values", [np.linspace(1, 0.1, 120), np.geomspace(1, 0.05, 120)], ids=["evenly", "graded"])
def test_one_step_takes_more_rotations_than_the_order_squared(values, rng):
    """As ordinary spectra do, 1.2 order^2: no reason to leave a good block to the full SVD."""
    F = with_singular_values(rng, 300, 120, values)
    X = np.c_[F, F[:, 0]]
    out = np.full(300, np.nan)
    status = library.step_block(X.T, False, ("relative", 1e-6), 53, resolution(300, 120, np.float64), out)
    assert status == EIGEN
    assert_states(out[None], X[None], 1, ("relative", 1e-6))


def test_what_one_step_leaves_to_the_svd(rng):
    X = graded(rng, 40, 12, np.float64, low=1e-9)
    out = np.zeros(40)
    assert library.step_block(X.T, False, ("relative", 1e-8), 53, resolution(40, 12, np.float64), out) == SVD
