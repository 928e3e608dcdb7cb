"""The small SVD against higher precision, LAPACK and the reference, on blocks that a Gram matrix cannot resolve."""

import mpmath
import numpy as np
import pytest
from cases import EPS64, Doors, assert_states, dying, tile, tile_of, time_major, truth, with_singular_values

from fastkoop import kernels
from fastkoop.kernels import cpu
from fastkoop.kernels.cpu import library, simd
from fastkoop.kernels.cpu import svd as module
from fastkoop.kernels.cpu.layout import blocks_of
from fastkoop.kernels.cutoffs import ENERGY, MEDIAN, RANK, RELATIVE
from fastkoop.kernels.plan import NON_FINITE, QR, SVD, UNRESOLVED, ZERO, resolution

svd = Doors(module)

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
        beside = simd.LANES * -(-n // simd.LANES)
        rotated, squares = tile(np.hstack([A, np.zeros((n, beside - n)), np.eye(n)])), np.empty(n)
        assert svd.orthogonalize(rotated, n, beside + n, squares)
        assert (np.diff(squares) <= 0).all()
        B, J = rotated[:, :n], rotated[:, beside : beside + n]
        np.testing.assert_allclose(J @ J.T, np.eye(n), rtol=0, atol=64 * EPS64 * np.sqrt(n))
        np.testing.assert_allclose(J @ A, B, rtol=0, atol=64 * EPS64)
        np.testing.assert_allclose(np.sqrt(squares), np.sort(values)[::-1], rtol=0, atol=64 * EPS64)


@pytest.mark.parametrize("n", [2, 3, 8, 31, 96])
@pytest.mark.parametrize("low", [1e-3, 1e-9, 1e-13, 1e-40])
def test_orthonormal_rows(n, low, rng):
    """To their own rounding, however short they were; moved by no more than rounding of the longest."""
    A = with_singular_values(rng, n, n, np.geomspace(1, low, n))
    rotated, squares = tile(A), np.empty(n)
    assert svd.orthogonalize(rotated, n, n, squares)
    rows, rank = rotated.copy(), int((squares > 0).sum())
    svd.orthonormalize(rotated, n, rank, squares)
    U, s = rotated[:rank, :n], np.sqrt(squares[:rank])
    np.testing.assert_allclose(U @ U.T, np.eye(rank), rtol=0, atol=16 * EPS64 * np.sqrt(n))
    np.testing.assert_allclose(s[:, None] * U, rows[:rank, :n], rtol=0, atol=16 * EPS64)


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
    monkeypatch.setattr(cpu, "reduce_by_svd", None)
    for seed in range(60):
        X = dying(np.random.default_rng(seed), n, m, np.float64).T
        found = factors_of(X, ("relative", 1e-9))
        assert found.route[0] == SVD
        assert found.rank[0] <= 2
        assert np.isfinite(found.operator).all()


def triangles(rng, n):
    """Name -> lower triangles whose smallest singular value hides: not on the diagonal, or behind large inverses."""
    values = np.r_[np.ones(n - 1), 10 ** rng.uniform(-14, -3)]
    angle = rng.uniform(0.6, 1.4)
    return {
        "one small value": np.linalg.qr(with_singular_values(rng, n, n, values))[1].T,
        "Kahan": np.tril(np.eye(n) * (1 + np.cos(angle)) - np.cos(angle)) * np.sin(angle) ** np.arange(n),
        "growing": np.eye(n) - rng.uniform(0.2, 1) * np.tril(np.ones((n, n)), -1),
        "random": np.tril(rng.normal(size=(n, n)), -1) + np.diag(rng.uniform(0.05, 1, n)),
    }


def smallest_value(L):
    """The smallest singular value of a lower triangle, by its inverse in extended precision."""
    L = L.astype(np.longdouble)
    W = np.zeros_like(L)
    for i in range(len(L)):
        W[i] = -(L[i, :i] @ W[:i]) / L[i, i]
        W[i, i] = 1 / L[i, i]
    scale = np.abs(W).max()
    return float(1 / (np.linalg.norm((W / scale).astype(np.float64), 2) * scale))


def full_rank(L, cutoff, kind=RELATIVE):
    n = len(L)
    return svd.full_rank(tile(L), n, kind, cutoff, 53, 1.0, tuple(resolution(n, n, np.float64)), tile_of(n, n))


class TestFullRank:
    @pytest.mark.parametrize("n", [2, 5, 12, 40, 96])
    def test_what_passes_is_of_full_rank(self, n):
        """At cutoffs near the smallest value, on either side, and at none."""
        verdicts = []
        for seed in range(30):
            rng = np.random.default_rng(seed)
            for name, L in triangles(rng, n).items():
                least, top = smallest_value(L), np.linalg.norm(L, 2)
                near = least / np.linalg.norm(L) * rng.normal(1, 1e-3)
                for cutoff in (0.0, near, least / top * 10 ** rng.uniform(-2, 0)):
                    verdicts.append(full_rank(L, cutoff))
                    needed = (cutoff + resolution(n, n, np.float64).svd) * top
                    assert not verdicts[-1] or least > needed, (name, seed, cutoff)
        assert 0.2 < np.mean(verdicts) < 0.9

    @pytest.mark.parametrize("n", [2, 31, 96])
    def test_it_leaves_room_for_rounding_in_the_inverse(self, n):
        """Near (n + 2) eps of the norm forward substitution may miss the smallest value altogether."""
        room = (n + 2) * EPS64 + resolution(n, n, np.float64).svd
        for factor in (0.9, 1.1):
            L = np.eye(n)
            L[-1, -1] = factor * room * np.sqrt(n - 1)
            assert full_rank(L, 0.0) == (factor > 1)

    def test_no_proof_without_a_largest_value(self):
        for kind in (RANK, ENERGY, MEDIAN):
            assert not full_rank(np.eye(4), 0.5, kind)
        for bad in (np.nan, 0.0, 1e-320):  # the inverse of the last overflows
            assert not full_rank(np.diag([1.0, bad]), 0.0)

    @pytest.mark.parametrize(("n", "m"), [(30, 6), (6, 30), (8, 8)])
    def test_blocks_that_take_the_triangle_are_of_full_rank(self, n, m):
        """By the exact singular values of the data itself."""
        taken = 0
        for seed in range(30):
            rng = np.random.default_rng(seed)
            X = snapshots(rng, n, m, np.geomspace(1, 10 ** rng.uniform(-13, -2), min(n, m)))
            F = X[:-1].T
            with mpmath.workdps(50):
                M = mpmath.matrix((F if n <= m else F.T).tolist())
                exact = [float(mpmath.sqrt(v)) for v in mpmath.eigsy(M * M.T, eigvals_only=True)]
            ratio = min(exact) / max(exact)
            for cutoff in (0.0, ratio * 10 ** rng.uniform(-1, 0), ratio * rng.normal(1, 1e-6)):
                route = cpu._predict_exactly(blocks_of(X[:, None]), 1, ("relative", cutoff))[1][0]
                assert route in (QR, SVD)
                assert route == SVD or ratio > cutoff, (seed, cutoff)
                taken += route == QR
        assert taken > 30


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(("n", "m"), [*SHAPES[:-1], (96, 130)])
def test_triangle_rotations_and_lapack_agree(n, m, steps, rng):
    """Full rank at the cutoff, so that the triangle suffices; each route answers by itself."""
    F = with_singular_values(rng, n, m, np.geomspace(1, 1e-6, min(n, m)))
    X = np.c_[F, F @ rng.normal(size=m) / m][None]
    source, cutoff = blocks_of(time_major(X)), ("relative", 1e-11)
    by_triangle, route = cpu._predict_exactly(source, steps, cutoff)
    assert route == [QR]
    assert_states(by_triangle, X, steps, cutoff, "triangle")
    for name, factors in (("rotations", cpu._exactly(source, cutoff)), ("LAPACK", cpu.reduce_by_svd(source, cutoff))):
        states, route = cpu._follow(source, factors, steps)
        assert route == [SVD]
        assert_states(states, X, steps, cutoff, name)


@pytest.mark.parametrize(("n", "m"), [(4, 9), (4, 4), (9, 4)])
def test_very_many_steps_by_the_triangle(n, m, rng):
    """x(t) = sum of v_i l_i^t goes on as sum of v_i l_i^(t + steps); a step at a time, 2^40 of them would not end."""
    rates, v = np.array([1 - 1e-7, 0.9, -0.5, 0.3]), np.linalg.qr(rng.normal(size=(n, 4)))[0] * np.geomspace(1, 1e-4, 4)
    source, cutoff = blocks_of((v @ rates[:, None] ** np.arange(m + 1)).T[:, None]), ("relative", 1e-12)
    for steps in (1000, 10**6, 2**40):
        state, route = cpu._predict_exactly(source, steps, cutoff)
        assert route == [QR]
        np.testing.assert_allclose(state[0], v[:, 0] * rates[0] ** (m + steps), rtol=0, atol=1e-5)
        assert steps < 2**40 or np.abs(state).max() < 1e-300


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

    monkeypatch.setattr(module, "svd_range", gives_up)
    found = cpu._exactly(blocks_of(X), cutoff)
    np.testing.assert_array_equal(found.route, SVD)
    np.testing.assert_array_equal(found.rank, expected.rank)
    np.testing.assert_allclose(found.smallest, expected.smallest, rtol=1e-9)
    np.testing.assert_array_equal(found.basis[[0, 2]], expected.basis[[0, 2]])


@pytest.mark.parametrize("scale", [1e-300, 1e-308, 1e-310, 1e-315, 1e-320, 1e300])
@pytest.mark.parametrize("kind", ["moving", "constant", "rank one"])
@pytest.mark.parametrize("wide", [False, True])
def test_scales_at_the_ends_of_float64(scale, kind, wide, rng):
    """Subnormal blocks keep what digits they have, in one call and by an operator, to the same rounding."""
    base = rng.normal(size=(18, 33)).cumsum(axis=0)
    X = {
        "moving": base,
        "constant": np.repeat(base[:1], 18, axis=0),
        "rank one": np.outer(0.9 ** np.arange(18), base[0]),
    }
    X = X[kind] / np.abs(X[kind]).max() * scale
    X = np.ascontiguousarray(X.T if wide else X)[:, None]
    exponent = 1 - np.frexp(np.abs(X).max())[1]
    scaled = np.ldexp(X[:, 0].T, exponent)  # exactly
    rounding = 1e-12 + 64 * 2.0**-1074 / scale
    cutoff = ("relative", 4 * rounding if kind == "rank one" else 1e-14)
    factors = kernels.fit(X, cutoff)
    for steps in (1, 3):
        expected = truth(scaled, steps, cutoff)
        got = [
            kernels.predict(X, steps, cutoff)[0],
            kernels.reconstruct(X, kernels.evolve(factors, np.array([steps])))[0],
        ]
        for states in got:
            size = max(np.linalg.norm(expected), np.linalg.norm(scaled[:, -1]))  # a state may decay into rounding
            error = np.linalg.norm(np.ldexp(states[0], exponent) - expected) / size
            assert error <= (1e3 if kind == "moving" else 1) * 40 * rounding
