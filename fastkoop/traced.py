"""predict and pinv inside code that is being traced: torch.compile sees one operator, jax.jit one callback.

Neither looks into the kernels. PyTorch runs the operator where the tensor lives; JAX calls back to the host, so that
an array on a device travels there and back. There is no gradient in either. The operators are registered when
fastkoop is imported after PyTorch, or else by the first tensor that it sees.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from . import cutoff as rules
from .checks import InputError

_registered = False


def torch_compiles(x) -> bool:
    """Whether x is a tensor that torch.compile is looking at."""
    torch = sys.modules.get("torch")
    return _registered and torch is not None and isinstance(x, torch.Tensor) and torch.compiler.is_compiling()


def jax_traces(x) -> bool:
    """Whether x stands for an array inside jax.jit or another of JAX's transformations."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(x, jax.core.Tracer)


def refuse_out(out) -> None:
    """Traced code has no memory to write to yet."""
    if out is not None:
        raise InputError("out: not available inside torch.compile or jax.jit; use the returned array")


def moved(shape: tuple[int, ...], time_axis: int) -> tuple[int, ...]:
    """The shape (..., n) of states of snapshots of this shape."""
    axis = time_axis % len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (..., m, n) of the pseudo-inverses of matrices (..., n, m)."""
    return (*shape[:-2], shape[-1], shape[-2])


def by_callback(function: Callable, x, shape: tuple[int, ...]):
    """function(x) on the host while x is traced by JAX; vmap calls it once an entry."""
    import jax

    result = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.pure_callback(lambda x: np.asarray(function(np.asarray(x))), result, x, vmap_method="sequential")


def register(predict: Callable, pinv: Callable) -> None:
    """torch.ops.fastkoop.predict and .pinv, once, if PyTorch is there; the functions are linalg's."""
    global _registered
    if _registered or "torch" not in sys.modules:
        return
    _registered = True
    import torch

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
