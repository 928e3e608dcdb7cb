"""Any framework in, the same kind, dtype and device out; zero copy; inside torch.compile and jax.jit."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import aligned, assert_states, orbit

import fastkoop as fk
from fastkoop import arrays

jax = pytest.importorskip("jax")
jnp = jax.numpy


class Exporter:
    """A foreign array that only speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.fixture
def x64():
    """JAX with float64."""
    with jax.enable_x64(True):
        yield


class TestJax:
    def test_states_and_reports(self, rng):
        X = orbit(rng, 20, 5, np.float32, batch=(3,))
        there = jnp.asarray(X)
        states, op = fk.predict(there, 3), fk.fit(there)
        assert isinstance(states, jax.Array) and states.dtype == jnp.float32
        assert_states(np.asarray(states), X, 3, ("relative", 20 * np.finfo(np.float32).eps))
        for report in (op.rank, op.edge, op.residual, op.spectral_radius, op.predict([1, 2]), op.matrix(), op.modes):
            assert isinstance(report, jax.Array)
        assert isinstance(op.walk().step(), jax.Array) and op.summary()

    def test_float64(self, rng, x64):
        X = orbit(rng, 20, 5, np.float64, batch=(3,))
        states = fk.predict(jnp.asarray(X), 3)
        assert states.dtype == jnp.float64 and fk.fit(jnp.asarray(X)).rank.dtype == jnp.int64
        assert_states(np.asarray(states), X, 3, ("relative", 20 * np.finfo(np.float64).eps))

    def test_nothing_is_copied(self, rng, monkeypatch):
        there = jnp.asarray(rng.normal(size=(64, 33)).astype(np.float32))
        source = arrays.read(there)
        assert source.data.ctypes.data == there.unsafe_buffer_pointer()
        made = []
        monkeypatch.setattr(arrays, "_checked", lambda x, name: made.append(x) or x)
        state = fk.predict(there, 1)
        ours = fk.kernels.aligned_empty((64,), np.float32)
        assert aligned(ours) and source.wrap(ours).unsafe_buffer_pointer() == ours.ctypes.data
        assert state.unsafe_buffer_pointer() % 64 == 0

    def test_out_is_refused(self):
        with pytest.raises(ValueError, match="out: not available for jax input"):
            fk.predict(jnp.ones((4, 3)), 1, out=jnp.ones(4))

    def test_inside_jit_and_vmap(self, rng):
        X = jnp.asarray(orbit(rng, 20, 5, np.float32, batch=(3,)))

        def total(X):
            return fk.predict(2 * X, 2, cutoff=fk.Rank(3)).sum(-1), fk.pinv(X, cutoff=1e-3)

        for inside in (jax.jit(total), jax.vmap(total)):
            for got, expected in zip(inside(X), total(X), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        first = jax.jit(lambda X: fk.predict(X, 1, time_axis=0))(jnp.moveaxis(X, -1, 0))
        np.testing.assert_allclose(first, fk.predict(X, 1), rtol=1e-5, atol=1e-5)

    def test_limits_inside_jit(self):
        with pytest.raises(TypeError, match=r"cannot be fitted inside jax\.jit"):
            jax.jit(lambda X: fk.fit(X).rank)(jnp.ones((4, 3)))
        with pytest.raises(ValueError, match="out: not available inside"):
            jax.jit(lambda X: fk.predict(X, 1, out=X))(jnp.ones((4, 3)))


class TestExporters:
    def test_dlpack(self, rng, dtype):
        X = orbit(rng, 20, 5, dtype, batch=(3,))
        states = fk.predict(Exporter(X), 2, cutoff=1e-6)
        assert isinstance(states, np.ndarray)
        assert_states(states, X, 2, ("relative", 1e-6))
        assert np.shares_memory(arrays.read(Exporter(X)).data, X)

    def test_another_device_is_an_error(self):
        class Elsewhere(Exporter):
            def __dlpack_device__(self):
                return 10, 0

        with pytest.raises(TypeError, match="got DLPack device type 10"):
            fk.predict(Elsewhere(np.ones((4, 3))), 1)

    @pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is here")
    def test_a_cuda_array_needs_cupy(self):
        class There(Exporter):
            def __dlpack_device__(self):
                return 2, 0

        with pytest.raises(TypeError, match=r'needs CuPy; pip install "fastkoop\[cuda12\]"'):
            fk.predict(There(np.ones((4, 3))), 1)

    def test_read_only_memory_is_read(self, rng):
        X = orbit(rng, 20, 5, np.float32)
        X.flags.writeable = False
        assert_states(fk.predict(X, 2, cutoff=1e-6), X, 2, ("relative", 1e-6))


HALF = [
    (lambda X: X.astype(np.float16), np.float16, np.asarray),
    (lambda X: torch.from_numpy(X).half(), torch.float16, lambda s: s.numpy()),
    (lambda X: torch.from_numpy(X).bfloat16(), torch.bfloat16, lambda s: s.float().numpy()),
    (lambda X: jnp.asarray(X).astype(jnp.bfloat16), jnp.bfloat16, lambda s: np.asarray(s.astype(jnp.float32))),
]


@pytest.mark.parametrize("lower, dtype, get", HALF, ids=["numpy-16", "torch-16", "torch-b16", "jax-b16"])
class TestHalfPrecision:
    def test_is_computed_in_float32_and_comes_back(self, rng, lower, dtype, get):
        X = lower(orbit(rng, 20, 5, np.float32, batch=(3,)))
        states = fk.predict(X, 2)
        assert states.dtype == dtype and type(states) is type(X)
        wide = get(X).astype(np.float32)
        expected = get(lower(fk.predict(wide, 2)))
        assert np.array_equal(get(states), expected)
        op = fk.fit(X)
        assert op.predict(2).dtype == dtype
        assert "float64" in str(op.residual.dtype) or isinstance(X, jax.Array)  # which has none, x64 off
        assert np.asarray(op.rank).tolist() == fk.fit(wide).rank.tolist()

    def test_out_is_refused(self, lower, dtype, get):
        X = lower(np.ones((4, 3), np.float32))
        with pytest.raises(ValueError, match=r"out: not available for b?float16 input"):
            fk.predict(X, 1, out=X[:, 0])


class TestTorchCompile:
    @pytest.mark.parametrize("rule", ["array_api", 1e-3, fk.Rank(2), fk.Energy(0.9)], ids=str)
    def test_no_graph_break(self, rng, rule):
        X = torch.from_numpy(orbit(rng, 20, 5, np.float32, batch=(3,)))

        def total(X):
            return fk.predict(2 * X, 3, cutoff=rule).sum(-1), fk.pinv(X, cutoff=rule)

        torch.compiler.reset()
        compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
        for got, expected in zip(compiled(X), total(X), strict=True):
            assert torch.equal(got, expected)

    def test_operators_are_what_pytorch_asks_of_them(self, rng, dtype):
        X = torch.from_numpy(orbit(rng, 12, 5, dtype, batch=(2,)))
        torch.library.opcheck(torch.ops.fastkoop.predict.default, (X, 2, "array_api", -1, True))
        torch.library.opcheck(torch.ops.fastkoop.predict.default, (X.movedim(-1, 0), 0, "jax", 0, False))
        torch.library.opcheck(torch.ops.fastkoop.pinv.default, (X, "0.01", True))

    def test_out_is_refused(self):
        torch.compiler.reset()
        compiled = torch.compile(lambda X: fk.predict(X, 1, out=X), backend="aot_eager")
        with pytest.raises(ValueError, match="out: not available inside"):
            compiled(torch.ones(4, 3))

    def test_registered_in_either_order(self):
        code = """
import sys
import fastkoop as fk
assert "torch" not in sys.modules
import torch
fk.predict(torch.ones(4, 3), 1)
f = torch.compile(lambda X: fk.predict(X, 1), fullgraph=True, backend="aot_eager")
assert torch.equal(f(torch.ones(4, 3)), torch.ones(4))
"""
        subprocess.run([sys.executable, "-c", code], check=True)
