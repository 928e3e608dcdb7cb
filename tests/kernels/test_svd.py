"""The small SVD against higher precision, LAPACK and the reference, on blocks that a Gram matrix cannot resolve."""

import mpmath
import numpy as np
import pytest
from cases import EPS64, dying, tile, with_singular_values
from fastkoop.kernels import cpu, library, simd, svd
from fastkoop.kernels.layout import blocks_of
from fastkoop.kernels.plan import NON_FINITE, SVD, UNRESOLVED, ZERO, resolution
from fastkoop.kernels.simd import tile_of

SHAPES = [(1, 1), (2, 1), (1, 2), (3, 3), (21, 8), (8, 21), (33, 31), (785, 8), (96, 96), (97, 96), (96, 500)]


def factors_of(X, cutoff):
    """Factors of snapshots (columns, n) by the small SVD."""
    return cpu._exactly(blocks_of(X[:, None]), cutoff)


def snapshots(rng, n, m, values):
    F = with_singular_values(rng, n, m, values)
    return np.concatenate([F, rng.normal(size=(n, 1)) / np.sqrt(n)], axis=1).T.copy()


@pytest.mark.parametrize(("rows", "extra", "length"), [(1, 0, 1), (1, 1, 5), (4, 3, 4), (7, 1, 30), (31, 31, 100)])
def test_triangle(rows, extra, length, rng):
    A = rng.normal(size=(rows + extra, length))
    V, order = tile(A), np.empty(rows, np.int64)
    svd.triangularize(V, rows, extra, length, order, np.empty(rows), tile_of(1, length)[0])
    R, chosen = np.tril(V[:rows, :rows]), A[order]
    np.testing.assert_allclose(R @ R.T, chosen @ chosen.T, rtol=0, atol=1e-13 * length)
    np.testing.assert_allclose(R @ V[rows:, :rows].T, chosen @ A[rows:].T, rtol=0, atol=1e-13 * length)
    assert sorted(order) == list(range(rows))
    assert (np.diff(np.abs(np.diag(R))) <= 1e-12).all()  # the longest remainder first


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 96])
def test_orthogonal_rows(n, rng):
    for values in (rng.uniform(size=n), np.geomspace(1, 1e-14, n), np.ones(n), np.r_[1.0, np.zeros(n - 1)]):
        A = with_singular_values(rng, n, n, values)
        beside = int(simd.lanes(n))
        rotated, squares = tile(np.hstack([A, np.zeros((n, beside - n)), np.eye(n)])), np.empty(n)
        assert svd.orthogonalize(rotated, n, beside + n, squares)
        assert (np.diff(squares) <= 0).all()
        B, J = rotated[:, :n], rotated[:, beside : beside + n]
        np.testing.assert_allclose(J @ J.T, np.eye(n), rtol=0, atol=64 * EPS64 * np.sqrt(n))
        np.testing.assert_allclose(J @ A, B, rtol=0, atol=64 * EPS64)
        np.testing.assert_allclose(np.sqrt(squares), np.sort(values)[::-1], rtol=0, atol=64 * EPS64)


@pytest.mark.parametrize(("n", "m"), [(12, 5), (5, 12), (10, 10), (60, 14)])
def test_values_within_the_bound(n, m):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X = snapshots(rng, n, m, np.geomspace(1, 1e-9, min(n, m)))
        found = factors_of(X, ("relative", 1e-12))
        F = X[:-1].T
        with mpmath.workdps(40):
            M = mpmath.matrix((F if n <= m else F.T).tolist())
            exact = sorted(float(mpmath.sqrt(abs(v))) for v in mpmath.eigsy(M * M.T, eigvals_only=True))
        bound = resolution(n, m, np.float64).svd
        assert found.rank[0] == min(n, m)
        assert abs(found.largest[0] - exact[-1]) <= bound
        assert abs(found.smallest[0] - exact[0]) <= bound


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_like_lapack(n, m, scale, rng):
    """The same reduced operator, up to the signs of its coordinates."""
    X = snapshots(rng, n, m, np.geomspace(1, 1e-8, min(n, m))) * scale
    cutoff = ("relative", 1e-5)
    found = factors_of(X, cutoff)
    expected = library.reduce_svd(X, cutoff, 53, resolution(n, m, np.float64))
    assert found.route[0] == SVD
    assert found.rank[0] == expected.rank
    for name in ("threshold", "largest", "smallest"):
        np.testing.assert_allclose(getattr(found, name)[0], getattr(expected, name), rtol=1e-9)
    signs = np.sign((found.basis[0] * scale * expected.basis * (scale if n > m else 1 / scale)).sum(axis=0))
    tolerance = 1e-9 / 1e-5
    np.testing.assert_allclose(found.start[0] * signs, expected.start, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(
        found.operator[0] * np.outer(signs, signs), expected.operator, rtol=0,
        atol=tolerance * max(1.0, np.abs(expected.operator).max()),
    )  # fmt: skip


@pytest.mark.parametrize(("n", "m"), [(200, 20), (21, 32), (20, 20)])
def test_rank_two_cascades_into_underflow(n, m, monkeypatch):
    """Every reflector of a block of rank 2 leaves a rest smaller by eps; LAPACK must not be needed."""
    monkeypatch.setattr(cpu, "_by_lapack", None)
    for seed in range(60):
        X = dying(np.random.default_rng(seed), n, m, np.float64).T
        found = factors_of(X, ("relative", 1e-9))
        assert found.route[0] == SVD
        assert found.rank[0] <= 2
        assert np.isfinite(found.operator).all()


def test_nothing_to_say(rng):
    X = rng.normal(size=(6, 9))
    X[3, 2] = np.nan
    assert factors_of(X, ("relative", 1e-3)).route[0] == NON_FINITE
    assert factors_of(np.zeros((6, 9)), ("relative", 1e-3)).route[0] == ZERO
    only_last = np.zeros((6, 9))
    only_last[-1] = 1.0
    only = factors_of(only_last, ("relative", 1e-3))
    assert (only.route[0], only.rank[0]) == (ZERO, 0)


def test_lapack_takes_over(monkeypatch, rng):
    """Where the iteration gives up, the block goes to LAPACK, its neighbours stay."""
    X = np.stack([snapshots(rng, 20, 6, np.geomspace(1, 1e-8, 6)) for _ in range(3)], axis=1)
    cutoff = ("relative", 1e-5)
    expected = cpu._exactly(blocks_of(X), cutoff)
    kernel = svd.svd_range

    def gives_up(first, last, *arguments):
        kernel(first, last, *arguments)
        arguments[-1][1], arguments[-7][1] = UNRESOLVED, 0

    monkeypatch.setattr(svd, "svd_range", gives_up)
    found = cpu._exactly(blocks_of(X), cutoff)
    np.testing.assert_array_equal(found.route, SVD)
    np.testing.assert_array_equal(found.rank, expected.rank)
    np.testing.assert_allclose(found.smallest, expected.smallest, rtol=1e-9)
    np.testing.assert_array_equal(found.basis[[0, 2]], expected.basis[[0, 2]])
