"""Pooled trajectories and pairs against a dense fit of the stacked pairs."""

import math
import pickle

import numpy as np
import pytest
import torch
from cases import EPS64

import fastkoop as fk
from fastkoop.cutoff import resolve
from fastkoop.kernels import pooled

SIZES = ((6, (9, 4, 12)), (30, (5, 3, 7)), (8, (4, 5)), (3, (40, 2, 25)), (150, (40, 61)), (110, (120, 30)))


def trajectories(rng, n, lengths, dtype=np.float64, batch=()):
    """Runs of one affine map from several starts."""
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    A = (Q * np.linspace(0.3, 0.95, n)) @ Q.T
    b, out = 0.1 * rng.normal(size=n), []
    for count in lengths:
        X = np.empty((*batch, n, count))
        X[..., 0] = rng.normal(size=(*batch, n))
        for t in range(1, count):
            X[..., t] = X[..., t - 1] @ A.T + b + 1e-3 * rng.normal(size=(*batch, n))
        out.append(X.astype(dtype))
    return out


def stacked(Xs, delay=1):
    """F and Fp (rows, M) of single blocks, and the last observables."""
    sides = []
    for X in Xs:
        Z = np.concatenate([X[:, delay - 1 - k : X.shape[1] - k] for k in range(delay)]).astype(np.float64)
        sides.append((Z[:, :-1], Z[:, 1:], Z[:, -1]))
    return np.hstack([F for F, _, _ in sides]), np.hstack([Fp for _, Fp, _ in sides]), sides[-1][2]


def dense(F, Fp, last, steps, cutoff, weights=None, affine=False, carry=False):
    """States after so many steps, in NumPy; weights (M,)."""
    w = np.ones(F.shape[1]) if weights is None else np.asarray(weights, float)
    root = np.sqrt(w)
    before, after = ((side * w).sum(axis=1) / w.sum() if affine else np.zeros(len(F)) for side in (F, Fp))
    A, B = ((side - mean[:, None]) * root for side, mean in ((F, before), (Fp, after)))
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    kind, value = cutoff
    keep = s > value * s[0] if kind == "relative" else (np.arange(len(s)) < value) & (s > 1e-13 * s[0])
    U, W = U[:, keep], (B @ Vt[keep].T) / s[keep]
    rest = last - before - U @ (U.T @ (last - before)) if carry and steps else 0.0
    z = last
    for _ in range(steps):
        z = after + W @ (U.T @ (z - before))
    return z + rest


@pytest.mark.parametrize(("n", "lengths"), SIZES, ids=str)
@pytest.mark.parametrize("options", [
    {}, {"affine": True}, {"carry": True}, {"delay": 2}, {"delay": 3, "affine": True, "carry": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("refine", [False, True])
def test_is_the_fit_of_the_stacked_pairs(n, lengths, options, refine, dtype, rng):
    delay, affine = options.get("delay", 1), options.get("affine", False)
    Xs = trajectories(rng, n, [max(length, delay + 1) for length in lengths], dtype)
    parts = (*((fk.Delay(delay),) if delay > 1 else ()), *((fk.Affine(),) if affine else ()))
    public = {"observables": parts or "identity", "out_of_span": "carry" if options.get("carry") else "drop"}
    F, Fp, last = stacked(Xs, delay)
    dense_options = {"affine": affine, "carry": options.get("carry", False)}
    for cutoff in (1e-3, fk.Rank(3)):
        op = fk.fit(Xs, cutoff=cutoff, refine=refine, **public)
        for steps in (0, 1, 5):
            expected = dense(F, Fp, last, steps, resolve(cutoff, 1, 1, dtype), **dense_options)[:n]
            tolerance = 40 * np.finfo(dtype).eps * np.linalg.norm(expected) + 1e9 * EPS64
            assert np.linalg.norm(op.predict(steps).astype(float) - expected) <= tolerance


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("n", "m"), [(6, 20), (20, 6), (7, 7)])
def test_pairs(n, m, affine, dtype, rng):
    """fit(F, Fp): columns in any order are the same fit; predictions start at the last of Fp."""
    F, Fp = (rng.normal(size=(2, n, m)).astype(dtype) for _ in range(2))
    observables = fk.Affine() if affine else "identity"
    op = fk.fit(F, Fp, cutoff=0.3, observables=observables)
    turned = fk.fit(np.concatenate([F[..., m // 2 : -1], F[..., : m // 2], F[..., -1:]], axis=-1),
                    np.concatenate([Fp[..., m // 2 : -1], Fp[..., : m // 2], Fp[..., -1:]], axis=-1),
                    cutoff=0.3, observables=observables)  # fmt: skip
    np.testing.assert_array_equal(op.predict(0), Fp[..., -1])
    for b in range(2):
        for steps in (1, 3):
            args = F[b].astype(float), Fp[b].astype(float), Fp[b, :, -1].astype(float)
            expected = dense(*args, steps, ("relative", 0.3), affine=affine)
            close = {"rtol": 0, "atol": (1e-4 if dtype == np.float32 else 1e-9) * (1 + np.abs(expected).max())}
            np.testing.assert_allclose(op.predict(steps)[b], expected, **close)
            np.testing.assert_allclose(turned.predict(steps)[b], expected, **close)


@pytest.mark.parametrize("affine", [False, True])
def test_what_a_gram_matrix_cannot_resolve_is_the_fit_of_the_stacked_pairs(affine, rng):
    """Singular values down to 1e-9 of the largest, more pairs than a triangle has columns."""
    n, lengths = 6, (60, 45)
    Q, scales = np.linalg.qr(rng.normal(size=(n, n)))[0], np.geomspace(1, 1e-9, n)
    Xs = [Q @ (scales[:, None] * rng.normal(size=(n, length))) for length in lengths]
    op = fk.fit(Xs, cutoff=1e-11, observables=fk.Affine() if affine else "identity")
    assert op.route == "svd" and op.rank == n
    F, Fp, last = stacked(Xs)
    for steps in (1, 2):
        expected = dense(F, Fp, last, steps, ("relative", 1e-11), affine=affine)
        tolerance = 40 * EPS64 * 1e9 * steps  # rounding times the condition number, for every step
        assert np.linalg.norm(op.predict(steps) - expected) <= tolerance * np.linalg.norm(expected)


def test_triangles_stand_in_for_many_pairs(rng, monkeypatch):
    A, after = rng.normal(size=(2, 5, 300)) * np.geomspace(1, 1e-8, 5)[:, None]
    monkeypatch.setattr(pooled, "STRIP", 1)  # several strips
    few, later = pooled.condensed(A, after)
    assert few.shape == later.shape == (5, 10)
    sizes, nexts = np.linalg.norm(A, axis=1), np.linalg.norm(after, axis=1)
    assert np.all(np.abs(few @ few.T - A @ A.T) <= 1e-13 * np.outer(sizes, sizes))
    assert np.all(np.abs(later @ few.T - after @ A.T) <= 1e-13 * np.outer(nexts, sizes))
    few = A[:, :10], after[:, :10]
    assert all(a is b for a, b in zip(pooled.condensed(*few), few, strict=True))  # as they are


def test_large_pools_take_half_a_gram_matrix_and_few_products(rng, monkeypatch):
    """More rows than the kernels take."""
    taken, large = [], pooled._large
    monkeypatch.setattr(pooled, "_large", lambda *args: taken.append(args) or large(*args))
    Xs = trajectories(rng, 70, (90, 120))
    op = fk.fit(Xs, observables=fk.Delay(2), cutoff=fk.Rank(5))
    assert len(taken) == 1
    F, Fp, last = stacked(Xs, 2)
    expected = dense(F, Fp, last, 3, ("rank", 5))[:70]
    np.testing.assert_allclose(op.predict(3), expected, rtol=0, atol=1e-8)


def test_one_trajectory_is_the_ordinary_fit(dtype, rng):
    for n, length in ((6, 20), (30, 7), (120, 60)):
        [X] = trajectories(rng, n, [length], dtype, batch=(2,))
        for options in ({}, {"observables": fk.Affine()}, {"stabilize": "clip"}, {"stabilize": "project"},
                        {"observables": fk.Delay(2)}, {"out_of_span": "carry"}):  # fmt: skip
            op, plain = fk.fit([X], cutoff=1e-2, **options), fk.fit(X, cutoff=1e-2, **options)
            pairs = fk.fit(X[..., :-1], X[..., 1:], cutoff=1e-2, **options) if "Delay" not in str(options) else op
            loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-6, "atol": 1e-7}
            for other in (op, pairs):
                np.testing.assert_array_equal(other.rank, plain.rank)
                np.testing.assert_allclose(other.predict([0, 1, 4]), plain.predict([0, 1, 4]), **loose)
                np.testing.assert_allclose(other.eigenvalues, plain.eigenvalues, **loose)
                np.testing.assert_allclose(other.matrix(), plain.matrix(), **loose)
                for name in ("threshold", "condition", "residual", "holdout", "spectral_radius"):
                    np.testing.assert_allclose(getattr(other, name), getattr(plain, name), err_msg=name, **loose)
                if options != {"stabilize": "project"}:
                    np.testing.assert_allclose(np.abs(other.modes), np.abs(plain.modes), rtol=1e-2, atol=1e-2)


class TestWeights:
    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("n", [4, 40])
    def test_are_those_of_least_squares(self, n, affine, rng):
        Xs = trajectories(rng, n, (8, 5, 9))
        F, Fp, last = stacked(Xs)
        observables = fk.Affine() if affine else "identity"
        by_trajectory, by_pair = np.array([1.0, 0.25, 3.0]), rng.uniform(0.1, 2.0, size=19)
        for weights, each in ((by_trajectory, np.repeat(by_trajectory, (7, 4, 8))), (by_pair, by_pair)):
            op = fk.fit(Xs, weights=weights, cutoff=1e-2, observables=observables)
            for steps in (1, 4):
                expected = dense(F, Fp, last, steps, ("relative", 1e-2), each, affine)
                np.testing.assert_allclose(op.predict(steps), expected, rtol=0, atol=1e-8)
        pairs = fk.fit(F, Fp, weights=by_pair, cutoff=1e-2, observables=observables).predict(2)
        np.testing.assert_allclose(pairs, dense(F, Fp, Fp[:, -1], 2, ("relative", 1e-2), by_pair, affine), atol=1e-8)

    def test_whole_numbers_repeat_and_zero_leaves_out(self, rng):
        Xs = trajectories(rng, 5, (9, 7, 8))
        twice = fk.fit([Xs[1], Xs[1], Xs[0], Xs[2]], cutoff=1e-6).predict(3)
        np.testing.assert_allclose(fk.fit(Xs, weights=[1, 2, 1], cutoff=1e-6).predict(3), twice, atol=1e-9)
        without = fk.fit([Xs[0], Xs[2]], cutoff=1e-6).predict(3)
        np.testing.assert_allclose(fk.fit(Xs, weights=(1, 0, 1), cutoff=1e-6).predict(3), without, atol=1e-9)
        scaled = fk.fit(Xs, weights=torch.full((3,), 7.0), cutoff=1e-6)
        np.testing.assert_allclose(scaled.predict(3), fk.fit(Xs, cutoff=1e-6).predict(3), atol=1e-9)

    @pytest.mark.parametrize(
        "weights",
        [[1, 2], [1, -1, 1], [0, 0, 0], [1, np.nan, 1], [1, np.inf, 1], "abc", 1.0, None, [[1, 1, 1]], [True] * 3],
    )
    def test_refused(self, weights, rng):
        Xs = trajectories(rng, 4, (6, 6, 6))
        if weights is None:
            assert fk.fit(Xs, weights=None).rank == 4
            return
        with pytest.raises((ValueError, TypeError), match=r"^weights: expected "):
            fk.fit(Xs, weights=weights)


class TestPools:
    def test_no_pair_across_a_join(self, rng):
        """A jump between trajectories, which would be a pair of its own, changes nothing."""
        A = np.diag([0.9, 0.5])
        Xs = [np.array([np.linalg.matrix_power(A, t) @ x for t in range(6)]).T for x in ([1.0, 2.0], [100.0, -50.0])]
        for observables in ("identity", fk.Delay(2)):
            op = fk.fit(Xs, observables=observables, cutoff=1e-9)
            np.testing.assert_allclose(op.predict(2), A @ A @ Xs[1][:, -1], rtol=1e-9)
            np.testing.assert_allclose(op.eigenvalues[:2].real, [0.9, 0.5], atol=1e-9)

    def test_kinds_batches_and_time_first(self, dtype, rng):
        Xs = trajectories(rng, 5, (6, 9), dtype, batch=(2, 3))
        expected = fk.fit(Xs).predict(2)
        assert expected.shape == (2, 3, 5)
        tensors = fk.fit(tuple(map(torch.from_numpy, Xs)))
        assert isinstance(tensors.predict(2), torch.Tensor) and isinstance(tensors.residual, torch.Tensor)
        np.testing.assert_array_equal(tensors.predict(2), expected)
        first = fk.fit([np.moveaxis(X, -1, 0) for X in Xs], time_axis=0)
        np.testing.assert_allclose(first.predict(2), expected, rtol=0, atol=200 * np.finfo(dtype).eps)
        alone = fk.fit([X[1:, 2:] for X in Xs]).predict(2)
        np.testing.assert_array_equal(alone[0, 0], expected[1, 2])

    def test_limits_walks_and_copies(self, rng):
        Xs = trajectories(rng, 6, (12, 15))
        op = fk.fit(Xs, observables=fk.Affine(), cutoff=1e-9)
        other = pickle.loads(pickle.dumps(op))
        for steps in (1, 30, math.inf):
            np.testing.assert_array_equal(other.predict(steps), op.predict(steps))
        np.testing.assert_allclose(op.walk().step(5), op.predict(5), atol=1e-12)
        np.testing.assert_allclose(op.predict(math.inf), op.predict(4000), atol=1e-8)
        assert op.summary().count("\n") == 1 and "25 pairs" in repr(op)
        with pytest.raises(fk.InputError, match="forecast: expected one trajectory"):
            op.forecast()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("where", [(0, 0), (0, -1), (1, 2), (1, -1)])
    def test_bad_blocks_are_named(self, bad, where, dtype, rng):
        Xs = trajectories(rng, 5, (6, 7), dtype, batch=(3,))
        Xs[where[0]][1, 2, where[1]] = bad
        with pytest.raises(fk.InputError, match=r"^X: block \(1,\) holds a NaN or an infinity"):
            fk.fit(Xs)
        op, good = fk.fit(Xs, check_finite=False), fk.fit([X[[0, 2]] for X in Xs])
        assert np.isnan(op.predict(1)[1]).all() and op.route[1] == "non-finite"
        np.testing.assert_array_equal(op.predict(1)[[0, 2]], good.predict(1))

    def test_zero_and_constant_blocks(self, dtype):
        Xs = [np.zeros((2, 4, 5), dtype), np.zeros((2, 4, 3), dtype)]
        Xs[0][1], Xs[1][1] = 2.0, 2.0
        op = fk.fit(Xs)
        assert op.rank.tolist() == [0, 1] and op.route[0] == "zero"
        np.testing.assert_allclose(op.predict(7), Xs[1][..., -1], rtol=1e-5)

    def test_refused(self, rng):
        X = rng.normal(size=(4, 6))
        for given, message in {
            "none": ([], "^X: expected at least one trajectory, got an empty list"),
            "numbers": ([1.0, 2.0], r"^X\[0\]: expected an array"),
            "sizes": ([X, X[:3]], r"^X\[1\]: expected, as before it, a numpy array .* with blocks \(4,\)"),
            "dtypes": ([X, X.astype(np.float32)], r"^X\[1\]: expected, as before it.*array on cpu of float32"),
            "kinds": ([X, torch.from_numpy(X)], r"^X\[1\]: expected, as before it.*got a torch array"),
            "short": ([X, X[:, :1]], r"^X\[1\]: expected at least 2 snapshots"),
        }.values():  # fmt: skip
            with pytest.raises((ValueError, TypeError), match=message):
                fk.fit(given)
        with pytest.raises(fk.InputError, match=r"^X\[0\]: expected at least 4 snapshots for Delay\(3\), got 3"):
            fk.fit([X[:, :3], X], observables=fk.Delay(3))
        with pytest.raises(fk.InputError, match=r"^Y: expected a successor of each of 6 columns of X, got 5"):
            fk.fit(X, X[:, :5])
        with pytest.raises(fk.InputError, match=r"^Y: expected none with a list"):
            fk.fit([X], X)
        with pytest.raises(fk.InputError, match=r"^observables: Delay\(2\) needs trajectories, got pairs"):
            fk.fit(X, X, observables=fk.Delay(2))
        assert fk.fit(X[:, :1], X[:, 1:2]).rank == 1
