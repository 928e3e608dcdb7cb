"""predict and pinv, the public doors: what they compute, promise and refuse, for NumPy and PyTorch."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from cases import (
    as_kind,
    check_kind,
    orbit,
    orthogonal,
    strided_views,
    with_singular_values,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastkoop as fk
from fastkoop import cutoff as rules
from fastkoop.kernels import reference

RULES = ("array_api", "matlab", "numpy", "jax", "svht", 1e-3, 0.0, fk.Rank(2), fk.Energy(0.95))
SHARE = {"float32": 1e-5, "float64": 1e-9}  # of a prediction's displacement: the contract's tol


@pytest.fixture(params=["numpy", "torch"])
def kind(request):
    """The kind of array that goes in and must come out."""
    return request.param


def powers(X, steps, rcond):
    """np.linalg.matrix_power(Fp @ pinv(F), steps) @ x_last in float64."""
    X = X.astype(np.float64)
    K = X[..., 1:] @ np.linalg.pinv(X[..., :-1], rcond=rcond)
    return (np.linalg.matrix_power(K, steps) @ X[..., -1:])[..., 0]


def equivalent_rcond(F, cutoff):
    """The rcond that makes NumPy's pinv keep what `cutoff` keeps of F, from its definition."""
    s = np.linalg.svd(F.astype(np.float64), compute_uv=False)
    size, eps = max(F.shape), float(np.finfo(F.dtype).eps)
    live = np.count_nonzero(s > size * 2.0**-52 * s[0])
    if isinstance(cutoff, fk.Rank):
        keep = min(cutoff.k, live)
    elif isinstance(cutoff, fk.Energy):
        share = np.cumsum(s**2) / np.sum(s**2)
        keep = min(1 + np.count_nonzero(share < cutoff.share), live)
    elif cutoff == "matlab":
        return size * float(np.spacing(F.dtype.type(s[0]))) / s[0]
    elif cutoff == "svht":
        threshold = rules.hard_threshold(min(F.shape) / size) * np.median(s)
        keep = max(1, np.count_nonzero(s > max(threshold, size * 2.0**-52 * s[0])))
    else:
        return {"array_api": size * eps, "numpy": 1e-15, "jax": 10 * size * eps}.get(cutoff, cutoff)
    return np.sqrt(s[keep - 1] * s[keep]) / s[0] if 0 < keep < len(s) and s[keep] > 0 else (0.0 if keep else 2.0)


def exact_step(X, rank):
    """K x_last of a tall block, truncated to `rank`, in 50 digits."""
    with mpmath.workdps(50):
        F, Fp = (mpmath.matrix(part.astype(np.float64).tolist()) for part in (X[:, :-1], X[:, 1:]))
        squares, V = mpmath.eigsy(F.T * F)  # smallest first
        h, c = F.T * mpmath.matrix(X[:, -1].astype(np.float64).tolist()), mpmath.zeros(F.cols, 1)
        for i in range(F.cols - rank, F.cols):
            c += V[:, i] * ((V[:, i].T * h)[0] / squares[i])
        return np.array([float(x) for x in Fp * c])


class TestPredict:
    @pytest.mark.parametrize("cutoff", RULES, ids=str)
    @pytest.mark.parametrize(("n", "m"), [(12, 4), (5, 5), (4, 12), (1, 1), (1, 6), (6, 1)])
    def test_equals_the_textbook(self, n, m, cutoff, dtype, kind, rng):
        X = orbit(rng, n, m, dtype, batch=(2,))
        # F of a lower rank would test rounding noise, not the rule
        for steps in (0, 1, 2, 7):
            got = check_kind(fk.predict(as_kind(X, kind), steps, cutoff=cutoff), kind, dtype)
            for b in range(2):
                expected = powers(X[b], steps, equivalent_rcond(X[b, :, :-1], cutoff))
                tolerance = 2e3 * np.finfo(dtype).eps * np.abs(X[b]).max()
                np.testing.assert_allclose(got[b], expected, rtol=0, atol=tolerance)

    def test_steps_zero_is_the_last_snapshot(self, dtype, kind, rng):
        X = rng.normal(size=(3, 6, 4)).astype(dtype)
        np.testing.assert_array_equal(fk.predict(as_kind(X, kind), 0), X[..., -1])

    @pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -4])
    def test_time_axis(self, axis, dtype, kind, rng):
        X = rng.normal(size=(2, 3, 8, 4)).astype(dtype)
        expected = fk.predict(X, 2, cutoff=1e-3)
        moved = np.ascontiguousarray(np.moveaxis(X, -1, axis))
        before = moved.copy()
        got = check_kind(fk.predict(as_kind(moved, kind), 2, cutoff=1e-3, time_axis=axis), kind, dtype)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e3 * np.finfo(dtype).eps * np.abs(expected).max())
        np.testing.assert_array_equal(moved, before)

    def test_a_recording_buffer_is_not_copied(self, monkeypatch):
        """The kernels see the caller's own memory, as time_axis=0 and as a transposed view."""
        from fastkoop import kernels

        seen, compute = [], kernels.predict
        monkeypatch.setattr(kernels, "predict", lambda X, *rest: (seen.append(X), compute(X, *rest))[1])
        buffer = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
        fk.predict(buffer, 1, time_axis=0)
        fk.predict(buffer.transpose(1, 2, 0), 1)
        fk.predict(torch.from_numpy(buffer).permute(1, 2, 0), 1)
        fk.predict(torch.from_numpy(buffer), 1, time_axis=0)
        assert all(np.shares_memory(X, buffer) and X.strides == buffer.strides for X in seen)
        assert len(seen) == 4

    @pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 0, 3), (2, 3)])
    def test_any_batch(self, batch, dtype, kind, rng):
        X = rng.normal(size=(*batch, 7, 4)).astype(dtype)
        got = check_kind(fk.predict(as_kind(X, kind), 3), kind, dtype)
        assert got.shape == (*batch, 7)
        for index in np.ndindex(*batch):
            np.testing.assert_array_equal(got[index], fk.predict(X[index], 3))

    def test_every_stride_pattern_and_inputs_unchanged(self, dtype, rng):
        X = rng.normal(size=(5, 3, 9)).astype(dtype)
        expected = fk.predict(X, 2, time_axis=0)
        for name, view in strided_views(X).items():
            got = fk.predict(view, 2, time_axis=0)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-11, err_msg=name)
            np.testing.assert_array_equal(view, X)

    def test_a_tensor_with_an_expanded_axis(self):
        X = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
        got = fk.predict(X.expand(3, 6, 4), 2)
        assert torch.equal(got, fk.predict(X, 2).expand(3, 6))

    def test_meaning_of_tall_wide_and_zero(self, dtype, rng):
        A = (0.9 * orthogonal(rng, 3)).astype(np.float64)
        X = [rng.normal(size=3)]
        for _ in range(9):
            X.append(A @ X[-1])
        np.testing.assert_allclose(fk.predict(np.array(X, dtype).T, 4), np.linalg.matrix_power(A, 4) @ X[-1], atol=1e-4)
        assert not fk.predict(np.zeros((3, 4), dtype), 1).any()
        np.testing.assert_array_equal(fk.predict(np.full((3, 4), 0.1, dtype), 5), np.full(3, 0.1, dtype))
        X = np.zeros((3, 4), dtype)
        X[:, -1] = 1  # F = 0
        assert not fk.predict(X, 1).any()

    def test_the_growth_of_one_weight(self, dtype):
        np.testing.assert_allclose(fk.predict(np.array([[1.0, 2.0]], dtype), 3), [16.0], rtol=1e-6)
        np.testing.assert_allclose(fk.predict(np.array([[1.0], [3.0]], dtype).T, 2), [27.0], rtol=1e-6)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(("n", "m"), [(400, 8), (785, 32), (60, 10), (21, 40)])
    def test_the_share_of_the_displacement_that_may_be_wrong(self, n, m, seed, dtype):
        """A trajectory like an optimizer's: small drifting steps on large weights, so F is ill-conditioned."""
        rng = np.random.default_rng(seed)
        drift = rng.normal(size=(n, 1)) * 0.98 ** np.arange(m + 1)
        steps = 1e-3 * (drift + rng.normal(size=(n, m + 1)))
        X = (rng.normal(size=(n, 1)) * 0.1 + np.cumsum(steps, axis=1)).astype(dtype)
        for cutoff in ("array_api", "jax", 1e-3):
            rule = rules.resolve(cutoff, n, m, dtype)
            expected = reference.predict(X, 1, rule)
            error = np.linalg.norm(fk.predict(X, 1, cutoff=cutoff).astype(np.float64) - expected)
            allowed = SHARE[dtype.name] * np.linalg.norm(expected - X[:, -1])
            assert error <= allowed + np.finfo(dtype).eps * np.linalg.norm(expected), cutoff


class TestContract:
    """The answer is the exactly truncated one at a cutoff within the resolution of the one asked for."""

    @staticmethod
    def block(rng, n, m, values, dtype):
        F = with_singular_values(rng, n, m, values).astype(dtype)
        return np.c_[F, F[:, -1] + F[:, 0]].astype(dtype), np.linalg.svd(F.astype(np.float64), compute_uv=False)

    @pytest.mark.parametrize("refine", [False, True])
    @pytest.mark.parametrize(("n", "m"), [(60, 6), (6, 60), (6, 6), (150, 120)])
    @pytest.mark.parametrize("at", [0.3, 0.02])
    def test_edge(self, n, m, at, refine, dtype, rng):
        values = np.r_[np.geomspace(1, 2 * at, min(n, m) - 3), at, at / 4, at / 16]
        X, s = self.block(rng, n, m, values, dtype)
        k = min(n, m) - 3
        ratio = s[k] / s[0]
        assert fk.fit(X, cutoff=ratio, refine=refine).edge
        for outside in (ratio * (1 - 1e-3), ratio * (1 + 1e-3)):
            op = fk.fit(X, cutoff=outside, refine=refine)
            assert not op.edge
            assert op.rank == k + (outside < ratio)

    @pytest.mark.parametrize(("n", "m"), [(60, 6), (6, 60), (150, 120)])
    def test_on_the_edge_either_neighbour_is_the_answer(self, n, m, dtype, rng):
        values = np.r_[np.geomspace(1, 0.2, min(n, m) - 2), 0.1, 0.02]
        X, s = self.block(rng, n, m, values, dtype)
        k = min(n, m) - 2
        got = fk.predict(X, 1, cutoff=s[k] / s[0])
        miss = [np.abs(got - reference.predict(X, 1, ("rank", float(rank)))).max() for rank in (k, k + 1)]
        assert min(miss) < 100 * np.finfo(dtype).eps * np.abs(got).max()
        assert max(miss) > 1e-3 * np.abs(got).max()  # else the test could not tell

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize(
        ("dtype", "at", "apart"), [("float64", 0.01, 3e-5), ("float64", 0.1, 3e-7), ("float32", 1e-3, 2e-7)]
    )
    def test_a_narrow_gap_at_the_cutoff(self, dtype, at, apart, seed):
        """Singular values on both sides of the cutoff, too close for a Gram matrix to tell their vectors apart.

        A Gram matrix blurs squares by g s1^2; its eigenvectors turn by g s1^2 over the gap of the squares,
        not over the distance to the cutoff. Not on the edge, so the answer must be exact.
        """
        rng = np.random.default_rng(seed)
        values = np.array([1, 0.7, 0.5, at * (1 + apart), at * (1 - apart), at / 10])
        X, s = self.block(rng, 200, 6, values, dtype)
        ratio = (s[3] + s[4]) / (2 * s[0])
        assert not fk.fit(X, cutoff=ratio).edge
        expected = exact_step(X, 4)  # LAPACK's SVD turns these vectors too, by more than the contract allows
        error = np.linalg.norm(fk.predict(X, 1, cutoff=ratio) - expected)
        allowed = SHARE[dtype] * np.linalg.norm(expected - X[:, -1])
        assert error <= allowed + np.finfo(dtype).eps * np.linalg.norm(expected)

    def test_a_cutoff_finer_than_the_data_is_honoured_and_marked(self, rng):
        """Duplicated float32 columns at NumPy's 1e-15: rounding alone decides, and edge says so."""
        F = np.repeat(rng.normal(size=(30, 3)), 2, axis=1).astype(np.float32)
        op = fk.fit(np.c_[F, F[:, :1]], cutoff=0.0)
        assert op.edge
        assert op.route == "svd"


class TestPinv:
    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.data())
    def test_the_four_penrose_conditions(self, data):
        dtype = np.dtype(data.draw(st.sampled_from(["float32", "float64"])))
        n, m = data.draw(st.sampled_from([(9, 4), (4, 9), (5, 5), (1, 1), (1, 4), (6, 1), (33, 31), (120, 100)]))
        p = min(n, m)
        spectrum = data.draw(st.sampled_from(["flat", "graded", "deficient", "duplicated", "gap", "zero"]))
        scale = data.draw(st.sampled_from([1.0, 1e30, 1e-30, "denormal"]))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        values = {
            "flat": np.ones(p), "graded": np.geomspace(1, 1e-2, p), "zero": np.zeros(p),
            "deficient": np.where(np.arange(p) <= p // 2, 1.0, 0.0), "duplicated": np.ones(p),
            # a value on either side of the cutoff, a hundredth of it apart, if there is room for two
            "gap": np.r_[1.0, np.full(max(p - 3, 0), 0.5), 1.01e-3, 0.99e-3][: max(p, 1)] if p != 2 else [1.0, 0.99e-3],
        }[spectrum]  # fmt: skip
        values = np.asarray(values)
        A = with_singular_values(rng, n, m, values)
        if spectrum == "duplicated":
            A[:, m // 2 :] = A[:, : m - m // 2]
            values = np.linalg.svd(A, compute_uv=False)
        cutoff = 1e-3 if spectrum == "gap" else 1e-4
        rank = np.count_nonzero(values > cutoff * values[0])
        grain = float(np.finfo(dtype).eps)
        if scale == "denormal":  # the least singular value that counts has half the dtype's largest number as inverse
            scale = 2.0 / float(np.finfo(dtype).max) / (values[rank - 1] if rank else 1.0)
            grain *= 8.0  # entries are rounded to the smallest denormal
        A = (A * scale).astype(dtype)
        P = fk.pinv(A, cutoff=cutoff)
        A, P = A.astype(np.float64) / scale, P.astype(np.float64) * scale
        condition = {"graded": 1e2, "gap": 1e3}.get(spectrum, values[0] / values[rank - 1] if rank else 1.0)
        tolerance = max(1e2 * condition * grain, 16.0 * condition**2 * 2.0**-52)  # by the Gram matrix: the square
        dropped = values[rank] if rank < p else 0.0  # P is the inverse of A without it
        assert np.linalg.matrix_rank(P, tol=0.5) == rank
        assert np.abs(A @ P @ A - A).max() <= tolerance + dropped
        assert np.abs(P @ A @ P - P).max() <= tolerance * max(1e2, condition)
        assert np.abs(A @ P - (A @ P).T).max() <= tolerance
        assert np.abs(P @ A - (P @ A).T).max() <= tolerance

    @pytest.mark.parametrize(("n", "m"), [(50, 10), (10, 50), (130, 110)])
    def test_the_named_rules_are_those_of_the_libraries(self, n, m, dtype, rng):
        """Singular values between the rules' thresholds, so that each keeps another number of them."""
        size, eps = max(n, m), float(np.finfo(dtype).eps)
        # array_api drops above 1.9 size eps, matlab above size eps (the spacing at 1.9 is eps), jax above 19 size eps
        low = np.array([100, 6, 1.4, 0.5]) * size * eps
        F = with_singular_values(rng, n, m, np.r_[np.geomspace(1.9, 0.1, min(n, m) - 4), low]).astype(dtype)
        s = np.linalg.svd(F.astype(np.float64), compute_uv=False)
        assert s[0] < 2 and 1.9 * 0.99 < s[0]
        expected = {
            "array_api": scipy.linalg.pinv(F.astype(np.float64), rtol=size * eps),
            "jax": np.linalg.pinv(F.astype(np.float64), rcond=10 * size * eps),
            "matlab": np.linalg.pinv(F.astype(np.float64), rcond=size * eps / s[0]),
        }
        X = np.c_[F, F[:, :1]]
        ranks = {rule: int(fk.fit(X, cutoff=rule).rank) for rule in expected}
        assert ranks == {"array_api": min(n, m) - 2, "jax": min(n, m) - 3, "matlab": min(n, m) - 1}
        for rule, inverse in expected.items():
            kept = s[ranks[rule] - 1]
            np.testing.assert_allclose(
                fk.pinv(F, cutoff=rule), inverse, rtol=0, atol=(4 * eps + 200 * 2.0**-52 / kept) / kept, err_msg=rule
            )

    def test_defaults_agree_with_scipy_and_torch(self, dtype, rng):
        F = with_singular_values(rng, 30, 8, np.r_[np.geomspace(1, 0.1, 5), np.zeros(3)]).astype(dtype)
        tolerance = 2e3 * np.finfo(dtype).eps
        got = fk.pinv(F)
        np.testing.assert_allclose(got, scipy.linalg.pinv(F), rtol=0, atol=tolerance)
        np.testing.assert_allclose(got, torch.linalg.pinv(torch.from_numpy(F)), rtol=0, atol=tolerance)
        assert torch.allclose(fk.pinv(torch.from_numpy(F)), torch.from_numpy(got), rtol=0, atol=0)

    @pytest.mark.parametrize(("n", "m"), [(50, 10), (10, 50), (130, 110)])
    def test_each_library_agrees_at_its_own_cutoff(self, n, m, dtype, rng):
        """Called without one. Singular values lie on both sides of every rule's threshold, which rounding cannot reach;
        an inverse with another rank would be as large as what it is compared with."""
        jax = pytest.importorskip("jax")
        unit = max(n, m) * float(np.finfo(dtype).eps)
        values = np.r_[np.geomspace(1, 0.1, min(n, m) - 4), np.array([25, 5, 1.7, 0.3]) * unit]
        F = with_singular_values(rng, n, m, values).astype(dtype)
        with jax.enable_x64(True):
            theirs = {
                "scipy": ("array_api", scipy.linalg.pinv(F)),
                "torch": ("array_api", torch.linalg.pinv(torch.from_numpy(F)).numpy()),
                "jax": ("jax", np.asarray(jax.numpy.linalg.pinv(F))),
            }
        ours = {rule: fk.pinv(F, cutoff=rule) for rule in ("array_api", "jax")}
        for name, (rule, inverse) in theirs.items():
            assert inverse.dtype == dtype, name
            miss = {own: np.linalg.norm(ours[own] - inverse) / np.linalg.norm(inverse) for own in ours}
            assert miss.pop(rule) < 0.1, name
            assert min(miss.values()) > 0.9, name

    def test_numpy_agrees_at_its_own_cutoff(self, dtype, rng):
        """A rule so fine that only exact data tells: 1e-15 of the largest, whatever the dtype."""
        F = np.zeros((6, 5), dtype)
        F[rng.permutation(5), np.arange(5)] = [1.0, 0.5, 3e-8, 2e-15, 5e-16]
        inverse = fk.pinv(F, cutoff="numpy")
        np.testing.assert_allclose(inverse, np.linalg.pinv(F), rtol=8 * np.finfo(dtype).eps)
        assert np.count_nonzero(inverse) == 4

    def test_numpy_keeps_what_float32_rounds_to(self, rng):
        """1e-15 whatever the dtype: it keeps singular values that are only rounding, as np.linalg.pinv does."""
        F = with_singular_values(rng, 30, 4, [1, 0.5, 0.2, 0]).astype(np.float32)
        got = fk.pinv(F, cutoff="numpy")
        expected = np.linalg.pinv(F.astype(np.float64), rcond=1e-15)
        assert np.abs(expected).max() > 1e5
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())

    @pytest.mark.parametrize("cutoff", [1, 2, 2.0, np.float32(3), 100, 1.5, 1.0, -0.1, -1, np.inf, np.nan, 10**400])
    def test_a_cutoff_that_would_keep_nothing_is_refused(self, cutoff, rng):
        F = rng.normal(size=(9, 4))
        cure = rf"Rank\({int(cutoff)}\) keeps" if cutoff in (1, 2, 3, 100) else "would drop every value"
        for call in (fk.pinv, fk.fit, lambda X, cutoff: fk.predict(X, 1, cutoff=cutoff)):
            with pytest.raises(fk.InputError, match=rf"^cutoff: expected a number in \[0, 1\).*{cure}"):
                call(F, cutoff=cutoff)

    @pytest.mark.parametrize("share", [1.0, 0.999, 1e-9])
    def test_all_equal_singular_values(self, share, dtype, rng):
        Q = np.eye(6, dtype=dtype)[rng.permutation(6)]  # exact in both dtypes
        rank = {1.0: 6, 0.999: 6, 1e-9: 1}[share]
        X = np.c_[Q, Q[:, :1]]
        op = fk.fit(X, cutoff=fk.Energy(share))
        assert op.rank == rank or op.edge
        np.testing.assert_allclose(fk.pinv(Q, cutoff=0.5), Q.T, atol=20 * np.finfo(dtype).eps)
        op = fk.fit(X, cutoff=fk.Rank(2))
        assert op.rank == 2
        assert op.edge  # any two of six directions are as right

    def test_more_rank_than_there_is(self, dtype, rng):
        F = with_singular_values(rng, 30, 8, np.r_[np.geomspace(1, 0.1, 5), np.zeros(3)])
        F = F.astype(dtype)
        full = np.linalg.matrix_rank(F.astype(np.float64))
        assert fk.fit(np.c_[F, F[:, :1]], cutoff=fk.Rank(1000)).rank == full
        F[:, 5:] = F[:, :3]  # exactly deficient, whatever the dtype
        assert fk.fit(np.c_[F, F[:, :1]], cutoff=fk.Rank(1000)).rank == 5
        assert fk.fit(np.c_[F, F[:, :1]], cutoff=fk.Energy(1.0)).rank <= 5

    def test_svht_on_rank_one_and_on_single_columns(self, dtype, rng):
        v = rng.normal(size=(20, 1))
        rank_one = (v @ [[1, 0.9, 0.81, 0.729]]).astype(dtype)
        assert fk.fit(rank_one.astype(dtype), cutoff="svht").rank >= 1  # noise may be kept, the signal must be
        for shape in ((20, 1), (1, 20)):  # one value is its own median, and kept all the same
            F = rng.normal(size=shape).astype(dtype)
            np.testing.assert_allclose(fk.pinv(F, cutoff="svht"), np.linalg.pinv(F), rtol=20 * np.finfo(dtype).eps)

    @pytest.mark.parametrize(
        "shape", [(50, 1, 31), (1, 31), (40, 1, 2), (5, 2), (3, 8, 9), (2, 60, 9), (2, 9, 60)], ids=str
    )
    def test_svht_never_makes_a_block_vanish(self, shape, dtype, rng):
        """Noise, a single weight, a single pair: the largest singular value counts, as with Rank(1)."""
        X = (0.05 * rng.normal(size=shape)).astype(dtype)
        op = fk.fit(X, cutoff="svht")
        assert (op.rank >= 1).all() and (op.rank <= 2).all()
        alone = op.rank == 1
        for steps in (1, 3):
            state, one = fk.predict(X, steps, cutoff="svht"), fk.predict(X, steps, cutoff=fk.Rank(1))
            scale = np.abs(X).max()
            np.testing.assert_allclose(state[alone], one[alone], rtol=0, atol=100 * np.finfo(dtype).eps * scale)
            scale = np.abs(state).max()
            np.testing.assert_allclose(op.predict(steps), state, rtol=0, atol=100 * np.finfo(dtype).eps * scale)

    @pytest.mark.parametrize(("rule", "n"), [("array_api", 2**23), ("matlab", 2**23), ("jax", 2**20)])
    def test_a_rule_that_drops_all_of_huge_blocks_is_refused(self, rule, n):
        with pytest.raises(fk.InputError, match=rf"^cutoff: '{rule}' drops every singular value of blocks of {n} rows"):
            rules.resolve(rule, n, 8, np.float32)
        assert rules.resolve(rule, n, 8, np.float64)[1] > 0

    def test_time_major_and_transposed_views(self, dtype, kind, rng):
        F = rng.normal(size=(3, 9, 4)).astype(dtype)
        tensor = as_kind(F, kind)
        other = as_kind(np.ascontiguousarray(F.transpose(2, 0, 1)), kind)
        other = other.permute(1, 2, 0) if kind == "torch" else other.transpose(1, 2, 0)
        got = check_kind(fk.pinv(other), kind, dtype)
        np.testing.assert_allclose(got, np.asarray(fk.pinv(tensor)), rtol=0, atol=100 * np.finfo(dtype).eps)

    @pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
    def test_any_batch(self, batch, dtype, kind, rng):
        F = rng.normal(size=(*batch, 7, 4)).astype(dtype)
        got = check_kind(fk.pinv(as_kind(F, kind)), kind, dtype)
        assert got.shape == (*batch, 4, 7)
        for index in np.ndindex(*batch):
            np.testing.assert_allclose(got[index], np.linalg.pinv(F[index]), atol=2e3 * np.finfo(dtype).eps)
