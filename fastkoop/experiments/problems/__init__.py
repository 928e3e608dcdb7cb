"""What networks are trained for: the problem's contract, the built-in problems, and the loading of a user's own.

A built-in problem is one file of this folder that calls `register`; nothing else names it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable

_FACTORIES: dict[str, Callable] = {}


def register(name: str) -> Callable:
    """Decorator: register a factory under the name that `--problem` takes; it is called with the checked config."""

    def add(factory: Callable) -> Callable:
        _FACTORIES[name] = factory
        return factory

    return add


@functools.cache
def factories() -> dict[str, Callable]:
    """Every registered factory by name, after all modules of this folder have been imported."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_FACTORIES.items()))


def names() -> tuple[str, ...]:
    """The built-in problems.

    >>> names()
    ('digits', 'mnist', 'oscillator', 'softmax')
    """
    return tuple(factories())
