"""The rules that the CPU kernels compile are the plain ones, number for number."""

import numpy as np
import pytest

from fastkoop.kernels.cpu import selection
from fastkoop.kernels.cpu.jit import kernel
from fastkoop.kernels.cutoffs import KINDS


@kernel
def _apply(squares, p, kind, value, digits, scale, blur, slack, least):
    rank, threshold, edge = selection.select(squares, p, kind, value, digits, scale, blur, slack, least)
    clear = selection.resolved(squares, p, kind, value, rank, threshold, least)
    largest_only, constant = selection.needs_largest_only(kind), selection.keeps_constant(kind, value)
    return rank, threshold, edge, clear, largest_only, constant, selection.floor(kind, p, squares[0])


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_plain_are_the_same(kind, rng):
    for _ in range(200):
        p = int(rng.integers(1, 9))
        squares = np.sort(10.0 ** rng.uniform(-20, 3, size=p))[::-1].copy()
        squares[rng.random(p) < 0.1] = 0.0
        value = float(rng.choice([0.3, 1e-3, 1.0, 2.0, 1e-9]))
        blur, slack, least = (10.0 ** rng.uniform(-18, -1, size=3)).tolist()
        numbers = p, KINDS[kind], value, int(rng.choice([24, 53])), 2.0 ** int(rng.integers(-9, 9)), blur, slack, least
        assert _apply(squares, *numbers) == _apply.py_func(squares.tolist(), *numbers)
