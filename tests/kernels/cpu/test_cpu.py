"""The CPU contract against the reference: every shape, engine, stride, scale and kind of rank deficiency."""

import time

import numpy as np
import pytest
from cases import (
    EPS64,
    KERNEL_RULES,
    ODD_SHAPES,
    SHAPES,
    aligned,
    assert_states,
    dying,
    error_bound,
    graded,
    orbit,
    pinv_bound,
    special_blocks,
    strided_views,
    time_major,
    truth,
    with_singular_values,
)

from fastkoop import kernels
from fastkoop.kernels import cpu, reference
from fastkoop.kernels.plan import ROUTES

FULL = ("relative", 1e-6)  # keeps every singular value of `orbit` in both dtypes
NOISE = ("relative", 1e-4)


pytestmark = pytest.mark.usefixtures("poisoned")


def words(route):
    return [ROUTES[r] for r in route]


def block_by_block(X, steps, cutoff):
    """Predictions of each block of X (..., n, m+1) on its own."""
    return np.concatenate([kernels.predict(time_major(X[b : b + 1]), steps, cutoff)[0] for b in range(len(X))])


class TestPredict:
    @pytest.mark.parametrize(("n", "m"), SHAPES)
    def test_every_shape_and_number_of_steps(self, n, m, dtype, rng):
        X = orbit(rng, n, m, dtype, batch=(2,))
        for steps in (0, 1, 2, 7, 100):
            got, _ = kernels.predict(time_major(X), steps, FULL)
            assert_states(got, X, steps, FULL)

    @pytest.mark.parametrize(("n", "m"), ODD_SHAPES)
    def test_both_engines(self, n, m, dtype, rng, engine):
        X = orbit(rng, n, m, dtype, batch=(3,))
        for steps in (1, 2, 7):
            got, _ = kernels.predict(time_major(X), steps, FULL)
            assert_states(got, X, steps, FULL, engine)

    @pytest.mark.parametrize("cutoff", KERNEL_RULES)
    @pytest.mark.parametrize(("n", "m"), [(40, 7), (7, 7), (7, 40), (130, 33), (33, 130)])
    def test_every_rule(self, n, m, dtype, rng, engine, cutoff):
        X = np.stack([graded(rng, n, m, dtype, low=1.3e-4) for _ in range(2)])
        for steps in (1, 2):
            got, _ = kernels.predict(time_major(X), steps, cutoff)
            assert_states(got, X, steps, cutoff, engine)

    @pytest.mark.parametrize("cutoff", [NOISE, ("spacing", 900.0), ("rank", 1.0), ("energy", 0.9)])
    @pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 6), (6, 40)])
    def test_special_blocks(self, n, m, dtype, rng, engine, cutoff):
        for name, block in special_blocks(rng, n, m, dtype).items():
            for steps in (1, 2):
                got, _ = kernels.predict(time_major(block[None]), steps, cutoff)
                assert_states(got, block[None], steps, cutoff, f"{engine} {name}")

    @pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 40)])
    def test_what_special_blocks_mean(self, n, m, dtype, rng, engine):
        made = special_blocks(rng, n, m, dtype)
        for name in ("zero", "only the last"):
            got, route = kernels.predict(time_major(made[name][None]), 3, NOISE)
            assert not got.any()
            assert words(route) == ["zero"]
        got, route = kernels.predict(time_major(made["constant"][None]), 10**6, NOISE)
        np.testing.assert_allclose(got[0], made["constant"][:, 0], rtol=1e-5 if engine == "library" else 0)
        assert engine == "library" or words(route) == ["constant"]
        got, _ = kernels.predict(time_major(made["rank one"][None]), 7, NOISE)
        np.testing.assert_allclose(got[0], made["rank one"][:, -1] * 0.9**7, rtol=1e-5)

    @pytest.mark.parametrize(("n", "m"), [(40, 3), (4, 60)])
    @pytest.mark.parametrize("steps", [999, 10**6])
    def test_a_million_steps_of_a_slow_decay(self, n, m, dtype, rng, engine, steps):
        """x(t) = sum of v_i l_i^t has the known continuation sum of v_i l_i^(t + steps)."""
        p = min(n, m)
        rates = np.array([1 - 3e-7, 0.9, -0.5, 0.3])[:p]
        v = np.linalg.qr(rng.normal(size=(n, p)))[0]
        X = (v @ rates[:, None] ** np.arange(m + 1)).astype(dtype)
        got, _ = kernels.predict(time_major(X[None]), steps, ("relative", 1e-9 if dtype == np.float64 else 1e-5))
        if dtype == np.float64:
            expected = v[:, 0] * rates[0] ** (m + steps)
            np.testing.assert_allclose(got[0], expected, atol=1e-6 * np.abs(expected).max())
        else:  # the rounded data has rates of its own
            assert_states(got, X[None], steps, ("relative", 1e-5), engine)

    @pytest.mark.parametrize(("n", "m"), [(100, 90), (90, 90), (90, 100), (40, 2), (2, 40)])
    def test_repeated_squaring_equals_single_steps(self, n, m, rng):
        X = orbit(rng, n, m, batch=(1,), decay=0.99999)
        cutoff = ("relative", 1e-10)
        for steps in (600, 40_000):
            got, _ = kernels.predict(time_major(X), steps, cutoff)
            assert_states(got, X, steps, cutoff)

    def test_a_wide_block_takes_a_million_steps_in_a_blink(self, rng):
        """An application a step would take 10^6 n^2 operations: minutes here."""
        X = orbit(rng, 60, 80, batch=(1,), decay=1.0)
        kernels.predict(time_major(X), 10, FULL)  # compiled
        begin = time.perf_counter()
        got, route = kernels.predict(time_major(X), 10**6, FULL)
        assert time.perf_counter() - begin < 1.0, f"route {words(route)}"
        np.testing.assert_allclose(np.linalg.norm(got), np.linalg.norm(X[0, :, -1]), rtol=1e-6)

    def test_growth_ends_in_infinity_not_in_an_exception(self, dtype, engine):
        X = (2.0 ** np.arange(4) * np.ones((5, 1))).astype(dtype)
        got, _ = kernels.predict(time_major(X[None]), 5000, NOISE)
        assert np.isinf(got).all()

    @pytest.mark.parametrize("batch", [(0,), (1,), (3,), (2, 0, 3), (2, 3)])
    def test_batches(self, batch, dtype, rng, engine):
        X = orbit(rng, 9, 4, dtype, batch)
        got, route = kernels.predict(time_major(X), 2, FULL)
        assert got.shape == (int(np.prod(batch)), 9)
        assert route.shape == got.shape[:1]
        assert_states(got.reshape(*batch, 9), X, 2, FULL)

    @pytest.mark.parametrize("steps", [0, 1, 3])
    @pytest.mark.parametrize(("n", "m"), [(1, 6), (6, 1), (1, 1), (120, 100), (100, 120)])
    def test_no_blocks(self, n, m, steps, dtype):
        X = np.zeros((m + 1, 2, 0, n), dtype)
        for cutoff in (FULL, ("rank", 2.0)):
            got, route = kernels.predict(X, steps, cutoff)
            assert (got.shape, got.dtype, route.shape) == ((0, n), dtype, (0,))

    def test_thousands_of_blocks(self, dtype, rng):
        X = rng.normal(size=(3000, 12, 5)).astype(dtype)
        X[::7] = X[::7, :, :1]  # constant
        X[::11] = 0
        X[1::13, :, 2] = X[1::13, :, 1]  # rank-deficient
        got, _ = kernels.predict(time_major(X), 1, NOISE)
        F, Fp = X[..., :-1].astype(float), X[..., 1:].astype(float)
        expected = np.einsum("bij,bjk,bk->bi", Fp, np.linalg.pinv(F, rcond=NOISE[1]), X[..., -1].astype(float))
        np.testing.assert_allclose(got, expected, rtol=0, atol=40 * np.finfo(dtype).eps * np.abs(expected).max())

    @pytest.mark.parametrize("cutoff", [("rank", 3.0), ("rank", 2.0), ("energy", 0.9999), ("relative", 1e-3)])
    @pytest.mark.parametrize("m", [20, 32, 64, 95])
    def test_a_unit_that_moved_once_and_died(self, m, cutoff, dtype):
        """Seen on real training runs; reducing its Gram matrix cascades into underflow, a step a reflector."""
        X = np.stack([dying(np.random.default_rng(seed), 300, m, dtype) for seed in range(40)])
        got, _ = kernels.predict(time_major(X), 1, cutoff)
        factors = kernels.fit(time_major(X), cutoff)
        assert (factors.rank >= 1).all()
        # the last snapshot is the last column of F, so K x_last is the last snapshot, whatever else is kept
        np.testing.assert_allclose(got, X[..., -1], rtol=0, atol=2e-6)

    @pytest.mark.parametrize("steps", [1, 2, 7])
    @pytest.mark.parametrize(("n", "m"), [(130, 100), (100, 130)])
    def test_large_blocks_that_need_the_svd_share_one_call(self, n, m, steps, rng, monkeypatch):
        X = np.stack([orbit(rng, n, m), *(graded(rng, n, m, low=1e-7) for _ in range(3))])
        X[2, 3, 4] = np.nan
        calls, by_lapack = [], cpu.reduce_by_svd
        monkeypatch.setattr(cpu, "reduce_by_svd", lambda source, cutoff: calls.append(1) or by_lapack(source, cutoff))
        got, route = kernels.predict(time_major(X), steps, ("relative", 1e-9))
        assert len(calls) == 1
        assert words(route)[1:] == ["svd", "non-finite", "svd"]
        assert np.isnan(got[2]).all()
        for b in (0, 1, 3):
            assert_states(got[b : b + 1], X[b : b + 1], steps, ("relative", 1e-9))


class TestSameBits:
    @pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 6), (6, 40), (120, 100), (100, 120)])
    def test_alone_and_in_any_batch(self, n, m, dtype, rng):
        made = list(special_blocks(rng, n, m, dtype).values())
        X = np.stack([*made, orbit(rng, n, m, dtype)])
        for steps in (1, 3):
            alone = block_by_block(X, steps, NOISE)
            together, _ = kernels.predict(time_major(X), steps, NOISE)
            np.testing.assert_array_equal(together, alone)
            backwards, _ = kernels.predict(time_major(X[::-1]), steps, NOISE)
            np.testing.assert_array_equal(backwards[::-1], alone)
            np.testing.assert_array_equal(kernels.predict(time_major(X), steps, NOISE)[0], alone)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_for_any_number_of_threads(self, count, dtype, rng, threads):
        X = rng.normal(size=(101, 12, 5)).astype(dtype)
        X[::3] = X[::3, :, :1]
        X[1::3, :, 2] = X[1::3, :, 1]
        threads(1)
        expected = kernels.predict(time_major(X), 3, NOISE), kernels.pinv(time_major(X), NOISE)
        fitted = kernels.fit(time_major(X), NOISE)
        threads(count)
        again = kernels.predict(time_major(X), 3, NOISE), kernels.pinv(time_major(X), NOISE)
        for got, alone in zip(again, expected, strict=True):
            np.testing.assert_array_equal(got[0], alone[0])
            np.testing.assert_array_equal(got[1], alone[1])
        for got, alone in zip(kernels.fit(time_major(X), NOISE), fitted, strict=True):
            np.testing.assert_array_equal(got, alone)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize(("n", "m"), [(12, 5), (5, 12)])
    @pytest.mark.parametrize("where", [0, 2, -1])
    def test_a_bad_block_touches_no_neighbour(self, bad, n, m, where, dtype, rng, engine):
        X = orbit(rng, n, m, dtype, batch=(5,))
        X[3] = np.repeat(X[3, :, :1], m + 1, axis=1)
        clean = {steps: kernels.predict(time_major(X), steps, NOISE)[0] for steps in (0, 1, 4)}
        inverse, _ = kernels.pinv(time_major(X), NOISE)
        X[1, 2, where] = bad
        for steps, expected in clean.items():
            got, route = kernels.predict(time_major(X), steps, NOISE)
            assert [word == "non-finite" for word in words(route)] == [b == 1 for b in range(5)]
            assert np.isnan(got[1]).all()
            np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(expected, 1, 0))
        got, route = kernels.pinv(time_major(X), NOISE)
        assert [word == "non-finite" for word in words(route)] == [b == 1 for b in range(5)]
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(np.delete(got, 1, 0), np.delete(inverse, 1, 0))
        for refine in (False, True):
            route = kernels.fit(time_major(X), NOISE, refine=refine).route
            assert [word == "non-finite" for word in words(route)] == [b == 1 for b in range(5)], refine


class TestStrides:
    @pytest.mark.parametrize(("n", "m"), [(33, 6), (6, 6), (6, 33)])
    def test_every_pattern_gives_the_same_numbers(self, n, m, dtype, rng, engine):
        X = time_major(orbit(rng, n, m, dtype, batch=(4,))).copy()
        X[:, 2] = X[:1, 2]
        for name, view in strided_views(X).items():
            assert np.array_equal(view, X), name
            before = view.copy()
            for steps in (0, 1, 3):
                expected, _ = kernels.predict(X, steps, NOISE)
                got, _ = kernels.predict(view, steps, NOISE)
                np.testing.assert_allclose(got, expected, rtol=0, atol=8 * np.finfo(dtype).eps * 3, err_msg=name)
            np.testing.assert_allclose(kernels.gram(view), kernels.gram(X), rtol=0, atol=1e-13 * n, err_msg=name)
            np.testing.assert_allclose(
                kernels.pinv(view, NOISE)[0], kernels.pinv(X, NOISE)[0], rtol=0, atol=2e-6, err_msg=name
            )
            np.testing.assert_array_equal(view, before, err_msg=name)  # inputs unchanged

    @pytest.mark.parametrize(("n", "m"), [(33, 6), (6, 33)])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_broadcast(self, n, m, axis, dtype, rng, engine):
        X = time_major(orbit(rng, n, m, dtype, batch=(3,)))
        view = np.broadcast_to(np.take(X, [0], axis), X.shape)
        assert view.strides[axis] == 0
        got, _ = kernels.predict(view, 2, NOISE)
        assert_states(got, np.moveaxis(view, 0, -1), 2, NOISE)

    def test_read_only(self, dtype, rng):
        X = time_major(orbit(rng, 20, 4, dtype, batch=(2,))).copy()
        X.flags.writeable = False
        assert_states(kernels.predict(X, 2, FULL)[0], np.moveaxis(X, 0, -1), 2, FULL)

    def test_bytes_that_are_not_whole_elements(self):
        raw = np.zeros(3 * 20, np.dtype([("skip", "i1"), ("x", "f4")]))["x"].reshape(3, 20)
        with pytest.raises(ValueError, match=r"strides in whole elements .*pass ascontiguousarray"):
            kernels.predict(raw, 1, NOISE)


class TestGram:
    @pytest.mark.parametrize(("n", "m"), [*ODD_SHAPES, (700, 5), (5, 700), (258, 10), (300, 120)])
    def test_against_the_reference(self, n, m, dtype, rng, engine):
        X = rng.normal(size=(2, n, m + 1)).astype(dtype)
        got = kernels.gram(time_major(X))
        assert got.dtype == np.float64
        for b, S in enumerate(got):
            expected = reference.gram(X[b])
            np.testing.assert_allclose(S, expected, rtol=0, atol=4 * max(n, m) * EPS64 * np.abs(expected).max())

    def test_products_of_float32_data_are_exact(self, engine):
        """(1 + 2^-23)^2 needs 47 bits: float32 products, or a float32 sum, would lose its end."""
        X = np.ones((4, 2), np.float32)
        X[0] = 1 + 2.0**-23
        S = kernels.gram(time_major(X[None]))[0]
        assert S[0, 0] == (1 + 2.0**-23) ** 2 + 3

    def test_shards_of_weights_add_up(self, dtype, rng, engine):
        X = rng.normal(size=(7, 3, 90)).astype(dtype)
        whole = kernels.gram(X)
        parts = sum(kernels.gram(X[..., part]) for part in (slice(0, 20), slice(20, 61), slice(61, 90)))
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12)
        factors = [kernels.solve(S, 90, 6, NOISE, dtype) for S in (whole, parts)]
        states = [kernels.reconstruct(X, kernels.evolve(f, np.array([1, 5]))) for f in factors]
        np.testing.assert_allclose(*states, rtol=0, atol=1e-5 * np.abs(states[0]).max())

    def test_spans_of_time_add_up_but_for_the_last_row(self, dtype, rng, engine):
        X = rng.normal(size=(61, 2, 5)).astype(dtype)
        whole = kernels.gram(X)
        first, second = kernels.gram(X[:31]), kernels.gram(X[30:])
        np.testing.assert_allclose(first[:, :-1] + second[:, :-1], whole[:, :-1], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(second[:, -1], whole[:, -1])


class TestPinv:
    @pytest.mark.parametrize(("n", "m"), SHAPES)
    def test_every_shape(self, n, m, dtype, rng):
        F = rng.normal(size=(2, n, m)).astype(dtype)
        got, _ = kernels.pinv(time_major(F), FULL)
        assert got.dtype == dtype
        assert got.shape == (2, m, n)
        for b in range(2):
            error = np.linalg.norm(got[b] - reference.pinv(F[b], FULL))
            assert error <= pinv_bound(F[b], FULL, dtype)

    @pytest.mark.parametrize("cutoff", KERNEL_RULES)
    @pytest.mark.parametrize(("n", "m"), [(40, 7), (7, 7), (7, 40), (130, 33), (33, 130)])
    def test_every_rule(self, n, m, dtype, rng, engine, cutoff):
        F = graded(rng, n, m, dtype, low=1.3e-4)[:, :-1]
        got, _ = kernels.pinv(time_major(F[None]), cutoff)
        assert np.linalg.norm(got[0] - reference.pinv(F, cutoff)) <= pinv_bound(F, cutoff, dtype)

    @pytest.mark.parametrize(("n", "m"), [(40, 6), (6, 6), (6, 40)])
    def test_special_blocks(self, n, m, dtype, rng, engine):
        for name, block in special_blocks(rng, n, m, dtype).items():
            got, _ = kernels.pinv(time_major(block[None]), NOISE)
            expected = reference.pinv(block, NOISE)
            assert np.linalg.norm(got[0].astype(float) - expected) <= pinv_bound(block, NOISE, dtype), name


class TestHardScales:
    """Float64 data at the ends of its range, where squares, or 1 / scale, do not exist."""

    @pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-75, 1e75, 1e200, 1e307, 1.7e308])
    @pytest.mark.parametrize(("n", "m"), [(20, 4), (4, 20)])
    def test_prediction_scales_with_the_data(self, scale, n, m, rng, engine):
        X = rng.uniform(-1, 1, size=(n, m + 1)) / n
        scaled = X * scale
        got, _ = kernels.predict(time_major(scaled[None]), 2, NOISE)
        factors = kernels.fit(time_major(scaled[None]), NOISE)
        again = kernels.reconstruct(time_major(scaled[None]), kernels.evolve(factors, np.array([2])))[0]
        expected = truth(X, 2, NOISE)
        lost = 1e3 * n * 5e-324 / scale  # the data's own rounding, where it is denormal
        for state in (got, again):
            tolerance = error_bound(X, 2, NOISE, expected) + lost
            np.testing.assert_allclose(state[0] / scale, expected, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("scale", [1e-200, 1e-75, 1e75, 1e200, 1e307, 1.7e308])
    @pytest.mark.parametrize(("n", "m"), [(20, 4), (4, 20)])
    def test_pinv_scales_against_the_data(self, scale, n, m, rng, engine):
        F = rng.uniform(-1, 1, size=(n, m))
        got, _ = kernels.pinv(time_major(F[None] * scale), NOISE)
        np.testing.assert_allclose(got[0] * scale, reference.pinv(F, NOISE), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("exponent", range(-170, -70, 3))
    @pytest.mark.parametrize(("n", "m"), [(20, 4), (4, 20)])
    @pytest.mark.parametrize("cutoff", [("relative", 1e-2), ("rank", 3.0), ("energy", 0.9999)])
    def test_one_direction_that_nearly_underflows(self, exponent, n, m, rng, engine, cutoff):
        """Its products with the others are not zero, but their squares are, or are denormal."""
        X = with_singular_values(rng, n, m + 1, np.ones(min(n, m + 1)))
        (X.T if n > m else X)[0] *= 10.0**exponent
        got, _ = kernels.predict(time_major(X[None]), 1, cutoff)
        np.testing.assert_allclose(got[0], truth(X, 1, cutoff), rtol=0, atol=1e-9)
        inverse, _ = kernels.pinv(time_major(X[None, :, :-1]), cutoff)
        np.testing.assert_allclose(inverse[0], reference.pinv(X[:, :-1], cutoff), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-20, 1e20, 3e38])
    def test_float32(self, scale, rng, engine):
        X = (rng.uniform(-1, 1, size=(20, 5)) * scale).astype(np.float32)
        for steps in (1, 3):
            got, _ = kernels.predict(time_major(X[None]), steps, NOISE)
            expected = truth(X, steps, NOISE)
            atol = 1e-6 * np.abs(expected).max() + 3e-45
            np.testing.assert_allclose(got[0].astype(float), expected, rtol=0, atol=atol)

    def test_an_inverse_that_float32_cannot_hold_is_infinite(self, engine, rng):
        F = (rng.normal(size=(20, 4)) * 1e-41).astype(np.float32)
        got, _ = kernels.pinv(time_major(F[None]), ("relative", 1e-3))
        assert np.isinf(got).any()
        assert not np.isnan(got).any()

    @pytest.mark.parametrize("ratio", [1e-100, 1e100])
    def test_a_last_snapshot_of_another_scale(self, ratio, rng, engine):
        X = rng.normal(size=(20, 5))
        X[:, -1] *= ratio
        np.testing.assert_allclose(kernels.predict(time_major(X[None]), 1, NOISE)[0][0], truth(X, 1, NOISE), rtol=1e-9)


def test_results_are_aligned_and_of_the_data_type(dtype, rng, engine):
    for shape in ((20, 4), (4, 20)):
        X = time_major(rng.normal(size=(3, *shape)).astype(dtype))
        factors = kernels.fit(X, NOISE)
        results = (
            kernels.predict(X, 0, NOISE)[0], kernels.predict(X, 2, NOISE)[0], kernels.pinv(X, NOISE)[0],
            kernels.reconstruct(X, kernels.evolve(factors, np.array([1, 2]))),
        )  # fmt: skip
        for result in results:
            assert result.dtype == dtype
            assert aligned(result)
            assert result.flags.c_contiguous


def test_foreign_gram_matrices_and_coefficients_are_checked_for_size():
    with pytest.raises(ValueError, match=r"gram: expected \(B, 4, 4\) for n=50, m=3, got \(2, 3, 3\)"):
        kernels.solve(np.ones((2, 3, 3)), 50, 3, NOISE, np.float64)
    with pytest.raises(ValueError, match=r"coefficients: expected \(B, k, q\) with B = 1 and q <= 2 rows"):
        kernels.combine(np.ones((2, 1, 4)), np.ones((1, 1, 2000)))
    factors = kernels.fit(np.ones((4, 1, 5)), NOISE)
    for steps in ([0, 1], [3, 2]):
        with pytest.raises(ValueError, match="steps: expected ascending counts >= 1"):
            kernels.evolve(factors, np.array(steps))
