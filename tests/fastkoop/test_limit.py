"""The mean ergodic limit against eigenvectors, means of many states and exact fixed points."""

import math

import numpy as np
import pytest
import torch
from cases import orthogonal

import fastkoop as fk
from fastkoop.limit import DIVERGES, DRIFTS, SETTLES, limit_of


def run(A, x, count, b=0.0):
    """x, A x + b, ... as columns."""
    states = [x]
    for _ in range(count - 1):
        states.append(A @ states[-1] + b)
    return np.array(states).T


def rotation(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def block(*parts):
    import scipy.linalg

    return scipy.linalg.block_diag(*parts)


def slow_limit(A, drift, y):
    """By eigenvectors: the share of each that stays, or goes to its fixed point."""
    values, P = np.linalg.eig(A)
    u, e = np.linalg.solve(P, y), np.linalg.solve(P, drift)
    stays = abs(values - 1.0) < 1e-8
    return (P @ np.where(stays, u, e / np.where(stays, 1.0, 1.0 - values))).real


class TestLimitOf:
    @pytest.mark.parametrize("values", [
        [0.5], [0.5, -0.9, 0.1], [1.0, 0.5, -0.3], [1.0, 1.0, 0.2], [1.0, -1.0, 0.4], [1 - 1e-9, 0.99],
        [1 - 1e-6, 0.5], [1.0, 1 - 1e-6, 1 - 2e-6, 0.9],
    ], ids=str)  # fmt: skip
    def test_against_eigenvectors(self, values, rng):
        r = len(values)
        for P in (orthogonal(rng, r), np.triu(rng.normal(size=(r, r))) + 3 * np.eye(r)):
            A = P @ np.diag(values) @ np.linalg.inv(P)
            y, pull = rng.normal(size=r), np.where(np.abs(np.array(values) - 1.0) < 1e-8, 0.0, rng.normal(size=r))
            for drift in (np.zeros(r), P @ pull):
                got, reason = limit_of(A, drift, y)
                assert reason == SETTLES
                expected = slow_limit(A, drift, y)
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-7 * (1 + np.abs(expected).max()))

    @pytest.mark.parametrize("angle", [0.1, 1.0, 3.0])
    def test_is_the_mean_of_many_states(self, angle, rng):
        A, y = block(rotation(angle), [[1.0]], 0.9 * rotation(0.4)), rng.normal(size=5)
        got, reason = limit_of(A, np.zeros(5), y)
        mean, count = np.zeros(5), 20_000
        state = y.copy()
        for _ in range(count):
            mean += state / count
            state = A @ state
        assert reason == SETTLES
        np.testing.assert_allclose(got, mean, atol=40 / count)

    def test_outside_the_circle_there_is_none(self):
        for A in (np.diag([1.1, 0.5]), 1.001 * rotation(0.3), np.diag([-1.2]), np.diag([1.0, 1 + 3e-8])):
            got, reason = limit_of(A, np.zeros(len(A)), np.ones(len(A)))
            assert reason == DIVERGES and np.isinf(got).all()
        assert limit_of(np.diag([1 + 5e-9]), np.zeros(1), np.ones(1))[1] == SETTLES

    @pytest.mark.parametrize("size", [2, 3])
    def test_jordan_blocks_drift(self, size, rng):
        J, Q = np.eye(size) + np.diag(np.ones(size - 1), 1), orthogonal(rng, size)
        for A in (J, Q @ J @ Q.T):
            start = np.ones(size) if A is J else Q @ np.ones(size)
            assert limit_of(A, np.zeros(size), start)[1] == DRIFTS
        eigenvector = np.eye(size)[0]
        got, reason = limit_of(J, np.zeros(size), eigenvector)
        assert reason == SETTLES and np.allclose(got, eigenvector)

    def test_a_drift_along_one(self):
        assert limit_of(np.diag([1.0, 0.5]), np.array([1e-3, 1.0]), np.ones(2))[1] == DRIFTS
        got, reason = limit_of(np.diag([1.0, 0.5]), np.array([0.0, 1.0]), np.ones(2))
        assert reason == SETTLES and got.tolist() == [1.0, 2.0]

    def test_nothing(self):
        got, reason = limit_of(np.zeros((0, 0)), np.zeros(0), np.zeros(0))
        assert got.shape == (0,) and reason == SETTLES


OPTIONS = (
    {},
    {"out_of_span": "carry"},
    {"observables": fk.Affine()},
    {"observables": fk.Affine(), "stabilize": "clip"},
)


class TestPredict:
    @pytest.mark.parametrize("n, m", [(6, 20), (40, 12), (9, 9)])
    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
    def test_fixed_points_of_affine_maps(self, n, m, scale, rng):
        """Far away, near, and all but there already, from operators of conditions up to 1e10."""
        values = np.array([0.99, 0.9, 0.5, -0.3, 0.1])
        Q = np.linalg.qr(rng.normal(size=(n, 5)))[0]
        A, there = (Q * values) @ Q.T, 3 * rng.normal(size=n)
        X = run(A, there + scale * Q @ rng.normal(size=5), m + 1, there - A @ there)
        for options in ({"cutoff": 1e-9}, {"cutoff": fk.Rank(5)}, {"cutoff": 1e-9, "stabilize": "clip"}):
            op = fk.fit(X, observables=fk.Affine(), **options)
            assert op.condition < 1e10
            assert np.linalg.norm(op.predict(math.inf) - there) <= 1e-8 * np.linalg.norm(there)
            assert op.limit_reason == ""

    def test_condition_of_ten_digits(self, rng):
        """Modes that die at once leave singular values ten orders apart."""
        values, n = np.array([0.999, 0.5, 1e-2, 1e-3]), 12
        Q = np.linalg.qr(rng.normal(size=(n, 4)))[0]
        A, there = (Q * values) @ Q.T, rng.normal(size=n)
        X = run(A, there + Q @ np.array([1.0, 1e-3, 1e-6, 1e-9]), 31, there - A @ there)
        op = fk.fit(X, observables=fk.Affine(), cutoff=fk.Rank(4))
        assert 1e7 < op.condition < 1e11
        assert np.linalg.norm(op.predict(math.inf) - there) <= 1e-8 * np.linalg.norm(there)

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize(("n", "m"), [(30, 7), (7, 30)])
    def test_is_where_many_steps_end(self, n, m, options, rng):
        """All eigenvalues but those at 1 inside the circle; several blocks, tall and wide."""
        X = []
        for _ in range(3):
            Q = np.linalg.qr(rng.normal(size=(n, 3)))[0]
            A, there = (Q * [0.8, -0.5, 0.2]) @ Q.T, rng.normal(size=n)
            X.append(run(A, there + Q @ rng.normal(size=3), m + 1, there - A @ there))
        X = np.array(X)
        op = fk.fit(X, cutoff=1e-4, **options)
        got, far = op.predict(math.inf, check_finite=False), op.predict(2000, check_finite=False)
        settles = op.limit_reason == ""
        assert settles.any()
        np.testing.assert_allclose(got[settles], far[settles], rtol=0, atol=1e-7)

    def test_inside_a_sequence(self, dtype, rng):
        X = (3.0 + rng.normal(size=(2, 5, 1)) * 0.5 ** np.arange(8)).astype(dtype)
        for make in (np.asarray, torch.from_numpy):
            op = fk.fit(make(X), observables=fk.Affine())
            got = op.predict([3, math.inf, 0, 1, math.inf])
            assert type(got) is type(make(X)) and tuple(got.shape) == (2, 5, 5)
            np.testing.assert_array_equal(got[..., 1], got[..., 4])
            np.testing.assert_array_equal(got[..., 1], op.predict(math.inf))
            np.testing.assert_array_equal(got[..., 0], op.predict(3))
            np.testing.assert_array_equal(got[..., 2], X[..., -1])
            np.testing.assert_allclose(got[..., 1], 3.0, rtol=20 * np.finfo(dtype).eps)

    def test_reasons_by_block(self, dtype):
        t = np.arange(9.0)
        X = np.array([[0.5**t, 0.25**t], [1.1**t, 0.5**t], [1.0 + t, 2.0 - t], [0 * t, 0 * t], [1.0 + 0 * t, 0.5**t]])
        op = fk.fit(X.astype(dtype), cutoff=1e-6)
        assert op.limit_reason.tolist() == ["", "diverges", "drifts", "", ""]
        with pytest.warns(RuntimeWarning, match=r"block \(1,\) and 1 more have no limit.*limit_reason"):
            got = op.predict(math.inf)
        assert np.isinf(got[1:3]).all() and not got[[0, 3]].any()
        np.testing.assert_allclose(got[4], [1.0, 0.0], atol=1e-5)
        clipped = fk.fit(X.astype(dtype), cutoff=1e-6, stabilize="clip")
        assert clipped.limit_reason[1] == ""
        affine = fk.fit(X[1].astype(dtype), observables=fk.Affine(), stabilize="clip")
        assert affine.limit_reason == "drifts"  # a clipped eigenvalue 1 beside a constant that moves along it

    def test_alternating_states_average_out(self, dtype):
        X = np.array([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]], dtype)
        np.testing.assert_allclose(fk.fit(X).predict(math.inf), [0.0, 2.0], atol=1e-6)

    def test_bad_blocks_are_nan(self, dtype):
        X = np.ones((2, 3, 5), dtype)
        X[0, 1, 2] = np.nan
        got = fk.fit(X, check_finite=False).predict(math.inf)
        assert np.isnan(got[0]).all() and np.allclose(got[1], 1.0)

    def test_only_operators_have_limits(self):
        X = np.ones((3, 4))
        for steps in (-math.inf, math.nan):
            with pytest.raises(TypeError, match=r"^steps: expected an integer, got"):
                fk.fit(X).predict(steps)
        with pytest.raises(TypeError, match=r"^steps: expected an integer, got inf"):
            fk.predict(X, math.inf)


class TestVelocities:
    def test_are_read_out_beside_the_weights(self, dtype, rng):
        n = 6
        A = block(0.9 * rotation(0.3), 0.8 * rotation(1.0), *[[[v]] for v in np.linspace(0.1, 0.7, 2 * n - 4)])
        Q = orthogonal(rng, 2 * n)
        A = Q @ A @ Q.T
        X = run(A, rng.normal(size=2 * n), 26).astype(dtype)
        op = fk.fit(X, observables=fk.Momentum(), cutoff=1e-6 if dtype == np.float32 else 1e-11)
        tolerance = {"rtol": 0, "atol": 1e-2 if dtype == np.float32 else 1e-6}
        for steps in (1, 5):
            expected = np.linalg.matrix_power(A, steps) @ X[:, -1]
            np.testing.assert_allclose(op.predict(steps), expected[:n], **tolerance)
            np.testing.assert_allclose(op.velocities(steps), expected[n:], **tolerance)
        np.testing.assert_array_equal(op.velocities(0), X[n:, -1])
        assert op.velocities([0, 2, math.inf]).shape == (n, 3)

    def test_of_operators_without_them_are_refused(self):
        with pytest.raises(
            fk.InputError, match=r"^velocities: expected an operator that observes Momentum\(\), got id"
        ):
            fk.fit(np.ones((2, 4))).velocities(1)
