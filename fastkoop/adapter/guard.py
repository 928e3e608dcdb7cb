"""Guard: the caller's function that judges a model, called so that training does not notice."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

from torch import nn

from .parts import Parts
from .randomness import generators_put_back


class Guard:
    """A guard's values, the mean over ranks; modules' modes and random generators are put back after every call."""

    def __init__(self, function: Callable[[], float], parts: Parts):
        self._function, self._parts = function, parts

    def __call__(self) -> float:
        """The value; smaller is better.

        Raises:
            TypeError: it is no number.
            RankError: another rank's guard failed.
        """
        ranks = self._parts.ranks
        if ranks is None:
            return self._value()
        try:
            value = self._value()
        except BaseException as error:
            ranks.mean("guard", math.nan, f"{type(error).__name__}: {error}")
            raise
        self._parts.parameters.reshard()  # what it gathered of a sharded model
        return ranks.mean("guard", value)

    def _value(self) -> float:
        with generators_put_back(), modes_put_back(self._parts.parameters.model):
            value = self._function()
        return number(value, self._function)


def number(value, function: Callable) -> float:
    """What a guard returned as a float.

    Raises:
        TypeError: it is no number.
    """
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # PyTorch's for a tensor of several numbers
        pass
    name = getattr(function, "__name__", type(function).__name__)
    shown = f"a {type(value).__name__}" if value is not None else "None"
    raise TypeError(f"guard: expected {name} to return a number, smaller is better, got {shown}; return the loss")


def better(value: float, than: float) -> bool:
    """Whether a guard's value is finite and no larger than another, which has to be a number.

    >>> better(1.0, 1.0), better(1.0, float("nan")), better(float("-inf"), 1.0)
    (True, False, False)
    """
    return math.isfinite(value) and value <= than


@contextlib.contextmanager
def modes_put_back(model: nn.Module) -> Iterator[None]:
    """Every module trains or evaluates as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
