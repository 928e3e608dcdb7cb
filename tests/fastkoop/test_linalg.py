"""predict and pinv, the public doors: what they compute, promise and refuse, for NumPy and PyTorch."""

import inspect
import sys
import threading
import warnings
from typing import ClassVar

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from cases import aligned, orbit, orthogonal, special_blocks, strided_views, with_singular_values
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


def as_kind(array, kind):
    return torch.from_numpy(array) if kind == "torch" else array


def check_kind(result, kind, dtype):
    """The result as NumPy, its kind and dtype asserted."""
    assert type(result) is (torch.Tensor if kind == "torch" else np.ndarray)
    result = np.asarray(result)
    assert result.dtype == dtype
    return result


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
        keep = np.count_nonzero(s > max(threshold, size * 2.0**-52 * s[0]))
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

    @pytest.mark.parametrize("cutoff", [1.0, 1.5, 100])
    def test_a_cutoff_of_one_or_more_keeps_nothing(self, cutoff, dtype, rng):
        F = rng.normal(size=(9, 4)).astype(dtype)
        assert not fk.pinv(F, cutoff=cutoff).any()
        for X in (np.c_[F, F], np.full((9, 3), 0.5, dtype)):
            assert not fk.predict(X, 2, cutoff=cutoff).any()
            assert fk.fit(X, cutoff=cutoff).rank == 0

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
        for shape in ((20, 1), (1, 20)):  # one value is its own median: never above a multiple > 1 of it
            assert not fk.pinv(rng.normal(size=shape).astype(dtype), cutoff="svht").any()

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


FUNCTIONS = {
    "predict": (lambda X, **more: fk.predict(X, 2, **more), (6,)),
    "pinv": (lambda X, **more: fk.pinv(X, **more), (4, 6)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
class TestOut:
    def test_written_and_returned(self, name, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = as_kind(rng.normal(size=(3, 6, 4)).astype(dtype), kind)
        out = as_kind(np.full((3, *shape), np.nan, dtype), kind)
        assert function(X, out=out) is out
        np.testing.assert_array_equal(out, function(X))

    def test_any_strides(self, name, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = rng.normal(size=(3, 6, 4)).astype(dtype)
        memory = np.full((3, *(2 * length + 1 for length in shape)), np.nan, dtype)
        view = as_kind(memory, kind)[(slice(None), *(slice(1, None, 2) for _ in shape))]
        function(as_kind(X, kind), out=view)
        np.testing.assert_array_equal(view, function(X))
        assert np.isnan(memory[:, ::2]).all()

    def test_into_the_input_itself(self, name, dtype):
        if name == "predict":
            X = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(dtype)
            expected = fk.predict(X, 2)
            fk.predict(X, 2, out=X[..., -1])
            np.testing.assert_array_equal(X[..., -1], expected)
        else:
            F = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(dtype)
            expected = fk.pinv(F)
            fk.pinv(F, out=F)
            np.testing.assert_array_equal(F, expected)

    def test_refused(self, name, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = as_kind(rng.normal(size=(3, 6, 4)).astype(dtype), kind)
        other = np.float64 if dtype == np.float32 else np.float32
        wrong = [
            as_kind(np.zeros((2, *shape), dtype), kind),
            as_kind(np.zeros((3, *shape), other), kind),
            as_kind(np.zeros((3, *shape), dtype), "numpy" if kind == "torch" else "torch"),
            as_kind(np.zeros((3, *shape), np.float16), kind),
            torch.zeros((3, *shape), dtype=torch.bfloat16),
        ]
        for out in wrong:
            with pytest.raises(ValueError, match=r"out: expected a (numpy|torch) array of .* got a"):
                function(X, out=out)
            assert not out.any()
        with pytest.raises(TypeError, match=r"out: expected an array of NumPy, CuPy or JAX.* got list"):
            function(X, out=[0.0])
        with pytest.raises(TypeError, match=r"out: expected float32 or float64 in native byte order, got >f8"):
            function(X, out=np.zeros((3, *shape), ">f8"))
        with pytest.raises(TypeError, match=r"out: the tensor requires grad .* pass out\.detach\(\)"):
            function(X, out=torch.zeros((3, *shape), requires_grad=True))
        if kind == "numpy":
            out = np.zeros((3, *shape), dtype)
            out.flags.writeable = False
            with pytest.raises(ValueError, match="out: expected a writable array"):
                function(X, out=out)

    def test_an_out_that_shares_its_own_memory_is_refused(self, name, rng):
        """Like torch's own out=: an expanded tensor cannot hold the results of several blocks."""
        function, shape = FUNCTIONS[name]
        X = torch.from_numpy(rng.normal(size=(3, 6, 4)))
        out = torch.zeros(1, *shape, dtype=torch.float64).expand(3, *shape)
        with pytest.raises(ValueError, match="out: "):
            function(X, out=out)

    def test_a_negated_view_is_written_or_refused(self, name, rng):
        """torch marks x.conj().imag as negated instead of negating it; resolving that makes a copy."""
        function, shape = FUNCTIONS[name]
        X = torch.from_numpy(rng.normal(size=(3, 6, 4)))
        out = torch.zeros(3, *shape, dtype=torch.complex128).conj().imag
        assert out.is_neg()
        try:
            function(X, out=out)
        except (TypeError, ValueError) as error:
            assert "out" in str(error)
        else:
            np.testing.assert_array_equal(out.resolve_neg(), function(X))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_nothing_is_written_on_an_error(self, name, bad, dtype, kind, rng):
        function, shape = FUNCTIONS[name]
        X = rng.normal(size=(3, 6, 4)).astype(dtype)
        X[1, 3, 2] = bad
        out = np.full((3, *shape), 7.0, dtype)
        with pytest.raises(ValueError, match=r"block \(1,\) holds a NaN or an infinity.*check_finite=False"):
            function(as_kind(X, kind), out=as_kind(out, kind))
        assert (out == 7).all()

    def test_alignment(self, name, dtype, kind, rng):
        function, _ = FUNCTIONS[name]
        for B in range(1, 6):
            assert aligned(np.asarray(function(as_kind(rng.normal(size=(B, 6, 4)).astype(dtype), kind))))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (150, 120), (120, 150)], ids=str)
class TestNonFinite:
    @pytest.mark.parametrize("column", [0, 1, -1])
    def test_the_first_bad_block_is_named(self, name, shape, column, dtype, kind, rng):
        function, _ = FUNCTIONS[name]
        X = rng.normal(size=(2, 3, *shape)).astype(dtype)
        X[1, 0, 2, column] = np.inf
        X[1, 2, 0, column] = np.nan
        argument = "X" if name == "predict" else "F"
        with pytest.raises(fk.InputError, match=rf"^{argument}: block \(1, 0\) holds a NaN or an infinity"):
            function(as_kind(X, kind))
        with pytest.raises(fk.InputError, match=rf"^{argument}: its only block holds a NaN or an infinity"):
            function(as_kind(X[1, 0].copy(), kind))

    def test_neighbours_keep_their_bits(self, name, shape, dtype, rng):
        function, _ = FUNCTIONS[name]
        X = rng.normal(size=(4, *shape)).astype(dtype)
        clean = function(X)
        X[2, 1, -1] = np.nan
        got = function(X, check_finite=False)
        assert np.isnan(got[2]).all()
        np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


class TestSameBits:
    def test_every_call_any_batch_any_threads(self, dtype, threads, rng):
        X = np.stack(list(special_blocks(rng, 30, 6, dtype).values()))
        for function, _ in FUNCTIONS.values():
            expected = function(X, cutoff=1e-4)
            for count in (1, 2, 5):
                threads(count)
                np.testing.assert_array_equal(function(X, cutoff=1e-4), expected)
                np.testing.assert_array_equal(function(X[3:4], cutoff=1e-4)[0], expected[3])
            np.testing.assert_array_equal(function(torch.from_numpy(X), cutoff=1e-4), expected)

    def test_concurrent_callers(self, threads):
        """Everything from several threads at once, small blocks and large ones: the bits of one call after another."""
        threads(2)
        rng = np.random.default_rng(0)
        data = [orbit(rng, n, m, dtype, (B,)) for dtype in (np.float32, np.float64)
                for n, m, B in ((30, 9, 200), (9, 30, 200), (130, 110, 2))]  # fmt: skip

        def answers(X):
            op = fk.fit(X, cutoff=1e-6)
            return fk.predict(X, 3), fk.pinv(X), op.predict([2, 5]), op.residual, op.walk().step(2), op.matrix()

        expected, wrong = [answers(X) for X in data], []

        def caller(first):
            for i in range(len(data)):
                at = (first + i) % len(data)
                if not all(map(np.array_equal, answers(data[at]), expected[at])):
                    wrong.append(at)

        callers = [threading.Thread(target=caller, args=(first,)) for first in range(4)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert not wrong


class TestErrors:
    @pytest.mark.parametrize("X", [np.zeros(3), np.float64(1)], ids=["1-D", "0-D"])
    def test_dimensions(self, X):
        X = np.asarray(X)
        with pytest.raises(ValueError, match=r"X: expected at least 2 dimensions \(\.\.\., n, m\+1\), got shape"):
            fk.predict(X, 1)
        with pytest.raises(ValueError, match=r"F: expected at least 2 dimensions \(\.\.\., n, m\), got shape"):
            fk.pinv(X)

    def test_sizes(self):
        with pytest.raises(ValueError, match=r"X: expected at least 2 snapshots along axis 1, got 1 .* one pair"):
            fk.predict(np.zeros((3, 1)), 1)
        with pytest.raises(ValueError, match=r"X: expected at least 2 snapshots along axis 0, got 0"):
            fk.predict(np.zeros((0, 3)), 1, time_axis=0)
        with pytest.raises(ValueError, match=r"X: expected blocks of at least 1 weight, got shape \(2, 0, 3\)"):
            fk.predict(np.zeros((2, 0, 3)), 1)
        for shape in ((0, 3), (3, 0)):
            with pytest.raises(ValueError, match=r"F: expected matrices of at least 1 x 1, got shape"):
                fk.pinv(np.zeros(shape))

    @pytest.mark.parametrize("axis", [2, -3, 17])
    def test_time_axis(self, axis):
        with pytest.raises(ValueError, match="time_axis: expected"):
            fk.predict(np.zeros((3, 4)), 1, time_axis=axis)

    @pytest.mark.parametrize(
        ("steps", "error"), [(-1, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)]
    )
    def test_steps(self, steps, error):
        with pytest.raises(error, match="steps: expected an integer"):
            fk.predict(np.ones((3, 4)), steps)

    def test_steps_beyond_the_kernels_integers(self):
        with pytest.raises(ValueError, match="steps: expected"):
            fk.predict(np.ones((3, 4)), 2**70)

    def test_integers_of_every_kind(self):
        X = np.random.default_rng(0).normal(size=(5, 3))
        for steps in (np.int32(2), np.uint8(2), np.array(2), torch.tensor(2)):
            np.testing.assert_array_equal(fk.predict(X, steps), fk.predict(X, 2))

    @pytest.mark.parametrize("make", [fk.predict, fk.pinv])
    def test_kinds_and_types(self, make):
        call = (lambda X: make(X, 1)) if make is fk.predict else make
        for dtype in (">f2", ">f4", ">f8", np.int64, np.complex64, object, bool, np.longdouble, "M8[s]"):
            with pytest.raises(TypeError, match=r"expected float32 or float64 .* got .*; pass .\.astype"):
                call(np.ones((3, 4), dtype))
        with pytest.raises(TypeError, match=r"expected an array of NumPy, CuPy or JAX.* got list"):
            call([[1.0, 2.0]])
        with pytest.raises(TypeError, match=r"expected an array of NumPy, CuPy or JAX.* got float64"):
            call(np.float64(1.0))
        with pytest.raises(TypeError, match="masked array"):
            call(np.ma.ones((3, 4)))
        with pytest.raises(TypeError, match=r"requires grad .*detach\(\)"):
            call(torch.ones(3, 4, requires_grad=True))
        with pytest.raises(TypeError, match=r"expected float32 or float64, got torch.int32; pass .\.float\(\)"):
            call(torch.ones(3, 4, dtype=torch.int32))
        with pytest.raises(TypeError, match=r"dense tensor, .* pass .\.to_dense\(\)"):
            call(torch.ones(3, 4).to_sparse())
        with pytest.raises(TypeError, match=r"expected a tensor on the CPU or on a CUDA device, got one on meta"):
            call(torch.ones(3, 4, device="meta"))

    def test_no_grad_makes_a_leaf_acceptable(self):
        X = torch.randn(5, 3, requires_grad=True)
        with torch.no_grad():
            got = fk.predict(X, 1)
        assert not got.requires_grad

    @pytest.mark.parametrize(
        ("cutoff", "error"),
        [("scipy", ValueError), (-1e-3, ValueError), (np.nan, ValueError), (np.inf, ValueError), (10**400, ValueError),
         (True, TypeError), (None, TypeError), ([1e-3], TypeError), (1j, TypeError), (np.ones(1), TypeError)],
    )  # fmt: skip
    def test_cutoff(self, cutoff, error):
        for call in (lambda X: fk.predict(X, 1, cutoff=cutoff), lambda X: fk.pinv(X, cutoff=cutoff)):
            with pytest.raises(error, match="cutoff: expected"):
                call(np.ones((3, 4)))

    def test_an_input_error_is_a_value_error(self):
        assert issubclass(fk.InputError, ValueError)
        assert sys.modules["fastkoop.checks"].InputError is fk.InputError


class TestOverflow:
    def test_is_reported_with_the_first_block(self):
        X = np.array([[[1.0, 1.0, 1.0]], [[1.0, 4.0, 16.0]], [[1.0, 5.0, 25.0]]], np.float32)
        with pytest.warns(RuntimeWarning, match=r"block \(1,\) and 1 more grew beyond what float32 holds.*stabilize"):
            states = fk.predict(X, 200)
        assert states[0] == 1.0 and np.isinf(states[1:]).all()
        op = fk.fit(X)
        with pytest.warns(RuntimeWarning, match=r"block \(1,\) and 1 more"):
            assert np.isfinite(op.predict([1, 2, 200])[:, :, :2]).all()
        assert np.isfinite(fk.fit(X, stabilize="clip").predict(200)).all()

    def test_is_reported_by_walks(self):
        """When it happens, and at every step from there on."""
        X = np.array([[[1.0, 1.0, 1.0]], [[1.0, 4.0, 16.0]]], np.float32)
        for ahead in (1, 3):
            walk = fk.fit(X).walk()
            assert np.isfinite(walk.step(50, ahead=ahead)).all()
            for count in (150, 1):
                with pytest.warns(RuntimeWarning, match=r"block \(1,\) grew beyond what float32 holds"):
                    states = walk.step(count, ahead=ahead)
                assert states[0] == 1.0 and not np.isfinite(states[1])
        assert np.isfinite(fk.fit(X, stabilize="clip").walk().step(200)).all()

    def test_at_the_line_that_called(self):
        X = np.array([[1.0, 4.0, 16.0]], np.float32)
        op = fk.fit(X)
        calls = (
            lambda: fk.predict(X, 200), lambda: op.predict(200), lambda: op.predict([1, 200]),
            lambda: op.walk().step(200), lambda: fk.pinv(X * 1e-41),
            lambda: torch.ops.fastkoop.predict(torch.from_numpy(X), 200, "jax", 1, True),
        )  # fmt: skip
        for call in calls:
            with pytest.warns(RuntimeWarning) as found:
                call()
            assert [warning.filename for warning in found] == [__file__]
            assert found[0].lineno == call.__code__.co_firstlineno

    def test_is_silent_where_infinities_are_welcome(self):
        X = np.array([[1.0, 4.0, 16.0]], np.float32)
        assert np.isinf(fk.predict(X, 200, check_finite=False)).all()
        op = fk.fit(X, check_finite=False)
        assert np.isinf(op.predict(200)).all() and np.isinf(op.walk().step(200)).all()
        assert np.isinf(op.walk().step(200, ahead=3)).all()
        assert np.isinf(fk.pinv(X * 1e-41, check_finite=False)).any()

    def test_of_a_matrix(self):
        op = fk.fit(np.array([[[1.0, 0.5]], [[1e-20, 1e20]]], np.float32))
        with pytest.warns(RuntimeWarning, match=r"matrix: block \(1,\) has an operator that float32 does not hold"):
            assert np.isinf(op.matrix()).ravel().tolist() == [False, True]
        assert np.isinf(fk.fit(np.array([[1e-20, 1e20]], np.float32), check_finite=False).matrix())

    @pytest.mark.parametrize(("n", "m"), [(5, 3), (3, 5), (110, 100)])
    @pytest.mark.parametrize(("kind", "tiny"), [(np.float32, 1e-41), (np.float64, 1e-310)])
    def test_an_inverse_that_does_not_exist_in_the_dtype(self, n, m, kind, tiny, rng):
        """As in SciPy it is infinite; unlike there, that is said."""
        F = rng.normal(size=(3, n, m))
        F[1] *= tiny
        F = F.astype(kind)
        with pytest.warns(RuntimeWarning, match=r"pinv: block \(1,\) is so small that float\d\d does not hold"):
            inverses = fk.pinv(F)
        assert np.isinf(inverses[1]).any() and not np.isnan(inverses[1]).any()
        np.testing.assert_array_equal(inverses[::2], fk.pinv(F[::2]))

    def test_a_sum_that_overflows_is_no_overflow(self):
        X = np.full((4, 3), 3e38, np.float32)
        assert np.array_equal(fk.predict(X, 5), X[:, 0])


class TestFuzz:
    """Whatever comes in at the public door, an answer or one clear error goes out."""

    anything = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 5), st.floats(allow_nan=True), st.text(max_size=4),
        st.lists(st.integers(0, 3), max_size=3), st.builds(object), st.sampled_from([2**40, 2**70, 10**310, -0.5]),
    )  # fmt: skip
    sensible: ClassVar = {
        "cutoff": ["array_api", "jax", "svht", "matlab", "numpy", 1e-3, 0, fk.Rank(2), fk.Rank(99), fk.Energy(0.9)],
        "time_axis": [-1, 0, 1], "out": [None], "stabilize": [None, "clip", 0.9], "observables": ["identity"],
        "check_finite": [True, False], "refine": [True, False], "steps": [0, 1, 3, 300, 2**40],
    }  # fmt: skip
    shapes = st.one_of(st.lists(st.integers(1, 5), min_size=2, max_size=3), st.lists(st.integers(0, 4), max_size=4))
    dtypes = st.sampled_from([*["f4", "f8"] * 12, "f2", "i4", "c8", "O", "U1", "?", ">f4", "M8[s]"])
    finite = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-3, 1e30, 1e-30, 3e38, 1e-45, 0.2, -7.0])
    numbers = st.one_of(finite, finite, finite, st.sampled_from([np.nan, np.inf]))

    def value(self, data, key):
        """Mostly one that makes sense."""
        return data.draw(self.anything if data.draw(st.integers(0, 9)) == 9 else st.sampled_from(self.sensible[key]))

    @staticmethod
    def turned(X, data):
        """The array in another order, backwards, repeated, or as a tensor."""
        for axis in range(X.ndim):
            X = np.flip(X, axis) if data.draw(st.booleans()) else X
        X = X.T if data.draw(st.booleans()) else X
        if data.draw(st.booleans()):
            X = np.broadcast_to(X, (2, *X.shape))
        if X.dtype in ("f4", "f8", "f2", "i4", "c8", "?") and data.draw(st.booleans()):
            X = torch.from_numpy(X.copy())
        return X

    @settings(max_examples=400, deadline=None)
    @given(data=st.data())
    def test_answer_or_clear_error(self, data):
        shape, dtype = tuple(data.draw(self.shapes)), data.draw(self.dtypes)
        X = np.ones(shape, dtype)
        if dtype in ("f4", "f8", "f2"):
            kind = self.finite if data.draw(st.booleans()) else self.numbers
            few = data.draw(st.lists(kind, min_size=1, max_size=7))  # over and over
            with np.errstate(over="ignore"):
                X = np.resize(np.array(few).astype(dtype), shape)
        X = self.turned(X, data)
        function, name = data.draw(st.sampled_from([(fk.predict, "steps"), (fk.pinv, None), (fk.fit, None)]))
        known = inspect.signature(function).parameters
        chosen = [key for key in self.sensible if key in known and key != name and data.draw(st.booleans())]
        options = {key: self.value(data, key) for key in chosen}
        arguments = (self.value(data, name),) if name else ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                result = function(X, *arguments, **options)
                if function is fk.fit:
                    self.look_at(result, self.value(data, "steps"), X)
                else:
                    assert type(result) is type(X) and result.dtype == X.dtype
            except (ValueError, TypeError) as error:
                assert ":" in str(error) and len(str(error)) < 400, error

    @staticmethod
    def look_at(op, steps, X):
        """Everything that an operator says can be said."""
        assert len(repr(op)) < 300 and op.summary()
        assert op.rank.shape == op.residual.shape == op.holdout.shape == op.edge.shape == op.condition.shape
        assert op.modes.shape[-1] == op.eigenvalues.shape[-1] and op.matrix().dtype == X.dtype
        assert op.predict(1).dtype == X.dtype
        op.predict(steps)
