"""The digits that scikit-learn brings: the default problem, for which nothing is downloaded."""

from __future__ import annotations

from . import register
from .classification import Classification


@register("digits")
def digits(config) -> Classification:
    """The report's network on the digits."""
    return Classification.of("digits", (10, 30, 20), config)
