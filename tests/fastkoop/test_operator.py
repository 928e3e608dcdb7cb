"""fit and KoopmanOperator: known systems, consistent reports, clipping, and every refusal."""

import numpy as np
import pytest
import torch
from cases import EPS64, blocks, dying, graded, orbit, orthogonal, sensitivity, with_singular_values

import fastkoop as fk
from fastkoop.kernels.plan import resolution

REPORTS = (
    "rank", "threshold", "condition", "residual", "holdout", "spectral_radius", "eigenvector_condition", "edge",
    "route",
)  # fmt: skip


def run(A, x, count):
    """x, A x, ..., A^(count-1) x as columns."""
    states = [x]
    for _ in range(count - 1):
        states.append(A @ states[-1])
    return np.array(states).T


def rotation(modulus, angle):
    c, s = np.cos(angle), np.sin(angle)
    return modulus * np.array([[c, -s], [s, c]])


def embedded(rng, parts, n):
    """An n-dimensional system U diag(parts) U^T with orthonormal U, and a state in its range."""
    import scipy.linalg

    D = scipy.linalg.block_diag(*parts)
    U = np.linalg.qr(rng.normal(size=(n, len(D))))[0]
    return U @ D @ U.T, U, D, U @ rng.uniform(0.5, 1, size=len(D))


class TestKnownSystem:
    @pytest.mark.parametrize(("n", "m"), [(20, 5), (5, 5), (5, 30), (130, 6)])
    @pytest.mark.parametrize("refine", [False, True])
    def test_eigenvalues_modes_matrix_and_predictions(self, n, m, refine, rng):
        A, U, _, x = embedded(rng, [rotation(0.95, 0.7), rotation(0.8, 2.0), np.array([[0.5]])], n)
        X = run(A, x, m + 1)
        op = fk.fit(X, cutoff=1e-9, refine=refine)
        assert op.rank == 5
        expected = np.array([0.95 * np.exp(0.7j), 0.95 * np.exp(-0.7j), 0.8 * np.exp(2j), 0.8 * np.exp(-2j), 0.5])
        np.testing.assert_allclose(op.eigenvalues, expected, atol=1e-8)
        np.testing.assert_allclose(op.spectral_radius, 0.95, atol=1e-9)
        np.testing.assert_allclose(op.matrix(), A if n == 5 else A @ U @ U.T, atol=1e-7)
        modes = op.modes
        assert modes.shape == (n, 5)
        np.testing.assert_allclose(A @ modes, modes * op.eigenvalues, atol=1e-7 * np.abs(modes).max())
        np.testing.assert_allclose(op.matrix() @ modes, modes * op.eigenvalues, atol=1e-7 * np.abs(modes).max())
        assert op.residual < 1e-7
        for steps in (1, 2, 50):
            np.testing.assert_allclose(op.predict(steps), np.linalg.matrix_power(A, steps) @ X[:, -1], atol=1e-7)

    @pytest.mark.parametrize(("n", "m", "rank"), [(6, 3, 3), (3, 8, 3), (5, 5, 5), (7, 7, 4), (30, 9, 6), (9, 30, 6)])
    @pytest.mark.parametrize("refine", [False, True])
    def test_spectrum_is_that_of_the_matrix(self, n, m, rank, refine, dtype, rng):
        """By numpy.linalg.eig of the textbook K: `rank` eigenvalues with their vectors, and zeros besides."""
        F = with_singular_values(rng, n, m, np.r_[np.linspace(2, 1, rank), np.zeros(min(n, m) - rank)])
        X = np.c_[F, F @ rng.normal(size=m)].astype(dtype)
        op = fk.fit(X, cutoff=1e-4, refine=refine)
        K = X[:, 1:].astype(float) @ np.linalg.pinv(X[:, :-1].astype(float), rcond=1e-4)
        values, vectors = np.linalg.eig(K)
        assert op.eigenvalues.shape == (rank,) and op.modes.shape == (n, rank)
        assert (np.diff(np.abs(op.eigenvalues)) <= 1e-12).all()
        left = list(range(n))
        for value, mode in zip(op.eigenvalues, op.modes.T, strict=True):
            at = min(left, key=lambda i: abs(values[i] - value))
            left.remove(at)
            assert abs(values[at] - value) <= 1e-9 * np.abs(values).max()
            along = abs(np.vdot(vectors[:, at], mode)) / np.linalg.norm(mode)
            assert along == pytest.approx(1.0, abs=1e-9)
        assert np.abs(values[left]).max(initial=0.0) <= 1e-4 * np.abs(values).max()  # K's rank is F's at most
        np.testing.assert_allclose(op.spectral_radius, np.abs(values).max(), rtol=1e-9)

    def test_matrix_is_the_textbook_one(self, dtype, rng):
        for n, m in ((9, 4), (4, 9), (6, 6)):
            X = orbit(rng, n, m, dtype, batch=(2, 1))
            K = fk.fit(X, cutoff=1e-4).matrix()
            assert K.shape == (2, 1, n, n)
            assert K.dtype == dtype
            for b in range(2):
                expected = X[b, 0, :, 1:].astype(float) @ np.linalg.pinv(X[b, 0, :, :-1].astype(float), rcond=1e-4)
                np.testing.assert_allclose(K[b, 0], expected, atol=2e3 * np.finfo(dtype).eps)


class TestPredict:
    @pytest.mark.parametrize(("n", "m"), [(20, 5), (5, 20), (7, 7), (120, 100)])
    def test_agrees_with_the_fused_form(self, n, m, dtype, rng):
        """Both by a Gram matrix, but not by the same operations: each errs by what rounding that matrix moves."""
        X = orbit(rng, n, m, dtype, batch=(2, 2))
        op = fk.fit(X, cutoff=1e-5)
        condition = np.asarray(op.condition)
        for steps in (0, 1, 2, 30):
            found, fused = op.predict(steps).astype(np.float64), fk.predict(X, steps, cutoff=1e-5).astype(np.float64)
            for index, block in blocks(X):
                moved = 0.0
                if steps:
                    noise = resolution(n, m, dtype).gram * condition[index]
                    moved = min(2.0 * sensitivity(block, steps, ("relative", 1e-5), noise), 5000 * EPS64)
                rounding = np.finfo(dtype).eps * np.linalg.norm(fused[index])
                assert np.linalg.norm(found[index] - fused[index]) <= moved + rounding, (steps, index)

    def test_many_counts_in_any_order(self, dtype, rng):
        X = orbit(rng, 9, 4, dtype, batch=(3,))
        op = fk.fit(X)
        counts = [5, 0, 1, 5, 200, 2]
        got = op.predict(counts)
        assert got.shape == (3, 9, 6)
        for k, steps in enumerate(counts):
            np.testing.assert_allclose(got[..., k], op.predict(steps), rtol=0, atol=50 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(got[..., 1], X[..., -1])
        np.testing.assert_array_equal(got[..., 0], got[..., 3])
        for same in (tuple(counts), np.array(counts), torch.tensor(counts)):
            np.testing.assert_array_equal(op.predict(same), got)
        assert op.predict([]).shape == (3, 9, 0)
        assert op.predict([0, 0]).shape == (3, 9, 2)
        np.testing.assert_array_equal(op.predict(range(3)), op.predict([0, 1, 2]))

    def test_torch_in_torch_out(self, dtype, rng):
        X = torch.from_numpy(orbit(rng, 9, 4, dtype, batch=(2,)))
        op = fk.fit(X)
        for name in ("rank", "edge", "residual", "holdout", "condition", "threshold", "spectral_radius", "eigenvalues"):
            assert isinstance(getattr(op, name), torch.Tensor)
        for result in (op.predict(2), op.predict([1, 2]), op.matrix(), op.modes, op.walk().step()):
            assert isinstance(result, torch.Tensor)
        assert op.predict(2).dtype == X.dtype
        assert op.eigenvalues.dtype == torch.complex128
        np.testing.assert_array_equal(op.predict([1, 2]), fk.fit(X.numpy()).predict([1, 2]))

    @pytest.mark.parametrize("stabilize", [None, "clip"])
    @pytest.mark.parametrize(("n", "m"), [(20, 5), (5, 20), (120, 100)])
    def test_walk(self, n, m, stabilize, dtype, rng):
        X = orbit(rng, n, m, dtype, batch=(2,), decay=1.01)
        op = fk.fit(X, cutoff=1e-4, stabilize=stabilize)
        walk = op.walk()
        at = 0
        for count in (1, 1, 3, 1, 30):
            at += count
            state = walk.step(count)
            assert walk.steps == at
            assert state.dtype == dtype
            np.testing.assert_allclose(state, op.predict(at), rtol=0, atol=1e4 * np.finfo(dtype).eps)
        jump = op.walk().step(at)
        np.testing.assert_allclose(jump, op.predict(at), rtol=0, atol=1e4 * np.finfo(dtype).eps)

    def test_many_states_of_large_blocks(self, dtype, rng):
        """A few rows a block replace all the snapshots where the rank is low; each block decides for itself."""
        X = np.stack([orbit(rng, 200, 120, np.float64) for _ in range(4)])
        low = rng.normal(size=(200, 3)) @ orbit(rng, 3, 120, np.float64)
        X[1], X[2] = low, 0.0
        X = X.astype(dtype).reshape(2, 2, 200, 121)
        op = fk.fit(X, cutoff=1e-5)
        assert op.rank.ravel()[1] == 3 and op.rank.ravel()[2] == 0 and op.rank.ravel()[0] > 20
        got = op.predict(range(1, 60))
        assert got.shape == (2, 2, 200, 59)
        for steps in (1, 7, 59):
            np.testing.assert_allclose(got[..., steps - 1], op.predict(steps), rtol=0, atol=1e3 * np.finfo(dtype).eps)
        alone = fk.fit(X[0, 1], cutoff=1e-5).predict(range(1, 60))
        np.testing.assert_array_equal(got[0, 1], alone)

    def test_walks_of_rank_zero(self, dtype):
        walk = fk.fit(np.zeros((2, 150, 120), dtype)).walk()
        assert not walk.step().any() and not walk.step(3, ahead=4).any()

    @pytest.mark.parametrize(("n", "m"), [(20, 5), (5, 20), (120, 100)])
    def test_looking_ahead_changes_no_bit(self, n, m, dtype, rng):
        op = fk.fit(orbit(rng, n, m, dtype, batch=(3,), decay=1.01), cutoff=1e-4)
        plain, ahead = op.walk(), op.walk()
        for count, held in ((1, 4), (1, 1), (1, 9), (3, 2), (1, 5), (1, 1), (7, 3)):
            np.testing.assert_array_equal(ahead.step(count, ahead=held), [plain.step() for _ in range(count)][-1])
            assert plain.steps == ahead.steps

    def test_states_of_a_walk_stay_as_they_are(self, dtype, rng):
        walk = fk.fit(orbit(rng, 9, 4, dtype, batch=(2,))).walk()
        first = walk.step()
        before = first.copy()
        walk.step(), walk.step(1, ahead=3), walk.step()
        np.testing.assert_array_equal(first, before)

    def test_walk_survives_its_data(self, dtype, rng):
        X = orbit(rng, 9, 4, dtype, batch=(2,))
        expected = fk.fit(X).predict(3)
        walk = fk.fit(X).walk()
        X[...] = np.nan
        walk.step()
        np.testing.assert_allclose(walk.step(2), expected, rtol=0, atol=100 * np.finfo(dtype).eps)

    def test_time_axis_and_batches(self, dtype, rng):
        X = orbit(rng, 9, 4, dtype, batch=(2, 3))
        expected = fk.fit(X).predict(2)
        buffer = np.ascontiguousarray(np.moveaxis(X, -1, 0))
        op = fk.fit(buffer, time_axis=0)
        np.testing.assert_allclose(op.predict(2), expected, rtol=0, atol=50 * np.finfo(dtype).eps)
        assert op.rank.shape == op.route.shape == op.holdout.shape == (2, 3)

    @pytest.mark.parametrize("batch", [(0,), (2, 0, 3)])
    @pytest.mark.parametrize(("n", "m"), [(9, 4), (4, 9), (1, 1), (120, 100)])
    @pytest.mark.parametrize("options", [{}, {"stabilize": "clip"}, {"refine": True}], ids=str)
    def test_no_blocks(self, batch, n, m, options, dtype):
        """Everything has a shape, for every kind of array."""
        jax = pytest.importorskip("jax")
        for make in (np.asarray, torch.from_numpy, jax.numpy.asarray):
            X = make(np.zeros((*batch, n, m + 1), dtype))
            op = fk.fit(X, **options)
            expected = {"eigenvalues": (*batch, 0), "modes": (*batch, n, 0)} | dict.fromkeys(REPORTS, batch)
            for name, shape in expected.items():
                assert tuple(getattr(op, name).shape) == shape, name
            walk = op.walk()
            for got, shape in (
                (op.predict(0), (n,)), (op.predict(3), (n,)), (op.predict([1, 0, 2]), (n, 3)), (op.predict([]), (n, 0)),
                (op.matrix(), (n, n)), (walk.step(), (n,)), (walk.step(2, ahead=3), (n,)), (fk.predict(X, 2), (n,)),
                (fk.predict(X, 0), (n,)), (fk.pinv(X), (m + 1, n)),
            ):  # fmt: skip
                assert type(got) is type(X) and tuple(got.shape) == (*batch, *shape)
            op.check()
            assert "0 blocks" in repr(op) and len(op.summary().splitlines()) == 1
            assert fk.predict(make(np.zeros((m + 1, *batch, n), dtype)), 1, time_axis=0).shape == (*batch, n)


class TestReports:
    @pytest.mark.parametrize("refine", [False, True])
    @pytest.mark.parametrize(("n", "m"), [(60, 6), (6, 60), (120, 100)])
    def test_rank_threshold_condition_route(self, n, m, refine, dtype, rng):
        values = np.r_[np.geomspace(8, 1, min(n, m) - 2), 1e-2, 1e-3]
        F = with_singular_values(rng, n, m, values).astype(dtype)
        s = np.linalg.svd(F.astype(float), compute_uv=False)
        op = fk.fit(np.c_[F, F[:, :1]], cutoff=5e-3, refine=refine)
        assert op.rank == min(n, m) - 2
        assert op.rank.dtype == np.int64
        np.testing.assert_allclose(op.threshold, 5e-3 * s[0], rtol=1e-6)
        np.testing.assert_allclose(op.condition, s[0] / s[min(n, m) - 3], rtol=1e-6)
        assert op.route == ("svd" if refine else "eigen")
        assert not op.edge

    def test_a_block_each(self, dtype, rng):
        X = orbit(rng, 9, 4, dtype, batch=(4,))
        X[1] = 0
        X[2] = X[2, :, :1]
        X[3, :, -1] = np.nan
        op = fk.fit(X, check_finite=False)
        assert op.route.tolist() == ["eigen", "zero", "svd" if op.route[2] == "svd" else "eigen", "non-finite"]
        assert op.rank[:3].tolist() == [4, 0, 1]
        assert np.isnan(op.condition[1])
        assert op.spectral_radius[1] == 0
        np.testing.assert_allclose(op.spectral_radius[2], 1, rtol=1e-6)
        assert not op.predict(5)[1].any()
        assert np.isnan(op.predict(5)[3]).all()
        assert np.isnan(op.predict(0)[3]).all()
        assert np.isnan(op.walk().step()[3]).all()
        np.testing.assert_array_equal(op.predict(2)[0], fk.fit(X[:1]).predict(2)[0])
        with pytest.raises(ValueError, match=r"block \(3,\) holds a NaN"):
            op.check()
        fk.fit(X[:3]).check()

    @pytest.mark.parametrize(("n", "m"), [(30, 6), (6, 30), (6, 6)])
    @pytest.mark.parametrize("stabilize", [None, "clip"])
    def test_residual_and_holdout(self, n, m, stabilize, dtype, rng):
        X = rng.normal(size=(2, n, m + 1)).astype(dtype)
        op = fk.fit(X, cutoff=0.3, stabilize=stabilize)
        rest = fk.fit(X[..., :-1], cutoff=0.3, stabilize=stabilize)
        for b in range(2):
            last, before = X[b, :, -1].astype(float), X[b, :, -2].astype(float)
            moved = np.linalg.norm(last - before)
            K = op.matrix()[b].astype(float)
            np.testing.assert_allclose(op.residual[b], np.linalg.norm(K @ before - last) / moved, rtol=1e-4, atol=1e-5)
            miss = np.linalg.norm(rest.predict(1)[b] - last)
            np.testing.assert_allclose(op.holdout[b], miss / moved, rtol=1e-4)

    def test_holdout_needs_two_pairs(self, dtype):
        assert np.isnan(fk.fit(np.array([[1.0, 2.0]], dtype)).holdout)
        constant = fk.fit(np.ones((3, 5), dtype))
        assert not constant.holdout > 1e-3  # NaN where met exactly
        assert not constant.residual > 1e-3

    @pytest.mark.parametrize("scale", [1e-160, 1e-200, 1e160, 1e200])
    @pytest.mark.parametrize(("n", "m"), [(20, 4), (4, 20)])
    def test_reports_have_no_scale(self, scale, n, m, rng):
        X = rng.uniform(-1, 1, size=(n, m + 1))
        one, other = fk.fit(X, cutoff=0.1), fk.fit(X * scale, cutoff=0.1)
        for name in ("condition", "residual", "holdout", "spectral_radius"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(other.threshold / scale, one.threshold, rtol=1e-9)
        np.testing.assert_allclose(other.matrix(), one.matrix(), atol=1e-9)

    def test_reports_at_the_end_of_float32(self):
        X = np.array([[3e38, -3e38, 2e38], [1e38, 2e38, 3e38], [1e38, 0, 0]], np.float32)
        assert np.isfinite(fk.fit(X).residual)
        assert np.isfinite(fk.fit(X).holdout)

    def test_edge_and_energy(self, dtype, rng):
        X = graded(rng, 40, 6, dtype, low=0.1)
        s = np.linalg.svd(X[:, :-1].astype(float), compute_uv=False)
        share = np.cumsum(s**2) / np.sum(s**2)
        op = fk.fit(X, cutoff=fk.Energy((share[1] + share[2]) / 2))
        assert op.rank == 3
        assert not op.edge
        assert fk.fit(X, cutoff=fk.Energy(share[2])).edge

    def test_text(self, rng):
        X = orbit(rng, 9, 4, np.float32, batch=(2,))
        op = fk.fit(X, cutoff=fk.Rank(2))
        assert "2 blocks of 9 weights, 4 pairs; rank 2..2 by Rank(k=2)" in repr(op)
        lines = op.summary().splitlines()
        assert len(lines) == 3
        assert lines[0].split()[:3] == ["block", "route", "rank"]
        assert lines[2].startswith("(1,)")
        assert "1 block of" in repr(fk.fit(X[0]))


class TestClip:
    GROWING = (rotation(1.2, 0.5), np.array([[0.7]]), np.array([[-0.4]]))

    @pytest.mark.parametrize(("n", "m"), [(20, 4), (4, 4), (4, 20)])
    @pytest.mark.parametrize(("stabilize", "radius"), [("clip", 1.0), (0.9, 0.9), (1.1, 1.1)])
    @pytest.mark.parametrize("steps", [1, 2, 50])
    def test_a_rotation_that_grows(self, n, m, stabilize, radius, steps, rng):
        A, U, D, x = embedded(rng, self.GROWING, n)
        X = run(A, x, m + 1)
        op = fk.fit(X, cutoff=1e-10, stabilize=stabilize)
        clipped = D.copy()
        clipped[:2, :2] = rotation(radius, 0.5)
        K = U @ clipped @ U.T
        expected = np.linalg.matrix_power(K, steps) @ X[:, -1]
        np.testing.assert_allclose(op.predict(steps), expected, atol=1e-8 * np.abs(X).max() * max(1, radius**steps))
        np.testing.assert_allclose(op.spectral_radius, radius, atol=1e-9)
        np.testing.assert_allclose(op.matrix(), K, atol=1e-7)
        np.testing.assert_allclose(np.abs(op.eigenvalues), [radius, radius, 0.7, 0.4], atol=1e-8)
        np.testing.assert_allclose(K @ op.modes, op.modes * op.eigenvalues, atol=1e-7 * np.abs(op.modes).max())
        assert op.eigenvector_condition >= 1

    def test_what_does_not_grow_keeps_its_bits(self, dtype, rng):
        X = orbit(rng, 9, 4, dtype, batch=(2,))
        X[1] = run(2 * orthogonal(rng, 9), rng.normal(size=9), 5)
        plain, clipped = fk.fit(X), fk.fit(X, stabilize="clip")
        np.testing.assert_array_equal(clipped.predict([1, 7])[0], plain.predict([1, 7])[0])
        assert clipped.eigenvector_condition[0] == 1
        assert np.abs(clipped.predict(200)[1]).max() < 1e3 < np.abs(plain.predict(20)[1]).max()

    def test_a_real_eigenvalue(self, dtype):
        X = np.array([[1.0, 2.0, 4.0]], dtype)
        op = fk.fit(X, stabilize="clip")
        for steps in (1, 50):
            np.testing.assert_allclose(op.predict(steps), [4.0], rtol=1e-6)

    def test_the_published_reports_stay(self, rng):
        X = run(rotation(1.3, 0.4), np.array([1.0, 0.0]), 6)
        plain, clipped = fk.fit(X), fk.fit(X, stabilize="clip")
        assert plain.rank == clipped.rank
        assert plain.condition == clipped.condition
        assert clipped.residual > 0.1 > plain.residual

    @pytest.mark.parametrize("observables", [fk.Delay(2), fk.Delay(4), (fk.Delay(2), fk.Affine()), "identity"], ids=str)
    @pytest.mark.parametrize("cutoff", [0.0, 1e-16, "array_api"])
    @pytest.mark.parametrize("moves", ["constant", "two values", "line", "rank one", "noise"])
    def test_holds_where_eigenvectors_are_all_but_dependent(self, observables, cutoff, moves, dtype, rng):
        """Singular values of rounding alone make operators of any size; what is promised of them holds."""
        t, w = np.arange(101.0), rng.normal(size=(12, 8, 1))
        X = {
            "constant": w + 0 * t, "two values": np.where(t < 50, w, 2 * w), "line": w + 1e-3 * t,
            "rank one": w * 1.1 ** (t / 10), "noise": w + 1e-7 * rng.normal(size=(12, 8, 101)),
        }[moves].astype(dtype)  # fmt: skip
        for stabilize, radius in ((0.9, 0.9), ("clip", 1.0)):
            op = fk.fit(X, cutoff=cutoff, observables=observables, stabilize=stabilize)
            assert (op.spectral_radius <= radius * (1 + 2e-6)).all()
            assert np.isfinite(op.predict([1, 10, 1000])).all()


class TestErrors:
    X = np.random.default_rng(0).normal(size=(6, 4))

    @pytest.mark.parametrize("where", [0, 1, -1])
    @pytest.mark.parametrize("shape", [(6, 4), (4, 6), (150, 101), (101, 150)])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("refine", [False, True])
    def test_non_finite(self, where, shape, bad, refine, dtype, rng):
        X = rng.normal(size=(3, *shape)).astype(dtype)
        X[1, 2, where] = bad
        with pytest.raises(fk.InputError, match=r"^X: block \(1,\) holds a NaN or an infinity"):
            fk.fit(X, refine=refine)
        op = fk.fit(X, check_finite=False, refine=refine)
        assert op.route[1] == "non-finite"
        assert np.isnan(op.predict(1)[1]).all()
        np.testing.assert_array_equal(op.predict(1)[[0, 2]], fk.fit(X[[0, 2]], refine=refine).predict(1))

    @pytest.mark.parametrize("observables", ["affine", None, 3])
    def test_observables(self, observables):
        with pytest.raises(ValueError, match="observables: expected"):
            fk.fit(self.X, observables=observables)

    @pytest.mark.parametrize(
        ("stabilize", "error", "text"),
        [("cut", ValueError, "stabilize: expected one of 'clip', 'project', got 'cut'"), (0, ValueError, "radius > 0"),
         (-1.0, ValueError, "radius > 0"), (np.nan, ValueError, "radius > 0"), (np.inf, ValueError, "radius > 0"),
         (10**400, ValueError, "radius > 0"), (-(2**70), ValueError, "radius > 0"),
         (True, TypeError, "stabilize: expected None"), ([1.0], TypeError, "stabilize: expected None")],
    )  # fmt: skip
    def test_stabilize(self, stabilize, error, text):
        with pytest.raises(error, match=text):
            fk.fit(self.X, stabilize=stabilize)

    def test_steps(self):
        op = fk.fit(self.X)
        for steps in (-1, [1, -2]):
            with pytest.raises(ValueError, match="steps: expected an integer >= 0"):
                op.predict(steps)
        for steps in (1.5, [1, 2.0], True, None, "3"):
            with pytest.raises(TypeError, match="steps: expected an integer"):
                op.predict(steps)
        with pytest.raises(ValueError, match="steps: expected an integer or a 1-D sequence, got 2 dimensions"):
            op.predict(np.ones((2, 2), int))
        for count in (0, -1):
            with pytest.raises(ValueError, match="count: expected an integer >= 1"):
                op.walk().step(count)
            with pytest.raises(ValueError, match="ahead: expected an integer >= 1"):
                op.walk().step(1, ahead=count)

    def test_the_rest_is_refused_as_by_predict(self):
        for call, error, text in (
            (lambda: fk.fit(self.X[0]), ValueError, "X: expected at least 2 dimensions"),
            (lambda: fk.fit(self.X[:, :1]), ValueError, "at least 2 snapshots"),
            (lambda: fk.fit(self.X, cutoff="x"), ValueError, "cutoff: expected one of"),
            (lambda: fk.fit(self.X, time_axis=2), ValueError, "time_axis: expected"),
            (lambda: fk.fit(self.X.astype(int)), TypeError, "expected float32 or float64"),
        ):
            with pytest.raises(error, match=text):
                call()


@pytest.mark.parametrize("options", [{}, {"stabilize": "clip", "refine": True}], ids=str)
@pytest.mark.parametrize(("n", "m"), [(40, 9), (9, 40), (200, 33), (90, 70), (70, 90), (120, 100), (100, 120)])
def test_neighbours_change_no_bit(n, m, options, dtype, rng):
    """States, walks, reports, spectra and matrices of a block depend on it alone: not on its neighbours' ranks, nor on
    its place among them."""
    low = rng.normal(size=(n, max(1, min(n, m) // 3))) @ rng.normal(size=(max(1, min(n, m) // 3), m + 1))
    X = np.stack([
        low, orbit(rng, n, m, decay=1.01), graded(rng, n, m, low=1e-3), np.zeros((n, m + 1)),
        np.repeat(low[:, :1], m + 1, axis=1), dying(rng, n, m, np.float64),
    ]).astype(dtype)  # fmt: skip

    def told(op):
        walk = op.walk()
        states = [op.predict([1, 2, 5, 7]), op.predict(range(40)), walk.step(2), walk.step(3, ahead=2)]
        return [*states, op.matrix(), op.eigenvalues, op.modes, *(getattr(op, name) for name in REPORTS)]

    def same(some, at, other, there):
        for a, b in zip(some, other, strict=True):
            a, b = a[at], b[there]
            r = min(a.shape[-1:], b.shape[-1:])  # eigenvalues and modes end with the batch's largest rank
            np.testing.assert_array_equal(a[..., : r[0]] if r else a, b[..., : r[0]] if r else b)

    options = options | {"cutoff": 1e-4, "check_finite": False}
    together, place = told(fk.fit(X, **options)), rng.permutation(len(X))
    moved = told(fk.fit(X[place], **options))
    for b in range(len(X)):
        alone = told(fk.fit(X[b : b + 1], **options))
        same(alone, 0, together, b)
        same(alone, 0, moved, int(np.flatnonzero(place == b)[0]))
