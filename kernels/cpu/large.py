"""Batches of blocks for BLAS and LAPACK: how many at a time, and where a matrix product pays."""

from __future__ import annotations

import functools

import numpy as np

from ..contract import DIGITS, Factors
from ..factors import Reduced, assemble
from ..plan import resolution
from . import gram, library
from .layout import Blocks
from .pool import each_block, over_blocks

# Blocks up to this order go through LAPACK several at a time with a BLAS thread each, larger ones one at a time.
ALONE_ORDER = 1024
# This many states from this many rows a block are a matrix product for BLAS.
LIBRARY_STATES, LIBRARY_ROWS = 8, 64


def quiet(function):
    """No NumPy warning leaves the library routes: a diverged state or inverse may not fit its dtype."""

    @functools.wraps(function)
    def quietly(*arguments, **options):
        with np.errstate(over="ignore", invalid="ignore"):
            return function(*arguments, **options)

    return quietly


def over_large(function, blocks: int, order: int) -> list:
    """function(b) of every block in BLAS and LAPACK; how many threads a block gets is decided by its order alone."""
    return each_block(quiet(function), blocks, alone=order <= ALONE_ORDER)


def reduce_by_svd(source: Blocks, cutoff: tuple[str, float]) -> Factors:
    """Reduced operators from LAPACK's SVD of every block."""
    n, m = source.n, source.columns - 1
    bounds, digits, order = resolution(n, m, source.dtype), DIGITS[source.dtype], min(n, m)

    def reduce(b: int) -> Reduced:
        return library.reduce_svd(source.block(b), cutoff, digits, bounds)

    return assemble(over_large(reduce, len(source.offsets), order), order)


def combine(source: Blocks, coefficients: np.ndarray, out: np.ndarray) -> None:
    """`cpu.combine` by BLAS where a block has the states and rows for it, zeros at the ends not counted.

    Those are other blocks' ranks; products with them would be the same sums, but perhaps in another order.
    """
    for b, block in enumerate(coefficients):
        states, rows = (int(used.nonzero()[0].max(initial=-1)) + 1 for used in (block.any(axis=1), block.any(axis=0)))
        used_part = np.ascontiguousarray(block[:states, :rows])
        out[states:, b] = 0.0
        if states >= LIBRARY_STATES and rows >= LIBRARY_ROWS:
            library.combine(source.block(b)[:rows], used_part, out[:states, b])
        else:
            alone = source.only(np.array([b]))
            part = np.empty((states, 1, source.n), source.dtype)
            over_blocks(gram.combine_range, 1, part.size * rows, *alone[:5], rows, used_part[None], part)
            out[:states, b] = part[:, 0]
