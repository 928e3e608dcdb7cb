"""Any framework in, the same kind, dtype and device out; inside torch.compile and jax.jit."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import Exporter, assert_states, orbit

import fastkoop as fk
from fastkoop.interop import arrays

jax = pytest.importorskip("jax")
jnp = jax.numpy


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

    def test_results_lie_on_the_arrays_own_device(self):
        """JAX may have several CPU devices; from_dlpack alone would put results on the first."""
        code = """
import jax, numpy as np, fastkoop as fk
first, second = jax.devices()
there = jax.device_put(np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32), second)
op = fk.fit(there)
for result in (fk.predict(there, 2), fk.pinv(there), op.predict([1, 2]), op.rank, op.modes, op.walk().step()):
    assert result.devices() == {second}, result.devices()
mesh = jax.sharding.Mesh(np.array([first, second]), ("blocks",))
there = jax.device_put(there, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("blocks")))
try:
    fk.predict(there, 1)
except TypeError as error:
    assert "X: expected an array on one device, got one on 2" in str(error), error
else:
    raise AssertionError("a sharded array was taken")
"""
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | flags)

    def test_out_is_refused(self):
        with pytest.raises(ValueError, match="out: not available for jax input"):
            fk.predict(jnp.ones((4, 3)), 1, out=jnp.ones(4))

    def test_inside_jit_and_vmap(self, rng):
        X = jnp.asarray(orbit(rng, 20, 5, np.float32, batch=(3,)))

        def total(X):
            return fk.predict(2 * X, 2, cutoff=fk.Rank(3)).sum(-1), fk.pinv(X, cutoff=1e-3)

        for inside in (jax.jit(total), jax.vmap(total), jax.jit(jax.vmap(total))):
            for got, expected in zip(inside(X), total(X), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        for dtype in (jnp.float16, jnp.bfloat16):
            assert jax.jit(lambda X: fk.predict(X, 1))(X.astype(dtype)).dtype == dtype

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_every_time_axis_inside_jit_and_vmap(self, axis, rng):
        X = orbit(rng, 6, 4, np.float32, batch=(3, 2))
        expected = fk.predict(X, 2)
        moved = jnp.asarray(np.moveaxis(X, -1, axis if axis < 0 else axis + 1))
        mapped = jax.vmap(lambda X: fk.predict(X, 2, time_axis=axis))
        for inside in (mapped, jax.jit(mapped)):
            np.testing.assert_allclose(inside(moved), expected, rtol=0, atol=1e-5)
        whole = jax.jit(lambda X: fk.predict(X, 2, time_axis=axis if axis < 0 else axis + 1))
        np.testing.assert_allclose(whole(moved), expected, rtol=0, atol=1e-5)
        last = jax.vmap(lambda X: fk.predict(X, 2, time_axis=axis), in_axes=-1)(jnp.moveaxis(moved, 0, -1))
        np.testing.assert_allclose(last, expected, rtol=0, atol=1e-5)

    def test_vmap_is_one_call(self, rng, monkeypatch):
        """The mapped axis is a batch like any other: one call with the bits of one call."""
        X, calls, compute = orbit(rng, 20, 5, np.float32, batch=(4, 3)), [], fk.kernels.predict
        monkeypatch.setattr(fk.kernels, "predict", lambda X, *rest: (calls.append(X.shape), compute(X, *rest))[1])
        nested = jax.vmap(jax.vmap(lambda X: fk.predict(X, 2)))(jnp.asarray(X))
        assert calls == [(6, 4, 3, 20)]
        np.testing.assert_array_equal(nested, fk.predict(X, 2))

    def test_control_flow(self):
        def step(x, _):
            return fk.predict(jnp.stack([x, 0.5 * x], axis=-1), 1), None

        np.testing.assert_allclose(jax.lax.scan(step, jnp.ones(3), length=3)[0], np.full(3, 0.25**3), rtol=1e-6)

    def test_no_gradient(self):
        X = jnp.asarray([[1.0, 0.5, 0.25], [1.0, 0.9, 0.81]])
        for call, name in ((lambda X: fk.predict(X, 1).sum(), "X"), (lambda X: fk.pinv(X).sum(), "F")):
            for asked in (jax.grad(call), jax.jit(jax.grad(call)), lambda X, f=call: jax.jvp(f, (X,), (X,))):
                with pytest.raises(TypeError, match=rf"^{name}: a gradient .* pass jax\.lax\.stop_gradient\({name}\)"):
                    asked(X)
            without = jax.grad(lambda X, f=call: f(jax.lax.stop_gradient(X)) + X.sum())(X)
            np.testing.assert_array_equal(without, np.ones((2, 3)))

    def test_limits_inside_jit(self):
        with pytest.raises(TypeError, match=r"cannot be fitted inside jax\.jit"):
            jax.jit(lambda X: fk.fit(X).rank)(jnp.ones((4, 3)))
        with pytest.raises(ValueError, match="out: not available inside"):
            jax.jit(lambda X: fk.predict(X, 1, out=X))(jnp.ones((4, 3)))
        with pytest.raises(TypeError, match=r"steps: expected an integer, got .*Tracer"):
            jax.jit(lambda X, steps: fk.predict(X, steps))(jnp.ones((4, 3)), 2)
        fixed = jax.jit(lambda X, steps: fk.predict(X, steps), static_argnums=1)
        np.testing.assert_allclose(fixed(jnp.ones((4, 3)), 2), np.ones(4), rtol=1e-6)

    def test_a_bad_block_inside_jit(self):
        """JAX wraps what a callback raises; where NaN is welcome nothing is raised."""
        X = jnp.ones((3, 4, 3)).at[1, 2, 0].set(jnp.nan)
        with pytest.raises(Exception, match=r"X: block \(1,\) holds a NaN or an infinity"):
            jax.vmap(lambda X: fk.predict(X, 1))(X).block_until_ready()
        got = jax.jit(lambda X: fk.predict(X, 1, check_finite=False))(X)
        assert np.isnan(got[1]).all() and np.isfinite(got[::2]).all()


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

    def test_what_cannot_be_exported_is_an_error(self):
        fixed = np.ones((4, 3))
        fixed.flags.writeable = False

        class Old(Exporter):
            def __dlpack__(self, stream=None):  # before DLPack 1.0, which says what is read-only
                return self.array.__dlpack__()

        for array in (Old(fixed), Exporter(torch.ones(4, 3).bfloat16()), Exporter(torch.ones(4, 3).requires_grad_())):
            with pytest.raises(TypeError, match="X: expected an exporter of readable float32 or float64, got "):
                fk.predict(array, 1)
        with pytest.raises(TypeError, match=r"X: expected float32 or float64 .* got .*float16"):
            fk.predict(Exporter(np.ones((4, 3), np.float16)), 1)

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

    def test_no_blocks(self, lower, dtype, get):
        X = lower(np.zeros((2, 0, 4, 3), np.float32))
        op = fk.fit(X)
        for result in (fk.predict(X, 2), op.predict(2), op.walk().step(), op.matrix(), fk.pinv(X)):
            assert result.dtype == dtype and tuple(result.shape[:2]) == (2, 0)

    def test_the_inverse_too(self, rng, lower, dtype, get):
        F = lower(rng.normal(size=(3, 6, 4)).astype(np.float32))
        inverse = fk.pinv(F)
        assert inverse.dtype == dtype and type(inverse) is type(F)
        assert np.array_equal(get(inverse), get(lower(fk.pinv(get(F).astype(np.float32)))))

    def test_what_rounds_to_infinity_is_reported(self, lower, dtype, get):
        """By the caller's dtype, not by float32: 65504 is the largest float16."""
        name = str(dtype).removeprefix("torch.") if "torch" in str(dtype) else np.dtype(dtype).name
        steps = 10 if name == "float16" else 70
        X, tiny = lower(np.array([[[1, 1, 1]], [[1, 4, 16]]], np.float32)), 1e-5 if name == "float16" else 1e-39
        op = fk.fit(X)
        for call in (lambda: fk.predict(X, steps), lambda: op.predict(steps), lambda: op.walk().step(steps)):
            with pytest.warns(RuntimeWarning, match=rf"block \(1,\) grew beyond what {name} holds") as found:
                states = get(call())
            assert len(found) == 1 and states[0] == 1 and np.isinf(states[1])
        with pytest.warns(RuntimeWarning, match=f"pinv: its only block is so small that {name} does not"):
            assert np.isinf(get(fk.pinv(lower(np.full((1, 1), tiny, np.float32)))))
        growing = fk.fit(lower(np.array([[0.5 * tiny, 1.0]], np.float32)))
        with pytest.warns(RuntimeWarning, match=f"matrix: its only block has an operator that {name} does not hold"):
            assert np.isinf(get(growing.matrix()))
        just = lower(np.array([[16376.0, 32752.0]], np.float32))
        assert get(fk.predict(just, 1)) == (65504 if name == "float16" else 65536)  # the largest, and no warning

    def test_out_is_refused(self, lower, dtype, get):
        X = lower(np.ones((4, 3), np.float32))
        with pytest.raises(ValueError, match=r"out: not available for b?float16 input"):
            fk.predict(X, 1, out=X[:, 0])


BAD_CALLS = {
    "steps": (lambda X: fk.predict(X, -1), ValueError, "steps: expected an integer >= 0, got -1"),
    "fraction": (lambda X: fk.predict(X, 1.5), TypeError, "steps: expected an integer, got 1.5"),
    "boolean": (lambda X: fk.predict(X, True), TypeError, "steps: expected an integer, got True"),
    "axis": (lambda X: fk.predict(X, 1, time_axis=7), ValueError, "time_axis: expected -3 .. 2, got 7"),
    "dimensions": (lambda X: fk.predict(X[0, 0], 1), ValueError, r"X: expected at least 2 .* got shape \(5,\)"),
    "no dimensions": (lambda X: fk.predict(X[0, 0, 0, ...], 1), ValueError, r"X: expected at least 2 .* shape \(\)"),
    "a snapshot": (lambda X: fk.predict(X[..., :1], 1), ValueError, "X: expected at least 2 snapshots"),
    "no weights": (lambda X: fk.predict(X[:, :0], 1), ValueError, "X: expected blocks of at least 1 weight"),
    "vector": (lambda X: fk.pinv(X[0, 0]), ValueError, r"F: expected at least 2 dimensions .* got shape \(5,\)"),
    "rule": (lambda X: fk.predict(X, 1, cutoff="scipy"), ValueError, "cutoff: expected one of .* got 'scipy'"),
    "words of a number": (lambda X: fk.pinv(X, cutoff="0.01"), ValueError, "cutoff: expected one of .* got '0.01'"),
    "no rule": (lambda X: fk.pinv(X, cutoff=None), TypeError, "cutoff: expected a name, a number, .* got None"),
    "negative": (lambda X: fk.predict(X, 1, cutoff=-1e-3), ValueError, r"cutoff: expected a number in \[0, 1\)"),
}


class TestErrorsWhileTracing:
    """As soon as shapes and arguments are known, in the words of an ordinary call."""

    @pytest.mark.parametrize("name", BAD_CALLS)
    def test_jit(self, name):
        call, error, text = BAD_CALLS[name]
        for trace in (jax.make_jaxpr(call), jax.jit(call)):
            with pytest.raises(error, match="^" + text):
                trace(jnp.ones((2, 6, 5)))

    @pytest.mark.parametrize("name", ["steps", "boolean", "no dimensions", "vector", "words of a number"])
    def test_compile(self, name):
        call, error, text = BAD_CALLS[name]
        torch.compiler.reset()
        with pytest.raises(error, match="^" + text):
            torch.compile(call, backend="eager")(torch.ones(2, 6, 5))
        with pytest.raises(Exception, match=text):  # in an error of the compiler's own
            torch.compile(call, backend="eager", fullgraph=True)(torch.ones(2, 6, 5))

    @pytest.mark.parametrize("name", BAD_CALLS)
    def test_an_ordinary_call(self, name):
        call, error, text = BAD_CALLS[name]
        for X in (np.ones((2, 6, 5)), torch.ones(2, 6, 5), jnp.ones((2, 6, 5))):
            with pytest.raises(error, match="^" + text):
                call(X)


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_dtypes_while_tracing(dtype):
    text = "X: expected float32 or float64.* got .*" + dtype
    with pytest.raises(TypeError, match=text):
        jax.make_jaxpr(lambda X: fk.predict(X, 1))(jnp.ones((4, 3), dtype))
    torch.compiler.reset()
    compiled = torch.compile(lambda X: fk.predict(X, 1), backend="eager", fullgraph=True)
    with pytest.raises(TypeError, match=text):
        compiled(torch.ones(4, 3, dtype=getattr(torch, dtype)))


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

    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler looks at
    def test_no_gradient(self, whole):
        """A tensor that requires grad is refused in the graph, too, whether it was passed or made there."""

        def total(X):
            return fk.predict(2 * X, 1).sum() + fk.pinv(X).sum()

        torch.compiler.reset()
        compiled = torch.compile(total, backend="eager", fullgraph=whole)
        X = torch.tensor([[1.0, 0.5, 0.25], [1.0, 0.9, 0.81]], requires_grad=True)
        with pytest.raises(Exception, match=r"X: the tensor requires grad .* pass X\.detach\(\)") as raised:
            compiled(X)
        assert whole or raised.type is TypeError
        with torch.no_grad():
            assert not compiled(X).requires_grad

    def test_shapes_that_change(self, rng):
        torch.compiler.reset()
        compiled = torch.compile(lambda X, k: fk.predict(X, k), fullgraph=True, dynamic=True, backend="aot_eager")
        for batch, n, m, steps in (((3,), 20, 5, 2), ((4,), 21, 6, 3), ((0,), 7, 6, 1)):
            X = torch.from_numpy(orbit(rng, n, m, np.float32, batch))
            assert torch.equal(compiled(X, steps), fk.predict(X, steps))

    def test_out_is_refused(self):
        torch.compiler.reset()
        compiled = torch.compile(lambda X: fk.predict(X, 1, out=X), backend="aot_eager")
        with pytest.raises(ValueError, match="out: not available inside"):
            compiled(torch.ones(4, 3))

    def test_operators_break_the_graph(self, rng):
        """They hold NumPy arrays, which the compiler must not look into: it goes on after each call."""
        X = torch.from_numpy(orbit(rng, 9, 4, np.float64, batch=(2,)))
        op, graphs = fk.fit(X), []

        def total(X):
            there = fk.fit(2 * X)
            walked = there.walk().step(2) + there.predict(2) + (op.matrix() @ X[..., :1]).squeeze(-1)
            return walked.sum(-1) + there.residual + there.condition + there.rank, there.summary(), repr(there)

        def count(graph, inputs):
            graphs.append(graph)
            return graph.forward

        torch.compiler.reset()
        got, expected = torch.compile(total, backend=count)(X), total(X)
        assert torch.equal(got[0], expected[0]) and got[1:] == expected[1:]
        assert len(graphs) > 1
        with pytest.raises(Exception, match=r"(?s)function fit .*torch\.compiler\.disable"):
            torch.compile(lambda X: fk.fit(X).rank, backend=count, fullgraph=True)(X)

    def test_numpy_in_compiled_code(self, rng):
        X = orbit(rng, 9, 4, np.float64, batch=(2,))
        torch.compiler.reset()
        compiled = torch.compile(lambda X, there: there + torch.from_numpy(fk.predict(X, 2)), backend="eager")
        assert torch.equal(compiled(X, torch.zeros(2, 9)), torch.from_numpy(fk.predict(X, 2)))

    def test_inside_vmap_of_torch(self):
        for call in (lambda X: fk.predict(X, 1), fk.pinv, fk.fit):
            with pytest.raises(TypeError, match=r"instead of torch\.func\.vmap pass a batch"):
                torch.func.vmap(call)(torch.ones(2, 4, 3))

    def test_registered_by_the_first_call(self):
        """That call may be one that is being compiled, and fastkoop may have been imported before PyTorch."""
        code = """
import sys
import fastkoop as fk
assert "torch" not in sys.modules
import torch
f = torch.compile(lambda X: fk.predict(2 * X, 1), fullgraph=True, backend="aot_eager")
assert torch.equal(f(torch.ones(4, 3)), torch.full((4,), 2.0))
"""
        subprocess.run([sys.executable, "-c", code], check=True)
