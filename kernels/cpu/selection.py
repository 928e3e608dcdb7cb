"""The rules of cutoffs.py and selection.py for the CPU kernels: the same functions, compiled where they are called."""

from __future__ import annotations

from ..cutoffs import companion_squaring_pays, floor, keeps_constant, needs_largest_only, squaring_pays
from ..plan import triage, unit_of
from ..selection import limit, resolved, select, spacing
from .jit import compilable

__all__ = [
    "companion_squaring_pays", "floor", "keeps_constant", "limit", "needs_largest_only", "resolved", "select",
    "spacing", "squaring_pays", "triage", "unit_of",
]  # fmt: skip

for function in (
    companion_squaring_pays, floor, keeps_constant, needs_largest_only, squaring_pays, triage, unit_of, limit,
    resolved, select, spacing,
):  # fmt: skip
    compilable(function)
