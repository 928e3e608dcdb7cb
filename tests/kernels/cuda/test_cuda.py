"""The CUDA contract against the reference: every shape, stride, scale, launch shape and kind of rank deficiency."""

import emulator
import numpy as np
import pytest
from cases import (
    EPS64,
    KERNEL_RULES,
    assert_states,
    dying,
    graded,
    orbit,
    pinv_bound,
    special_blocks,
    strided_views,
    time_major,
    with_singular_values,
)

from fastkoop.kernels import cpu, reference
from fastkoop.kernels.cuda import STRIP, arguments, instances, launch, split
from fastkoop.kernels.cuda import library as cuda_library
from fastkoop.kernels.plan import ROUTES

FULL, NOISE = ("relative", 1e-6), ("relative", 1e-4)
SHAPES = (
    (1, 1), (2, 1), (1, 2), (1, 31), (5, 2), (2, 5), (31, 31), (33, 31), (31, 33), (63, 1), (33, 63), (63, 33),
    (64, 64), (65, 64), (100, 8), (100, 63), (11, 200), (785, 8),
)  # fmt: skip


def words(cuda, route):
    return [ROUTES[r] for r in cuda.driver.host(route)]


@pytest.mark.parametrize("n, m", SHAPES)
class TestPredict:
    @pytest.mark.parametrize("steps", [1, 7])
    def test_full_rank(self, cuda, on, rng, n, m, steps, dtype):
        X = orbit(rng, n, m, dtype, batch=(4,))
        states, route = cuda.predict(on(cuda, time_major(X)), steps, FULL)
        assert_states(cuda.driver.host(states), X, steps, FULL)
        assert set(words(cuda, route)) <= {"cholesky", "eigen", "svd"}

    @pytest.mark.parametrize("steps", [1, 3])
    def test_truncated(self, cuda, on, rng, n, m, steps, dtype):
        X = np.stack([graded(rng, n, m, dtype, low=1e-7), orbit(rng, n, m, dtype), dying(rng, n, m, dtype)])
        rule = ("relative", 3.3e-4)
        states, _ = cuda.predict(on(cuda, time_major(X)), steps, rule)
        assert_states(cuda.driver.host(states), X, steps, rule)


class TestRules:
    @pytest.mark.parametrize("rule", [("relative", 2e-3), *KERNEL_RULES[1:]], ids=str)  # 1e-3 is one of the values
    @pytest.mark.parametrize("n, m", [(40, 9), (9, 40)])
    def test_every_rule_counts_as_on_a_cpu(self, cuda, on, rng, rule, n, m, dtype):
        X = np.stack([graded(rng, n, m, dtype) for _ in range(3)])
        factors, expected = cuda.fit(on(cuda, time_major(X)), rule), cpu.fit(time_major(X), rule)
        for name in ("rank", "edge"):
            assert cuda.driver.host(getattr(factors, name)).tolist() == getattr(expected, name).tolist()
        for name in ("threshold", "largest", "smallest"):
            found = cuda.driver.host(getattr(factors, name))
            np.testing.assert_allclose(found, getattr(expected, name), rtol=1e-6, atol=1e-12)
        states, _ = cuda.predict(on(cuda, time_major(X)), 2, rule)
        assert_states(cuda.driver.host(states), X, 2, rule)

    def test_refine_takes_the_data_itself(self, cuda, on, rng, dtype):
        X = orbit(rng, 20, 6, dtype, batch=(2,))
        factors = cuda.fit(on(cuda, time_major(X)), FULL, refine=True)
        assert words(cuda, factors.route) == ["svd"] * 2
        states = cuda.reconstruct(on(cuda, time_major(X)), cuda.evolve(factors, np.array([2])))[0]
        assert_states(cuda.driver.host(states), X, 2, FULL)

    @pytest.mark.parametrize("n, m", [(90, 16), (90, 32), (32, 90), (90, 33)])
    @pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-7, 1e-3])
    def test_singular_values_side_by_side(self, emulated, rng, n, m, apart, dtype):
        """Jacobi turns by twenty bits of an angle, and all last turns at once where rows differ in length: not here."""
        order, rule = min(n, m), ("relative", 0.3)
        values = np.repeat([1.0, 1e-5], [order // 2, order - order // 2]) * (1.0 + apart * np.arange(order))
        F = with_singular_values(rng, n, m, values)
        X = np.c_[F, rng.normal(size=n) / np.sqrt(n)].astype(dtype)[None]
        factors = emulated().fit(time_major(X), rule)
        assert factors.rank.tolist() == [order // 2] and words(emulated(), factors.route) == ["eigen"]
        states, _ = emulated().predict(time_major(X), 2, rule)
        assert_states(states, X, 2, rule)

    @pytest.mark.parametrize("n, m", [(40, 9), (9, 40), (12, 11), (12, 12), (70, 66)])
    @pytest.mark.parametrize("condition", [1e7, 1e10])
    def test_errs_by_the_condition_not_by_its_square(self, cuda, on, n, m, condition):
        for seed in range(2):
            rng = np.random.default_rng(seed)
            F = with_singular_values(rng, n, m, np.geomspace(1, 1 / condition, min(n, m)))
            X = np.c_[F, F @ rng.normal(size=m) / np.sqrt(m)]
            data, rule = on(cuda, time_major(X[None])), ("relative", 1e-14)
            factors, expected = cuda.fit(data, rule), reference.predict(X, 1, rule)
            assert words(cuda, factors.route) == ["svd"]
            states = cuda.reconstruct(data, cuda.evolve(factors, np.array([1])))[0], cuda.predict(data, 1, rule)[0]
            for state in states:
                error = np.linalg.norm(cuda.driver.host(state)[0] - expected)
                assert error <= 32 * EPS64 * condition * np.linalg.norm(expected - X[:, -1])


class TestSpecialBlocks:
    @pytest.mark.parametrize("n, m", [(33, 9), (9, 33), (1, 9)])
    @pytest.mark.parametrize("steps", [1, 5])
    def test_one_batch_of_them(self, cuda, on, rng, n, m, steps, dtype):
        blocks = special_blocks(rng, n, m, dtype)
        X = np.stack(list(blocks.values()))
        states, route = cuda.predict(on(cuda, time_major(X)), steps, NOISE)
        assert_states(cuda.driver.host(states), X, steps, NOISE)
        ways = dict(zip(blocks, words(cuda, route), strict=True))
        assert ways["zero"] == "zero" and ways["constant"] == "constant"

    @pytest.mark.parametrize("n, m", [(33, 9), (9, 33), (1, 9), (70, 66)])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("where", ["first", "middle", "last"])
    def test_a_bad_block_stays_alone(self, cuda, on, rng, n, m, bad, where, dtype):
        X = orbit(rng, n, m, dtype, batch=(3,))
        X[1, -1, {"first": 0, "middle": m // 2, "last": m}[where]] = bad
        states, route = cuda.predict(on(cuda, time_major(X)), 2, FULL)
        states = cuda.driver.host(states)
        assert np.isnan(states[1]).all() and words(cuda, route)[1] == "non-finite"
        assert_states(states[::2], X[::2], 2, FULL)
        last, route = cuda.predict(on(cuda, time_major(X)), 0, FULL)
        assert words(cuda, route) == ["zero", "non-finite", "zero"]
        assert np.array_equal(cuda.driver.host(last)[::2], X[::2, :, -1])

    def test_empty_batches(self, cuda, on):
        for n, m in ((5, 3), (3, 5), (1, 4), (80, 70)):
            states, route = cuda.predict(on(cuda, np.zeros((m + 1, 0, n), np.float32)), 2, FULL)
            assert states.shape == (0, n) and len(route) == 0
            inverses, _ = cuda.pinv(on(cuda, np.zeros((m, 0, n), np.float32)), FULL)
            assert inverses.shape == (0, m, n)
            assert cuda.fit(on(cuda, np.zeros((m + 1, 0, n), np.float32)), FULL).rank.shape == (0,)


class TestFourSteps:
    @pytest.mark.parametrize("n, m", [(40, 9), (9, 40), (31, 31), (64, 1), (70, 66)])
    def test_gram_solve_evolve_lift(self, cuda, on, rng, n, m, dtype):
        X = np.stack([[graded(rng, n, m, dtype, 0.1) for _ in range(2)] for _ in range(2)])
        data = on(cuda, time_major(X))
        S = cuda.gram(data)
        np.testing.assert_allclose(
            cuda.driver.host(S)[3], reference.gram(X[1, 1]), rtol=1e-6 if cuda.device.capability == (7, 5) else 1e-12,
            atol=1e-9,
        )  # fmt: skip
        factors = cuda.solve(S, n, m, FULL, dtype)
        steps = np.array([1, 4, 4, 90])
        states = cuda.driver.host(cuda.reconstruct(data, cuda.evolve(factors, steps)))
        for k, T in enumerate(steps):
            assert_states(states[k].reshape(2, 2, n), X, int(T), FULL)
        y = cuda.advance(factors, factors.start, 3)
        rows = cuda.reconstruct(data, cuda.xp.ascontiguousarray(factors.readout.transpose(0, 2, 1)))
        walked = cuda.driver.host(cuda.combine(rows, y[:, None]))[0]
        assert_states(walked.reshape(2, 2, n), X, 4, FULL)

    def test_gram_adds_over_shards(self, cuda, on, rng):
        X = orbit(rng, 40, 9, np.float64, batch=(2,))
        data = time_major(X)
        parts = [cuda.gram(on(cuda, data[..., some]), "snapshots") for some in (slice(0, 5), slice(5, 40))]
        np.testing.assert_allclose(cuda.driver.host(parts[0] + parts[1])[0], reference.gram(X[0]), rtol=1e-12)

    def test_long_gaps_are_squared(self, cuda, on, rng):
        X = orbit(rng, 8, 5, np.float64, batch=(2,), decay=0.9999)
        factors = cuda.fit(on(cuda, time_major(X)), FULL)
        states = cuda.driver.host(cuda.reconstruct(on(cuda, time_major(X)), cuda.evolve(factors, np.array([3, 5000]))))
        assert_states(states[1], X, 5000, FULL)

    @pytest.mark.parametrize("steps", [[2, 5, 8, 11], [1, 1, 2, 6], list(np.cumsum(np.arange(1, 71) % 3))])
    def test_even_and_uneven_counts(self, cuda, on, rng, steps):
        X = orbit(rng, 8, 5, np.float64, batch=(2,))
        factors = cuda.fit(on(cuda, time_major(X)), FULL)
        states = cuda.driver.host(cuda.reconstruct(on(cuda, time_major(X)), cuda.evolve(factors, np.array(steps))))
        for k, T in enumerate(steps):
            assert_states(states[k], X, int(T), FULL)

    def test_counts_come_by_value_and_belong_to_their_call(self, emulated, rng, monkeypatch):
        """So a graph that captured a call may be replayed whatever was called since."""
        cuda = emulated()
        factors = cuda.fit(time_major(orbit(rng, 8, 5, np.float64, batch=(1,))), FULL)
        before, kept, launch = dict(vars(cuda)), [], cuda.driver.launch

        def noted(name, *how):
            kept.append((name, how[-1]))
            launch(name, *how)

        monkeypatch.setattr(cuda.driver, "launch", noted)
        monkeypatch.setattr(cuda.xp.__class__, "asarray", None, raising=False)  # nothing comes from the host
        lists = [np.array([1, 2, 4 + k]) for k in range(70)]
        for steps in lists:
            cuda.evolve(factors, steps)
        assert vars(cuda) == before
        read = [how[3] for name, how in kept if name == "fastkoop::evolve"]  # arguments as a graph keeps them
        for steps, counts in zip(lists, read, strict=True):
            assert np.array_equal(counts, steps)
        written = [how[0]["at"][:3] for name, how in kept if name == "fastkoop::write_counts"]
        assert np.array_equal(written, lists)

    @pytest.mark.parametrize("n, m", [(20, 6), (6, 20)])
    def test_one_step_needs_no_operator(self, emulated, rng, monkeypatch, n, m):
        X, cuda = graded(rng, n, m, np.float32, low=1e-7)[None], emulated()
        launch, written = cuda.driver.launch, []

        def noted(name, *how):
            if "solve<" in name:
                written.append(int(how[-1][-1]["op"]))
            launch(name, *how)

        monkeypatch.setattr(cuda.driver, "launch", noted)
        for steps in (1, 3):
            states, _ = cuda.predict(time_major(X), steps, ("relative", 3.3e-4))
            assert_states(states, X, steps, ("relative", 3.3e-4))
        assert written[0] == 0 and written[1] != 0

    def test_what_a_gram_matrix_cannot_say_is_unresolved(self, cuda, on, rng):
        X = graded(rng, 40, 8, np.float64, low=1e-9)[None]
        factors = cuda.solve(cuda.gram(on(cuda, time_major(X))), 40, 8, ("relative", 1e-10), np.float64)
        assert words(cuda, factors.route) == ["unresolved"] and bool(factors.edge[0])

    def test_wrong_shapes_are_errors(self, cuda):
        with pytest.raises(ValueError, match="gram: expected"):
            cuda.solve(cuda.xp.zeros((1, 3, 3)), 5, 3, FULL, np.float32)
        with pytest.raises(ValueError, match="coefficients: expected"):
            cuda.combine(cuda.xp.zeros((3, 2, 4)), cuda.xp.zeros((2, 1, 5)))
        with pytest.raises(ValueError, match="steps: expected ascending"):
            cuda.evolve(cuda.fit(cuda.xp.ones((3, 1, 4)), FULL), np.array([2, 1]))
        with pytest.raises(ValueError, match="side: expected"):
            cuda.gram(cuda.xp.zeros((3, 2, 4)), "rows")


@pytest.mark.parametrize("n, m", [(1, 1), (40, 9), (9, 40), (31, 31), (785, 5), (5, 785), (70, 66)])
class TestPinv:
    @pytest.mark.parametrize("low", [1e-1, 1e-7])
    def test_is_the_references(self, cuda, on, rng, n, m, low, dtype):
        X = np.stack([graded(rng, n, m, dtype, low)[:, :-1] for _ in range(3)])
        rule = ("relative", 3.3e-4)
        inverses, _ = cuda.pinv(on(cuda, time_major(X)), rule)
        for F, inverse in zip(X, cuda.driver.host(inverses), strict=True):
            error = np.linalg.norm(inverse - reference.pinv(F, rule))
            assert error <= pinv_bound(F, rule, dtype)

    def test_special_blocks(self, cuda, on, rng, n, m, dtype):
        if dtype == np.float64 and (n == m or min(n, m) > 64):
            blocks = special_blocks(rng, n, m, np.float64)
        else:
            blocks = special_blocks(rng, n, m, dtype)
        for name, X in blocks.items():
            F = X[:, :-1]
            inverse = cuda.driver.host(cuda.pinv(on(cuda, time_major(F[None])), NOISE)[0])[0]
            with np.errstate(over="ignore"):
                expected = reference.pinv(F, NOISE).astype(F.dtype)
            if np.isfinite(expected).all():
                assert np.linalg.norm(inverse.astype(float) - expected) <= pinv_bound(F, NOISE, F.dtype), name

    def test_nan_stays_alone(self, cuda, on, rng, n, m, dtype):
        X = np.stack([graded(rng, n, m, dtype, 1e-1)[:, :-1] for _ in range(2)])
        X[0, 0, 0] = np.nan
        inverses, route = cuda.pinv(on(cuda, time_major(X)), NOISE)
        assert words(cuda, route)[0] == "non-finite" and np.isnan(cuda.driver.host(inverses)[0]).all()
        assert np.isfinite(cuda.driver.host(inverses)[1]).all()


class TestLayout:
    @pytest.mark.parametrize("n, m", [(40, 9), (9, 40), (1, 9), (32, 7)])
    def test_every_stride(self, cuda, on, rng, n, m, dtype):
        X = orbit(rng, n, m, dtype, batch=(5,))
        for name, view in strided_views(time_major(X)).items():
            before = view.copy()
            states, _ = cuda.predict(on(cuda, view), 2, FULL)
            assert_states(cuda.driver.host(states), X, 2, FULL, name)
            assert np.array_equal(view, before)

    def test_batches_of_many_axes(self, cuda, on, rng):
        X = orbit(rng, 6, 3, np.float64, batch=(2, 3, 2, 2))
        view = np.moveaxis(X, -1, 0)[:, :, ::2].swapaxes(1, 3)
        states, _ = cuda.predict(on(cuda, view), 2, FULL)
        expected = np.moveaxis(view, 0, -1).reshape(-1, 6, 4)
        assert_states(cuda.driver.host(states), expected, 2, FULL)

    def test_axes_merge_where_they_can(self):
        layout = arguments.layout_of(np.zeros((4, 2, 3, 5, 6), np.float32))
        assert (
            layout.dtype == arguments.LAYOUT
            and layout["extents"].tolist() == [1, 1, 1, 30]
            and layout["strides"][3] == 6
        )
        assert layout["time"] == 180 and layout["weight"] == 1

    def test_too_many_axes_are_an_error(self):
        with pytest.raises(ValueError, match="at most 4 axes"):
            arguments.layout_of(np.zeros((2, *[4] * 5, 3))[:, ::2, ::2, ::2, ::2, ::2])

    def test_rows_are_copied_as_vectors_where_lines_lie_side_by_side(self, emulated, rng):
        cuda, X = emulated(), orbit(rng, 64, 5, np.float32, batch=(3,))
        data = np.ascontiguousarray(time_major(X))
        assert cuda._tiled("predict", data, 64, 5, False, FULL)[2]["vectors"]
        assert cuda._tiled("predict", data[..., 1:], 63, 5, False, FULL)[2]["vectors"]
        assert not cuda._tiled("predict", data[..., ::2], 32, 5, False, FULL)[2]["vectors"]
        assert not cuda._tiled("predict", data, 64, 5, True, FULL)[2]["vectors"]

    @pytest.mark.parametrize("n, m", [(41, 6), (6, 41), (3, 50)])
    @pytest.mark.parametrize("start", range(4))
    def test_rows_may_begin_anywhere_within_16_bytes(self, cuda, on, rng, n, m, start, dtype):
        X = orbit(rng, n, m, dtype, batch=(3,))
        for axes in ((0, 1, 2), (2, 0, 1)):  # rows of snapshots, of weights; of an odd length and start
            memory = np.zeros(start + X.size + 1, dtype)
            data = memory[start:-1].reshape([X.shape[axis] for axis in axes])
            data[...] = X.transpose(axes)
            view = time_major(data.transpose(np.argsort(axes)))
            assert_states(cuda.driver.host(cuda.predict(on(cuda, view), 1, FULL)[0]), X, 1, FULL)


class TestBits:
    @pytest.mark.parametrize("n, m", [(100, 8), (40, 33), (9, 40), (1, 5)])
    @pytest.mark.parametrize("low", [1e-1, 1e-7])
    def test_do_not_depend_on_the_batch_or_the_slice(self, emulated, rng, n, m, low, dtype):
        X = np.ascontiguousarray(time_major(np.stack([graded(rng, n, m, dtype, low) for _ in range(7)])))
        whole = emulated().predict(X, 3, NOISE)[0]
        sliced = emulated()
        slices = [sliced.predict(X[:, b : b + 1], 3, NOISE)[0][0] for b in range(7)]
        assert np.array_equal(whole, np.stack(slices))

    def test_slices_are_taken_where_the_workspace_is_small(self, emulated, rng):
        X = np.ascontiguousarray(time_major(np.stack([graded(rng, 9, 8, np.float64, 1e-7) for _ in range(9)])))
        small = emulated()
        small.workspace = 1  # as much as the data itself, which is less than the matrices here
        states = small.predict(X, 3, NOISE)[0]
        assert sum(name.startswith("fastkoop::predict<") for name, *_ in small.driver.launched) > 1
        assert np.array_equal(states, emulated().predict(X, 3, NOISE)[0])

    @pytest.mark.parametrize("n, m", [(100, 8), (40, 33), (9, 40), (33, 31)])
    def test_do_not_depend_on_the_order_of_threads(self, emulated, rng, n, m, dtype):
        X = np.stack([graded(rng, n, m, dtype, low) for low in (1e-1, 1e-7)])
        X = np.concatenate([X, dying(rng, n, m, dtype)[None]])
        results = []
        for order in range(3):
            cuda = emulated(order)
            factors = cuda.fit(time_major(X), NOISE)
            states = [cuda.predict(time_major(X), steps, NOISE)[0] for steps in (1, 4)]
            results.append([*states, cuda.pinv(time_major(X[:, :, :-1]), NOISE)[0], factors.operator, factors.basis])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert np.array_equal(a, b, equal_nan=True)


class TestLongBlocks:
    @pytest.mark.parametrize("n, m", [(900, 5), (5, 900)])
    @pytest.mark.parametrize("steps", [1, 3])
    def test_are_shared_by_ctas(self, emulated, rng, monkeypatch, n, m, steps, dtype):
        monkeypatch.setattr(launch, "LONG_BLOCK", 1000)
        monkeypatch.setattr(launch, "SHARE_LINES", 200)
        X = np.stack([orbit(rng, n, m, dtype), dying(rng, n, m, dtype), np.full((n, m + 1), np.nan, dtype)])
        cuda = emulated(device=emulated().device._replace(shared=16_000, shared_total=17_000))
        states, route = cuda.predict(time_major(X), steps, FULL)
        shares = [grid[0] for name, grid, *_ in cuda.driver.launched if name.startswith("fastkoop::gram")]
        assert shares[0] > 1
        assert_states(states[:2], X[:2], steps, FULL)
        assert np.isnan(states[2]).all() and words(cuda, route)[2] == "non-finite"
        assert words(cuda, route)[0] == ("cholesky" if n > m or steps == 1 else "eigen")  # the certificate is tried
        assert words(cuda, route)[1] in ("eigen", "svd")

    @pytest.mark.parametrize("n, m", [(600, 40), (40, 600), (600, 64), (64, 600)])
    def test_of_many_rows_are_certified(self, emulated, rng, monkeypatch, n, m):
        cuda = long_blocks(emulated, monkeypatch)
        X = np.stack([graded(rng, n, m, np.float32, 0.1), dying(rng, n, m, np.float32)])
        states, route = cuda.predict(time_major(X), 1, FULL)
        assert f"fastkoop::certify<{2 if min(n, m) == 40 else 3}>" in {name for name, *_ in cuda.driver.launched}
        assert words(cuda, route)[0] == "cholesky"
        assert_states(states, X, 1, FULL)


def long_blocks(emulated, monkeypatch):
    """The contract where blocks of 600 x 40 or 4000 x 20 are shared by several CTAs."""
    monkeypatch.setattr(launch, "LONG_BLOCK", 1000)
    monkeypatch.setattr(launch, "SHARE_LINES", 200)
    return emulated(device=emulator.H200._replace(shared=140_000, shared_total=142_000))


def test_every_instance_answers(emulated, rng, monkeypatch, dtype):
    """No kernel of the list is left to the first device that it meets."""
    cuda, rule = emulated(), ("relative", 3.3e-2)
    for n, m in ((1, 9), (90, 4), (90, 12), (90, 20), (70, 36), (66, 64)):
        X = graded(rng, n, m, dtype, low=1e-3)[None]
        assert_states(cuda.predict(time_major(X), 3, rule)[0], X, 3, rule)
        assert np.isfinite(cuda.pinv(time_major(X[..., :-1]), rule)[0]).all()
        steps = np.array([1, 2, 5])
        states = cuda.reconstruct(time_major(X), cuda.evolve(cuda.fit(time_major(X), rule), steps))
        for state, T in zip(states, steps, strict=True):
            assert_states(state, X, int(T), rule)
    source, strips = np.ones((4, 8), dtype), np.zeros(1, STRIP)
    strips[0] = (source.ctypes.data, 0, 4, 8, 8, 1, 8)
    for to in (np.float32, np.float64):
        cuda.record(split(strips, dtype.itemsize).view(np.uint8), dtype, row := np.zeros(32, to))
        assert (row == 1.0).all()
    shared = long_blocks(emulated, monkeypatch)
    for n, m in ((2000, 20), (600, 40), (600, 64)) if dtype == np.float32 else ():
        X = graded(rng, n, m, dtype, low=0.3)[None]
        assert_states(shared.predict(time_major(X), 1, rule)[0], X, 1, rule)
    launched = {name for name, *_ in (*cuda.driver.launched, *shared.driver.launched)}
    other = ("<double",) if dtype == np.float32 else ("<float", "certify", "add_parts")
    assert launched == {name for name in instances(emulator.H200) if not any(word in name for word in other)}


class TestLibrary:
    def test_large_blocks_never_reach_the_kernels(self, emulated, rng, dtype):
        X, cuda = orbit(rng, 90, 70, dtype, batch=(2,)), emulated()
        assert cuda.plan(2, 90, 70, dtype).engine == "library"
        states, _ = cuda.predict(time_major(X), 3, FULL)
        assert_states(states, X, 3, FULL)
        assert {name.split("<")[0] for name, *_ in cuda.driver.launched} <= {"fastkoop::combine"}

    @pytest.mark.parametrize("n, m", [(12, 5), (5, 12)])
    def test_agrees_with_the_kernels(self, emulated, rng, n, m, dtype):
        blocks = special_blocks(rng, n, m, dtype)
        X = np.stack([*blocks.values(), orbit(rng, n, m, dtype)])
        cuda = emulated()
        mine, theirs = cuda.fit(time_major(X), NOISE), cuda_library.fit(cuda, time_major(X), NOISE, False)
        assert mine.rank.tolist() == theirs.rank.tolist()
        states = cuda.reconstruct(time_major(X), cuda_library.evolve(cuda, theirs, np.array([1, 3])))
        for k, steps in enumerate((1, 3)):
            assert_states(states[k], X, steps, NOISE)


class TestRecord:
    @pytest.mark.parametrize("to", [np.float32, np.float64])
    def test_rows_and_biases_in_one_launch(self, cuda, on, rng, dtype, to):
        weights, biases = rng.normal(size=(20, 11)).astype(dtype), rng.normal(size=20).astype(dtype)
        weights_there, biases_there = on(cuda, weights), on(cuda, biases)
        strips = np.zeros(2, STRIP)
        strips[0] = (cuda.driver.address(weights_there), 3, 20, 11, 11, 1, 12)
        strips[1] = (cuda.driver.address(biases_there), 3 + 11, 20, 1, 1, 1, 12)
        buffer = cuda.xp.zeros((2, 3 + 20 * 12), to)
        there = cuda.xp.asarray(split(strips, dtype.itemsize).view(np.uint8))
        cuda.record(there, dtype, buffer[1])
        packed = cuda.driver.host(buffer)
        assert not packed[0].any() and not packed[1, :3].any()
        np.testing.assert_array_equal(packed[1, 3:].reshape(20, 12)[:, :11], weights.astype(to))
        np.testing.assert_array_equal(packed[1, 3:].reshape(20, 12)[:, 11], biases.astype(to))

    def test_subnormal_numbers_are_kept(self, cuda, on, dtype):
        weights = np.array([[1e-40, -3e-45, 1e-38, 0.0]], dtype)
        for to in (np.float32, np.float64):
            there, row = on(cuda, weights), cuda.xp.empty(4, to)
            strips = np.array([(cuda.driver.address(there), 0, 1, 4, 4, 1, 4)], STRIP)
            cuda.record(cuda.xp.asarray(split(strips, dtype.itemsize).view(np.uint8)), dtype, row)
            np.testing.assert_array_equal(cuda.driver.host(row), weights[0].astype(to))

    def test_large_parameters_are_cut_among_ctas(self, emulated, rng, monkeypatch):
        monkeypatch.setattr(arguments, "STRIP_NUMBERS", 48)
        cuda, weights = emulated(), rng.normal(size=(9, 70))
        strips = np.array([(weights.ctypes.data, 5, 9, 70, 70, 1, 80)], STRIP)
        parts = split(strips, 8)
        assert len(parts) == 18 and max(parts["rows"] * parts["columns"]) <= 48
        buffer = np.full(5 + 9 * 80, np.nan)
        cuda.record(parts.view(np.uint8), np.float64, buffer)
        packed = buffer[5:].reshape(9, 80)
        assert np.isnan(buffer[:5]).all() and np.isnan(packed[:, 70:]).all()
        np.testing.assert_array_equal(packed[:, :70], weights)


def test_reports_of_large_batches_stay_on_the_device(cuda, on, rng):
    X = orbit(rng, 20, 4, np.float32, batch=(3,))
    factors = cuda.fit(on(cuda, time_major(X)), FULL)
    assert all(type(array) is type(cuda.xp.zeros(1)) for array in factors)
    values = cuda.driver.host(cuda.eigenvalues(factors))
    expected = np.linalg.eigvals(reference.fit(X[0], FULL))
    assert abs(np.abs(values[0]).max() - np.abs(expected).max()) < 1e-3
    clipped, condition = cuda.clip(factors, 0.5)
    assert np.abs(cuda.driver.host(cuda.eigenvalues(clipped))).max() <= 0.5 + 1e-9
    assert (cuda.driver.host(condition) >= 1.0).all()
