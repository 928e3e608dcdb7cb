"""Observables, the out-of-span policy and non-expansive operators: against the reference, and on known systems."""

import os

import numpy as np
import pytest
import torch
from cases import EPS64, blocks, dying, graded, orbit, orthogonal, special_blocks

import fastkoop as fk
from fastkoop import Affine, Delay, Momentum
from fastkoop.kernels import reference
from fastkoop.kernels.plan import resolution

SHAPES = ((30, 5), (5, 30), (7, 7), (8, 9), (120, 110), (110, 120), (1, 40))
CUTOFF = 1e-4
CHOICES = {
    "identity": ("identity", {}),
    "affine": (Affine(), {"affine": True}),
    "delay": (Delay(2), {"delay": 2}),
    "both": ((Delay(3), Affine()), {"delay": 3, "affine": True}),
}


def moving(rng, n, m, dtype, batch=(2, 2)):
    """Snapshots (*batch, n, m+1) of x <- A x + b, about as far from zero as weights are beside their own movement."""
    X = np.empty((*batch, n, m + 1))
    for index in np.ndindex(*batch):
        A, x, b = 0.95 * orthogonal(rng, n), rng.normal(size=n), rng.normal(size=n)
        for t in range(m + 1):
            X[(*index, slice(None), t)] = x
            x = A @ x + 0.1 * b
    return (X + 3.0).astype(dtype)


def conditioning(X, delay=1, affine=False):
    """How much a relative error of F's observables can grow, and their size: what rounding is multiplied by."""
    F, Fp, *_ = reference.observed(X, delay, affine)
    _, s, _ = reference.truncated_svd(F, ("relative", CUTOFF), X.dtype)
    return (s[0] / s[-1]) * np.linalg.norm(Fp, 2) / s[-1] if len(s) else 1.0


def near(got, expected, block, steps, **options):
    """Whether a state is the reference's but for rounding: the result's, and what conditioning makes of float64's."""
    size = np.linalg.norm(block[:, -1].astype(float)) + np.linalg.norm(expected)
    bound = (4 * np.finfo(block.dtype).eps + (steps + 1) * conditioning(block, **options) * EPS64 * 1e2) * size
    return np.linalg.norm(got - expected) <= min(bound, 1e-3 * size)


class TestAgainstTheReference:
    @pytest.mark.parametrize("refine", [False, True])
    @pytest.mark.parametrize("out_of_span", ["drop", "carry"])
    @pytest.mark.parametrize("choice", CHOICES)
    def test_predictions(self, choice, out_of_span, refine, dtype, rng):
        observables, options = CHOICES[choice]
        for n, m in SHAPES:
            X = moving(rng, n, m, dtype)
            op = fk.fit(X, cutoff=CUTOFF, observables=observables, out_of_span=out_of_span, refine=refine)
            for steps in (0, 1, 4):
                got = op.predict(steps)
                assert got.shape == X.shape[:-1] and got.dtype == dtype
                for index, block in blocks(X):
                    carry = out_of_span == "carry"
                    expected = reference.predict_observed(block, steps, ("relative", CUTOFF), carry=carry, **options)
                    assert near(got[index], expected, block, steps, **options), (n, m, steps, index)
            walk = op.walk()
            walk.step()
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(walk.step(3), op.predict(4), rtol=1e2 * eps, atol=1e4 * eps)

    @pytest.mark.parametrize("choice", ["identity", "affine"])
    def test_project(self, choice, dtype, rng):
        observables, options = CHOICES[choice]
        for n, m in ((30, 8), (5, 30), (120, 110)):
            X = 1.05 ** np.arange(m + 1) * moving(rng, n, m, np.float64)
            X = X.astype(dtype)
            op = fk.fit(X, cutoff=CUTOFF, observables=observables, stabilize="project")
            K = op.matrix().astype(np.float64)
            K = K[..., :-1, :-1] if options.get("affine") else K
            # float32 rounds the matrix that is looked at; the operator itself is projected in float64
            assert np.linalg.norm(K, 2, axis=(-2, -1)).max() <= 1 + 20 * n * np.finfo(dtype).eps
            assert np.linalg.norm(K, 2, axis=(-2, -1)).min() > 0.9
            for index, block in blocks(X):
                expected = reference.predict_observed(block, 3, ("relative", CUTOFF), project=True, **options)
                assert near(op.predict(3)[index], expected, block, 3, **options)

    def test_project_leaves_what_does_not_grow(self, dtype, rng):
        X = orbit(rng, 12, 5, dtype, batch=(3,), decay=0.9)
        X[1] = (1.2 ** np.arange(6) * X[1]).astype(dtype)
        free, held = fk.fit(X), fk.fit(X, stabilize="project")
        gains = np.linalg.norm(free.matrix().astype(np.float64), 2, axis=(-2, -1))
        assert (gains > 1).tolist() == [False, True, False]
        same = fk.fit(X, stabilize=100.0).predict(7)
        np.testing.assert_array_equal(held.predict(7)[::2], same[::2])
        assert np.linalg.norm(held.predict(50)[1]) <= np.linalg.norm(X[1, :, -1]) * (1 + 1e-5)

    @pytest.mark.parametrize("choice", CHOICES)
    def test_routes_of_the_gram_matrix_and_of_the_data_agree(self, choice, rng):
        """Blocks that a Gram matrix cannot resolve are answered by their pairs, beside others that it can."""
        observables, options = CHOICES[choice]
        for n, m in ((40, 9), (3, 40)):
            X = np.stack([graded(rng, n, m, np.float64, low=low) for low in (1e-1, 1e-7, 1e-2)])
            op = fk.fit(X, cutoff=1e-9, observables=observables)
            assert op.route.tolist()[0] == "eigen"
            assert "svd" in op.route.tolist() or choice == "both"
            for b in range(3):
                expected = reference.predict_observed(X[b], 1, ("relative", 1e-9), **options)
                F = reference.observed(X[b], **options)[0]
                s = reference.truncated_svd(F, ("relative", 1e-9))[1]
                displacement = np.linalg.norm(expected - X[b, :, -1])
                bound = max(1e-8, 1e3 * resolution(*F.shape, np.float64).svd * s[0] / s[-1]) * displacement
                assert np.linalg.norm(op.predict(1)[b] - expected) <= bound


class TestKnownSystems:
    def test_an_affine_system_settles_where_it_should(self, dtype, rng):
        n = 6
        A, b = 0.9 * orthogonal(rng, n), rng.normal(size=n)
        rest = np.linalg.solve(np.eye(n) - A, b)
        X = [rest + rng.normal(size=n)]
        for _ in range(20):
            X.append(A @ X[-1] + b)
        X = np.array(X).T.astype(dtype)
        op = fk.fit(X, cutoff=1e-5, observables=Affine())
        tolerance = 1e4 * np.finfo(dtype).eps
        np.testing.assert_allclose(op.predict(2000), rest, rtol=0, atol=tolerance)
        np.testing.assert_allclose(op.matrix()[:n, :n], A, rtol=0, atol=tolerance)
        np.testing.assert_allclose(op.matrix()[:n, n], b, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(op.matrix()[n], np.eye(n + 1)[n])
        assert op.eigenvalues[0] == 1.0 and op.eigenvalues.shape == (n + 1,)
        np.testing.assert_allclose(np.abs(op.eigenvalues[1:]), 0.9, atol=tolerance)
        assert op.spectral_radius < 0.95
        constant = op.modes[:, 0]
        np.testing.assert_allclose(constant[:n] / constant[n], rest, atol=tolerance)
        free = fk.fit(X, cutoff=1e-5).predict(2000)
        assert np.linalg.norm(free - rest) > 10 * np.linalg.norm(op.predict(2000) - rest)

    def test_the_constant_is_exact_in_float32_far_from_zero(self, rng):
        """Weights of size 1e3 that move by 1: a linear fit sees a constant, an affine one the movement."""
        A = 0.9 * orthogonal(rng, 4)
        X = [rng.normal(size=4)]
        for _ in range(30):
            X.append(A @ X[-1])
        X = (1e3 + np.array(X).T).astype(np.float32)
        got = fk.fit(X, observables=Affine(), cutoff=1e-3).predict(5)
        expected = X[:, -1].astype(float) - 1e3
        for _ in range(5):
            expected = A @ expected
        np.testing.assert_allclose(got - 1e3, expected, rtol=0, atol=1e-3)

    def test_delays_see_an_oscillation_in_one_weight(self, dtype):
        t = np.arange(30)
        X = np.cos(0.3 * t)[None].astype(dtype)
        tolerance = 3e3 * np.finfo(dtype).eps
        op = fk.fit(X, observables=Delay(2), cutoff=1e-4)
        later = np.array([1, 10, 50])
        np.testing.assert_allclose(op.predict(later)[0], np.cos(0.3 * (29 + later)), atol=tolerance)
        np.testing.assert_allclose(np.abs(op.eigenvalues), 1.0, atol=tolerance)
        np.testing.assert_allclose(op.matrix(), [[2 * np.cos(0.3), -1], [1, 0]], atol=tolerance)
        assert abs(fk.fit(X).predict(10)[0] - np.cos(0.3 * 39)) > 0.1

    @pytest.mark.parametrize("affine", [False, True])
    def test_momentum_has_weights_and_velocities(self, affine, rng):
        """Gradient descent with momentum on a quadratic: v <- 0.9 v + H w, w <- w - 0.1 v is linear in (w, v)."""
        n, lr = 5, 0.1
        H = orthogonal(rng, n) * np.linspace(0.2, 1.5, n)
        H = H @ H.T
        w, v, target = rng.normal(size=n), np.zeros(n), 2.0 * affine
        states = []
        for _ in range(24):
            v = 0.9 * v + H @ (w - target)
            w = w - lr * v
            states.append(np.concatenate([w, v]))
        X = np.array(states).T
        observables = (Momentum(), Affine()) if affine else Momentum()
        op = fk.fit(X, observables=observables, cutoff=1e-12)
        for _ in range(10):
            v = 0.9 * v + H @ (w - target)
            w = w - lr * v
        assert op.predict(10).shape == (n,)
        np.testing.assert_allclose(op.predict(10), w, rtol=0, atol=1e-8)
        np.testing.assert_allclose(op.walk().step(10), w, rtol=0, atol=1e-8)
        np.testing.assert_array_equal(op.predict([0, 1])[:, 0], X[:n, -1])
        assert op.matrix().shape == (2 * n + affine, 2 * n + affine)
        alone = fk.fit(X[:n], cutoff=1e-12, observables=Affine() if affine else "identity").predict(10)
        assert np.linalg.norm(alone - w) > 1e-3

    def test_carrying_keeps_what_the_snapshots_do_not_span(self, rng):
        plane = np.linalg.qr(rng.normal(size=(20, 3)))[0]
        A = np.diag([0.9, 0.8, 0.7])
        X = [np.ones(3)]
        for _ in range(6):
            X.append(A @ X[-1])
        X = plane @ np.array(X).T
        out = rng.normal(size=20)
        out -= plane @ (plane.T @ out)
        X[:, -1] += out  # the last snapshot leaves the plane
        F, Fp = X[:, :-1], X[:, 1:]
        dropped = Fp @ (np.linalg.pinv(F, rcond=1e-9) @ X[:, -1])
        np.testing.assert_allclose(fk.fit(X, cutoff=1e-9).predict(1), dropped, atol=1e-9)
        carried = fk.fit(X, cutoff=1e-9, out_of_span="carry")
        np.testing.assert_allclose(carried.predict(1), dropped + out, atol=1e-9)
        np.testing.assert_allclose(carried.predict(0), X[:, -1])

    def test_clipping_an_affine_operator_leaves_the_constant(self, rng):
        t = np.arange(12)
        X = np.stack([5.0 + 1.1**t, -2.0 + 0.5**t])
        op = fk.fit(X, observables=Affine(), stabilize="clip", cutoff=1e-12)
        np.testing.assert_allclose(op.spectral_radius, 1.0, atol=1e-9)
        np.testing.assert_allclose(op.predict(400)[1], -2.0, atol=1e-6)


class TestReports:
    @pytest.mark.parametrize("choice", CHOICES)
    def test_residual_and_holdout(self, choice, dtype, rng):
        observables, options = CHOICES[choice]
        for n, m in ((9, 40), (40, 9)):
            X = moving(rng, n, m, np.float64) + 0.05 * rng.normal(size=(2, 2, n, m + 1))
            X = X.astype(dtype)
            op = fk.fit(X, cutoff=1e-2, observables=observables)
            for index, block in blocks(X):
                moved = np.linalg.norm(block[:, -1].astype(float) - block[:, -2])
                F, Fp, _, _, after = reference.observed(block, **options)
                K = Fp @ reference.pinv(F, ("relative", 1e-2), dtype)
                step = (after + K @ F[:, -1])[:n]
                expected = np.linalg.norm(step - block[:, -1]) / moved
                np.testing.assert_allclose(op.residual[index], expected, rtol=1e-2, atol=1e-5)
                held = reference.predict_observed(block[:, :-1], 1, ("relative", 1e-2), **options)
                expected = np.linalg.norm(held - block[:, -1]) / moved
                np.testing.assert_allclose(op.holdout[index], expected, rtol=1e-3)
            assert str(op.rank.max()) in op.summary()

    @pytest.mark.parametrize("choice", CHOICES)
    @pytest.mark.parametrize(("n", "m"), [(30, 9), (4, 30)])
    def test_residual_and_holdout_with_what_is_carried(self, choice, n, m, rng):
        """Of a cutoff that leaves something out, which is then carried."""
        observables, options = CHOICES[choice]
        X = moving(rng, n, m, np.float64, batch=())
        op = fk.fit(X, cutoff=fk.Rank(2), out_of_span="carry", observables=observables)
        moved = np.linalg.norm(X[:, -1] - X[:, -2])
        F, Fp, _, _, after = reference.observed(X, **options)
        U, s, Vt = reference.truncated_svd(F, ("rank", 2))
        K, last = Fp @ (Vt.T / s) @ U.T, F[:, -1]
        step = after + K @ last + last - U @ (U.T @ last)
        np.testing.assert_allclose(op.residual, np.linalg.norm(step[:n] - X[:, -1]) / moved, rtol=1e-8)
        held = reference.predict_observed(X[:, :-1], 1, ("rank", 2), carry=True, **options)
        np.testing.assert_allclose(op.holdout, np.linalg.norm(held - X[:, -1]) / moved, rtol=1e-8)

    def test_modes_are_eigenvectors_of_the_matrix(self, rng):
        for choice, (observables, _) in CHOICES.items():
            for n, m in ((12, 4), (4, 30)):
                op = fk.fit(moving(rng, n, m, np.float64), observables=observables, cutoff=1e-6)
                K, modes, values = op.matrix(), op.modes, op.eigenvalues
                assert modes.shape[-2] == K.shape[-1] and modes.shape[-1] == values.shape[-1]
                miss = K @ modes - modes * values[..., None, :]
                assert np.abs(miss).max() <= 1e-7 * np.abs(modes).max(), (choice, n, m)

    def test_repr_names_them(self, rng):
        assert "Delay(2) with Affine()" in repr(fk.fit(moving(rng, 5, 9, np.float32), observables=(Delay(2), Affine())))

    def test_too_few_snapshots_to_hold_one_out(self, rng):
        assert np.isnan(fk.fit(moving(rng, 5, 2, np.float32), observables=Affine()).holdout).all()


class TestHardBlocks:
    @pytest.mark.parametrize("choice", CHOICES)
    @pytest.mark.parametrize(("n", "m"), [(50, 9), (4, 40)])
    def test_all_kinds_stay_finite_and_apart(self, choice, n, m, dtype, rng):
        observables, options = CHOICES[choice]
        special = special_blocks(rng, n, m, dtype)
        special["dying"] = dying(rng, n, m, dtype)
        X = np.stack(list(special.values()))
        for out_of_span in ("drop", "carry"):
            op = fk.fit(X, observables=observables, out_of_span=out_of_span)
            states = dict(zip(special, op.predict(1), strict=True))
            assert np.isfinite(op.predict(1)).all()
            assert not states["zero"].any()
            np.testing.assert_allclose(states["constant"], special["constant"][:, 0], rtol=20 * np.finfo(dtype).eps)
            for name, state in states.items():
                alone = fk.fit(special[name][None], observables=observables, out_of_span=out_of_span).predict(1)[0]
                np.testing.assert_array_equal(state, alone, err_msg=name)
        rule = ("relative", max(n, m) * np.finfo(dtype).eps)
        for name in ("huge", "tiny"):
            expected = reference.predict_observed(special[name], 1, rule, **options)
            got = fk.fit(special[name], observables=observables).predict(1).astype(float)
            size = np.abs(special[name][:, -1]).max()
            np.testing.assert_allclose(got / size, expected / size, atol=1e-3 if dtype == np.float32 else 1e-6)

    @pytest.mark.parametrize("stabilize", [None, "project", "clip"])
    def test_nan_stays_in_its_block(self, stabilize, dtype, rng):
        X = moving(rng, 20, 6, dtype, batch=(3,))
        clean = X.copy()
        X[1, 3, -1] = np.nan
        with pytest.raises(ValueError, match=r"block \(1,\) holds a NaN"):
            fk.fit(X, observables=Affine(), stabilize=stabilize)
        op = fk.fit(X, observables=Affine(), stabilize=stabilize, out_of_span="carry", check_finite=False)
        states = op.predict(3)
        assert np.isnan(states[1]).all() and np.isnan(op.matrix()[1]).all() and np.isnan(op.eigenvalues[1]).all()
        for report in (op.residual, op.spectral_radius, op.holdout):
            assert np.isnan(report).tolist() == [False, True, False]
        expected = fk.fit(clean, observables=Affine(), stabilize=stabilize, out_of_span="carry").predict(3)
        np.testing.assert_array_equal(states[::2], expected[::2])

    @pytest.mark.parametrize("batch", [(), (0,), (3, 0), (2, 1, 2)])
    def test_batches(self, batch, dtype, rng):
        X = moving(rng, 9, 5, dtype, batch=batch) if 0 not in batch else np.zeros((*batch, 9, 6), dtype)
        for observables, stabilize in ((Affine(), "project"), (Delay(2), "clip")):
            op = fk.fit(X, observables=observables, out_of_span="carry", stabilize=stabilize)
            assert op.predict(2).shape == (*batch, 9)
            assert op.predict([1, 2]).shape == (*batch, 9, 2)
            assert op.rank.shape == batch and op.residual.shape == batch and op.holdout.shape == batch
            assert op.eigenvalues.shape[:-1] == batch

    @pytest.mark.parametrize("order", ["nt", "tn"])
    @pytest.mark.parametrize(("n", "m"), [(200, 90), (5, 200), (1, 200)])
    def test_neighbours_of_other_ranks_change_no_bit(self, n, m, order, dtype, rng):
        X = moving(rng, n, m, np.float64, batch=(4,))
        for b, rank in enumerate((min(n, m), n // 2, n // 3, 1)):
            U, s, Vt = np.linalg.svd(X[b], full_matrices=False)
            s[max(1, rank) :] = 0.0
            X[b] = 1.01 ** np.arange(m + 1) * ((U * s) @ Vt)
        X = X.astype(dtype)
        X = np.ascontiguousarray(X.transpose(2, 0, 1)).transpose(1, 2, 0) if order == "tn" else X
        options = {"observables": Affine(), "stabilize": "project", "cutoff": 1e-4}
        op = fk.fit(X, **options)
        assert len(set(op.rank.tolist())) > 1 or n == 1
        for b in range(4):
            alone = fk.fit(X[b], **options)
            np.testing.assert_array_equal(alone.predict([1, 3]), op.predict([1, 3])[b])
            np.testing.assert_array_equal(alone.matrix(), op.matrix()[b])

    def test_an_outlier_in_the_middle_costs_no_digits(self, rng):
        n, m = 4, 20_000
        X = rng.normal(size=(n, m + 1))
        for t in range(m):
            X[:, t + 1] += 0.9 * X[:, t]
        X[:, m // 2] += 1e4
        X = X.astype(np.float32)
        op = fk.fit(X, observables=Affine())
        expected = reference.predict_observed(X, 1, ("relative", 1e-4), affine=True)
        moved = np.linalg.norm(expected - X[:, -1])
        assert op.route == "eigen" and np.linalg.norm(op.predict(1) - expected) <= 1e-6 * moved

    def test_slices_of_the_workspace_change_no_bit(self, monkeypatch, rng):
        from fastkoop.kernels import observed as module

        for n, m in ((30, 9), (4, 30)):
            X = moving(rng, n, m, np.float32, batch=(5, 2))
            whole = fk.fit(X, observables=(Affine(), Delay(2)), out_of_span="carry").predict(3)
            monkeypatch.setattr(module, "WORKSPACE", 1)
            np.testing.assert_array_equal(
                fk.fit(X, observables=(Affine(), Delay(2)), out_of_span="carry").predict(3), whole
            )
            monkeypatch.undo()

    def test_any_strides_and_kinds(self, rng):
        X = moving(rng, 12, 6, np.float32)
        expected = fk.fit(X, observables=Affine()).predict(2)
        time_first = np.ascontiguousarray(np.moveaxis(X, -1, 0))
        np.testing.assert_array_equal(fk.fit(time_first, observables=Affine(), time_axis=0).predict(2), expected)
        backwards = np.ascontiguousarray(X[..., ::-1])[..., ::-1]
        np.testing.assert_array_equal(fk.fit(backwards, observables=Affine()).predict(2), expected)
        there = torch.from_numpy(X)
        state = fk.fit(there, observables=Affine()).predict(2)
        assert isinstance(state, torch.Tensor)
        np.testing.assert_array_equal(state, expected)

    @pytest.mark.mnist
    @pytest.mark.skipif(not os.environ.get("FASTKOOP_DATA_DIR"), reason="needs FASTKOOP_DATA_DIR")
    def test_real_nodes(self):
        """A recording of a real network: dead units, wide hidden nodes; affine by the Gram matrix as by the data."""
        from fastkoop.experiments import training
        from fastkoop.experiments.problems import datasets

        data = datasets.load("mnist")
        model = training.make_model(data.features, data.classes, 0)
        optimizer, batches = training.make_optimizer("adadelta", model, None), training.Batches(data, 64, 0)
        recorded = {0: [], 2: []}
        for step, batch in zip(range(160), batches.epoch(), strict=False):
            training.train_step(model, optimizer, *batch)
            if step >= 100:
                for layer, rows in recorded.items():
                    weights = [model[layer].weight, model[layer].bias[:, None]]
                    rows.append(torch.cat(weights, dim=1).detach().numpy().copy())
        for rows in recorded.values():
            X = np.array(rows)
            for observables in (Affine(), (Delay(2), Affine())):
                op = fk.fit(X, time_axis=0, observables=observables, cutoff="jax")
                exact = fk.fit(X, time_axis=0, observables=observables, cutoff="jax", refine=True)
                clear = ~(op.edge | exact.edge) & (op.rank == exact.rank)
                assert clear.mean() > 0.7
                moved = np.linalg.norm(exact.predict(1) - X[-1], axis=-1)
                miss = np.linalg.norm(op.predict(1) - exact.predict(1), axis=-1)
                size = np.linalg.norm(X[-1], axis=-1)
                assert (miss <= 1e-4 * moved + 1e-6 * size)[clear].all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("observables", "match"),
        [
            ("affine", "observables: expected"),
            (Affine, r"write Affine\(\), with brackets"),
            (3, "observables: expected"),
            ((), "at least one"),
            ((Affine(), Affine()), "each kind once"),
            ((Affine(), "identity"), "observables: expected"),
        ],
    )
    def test_unknown(self, observables, match):
        with pytest.raises(ValueError, match=match):
            fk.fit(np.ones((3, 4)), observables=observables)

    @pytest.mark.parametrize("observables", [Delay(2), (Delay(3), Affine()), Momentum()])
    def test_projecting_what_is_stacked(self, observables):
        """A cosine seen as pairs is stable, and longer at some times than at others."""
        X = np.cos(0.3 * np.arange(30.0))[None].repeat(2, axis=0)
        with pytest.raises(fk.InputError, match=r"would hold .* back though nothing"):
            fk.fit(X, observables=observables, stabilize="project")

    def test_delays_are_plain_numbers(self, rng):
        X = rng.normal(size=(6, 200))
        for d in (np.int8(100), np.uint8(2), np.int64(2)):
            assert type(Delay(d).d) is int
            assert fk.fit(X, observables=Delay(d)).predict(1).shape == (6,)

    def test_delay_counts(self):
        with pytest.raises(ValueError, match=r"Delay\(d\): expected an integer >= 1, got 0"):
            Delay(0)
        with pytest.raises(TypeError, match=r"Delay\(d\): expected an integer"):
            Delay(1.5)
        with pytest.raises(ValueError, match=r"at least 5 snapshots for Delay\(3\) with Affine\(\), got 4"):
            fk.fit(np.ones((3, 4)), observables=(Delay(3), Affine()))

    def test_momentum_needs_two_halves(self):
        with pytest.raises(ValueError, match="weights and n velocities"):
            fk.fit(np.ones((3, 4)), observables=Momentum())

    def test_policies(self):
        with pytest.raises(ValueError, match="out_of_span: expected one of 'drop', 'carry', got 'keep'"):
            fk.fit(np.ones((3, 4)), out_of_span="keep")
        with pytest.raises(ValueError, match="stabilize: expected one of 'clip', 'project'"):
            fk.fit(np.ones((3, 4)), stabilize="nearest")
