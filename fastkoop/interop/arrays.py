"""Any framework in, the same kind out, zero copy.

NumPy, CuPy and JAX arrays, PyTorch tensors, and what else exports DLPack, on the CPU or a CUDA device; a framework is
recognised without importing it. float16 and bfloat16 are the exception to zero copy: they are computed in float32,
with float32's eps in the cutoff, and states come back in the caller's dtype.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_cupy_array, is_jax_array, is_torch_array

from ..checks import InputError
from .place import HOST, Place

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
HALVES = {"float16": 2.0**16 - 2.0**4, "bfloat16": 2.0**128 - 2.0**119}  # what is as large rounds to infinity
DLPACK_CPU, DLPACK_CUDA = 1, 2


class Array(NamedTuple):
    """A caller's array as NumPy or, on a CUDA device, CuPy sees it, and the way back to the caller's kind."""

    data: Any
    kind: str
    wrap: Callable[[Any], Any]
    place: Place = HOST
    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext  # the caller's stream and memory
    dtype: str = ""  # the caller's own, where it is not data's

    @property
    def ceiling(self) -> float:
        """A result must be smaller to be finite in the caller's dtype."""
        return HALVES.get(self.dtype, math.inf)

    def emptied(self) -> Array:
        """Kind, place and dtype alone: of an array without entries, so that the caller's memory can be given back."""
        return self._replace(data=self.data[:0].ravel().copy())

    def __reduce__(self) -> tuple:
        """For copies and pickles: the caller's kind of array, which is read again."""
        return read, (self.wrap(self.data),)


def read(x, name: str = "X") -> Array:
    """A floating-point array of a supported framework as NumPy or CuPy sees the same memory.

    Raises:
        TypeError: another kind, dtype or device, or a tensor that requires grad; names the cure.
    """
    if type(x) is np.ndarray and x.dtype in FLOATS:
        return Array(x, "numpy", _as_it_is)
    if is_torch_array(x):
        half = str(x.dtype).removeprefix("torch.")
        if half in HALVES:
            return _promoted(read(_detached(x, name).float(), name), half, lambda out: out.to(x.dtype))
        return _on_cuda(x, name) if x.device.type == "cuda" else Array(_from_torch(x, name), "torch", _to_torch)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a masked one; pass {name}.filled(value)")
    if isinstance(x, np.ndarray) or is_cupy_array(x) or is_jax_array(x):
        if str(x.dtype) in HALVES:
            return _promoted(read(x.astype(np.float32), name), str(x.dtype), lambda out: out.astype(x.dtype))
    if isinstance(x, np.ndarray):
        return Array(_checked(np.asarray(x), name), "numpy", _as_it_is)
    if is_cupy_array(x):
        return Array(_checked(x, name), "cupy", lambda out: out, Place("cuda", x.device.id), lambda: x.device)
    if is_jax_array(x):
        return _from_jax(_checked(x, name), name)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__") and not isinstance(x, type):
        return _from_dlpack(x, name)
    dense = next((method for method in ("toarray", "to_numpy") if hasattr(x, method)), None)  # of SciPy, of pandas
    cure = f"{name}.{dense}()" if dense else "np.asarray(...) of float32 or float64"
    if hasattr(x, "parameters"):
        cure = "a recording of its parameters, see fastkoop.torch_adapter.KoopmanPhase"
    raise TypeError(
        f"{name}: expected an array of NumPy, CuPy or JAX, a PyTorch tensor or another DLPack exporter, got "
        f"{type(x).__name__}; pass {cure}"
    )


def _as_it_is(out):
    """NumPy's arrays are the caller's."""
    return out


def _promoted(source: Array, dtype: str, lower: Callable[[Any], Any]) -> Array:
    """A float32 copy of the caller's half-precision array, whose float32 results are rounded back."""

    def wrap(out):
        with np.errstate(over="ignore"):  # reported by block, see linalg.warn_of_overflow
            return lower(source.wrap(out)) if out.dtype == np.float32 else source.wrap(out)

    return source._replace(wrap=wrap, dtype=dtype)


def _from_jax(x, name: str) -> Array:
    """A JAX array's own memory. Results alias ours where JAX takes memory as it is: 64-byte aligned, in a dtype that
    it has (with jax_enable_x64 off, float64 reports become float32), and on JAX's first CPU device."""
    import jax

    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{name}: an operator cannot be fitted inside jax.jit; fit outside, or call fastkoop.predict or "
            "fastkoop.pinv"
        )
    device, *others = x.devices()
    if others:
        raise TypeError(f"{name}: expected an array on one device, got one on {1 + len(others)}")
    return _from_dlpack(x, name, "jax", lambda out: jax.numpy.from_dlpack(out, device=device))


def _from_dlpack(x, name: str, kind: str = "dlpack", wrap: Callable[[Any], Any] | None = None) -> Array:
    """Memory that an exporter lends; results are its framework's arrays where that has the array API's from_dlpack,
    NumPy's or CuPy's where not."""
    device_type, ordinal = x.__dlpack_device__()
    if wrap is None:
        module = x.__array_namespace__() if hasattr(x, "__array_namespace__") else None
        wrap = getattr(module, "from_dlpack", lambda out: out)
    if device_type == DLPACK_CPU:
        try:
            data = np.from_dlpack(x)
        except (BufferError, RuntimeError) as error:  # the exporter's refusals, and NumPy's of its dtype
            raise TypeError(f"{name}: expected an exporter of readable float32 or float64, got {error}") from None
        return Array(_checked(data, name), kind, wrap)
    if device_type != DLPACK_CUDA:
        raise TypeError(f"{name}: expected an array on the CPU or a CUDA device, got DLPack device type {device_type}")
    cupy = _cupy(name, f"an array on CUDA device {ordinal}")
    device = cupy.cuda.Device(ordinal)
    with device:  # orders our current stream after the producer's work
        return Array(_checked(cupy.from_dlpack(x), name), kind, wrap, Place("cuda", ordinal), lambda: device)


def _cupy(name: str, what: str):
    """The module, or how to get it."""
    try:
        import cupy
    except ImportError:
        raise TypeError(
            f'{name}: {what} needs CuPy; pip install "fastkoop[cuda12]" or "fastkoop[cuda13]", or pass an array on '
            "the CPU"
        ) from None
    return cupy


def check_floating(x, name: str) -> None:
    """Refuse a JAX array, traced or not, of a dtype that is not computed with."""
    if str(x.dtype) not in HALVES:
        _checked(x, name)


def _checked(x, name: str):
    dtype = x.dtype
    if dtype in FLOATS:
        return x
    cure = {"c": f"{name}.real or {name}.imag", "O": f"np.array({name}.tolist(), np.float64), if it holds numbers"}
    text = getattr(dtype, "str", "")  # JAX's keys have none
    if text[1:2] in ("U", "S", "V", "M", "m") or not text:
        raise TypeError(f"{name}: expected numbers, float32 or float64, got an array of {dtype}")
    raise TypeError(
        f"{name}: expected float32 or float64 in native byte order, got {text} ({dtype}); "
        f"pass {cure.get(text[1], f'{name}.astype(np.float32) or np.float64')}"
    )


def _from_torch(x, name: str) -> np.ndarray:
    """A CPU tensor's memory as NumPy's."""
    try:
        return _detached(x, name).resolve_neg().numpy()
    except RuntimeError as error:  # of tensors that stand for others
        raise TypeError(
            f"{name}: expected a tensor with memory of its own, got {type(x).__name__} ({error}); instead of "
            "torch.func.vmap pass a batch, its dimensions first"
        ) from None


def refuse_gradient(x, name: str) -> None:
    """Refuse a tensor whose gradient autograd would want."""
    import torch

    if x.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name}: the tensor requires grad and FastKoop has no gradient; pass {name}.detach(), "
            "or call under torch.no_grad()"
        )


def _detached(x, name: str):
    """The tensor itself, out of autograd's sight."""
    import torch

    if x.device.type not in ("cpu", "cuda"):
        cure = "make it on another device: it has no data" if x.is_meta else f"pass {name}.cpu()"
        raise TypeError(f"{name}: expected a tensor on the CPU or on a CUDA device, got one on {x.device}; {cure}")
    if torch.nn.parameter.is_lazy(x):
        raise TypeError(f"{name}: expected a tensor with data, got a parameter that is not initialised; run the model")
    refuse_gradient(x, name)
    if x.is_nested:
        raise TypeError(
            f"{name}: expected a dense tensor, got a nested one; pass its parts, {name}.unbind(), one by one"
        )
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {x.layout}; pass {name}.to_dense()")
    if isinstance(x, torch.masked.MaskedTensor):
        raise TypeError(f"{name}: expected a tensor without a mask, got a masked one; pass {name}.to_tensor(value)")
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        cure = f"{name}.float() or {name}.double()"
        cure = f"{name}.real or {name}.imag" if x.is_complex() else f"{name}.dequantize()" if x.is_quantized else cure
        raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}; pass {cure}")
    return x.detach()


def _to_torch(out: np.ndarray):
    import torch

    return torch.from_numpy(out)


class _Stream:
    """A PyTorch stream in the protocol by which CuPy takes others' streams."""

    def __init__(self, pointer: int):
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def _on_cuda(x, name: str) -> Array:
    """A CUDA tensor as CuPy sees the same memory; results are tensors, made on PyTorch's stream from its memory."""
    import torch

    tensor, ordinal = _detached(x, name).resolve_neg(), x.device.index
    cupy = _cupy(name, f"a tensor on {x.device}")

    def take(size: int, device: int) -> int:
        return torch.cuda.caching_allocator_alloc(size, device, torch.cuda.current_stream(device))

    memory = cupy.cuda.PythonFunctionAllocator(take, lambda pointer, _: torch.cuda.caching_allocator_delete(pointer))

    @contextlib.contextmanager
    def scope():
        pointer = torch.cuda.current_stream(ordinal).cuda_stream
        if hasattr(cupy.cuda.Stream, "from_external"):
            stream = cupy.cuda.Stream.from_external(_Stream(pointer))
        else:
            stream = cupy.cuda.ExternalStream(pointer, ordinal)  # before CuPy 14
        with cupy.cuda.Device(ordinal), stream, cupy.cuda.using_allocator(memory.malloc):
            yield

    with scope():
        data = cupy.asarray(tensor)
    return Array(data, "torch", lambda out: torch.as_tensor(out, device=x.device), Place("cuda", ordinal), scope)


def _kind(array: Array) -> str:
    """Framework and device, in words."""
    return array.kind if array.place.on_host else f"{array.kind} {array.place}"


def check_out(out, shape: tuple[int, ...], like: Array) -> Array | None:
    """`out` as an Array if given: of `like`'s kind and dtype, of this shape, writable."""
    if out is None:
        return None
    if like.dtype or like.kind in ("jax", "dlpack"):
        raise InputError(f"out: not available for {like.dtype or like.kind} input; use the returned array")
    target = read(out, "out")
    expected = (_kind(like), str(like.data.dtype), shape)
    got = (_kind(target), target.dtype or str(target.data.dtype), target.data.shape)
    if got != expected:
        raise InputError(
            "out: expected a {} array of {} and shape {}, got a {} array of {} and shape {}".format(*expected, *got)
        )
    shared = math.prod(shape) and any(
        stride == 0 and length > 1 for stride, length in zip(target.data.strides, shape, strict=True)
    )
    if shared or (target.kind == "torch" and out.is_neg()):
        raise InputError("out: expected memory of its own for every element, got an expanded or a negated view")
    if target.place.on_host and not target.data.flags.writeable:
        raise InputError("out: expected a writable array, got a read-only one; leave out= away for a new one")
    return target
