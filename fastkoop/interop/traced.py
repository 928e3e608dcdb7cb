"""predict and pinv inside code that is being traced: torch.compile sees one operator, jax.jit one callback.

Neither looks into the kernels. PyTorch runs the operator where the tensor lives; JAX calls back to the host, so that
an array on a device travels there and back. There is no gradient in either, and what shapes and arguments tell is an
error while tracing. The operators are registered by the first of fastkoop's imports and calls that finds PyTorch
imported, also by one that is being compiled.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import numpy as np

from .. import cutoff as rules
from ..checks import InputError
from . import arrays

_functions: list[Callable] = []  # linalg's predict and pinv
_opaque: dict[Callable, Callable] = {}
_registered = False


def torch_compiles(x) -> bool:
    """Whether x is a tensor that torch.compile is looking at."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor) or not torch.compiler.is_compiling():
        return False
    register()
    return True


def jax_traces(x) -> bool:
    """Whether x stands for an array inside jax.jit or another of JAX's transformations."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.core.Tracer)


def refuse(x, out, name: str) -> None:
    """Traced code has no memory to write to yet, and no gradient of ours; x is a tensor or a JAX array."""
    if out is not None:
        raise InputError("out: not available inside torch.compile or jax.jit; use the returned array")
    if jax_traces(x):
        arrays.check_floating(x, name)
    else:
        arrays.refuse_gradient(x, name)


def opaque(function: Callable) -> Callable:
    """The function, which torch.compile does not look into: it breaks its graph there, or, with fullgraph, says so."""

    @functools.wraps(function)
    def run(*arguments, **options):
        if "torch._dynamo" not in sys.modules:  # the compiler; importing it takes seconds
            return function(*arguments, **options)
        if function not in _opaque:
            _opaque[function] = sys.modules["torch"].compiler.disable(function)
        return _opaque[function](*arguments, **options)

    return run


def in_scope(method):
    """The method, run on the stream that is the caller's when it is called, with the caller's memory."""

    @opaque
    @functools.wraps(method)
    def run(self, *arguments, **options):
        with self._source.scope():
            return method(self, *arguments, **options)

    return run


def moved(shape: tuple[int, ...], time_axis: int) -> tuple[int, ...]:
    """The shape (..., n) of states of snapshots of this shape."""
    axis = time_axis % len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (..., m, n) of the pseudo-inverses of matrices (..., n, m)."""
    return (*shape[:-2], shape[-1], shape[-2])


def by_callback(function: Callable, x, shape: tuple[int, ...], name: str):
    """function(x) on the host while x is traced by JAX; vmap makes its axis the first of the batch, in one call."""
    import jax

    result = jax.ShapeDtypeStruct(shape, x.dtype)

    @jax.custom_jvp
    def call(x):
        return jax.pure_callback(lambda x: np.asarray(function(np.asarray(x))), result, x, vmap_method="expand_dims")

    @call.defjvp
    def _(primals, tangents):
        raise TypeError(f"{name}: a gradient is asked for and FastKoop has none; pass jax.lax.stop_gradient({name})")

    return call(x)


def register(*functions: Callable) -> None:
    """torch.ops.fastkoop.predict and .pinv, once, if PyTorch is there; linalg gives its functions, others none."""
    global _registered
    _functions.extend(functions)
    if _registered or "torch" not in sys.modules:
        return
    _registered = True
    import torch

    predict, pinv = _functions

    schema = "(Tensor X, int steps, str cutoff, int time_axis, bool check_finite) -> Tensor"

    @torch.library.custom_op("fastkoop::predict", mutates_args=(), schema=schema)
    def predict_states(X, steps, cutoff, time_axis, check_finite):
        return predict(X, steps, cutoff=rules.read(cutoff), time_axis=time_axis, check_finite=check_finite)

    @predict_states.register_fake
    def _(X, steps, cutoff, time_axis, check_finite):
        return X.new_empty(moved(X.shape, time_axis))

    schema = "(Tensor F, str cutoff, bool check_finite) -> Tensor"

    @torch.library.custom_op("fastkoop::pinv", mutates_args=(), schema=schema)
    def pseudo_inverse(F, cutoff, check_finite):
        return pinv(F, cutoff=rules.read(cutoff), check_finite=check_finite)

    @pseudo_inverse.register_fake
    def _(F, cutoff, check_finite):
        return F.new_empty(turned(F.shape))


# What torch.compiler.assume_constant_result sets, which would take importing PyTorch: called by its tracer, not traced.
setattr(register, "_dynamo_marked_constant", True)  # noqa: B010 - no attribute that a type checker knows
