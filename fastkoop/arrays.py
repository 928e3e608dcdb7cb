"""Any framework in, the same kind out, zero copy.

NumPy arrays and PyTorch CPU tensors; a framework is recognised without importing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array, is_jax_array, is_torch_array

from .checks import InputError

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Array(NamedTuple):
    """A caller's array as NumPy sees it, and the way back to the caller's kind."""

    data: np.ndarray
    kind: str
    wrap: Callable[[np.ndarray], Any]


def read(x, name: str = "X") -> Array:
    """A float32 or float64 array of a supported framework as a NumPy view of the same memory.

    Raises:
        TypeError: another kind, dtype or device, or a tensor that requires grad; names the cure.
    """
    if is_torch_array(x):
        return Array(_from_torch(x, name), "torch", _to_torch)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: a masked array has no pseudo-inverse; pass {name}.filled(value)")
    if isinstance(x, np.ndarray):
        return Array(_checked(np.asarray(x), name), "numpy", lambda out: out)
    if is_jax_array(x) or is_cupy_array(x):
        raise TypeError(
            f"{name}: expected a NumPy array or a PyTorch CPU tensor, got {type(x).__module__}."
            f"{type(x).__name__}; this version takes no other framework, pass a NumPy array"
        )
    raise TypeError(
        f"{name}: expected a NumPy array or a PyTorch CPU tensor, got {type(x).__name__}; "
        "pass np.asarray(...) of float32 or float64"
    )


def _checked(x: np.ndarray, name: str) -> np.ndarray:
    if x.dtype not in FLOATS:
        raise TypeError(
            f"{name}: expected float32 or float64 in native byte order, got {x.dtype.str} ({x.dtype}); "
            f"pass {name}.astype(np.float32) or np.float64"
        )
    return x


def _from_torch(x, name: str) -> np.ndarray:
    import torch

    if x.device.type != "cpu":
        raise TypeError(
            f"{name}: expected a tensor on the CPU, got one on {x.device}; this version computes on the CPU, "
            f"pass {name}.cpu()"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name}: the tensor requires grad and FastKoop has no gradient; pass {name}.detach(), "
            "or call under torch.no_grad()"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}; pass {name}.to_dense()")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name}: expected float32 or float64, got {x.dtype}; pass {name}.float() or {name}.double()"
        )
    return x.detach().resolve_neg().numpy()


def _to_torch(out: np.ndarray):
    import torch

    return torch.from_numpy(out)


def check_out(out, shape: tuple[int, ...], like: Array) -> Array | None:
    """`out` as an Array if given: of `like`'s kind and dtype, of this shape, writable."""
    if out is None:
        return None
    target = read(out, "out")
    expected = (like.kind, str(like.data.dtype), shape)
    got = (target.kind, str(target.data.dtype), target.data.shape)
    if got != expected:
        raise InputError(
            "out: expected a {} array of {} and shape {}, got a {} array of {} and shape {}".format(
                *expected, *got
            )
        )
    shared = any(stride == 0 and length > 1 for stride, length in zip(target.data.strides, shape, strict=True))
    if shared or (target.kind == "torch" and out.is_neg()):
        raise InputError("out: expected memory of its own for every element, got an expanded or a negated view")
    if not target.data.flags.writeable:
        raise InputError("out: expected a writable array, got a read-only one; leave out= away for a new one")
    return target
