"""fastkoop's public door over a CUDA backend: emulated, and real arrays of CuPy and PyTorch (pytest -m gpu)."""

import contextlib

import numpy as np
import pytest
from cases import assert_states, graded, orbit

import fastkoop as fk
from fastkoop.interop import arrays
from fastkoop.interop.place import Place


@pytest.fixture
def door(emulated, monkeypatch):
    """Arrays of NumPy that the public functions take to an emulated device."""
    cuda = emulated()
    for module in ("linalg", "operator"):
        monkeypatch.setattr(f"fastkoop.{module}.backend_for", lambda place: cuda)
    return cuda


@pytest.mark.parametrize("n, m", [(30, 7), (7, 30), (1, 4), (70, 66)])
class TestEmulated:
    def test_predict_and_pinv(self, door, rng, n, m, dtype):
        X = orbit(rng, n, m, dtype, batch=(2, 3))
        assert_states(fk.predict(X, 3, cutoff=1e-6), X, 3, ("relative", 1e-6))
        F = X[..., :-1]
        out = np.full((2, 3, m, n), np.nan, dtype)
        assert fk.pinv(F, cutoff=1e-6, out=out) is out
        for index in np.ndindex(2, 3):
            assert np.linalg.norm(F[index] @ out[index] @ F[index] - F[index]) < 1e-3 * np.linalg.norm(F[index])

    def test_operators_agree_with_the_cpu(self, door, rng, n, m, dtype):
        X = np.stack([graded(rng, n, m, dtype, 0.2), orbit(rng, n, m, dtype)])
        op, steps = fk.fit(X, cutoff=1e-3), [4, 0, 1, 4]
        with pytest.MonkeyPatch.context() as plain:
            for module in ("linalg", "operator"):
                plain.setattr(f"fastkoop.{module}.backend_for", fk.backends.backend_for)
            expected = fk.fit(X, cutoff=1e-3)
        close = {"rtol": 2e-4, "atol": 2e-5}
        for name in ("rank", "threshold", "condition", "edge", "spectral_radius", "residual", "holdout"):
            np.testing.assert_allclose(getattr(op, name), getattr(expected, name), err_msg=name, **close)
        np.testing.assert_allclose(op.predict(steps), expected.predict(steps), **close)
        np.testing.assert_allclose(op.matrix(), expected.matrix(), **close)
        assert np.array_equal(op.route, expected.route)
        walk, other = op.walk(), expected.walk()
        for count in (1, 3):
            np.testing.assert_allclose(walk.step(count), other.step(count), **close)
        np.testing.assert_allclose(walk.step(1, ahead=4), other.step(1), **close)
        assert "rank" in op.summary() and "KoopmanOperator(2 blocks" in repr(op)
        assert op.modes.shape[:2] == (2, n)

    @pytest.mark.parametrize(("observables", "stabilize"), [
        (fk.Affine(), None), (fk.Affine(), "project"), ((fk.Delay(2), fk.Affine()), None), ("identity", "project"),
        ("identity", None),
    ])  # fmt: skip
    def test_observables_agree_with_the_cpu(self, door, rng, n, m, dtype, observables, stabilize):
        X = np.stack([graded(rng, n, m, dtype, 1e-9 if dtype == np.float64 else 0.2), orbit(rng, n, m, dtype)])
        options = {"cutoff": 1e-3, "observables": observables, "stabilize": stabilize, "out_of_span": "carry"}
        op = fk.fit(X, **options)
        with pytest.MonkeyPatch.context() as plain:
            plain.setattr("fastkoop.operator.backend_for", fk.backends.backend_for)
            expected = fk.fit(X, **options)
        close = {"rtol": 2e-4, "atol": 2e-5}
        for name in ("rank", "threshold", "edge", "spectral_radius", "residual"):
            np.testing.assert_allclose(getattr(op, name), getattr(expected, name), err_msg=name, **close)
        np.testing.assert_allclose(op.predict([2, 0, 1]), expected.predict([2, 0, 1]), **close)
        np.testing.assert_allclose(op.walk().step(2), expected.predict(2), **close)
        np.testing.assert_allclose(op.matrix(), expected.matrix(), **close)
        assert np.array_equal(op.route, expected.route)

    def test_clipped(self, door, rng, n, m, dtype):
        X = orbit(rng, n, m, dtype, batch=(2,), decay=1.05)
        op = fk.fit(X, cutoff=1e-3, stabilize="clip")
        assert (op.spectral_radius <= 1.0 + 1e-6).all() and (op.eigenvector_condition >= 1.0).all()

    def test_no_blocks(self, door, n, m, dtype):
        op = fk.fit(np.zeros((0, n, m + 1), dtype))
        assert op.predict([1, 2]).shape == (0, n, 2) and op.residual.shape == op.spectral_radius.shape == (0,)
        assert repr(op) and op.summary()


@pytest.mark.parametrize(("n", "lengths"), [(6, (9, 4, 12)), (30, (5, 3, 7)), (8, (5, 5)), (3, (40, 3, 25))])
@pytest.mark.parametrize("observables", ["identity", fk.Affine(), (fk.Delay(2), fk.Affine())], ids=str)
def test_pools_agree_with_the_cpu_and_with_the_stacked_pairs(door, rng, n, lengths, observables, dtype):
    Xs = [np.stack([graded(rng, n, m, dtype, 0.2), orbit(rng, n, m, dtype)]) for m in lengths]
    weights, close = rng.uniform(0.5, 2.0, len(lengths)), {"rtol": 2e-4, "atol": 2e-5}
    op = fk.fit(Xs, cutoff=1e-3, observables=observables, weights=weights)
    with pytest.MonkeyPatch.context() as plain:
        for module in ("linalg", "operator"):
            plain.setattr(f"fastkoop.{module}.backend_for", fk.backends.backend_for)
        expected = fk.fit(Xs, cutoff=1e-3, observables=observables, weights=weights)
    for name in ("rank", "threshold", "residual", "holdout", "spectral_radius"):
        np.testing.assert_allclose(getattr(op, name), getattr(expected, name), err_msg=name, **close)
    np.testing.assert_allclose(op.predict([0, 1, 4]), expected.predict([0, 1, 4]), **close)
    if observables == "identity":
        sides = (np.concatenate([X[..., side] for X in Xs], axis=-1) for side in (slice(-1), slice(1, None)))
        F, Fp = (side * np.sqrt(np.repeat(weights, lengths)) for side in sides)
        for b in range(2):
            K = Fp[b].astype(float) @ np.linalg.pinv(F[b].astype(float), rcond=1e-3)
            np.testing.assert_allclose(op.predict(1)[b], K @ Xs[-1][b, :, -1].astype(float), **close)


def test_bad_blocks_are_named_when_asked(door, rng):
    X = orbit(rng, 9, 4, np.float32, batch=(3,))
    X[1, 2, 3] = np.inf
    op = fk.fit(X, check_finite=False)
    assert np.isnan(op.predict(2)[1]).all() and np.isfinite(op.predict(2)[[0, 2]]).all()
    with pytest.raises(ValueError, match="1"):
        op.check()


class There:
    """An array on the emulated device `device`, of a kind of its own."""

    def __init__(self, memory, device=0):
        self.memory, self.device = memory, device


class Watch:
    """Whether the caller's stream is current, what is launched on it, and how often the host waits for the device."""

    def __init__(self, driver, monkeypatch):
        self.inside, self.memory, self.waits = False, [], 0
        launch, host = driver.launch, driver.host

        def launched(name, grid, threads, shared, arguments):
            assert self.inside, f"{name} was launched on another stream"
            self.memory += [a.ctypes.data for a in arguments if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
            launch(name, grid, threads, shared, arguments)

        def waited(array):
            self.waits += 1
            return host(array)

        monkeypatch.setattr(driver, "launch", launched)
        monkeypatch.setattr(driver, "host", waited)

    @contextlib.contextmanager
    def scope(self):
        self.inside = True
        yield
        self.inside = False


@pytest.fixture
def watch(door, monkeypatch):
    """Arrays `There` are on the device, as CuPy's would be."""
    watch, read = Watch(door.driver, monkeypatch), arrays.read

    def read_there(x, name="X"):
        if not isinstance(x, There):
            return read(x, name)
        return arrays.Array(x.memory, "there", There, Place("cuda", x.device), watch.scope)

    monkeypatch.setattr(arrays, "read", read_there)
    return watch


@pytest.mark.parametrize("n, m", [(30, 7), (7, 30), (1, 4)])
class TestOnItsStream:
    """All work is on the caller's stream, in the caller's memory, and nothing waits for it."""

    def test_nothing_waits_and_nothing_is_copied(self, watch, rng, n, m, dtype):
        X = orbit(rng, n, m, dtype, batch=(2, 3))
        for there in (There(X), There(np.ascontiguousarray(np.moveaxis(X, -1, 0)))):
            axis = 0 if there.memory.shape[0] == m + 1 and n != 2 else -1
            begin = there.memory.ctypes.data
            op = fk.fit(there, cutoff=1e-6, time_axis=axis)
            results = [fk.predict(there, 3, cutoff=1e-6, time_axis=axis), op.predict(2), op.predict([4, 0, 1])]
            assert begin in watch.memory
            results += [op.walk().step(), op.rank, op.edge, op.residual, op.holdout, op.threshold]
            assert all(type(result) is There for result in results)
            assert watch.waits == 0
            assert results[0].memory.ctypes.data in watch.memory
            assert_states(results[0].memory, X, 3, ("relative", 1e-6))
        watch.memory.clear()
        inverses = fk.pinv(There(X), cutoff=1e-6)
        assert {X.ctypes.data, inverses.memory.ctypes.data} <= set(watch.memory) and watch.waits == 0

    def test_reports_and_spectra(self, watch, rng, n, m, dtype):
        op = fk.fit(There(orbit(rng, n, m, dtype, batch=(2,))), cutoff=1e-3, stabilize="clip")
        for name in ("eigenvalues", "modes", "condition", "spectral_radius", "eigenvector_condition"):
            assert type(getattr(op, name)) is There
        assert type(op.matrix()) is There and op.summary() and repr(op) and op.route.shape == (2,)

    def test_bad_and_unstable_blocks_are_silent(self, watch, rng, n, m, dtype):
        X = orbit(rng, n, m, dtype, batch=(3,))
        X[1, -1, -1], X[2] = np.nan, 3.0 ** np.arange(m + 1) * 1e-9
        states, op = fk.predict(There(X), 10_000).memory, fk.fit(There(X))
        assert np.isnan(states[1]).all() and np.isfinite(states[0]).all() and np.isinf(states[2]).all()
        assert not np.isfinite(op.walk().step(10_000).memory[2]).any()
        assert watch.waits == 0
        with pytest.raises(fk.InputError, match=r"block \(1,\) holds a NaN"):
            op.check()

    def test_out(self, watch, rng, n, m, dtype):
        X, out = orbit(rng, n, m, dtype, batch=(2,)), There(np.full((2, n), np.nan, dtype))
        assert fk.predict(There(X), 2, out=out) is out
        np.testing.assert_array_equal(out.memory, fk.predict(There(X), 2).memory)
        with pytest.raises(fk.InputError, match=r"^out: expected a there cuda:0 array .* got a there cuda:1 array"):
            fk.predict(There(X), 2, out=There(out.memory, device=1))
        with pytest.raises(fk.InputError, match=r"^out: expected a there cuda:0 array .* got a numpy array"):
            fk.predict(There(X), 2, out=out.memory)
        with pytest.raises(fk.InputError, match=r"^out: expected a numpy array .* got a there cuda:0 array"):
            fk.predict(X, 2, out=out)


def test_walks_of_rank_zero(door):
    """Large blocks keep as many coordinates as the largest rank: none."""
    op = fk.fit(np.zeros((2, 90, 71), np.float32))
    walk = op.walk()
    assert not walk.step().any() and not walk.step(3, ahead=4).any() and not op.matrix().any()


@pytest.fixture(params=["cupy", "torch"])
def real(request):
    """(framework, to the device, to the host)."""
    module = pytest.importorskip(request.param)
    if request.param == "cupy":
        return module, module.asarray, module.asnumpy
    return module, lambda x: module.as_tensor(x, device="cuda"), lambda x: x.cpu().numpy()


@pytest.mark.gpu
class TestReal:
    @pytest.mark.parametrize("n, m", [(785, 8), (785, 32), (21, 100), (1, 9), (33, 31)])
    def test_same_kind_out(self, real, rng, n, m, dtype):
        _, put, get = real
        X = orbit(rng, n, m, dtype, batch=(5,))
        there = put(np.ascontiguousarray(np.moveaxis(X, -1, 0)))
        states = fk.predict(there, 3, cutoff=1e-6, time_axis=0)
        assert type(states) is type(there) and states.device == there.device and states.dtype == there.dtype
        assert_states(get(states), X, 3, ("relative", 1e-6))
        op = fk.fit(there, cutoff=1e-6, time_axis=0)
        assert_states(np.moveaxis(get(op.predict([1, 5])), -1, 0)[1], X, 5, ("relative", 1e-6))
        assert type(op.rank) is type(there) and op.summary()

    def test_other_streams(self, real, rng):
        module, put, get = real
        X = orbit(rng, 300, 8, np.float32, batch=(64,))
        stream = module.cuda.Stream()
        with stream if module.__name__ == "cupy" else module.cuda.stream(stream):
            states = fk.predict(put(X), 1, cutoff=1e-6)
            again = states + 0
        stream.synchronize()
        assert_states(get(again), X, 1, ("relative", 1e-6))

    def test_inside_a_graph(self, rng):
        torch = pytest.importorskip("torch")
        X = orbit(rng, 300, 8, np.float32, batch=(64,))
        there = torch.as_tensor(X, device="cuda")
        fk.predict(there, 2, cutoff=1e-6)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            states = fk.predict(there, 2, cutoff=1e-6)
        there.mul_(2.0)
        graph.replay()
        torch.cuda.synchronize()
        assert_states(states.cpu().numpy(), 2 * X, 2, ("relative", 1e-6))

    def test_two_devices(self, real, rng):
        cupy = pytest.importorskip("cupy")
        if cupy.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("one device")
        with cupy.cuda.Device(1):
            there = cupy.asarray(orbit(rng, 30, 5, np.float32, batch=(4,)))
        assert fk.predict(there, 1).device.id == 1

    def test_too_much_memory_is_an_error_and_nothing_is_lost(self):
        cupy = pytest.importorskip("cupy")
        before = cupy.get_default_memory_pool().used_bytes()
        strided = cupy.broadcast_to(cupy.ones((9, 1, 785), np.float32), (9, 1 << 28, 785))
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            fk.predict(strided, 1, time_axis=0)
        assert cupy.get_default_memory_pool().used_bytes() <= before + (1 << 20)
