"""Every input error, once: what is wrong, what was expected, what came, and the cure."""

from __future__ import annotations

import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable

import numpy as np

UNITS = ((15, "PB"), (12, "TB"), (9, "GB"), (6, "MB"))
FOREVER = 2**63 - 1  # what counts of steps are below
NOT_ASKED_FOR = 1 << 30  # bytes below which free memory is not looked up


class InputError(ValueError):
    """A value the caller can mend; its text names the argument, the expectation, the finding and the cure."""


def integer(name: str, value, *, least: int, cure: str = "") -> int:
    """`value` as an int no smaller than `least`; booleans and fractions are refused, and arrays but those of 0-D."""
    try:
        if isinstance(value, bool) or (not isinstance(value, int) and _no_scalar(value)):  # torch.compile traces this
            raise TypeError
        number = operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: of a tensor without data
        raise TypeError(f"{name}: expected an integer, got {brief(value)} ({type(value).__name__})") from None
    if number < least:
        raise InputError(f"{name}: expected an integer >= {least}, got {number}{'; ' + cure if cure else ''}")
    if number >= FOREVER:
        raise InputError(f"{name}: expected an integer < 2**63 - 1, got {number}")
    return number


def _no_scalar(value) -> bool:
    """Whether it is a boolean of an array library, or an array but a 0-D one."""
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return kind.startswith("bool") or bool(getattr(value, "ndim", None))


def number(name: str, value, expected: str) -> float:
    """A real number as a float, an integer beyond all floats infinite; booleans and other kinds are refused."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected {expected}, got {brief(value)} ({type(value).__name__})")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def brief(value) -> str:
    """repr, on one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def flag(name: str, value) -> bool:
    """`value` as a bool; what only passes for true or false is refused."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {brief(value)} ({type(value).__name__})")


def choice(name: str, value, options: Iterable[str]) -> str:
    """`value` if it is one of `options`."""
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        raise InputError(f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def how_many(steps) -> int | None:
    """How many counts there are in `steps`; None of a single one."""
    if getattr(steps, "ndim", 0) > 1:
        raise InputError(f"steps: expected an integer or a 1-D sequence, got {steps.ndim} dimensions")
    return len(steps) if isinstance(steps, (list, tuple, range)) or getattr(steps, "ndim", 0) == 1 else None


def step_counts(steps) -> tuple[np.ndarray, bool]:
    """`steps` as a 1-D int64 array of counts >= 0, infinite ones FOREVER, and whether a single one was given."""
    if how_many(steps) is None:
        return np.array([_count(steps)], dtype=np.int64), True
    return np.array([_count(step) for step in list(steps)], dtype=np.int64), False


def _count(step) -> int:
    """An integer >= 0, or FOREVER for an infinite float."""
    return FOREVER if isinstance(step, float) and step == math.inf else integer("steps", step, least=0)


def memory(what: str, needed: float, free: Callable[[], float], cure: str) -> None:
    """Refuse what does not fit into the memory that is free, with the numbers; small sizes are not looked at."""
    if needed > NOT_ASKED_FOR and needed > (left := free()):
        raise InputError(f"{what} takes {size(needed)}, of which {size(left)} are free; {cure}")


def size(count: float) -> str:
    """A number of bytes in words.

    >>> size(2e9), size(1.5e13)
    ('2.0 GB', '15.0 TB')
    """
    power, unit = next((pair for pair in UNITS if count >= 10 ** pair[0]), UNITS[-1])
    return f"{count / 10**power:.1f} {unit}"


def stabilizer(stabilize) -> float | str | None:
    """`stabilize` as the radius that eigenvalues are clipped to, "project", or None, the operator as published."""
    if stabilize is None:
        return None
    if isinstance(stabilize, str):
        return 1.0 if choice("stabilize", stabilize, ("clip", "project")) == "clip" else stabilize
    radius = number("stabilize", stabilize, 'None, "clip", "project" or a radius')
    if not (math.isfinite(radius) and radius > 0):
        raise InputError(f"stabilize: expected a radius > 0, got {stabilize}; 1.0 is the unit circle")
    return radius


def axis_of(dimensions: int, time_axis: int) -> int:
    """The time axis as a non-negative index."""
    axis = integer("time_axis", time_axis, least=-(2**63))
    if not -dimensions <= axis < dimensions:
        raise InputError(f"time_axis: expected -{dimensions} .. {dimensions - 1}, got {axis}")
    return axis % dimensions


def snapshots(shape: tuple[int, ...], time_axis: int) -> int:
    """The time axis of an array of snapshots, as a non-negative index."""
    if len(shape) < 2:
        raise InputError(
            f"X: expected at least 2 dimensions (..., n, m+1), got shape {shape}; columns are snapshots, oldest first"
        )
    axis = axis_of(len(shape), time_axis)
    if shape[axis] < 2:
        raise InputError(
            f"X: expected at least 2 snapshots along axis {axis}, got {shape[axis]} (shape {shape}); "
            "an operator needs one pair"
        )
    n_axis = len(shape) - 1 if axis != len(shape) - 1 else len(shape) - 2
    if shape[n_axis] < 1:
        raise InputError(f"X: expected blocks of at least 1 weight, got shape {shape}")
    return axis


def matrices(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` if it is one of matrices (..., n, m), empty ones too."""
    if len(shape) < 2:
        raise InputError(f"F: expected at least 2 dimensions (..., n, m), got shape {shape}")
    return shape


def _where(block: int, blocks: int, batch: tuple[int, ...]) -> str:
    """In words: `block`, of a flattened batch, is the first of `blocks`."""
    where = f"block {tuple(int(i) for i in np.unravel_index(block, batch))}" if batch else "its only block"
    return f"{where} and {blocks - 1} more" if blocks > 1 else where


def overflow(block: int, blocks: int, batch: tuple[int, ...], dtype) -> str:
    """The warning for `blocks` blocks, `block` the first, whose states no longer fit their dtype."""
    return (
        f"predict: {_where(block, blocks, batch)} grew beyond what {dtype} holds, its operator is unstable; predict "
        'fewer steps, fit with stabilize="clip", or pass check_finite=False to take infinities as they come'
    )


def no_limit(block: int, blocks: int, batch: tuple[int, ...], dtype) -> str:
    """The warning for `blocks` blocks, `block` the first, whose states do not settle."""
    have = "have" if blocks > 1 else "has"
    return (
        f"predict: {_where(block, blocks, batch)} {have} no limit, see limit_reason; predict a number of steps, fit "
        'with stabilize="clip" or a radius below 1, or pass check_finite=False to take infinities as they come'
    )


def inverse_overflow(block: int, blocks: int, batch: tuple[int, ...], dtype) -> str:
    """The warning for `blocks` matrices, `block` the first, whose inverses do not fit their dtype."""
    return (
        f"pinv: {_where(block, blocks, batch)} is so small that {dtype} does not hold its inverse; scale it up first, "
        "or pass check_finite=False to take infinities as they come"
    )


def matrix_overflow(block: int, blocks: int, batch: tuple[int, ...], dtype) -> str:
    """The warning for `blocks` blocks, `block` the first, whose K does not fit its dtype."""
    return (
        f"matrix: {_where(block, blocks, batch)} has an operator that {dtype} does not hold; keep to predict, or "
        "fit with check_finite=False to take infinities as they come"
    )


def warn(message: str) -> None:
    """A RuntimeWarning at the line that called FastKoop, however deep in it, or in PyTorch, this is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("fastkoop", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def non_finite(block: int, batch: tuple[int, ...], name: str = "X") -> InputError:
    """The error for a NaN or an infinity in `block` of a flattened batch."""
    return InputError(
        f"{name}: {_where(block, 1, batch)} holds a NaN or an infinity; mend it, or pass check_finite=False to let it "
        "pass through its own block"
    )
