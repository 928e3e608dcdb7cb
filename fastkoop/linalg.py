"""pinv and predict: one call each, nothing kept."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import numpy as np

from . import checks
from . import cutoff as rules
from .backends import NON_FINITE, backend_for
from .cutoff import Cutoff
from .interop import arrays, traced
from .machine import free_memory

FEW_BLOCKS = 64  # that Python looks at sooner than NumPy has begun
FEW = 1 << 15  # numbers whose ends are found before NumPy is quiet about their sum


def time_major(data, time_axis: int):
    """A view (m+1, ..., n) of snapshots whose time runs along `time_axis`."""
    return data.transpose(_time_first(data.ndim, checks.snapshots(data.shape, time_axis)))


@functools.cache
def _time_first(dimensions: int, axis: int) -> tuple[int, ...]:
    """The axes of an array, that of time first."""
    return axis, *(other for other in range(dimensions) if other != axis)


def refuse_non_finite(route, batch: tuple[int, ...], name: str = "X") -> None:
    """Raise for the first block whose route is "non-finite"."""
    if route.size <= FEW_BLOCKS and NON_FINITE not in route.tolist():  # a small call, in a tenth of the time
        return
    if bad := np.flatnonzero(route == NON_FINITE).tolist():
        raise checks.non_finite(bad[0], batch, name)


def warn_of_overflow(values, route, batch: tuple[int, ...], source: arrays.Array, text=checks.overflow) -> None:
    """Warn if values (..., B, n) of blocks that were finite do not fit the caller's dtype."""
    if 0 < values.size <= FEW and not source.dtype:
        ends = values.item(values.argmin()), values.item(values.argmax())  # NaN is either, if there is one
        if math.isfinite(ends[0]) and math.isfinite(ends[1]):
            return
    with np.errstate(over="ignore", invalid="ignore"):
        if not values.size or (not source.dtype and np.isfinite(values.sum())):  # half the cost of looking at each
            return
        lost = ~(np.abs(values) < source.ceiling).all(axis=-1)
    lost = lost.reshape(-1, lost.shape[-1]).any(axis=0) & (route != NON_FINITE)
    if bad := np.flatnonzero(lost).tolist():
        checks.warn(text(bad[0], len(bad), batch, source.dtype or values.dtype))


def fits(name: str, backend: Any, sizes: tuple[int, int, int], numbers: int, data: Any, source: arrays.Array) -> None:
    """Raise before anything is computed if results of so many numbers, and the algebra of a block, take more memory
    than is free; on a device its allocator tells. sizes: blocks, n and m; small calls are not planned for this."""
    algebra = 3 * 8 * min(sizes[1:]) ** 2
    if not source.place.on_host or numbers * data.itemsize + algebra <= checks.NOT_ASKED_FOR:
        return
    if backend.plan(*sizes, data.dtype).engine != "library":
        algebra = 0
    needed, shape = numbers * data.itemsize + algebra, tuple(source.data.shape)
    checks.memory(f"{name}: a result for shape {shape}", needed, free_memory, "pass fewer blocks at a time")


def _handed_over(result, source: arrays.Array, target: arrays.Array | None, out):
    """The result in the caller's kind, or in `out`."""
    if target is None:
        return source.wrap(result)
    target.data[...] = result
    return out


def predict(
    X: Any, steps: Any, *, cutoff: Cutoff = "array_api", time_axis: int = -1, check_finite: bool = True, out: Any = None
) -> Any:
    """K^steps x_last for every block, with K = Fp pinv(F), in one fused call.

    F holds all snapshots but the last, Fp all but the first, x_last is the last. Tall blocks (n > m):
    K acts on what F spans and drops the rest of x_last. Wide blocks (n <= m) of full rank: the
    least-squares operator. Rank-deficient ones: the minimum-norm operator over the singular values that
    count, so that a constant block stays and an all-zero one predicts zero. K itself is never formed.

    Args:
        X: snapshots (..., n, m+1), float32 or float64, columns oldest first: a NumPy or CuPy array or a
            PyTorch tensor with any strides. Any leading batch, none or zero-sized too.
        steps: T >= 0 iterations past the last snapshot; 0 returns the last snapshot.
        cutoff: which singular values of F count, see `fastkoop.cutoff`.
        time_axis: where time runs; 0 takes a recording buffer (m+1, ..., n) without a copy.
        check_finite: False lets NaN and infinity pass through their own block, which becomes NaN; on a CUDA
            device, which is not waited for, they always do.
        out: array of the result's kind, shape and dtype to write into; nothing is written on an error.

    Returns:
        (..., n), of X's kind, dtype and device, 64-byte aligned.

    Raises:
        ValueError: shapes, steps or cutoff out of range, or a non-finite block (named).
        TypeError: an unsupported kind or dtype, or a tensor that requires grad.

    Warns:
        RuntimeWarning: an unstable block grew beyond the dtype and is infinite or NaN (on a CPU, steps > 0, unless
            check_finite=False).

    NumPy: ``np.linalg.matrix_power(Fp @ np.linalg.pinv(F, rcond), T) @ X[..., -1]``.
    Source: Dogra & Redman (2020), NeurIPS 33, equation 6, by the method of snapshots (Sirovich 1987).

    >>> import numpy as np
    >>> t = np.arange(6)
    >>> X = np.stack([0.5**t, 2.0 * 0.9**t])           # two decaying weights
    >>> predict(X, 3) / X[:, -1]                       # 0.5^3 and 0.9^3
    array([0.125, 0.729])
    """
    if traced.torch_compiles(X) or traced.jax_traces(X):
        traced.refuse(X, out, "X")
        axis = checks.snapshots(tuple(X.shape), time_axis)
        steps, cutoff = checks.integer("steps", steps, least=0), rules.checked(cutoff)
        if traced.torch_compiles(X):
            return sys.modules["torch"].ops.fastkoop.predict(X, steps, rules.describe(cutoff), axis, check_finite)

        def on_host(X):
            return predict(X, steps, cutoff=cutoff, time_axis=axis - ndim, check_finite=check_finite)

        ndim = len(X.shape)
        return traced.by_callback(on_host, X, traced.moved(X.shape, axis), "X")
    return _predict(X, steps, cutoff, time_axis, check_finite, out)


@traced.opaque
def _predict(X, steps, cutoff, time_axis, check_finite, out):
    traced.register()
    source = arrays.read(X)
    snapshots = time_major(source.data, time_axis)
    steps = checks.integer("steps", steps, least=0)
    m, n = len(snapshots) - 1, snapshots.shape[-1]
    batch, check_finite = snapshots.shape[1:-1], checks.flag("check_finite", check_finite)
    rule = rules.resolve(cutoff, n, m, snapshots.dtype)
    target = arrays.check_out(out, (*batch, n), source)
    with source.scope():
        backend = backend_for(source.place)
        blocks = math.prod(batch)
        fits("predict", backend, (blocks, n, m), blocks * n, snapshots, source)
        result, route = backend.predict(snapshots, steps, rule)
        if check_finite and source.place.on_host:  # a device does not wait: its bad blocks are NaN
            refuse_non_finite(route, batch)
            if steps or source.dtype:
                warn_of_overflow(result, route, batch, source)
        return _handed_over(result.reshape(*batch, n), source, target, out)


def pinv(F: Any, *, cutoff: Cutoff = "array_api", check_finite: bool = True, out: Any = None) -> Any:
    """The Moore-Penrose pseudo-inverse of every matrix, truncated at the cutoff.

    Tall (n > m) and of full rank: the left inverse (F^T F)^-1 F^T. Wide and of full rank: the right
    inverse. Rank-deficient: the inverse on the singular values that count, zero on the others.

    Args:
        F: (..., n, m), float32 or float64: a NumPy or CuPy array or a PyTorch tensor with any strides. Empty
            matrices have empty inverses.
        cutoff: which singular values count, see `fastkoop.cutoff`.
        check_finite: False lets NaN and infinity pass through their own matrix, which becomes NaN; on a
            CUDA device they always do.
        out: array of the result's kind, shape and dtype to write into; nothing is written on an error.

    Returns:
        (..., m, n), of F's kind, dtype and device, 64-byte aligned.

    Raises:
        ValueError, TypeError: as `predict`.

    Warns:
        RuntimeWarning: a singular value is so small that its inverse is infinite (on a CPU, unless
            check_finite=False).

    NumPy: ``np.linalg.pinv(F, rcond=max(n, m) * eps)``. Source: Penrose (1955).

    >>> import numpy as np
    >>> F = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> pinv(F) @ F
    array([[1., 0.],
           [0., 1.]])
    """
    if traced.torch_compiles(F) or traced.jax_traces(F):
        traced.refuse(F, out, "F")
        checks.matrices(tuple(F.shape))
        cutoff = rules.checked(cutoff)
        if traced.torch_compiles(F):
            return sys.modules["torch"].ops.fastkoop.pinv(F, rules.describe(cutoff), check_finite)

        def on_host(F):
            return pinv(F, cutoff=cutoff, check_finite=check_finite)

        return traced.by_callback(on_host, F, traced.turned(F.shape), "F")
    return _pinv(F, cutoff, check_finite, out)


@traced.opaque
def _pinv(F, cutoff, check_finite, out):
    traced.register()
    source = arrays.read(F, "F")
    *batch, n, m = checks.matrices(source.data.shape)
    check_finite = checks.flag("check_finite", check_finite)
    rule = rules.resolve(cutoff, max(n, 1), max(m, 1), source.data.dtype)
    target = arrays.check_out(out, (*batch, m, n), source)
    if not n * m:  # as NumPy, SciPy and PyTorch answer
        with source.scope():
            nothing = backend_for(source.place).aligned_empty((*batch, m, n), source.data.dtype)
            return _handed_over(nothing, source, target, out)
    columns = source.data.transpose(len(batch) + 1, *range(len(batch) + 1))
    with source.scope():
        backend = backend_for(source.place)
        fits("pinv", backend, (math.prod(batch), n, m), columns.size, columns, source)
        result, route = backend.pinv(columns, rule)
        if check_finite and source.place.on_host:
            refuse_non_finite(route, tuple(batch), "F")
            inverses = result.reshape(len(result), m * n)
            warn_of_overflow(inverses, route, tuple(batch), source, checks.inverse_overflow)
        return _handed_over(result.reshape(*batch, m, n), source, target, out)


traced.register(predict, pinv)
