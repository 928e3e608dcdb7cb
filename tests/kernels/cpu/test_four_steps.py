"""Gram, solve, evolve, combine: the four steps of a prediction one by one against the reference."""

import numpy as np
import pytest
from cases import EPS64, ODD_SHAPES, aligned, assert_states, graded, orbit, time_major

from fastkoop import kernels
from fastkoop.kernels import reference
from fastkoop.kernels.plan import ROUTES

FULL = ("relative", 1e-6)  # keeps every singular value of `orbit` in both dtypes
NOISE = ("relative", 1e-4)

pytestmark = pytest.mark.usefixtures("poisoned")


def words(route):
    return [ROUTES[r] for r in route]


class TestFourSteps:
    @pytest.mark.parametrize(("n", "m"), ODD_SHAPES)
    def test_gram_solve_evolve_lift_is_predict(self, n, m, dtype, rng, engine):
        X = orbit(rng, n, m, dtype, batch=(3,))
        factors = kernels.solve(kernels.gram(time_major(X)), n, m, FULL, dtype)
        assert set(words(factors.route)) <= {"eigen", "unresolved"}
        counts = np.array([1, 2, 7, 100])
        states = kernels.reconstruct(time_major(X), kernels.evolve(factors, counts))
        for state, steps in zip(states, counts, strict=True):
            for b in range(3):
                if words(factors.route)[b] == "eigen":
                    assert_states(state[b : b + 1], X[b : b + 1], int(steps), FULL, engine)
                else:
                    assert factors.edge[b]

    @pytest.mark.parametrize(("n", "m"), ODD_SHAPES)
    @pytest.mark.parametrize("refine", [False, True])
    def test_factors_mean_what_they_say(self, n, m, dtype, rng, engine, refine):
        X = orbit(rng, n, m, dtype, batch=(2,))
        factors = kernels.fit(time_major(X), FULL, refine=refine)
        for b in range(2):
            r = factors.rank[b]
            F, Fp = X[b, :, :-1].astype(float), X[b, :, 1:].astype(float)
            basis, readout = factors.basis[b, :, :r], factors.readout[b, :, :r]
            U, left = (F @ basis, Fp @ readout) if n > m else (basis, readout)
            K = reference.fit(X[b], FULL)
            s = np.linalg.svd(F, compute_uv=False)
            assert r == (s > FULL[1] * s[0]).sum()
            kappa = s[0] / s[r - 1]
            tolerance = 64 * EPS64 * kappa**2
            np.testing.assert_allclose(U.T @ U, np.eye(r), rtol=0, atol=tolerance)
            np.testing.assert_allclose(left @ U.T, K, rtol=0, atol=tolerance * kappa)
            np.testing.assert_allclose(factors.operator[b, :r, :r], U.T @ K @ U, rtol=0, atol=tolerance * kappa)
            np.testing.assert_allclose(factors.start[b, :r], U.T @ X[b, :, -1], rtol=0, atol=tolerance * 30)
            np.testing.assert_allclose(factors.largest[b], s[0], rtol=tolerance)
            np.testing.assert_allclose(factors.smallest[b], s[r - 1], rtol=tolerance)
            assert not factors.basis[b, :, r:].any()
            assert not factors.readout[b, :, r:].any()

    def test_ranks_of_a_batch_may_differ(self, dtype, rng, engine):
        X = rng.normal(size=(6, 20, 6)).astype(dtype)
        for b in range(6):  # rank b, for 0 .. 5
            X[b, :, b:] = X[b, :, :b] @ rng.normal(size=(b, 6 - b)) if b else 0
        factors = kernels.fit(time_major(X), NOISE)
        np.testing.assert_array_equal(factors.rank, range(6))
        states = kernels.reconstruct(time_major(X), kernels.evolve(factors, np.array([1, 2])))
        for state, steps in zip(states, (1, 2), strict=True):
            assert_states(state, X, steps, NOISE, engine)

    def test_solve_says_where_a_gram_matrix_cannot_tell(self, rng, engine):
        X = time_major(graded(rng, 30, 5, low=1e-9)[None])
        factors = kernels.solve(kernels.gram(X), 30, 5, ("relative", 1e-12), np.float64)
        assert words(factors.route) == ["unresolved"]
        assert factors.edge.all()
        assert words(kernels.fit(X, ("relative", 1e-12)).route) == ["svd"]

    def test_advance_continues_evolve(self, dtype, rng, engine):
        X = time_major(orbit(rng, 20, 5, dtype, batch=(3,)))
        factors = kernels.fit(X, FULL)
        kept = factors.start.copy()
        y = kernels.advance(factors, kernels.advance(factors, factors.start, 3), 3)
        np.testing.assert_array_equal(factors.start, kept)
        states = kernels.combine(kernels.reconstruct(X, factors.readout.transpose(0, 2, 1)), y[:, None])[0]
        expected = kernels.reconstruct(X, kernels.evolve(factors, np.array([7])))[0]
        np.testing.assert_allclose(states, expected, rtol=0, atol=16 * np.finfo(dtype).eps)

    @pytest.mark.parametrize(("q", "states"), [(3, 1), (3, 20), (100, 9), (1, 2)])
    def test_combine(self, q, states, dtype, rng):
        rows = rng.normal(size=(q, 4, 21)).astype(dtype)
        coefficients = rng.normal(size=(4, states, q))
        got = kernels.combine(rows, coefficients)
        expected = np.einsum("bkq,qbn->kbn", coefficients, rows.astype(float))
        assert got.dtype == dtype
        assert aligned(got)
        np.testing.assert_allclose(got, expected, rtol=0, atol=4 * np.finfo(dtype).eps * np.abs(expected).max())

    def test_nothing_to_do(self, dtype, engine):
        for shape in ((5, 0, 9), (9, 0, 5)):
            X = np.zeros(shape, dtype)
            factors = kernels.fit(X, NOISE)
            assert kernels.reconstruct(X, kernels.evolve(factors, np.array([1, 4]))).shape == (2, 0, shape[-1])
            assert kernels.pinv(X, NOISE)[0].shape == (0, shape[0], shape[-1])
            assert len(kernels.gram(X)) == 0

    def test_rank_zero_has_states_too(self, dtype, engine):
        X = np.zeros((5, 2, 9), dtype)
        factors = kernels.fit(X, NOISE)
        assert not kernels.reconstruct(X, kernels.evolve(factors, np.array([1, 10**6]))).any()
        assert not kernels.reconstruct(X, factors.readout.transpose(0, 2, 1)).any()


@pytest.mark.parametrize("steps", [10, 10**3, 10**6])
def test_a_straight_line_far_ahead(steps, rng):
    """A Jordan block at 1: states grow with the steps, and so does what becomes of an error (the guide to accuracy)."""
    start, slope = rng.normal(size=(2, 40))
    X = (start + slope * np.arange(3)[:, None])[:, None]
    got = kernels.predict(X, steps, ("relative", 1e-9))[0][0]
    moved = steps * np.linalg.norm(slope)
    assert np.linalg.norm(got - (start + slope * (steps + 2))) <= 1e-9 * steps**2 * moved + 1e-12


@pytest.mark.parametrize("states", [1, 3, 4, 5, 9])
@pytest.mark.parametrize(("rows", "n"), [(1, 5), (3, 33), (6, 100), (13, 785)])
def test_states_combined_together_have_the_bits_of_each_alone(states, rows, n, dtype, rng):
    """Four states share a pass over the rows; trailing and inner zeros of some of them must not change that."""
    X = rng.normal(size=(rows, 3, n)).astype(dtype)
    coefficients = rng.normal(size=(3, states, rows))
    coefficients[1, :, rows - 1] = 0.0
    coefficients[2, states // 2, rows // 2 :] = 0.0
    for view in (X, np.asfortranarray(X)):
        together = kernels.combine(view, coefficients, products=False)
        for k in range(states):
            alone = kernels.combine(view, coefficients[:, k : k + 1].copy(), products=False)
            np.testing.assert_array_equal(together[k], alone[0])
        expected = np.einsum("bkq,qbn->kbn", coefficients, X.astype(np.float64))
        np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)
