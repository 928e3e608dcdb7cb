"""MNIST, the report's data set."""

from __future__ import annotations

from . import register
from .classification import Classification


@register("mnist")
def mnist(config) -> Classification:
    """The report's network on MNIST, with the report's epochs."""
    return Classification.of("mnist", (3, 5, 1), config)
