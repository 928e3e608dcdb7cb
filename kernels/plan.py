"""Pure arithmetic: which side and which engine a problem takes, and what it costs. Runs anywhere."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from .cutoffs import KINDS, RANK, needs_largest_only

# The largest min(n, m) that the Numba eigensolver takes; LAPACK is faster beyond (measured crossover).
KERNEL_ORDER = 96
# From this min(n, m) on, the few directions that a cutoff may keep are sought without a Gram matrix (measured).
ITERATIVE_ORDER = 1024

# A Gram matrix is used as it is if its trace, a sum of squares, lies between these: products of two such sums must
# neither overflow nor become denormal. Blocks beyond are scaled by a power of two first, on the SVD's route.
LEAST_TRACE, MOST_TRACE = 1e-140, 1e140

# How a block was answered; `KoopmanOperator.route` holds these words, the kernels their indices.
ROUTES = ("zero", "constant", "cholesky", "eigen", "svd", "non-finite", "unresolved", "qr")
ZERO, CONSTANT, CHOLESKY, EIGEN, SVD, NON_FINITE, UNRESOLVED, QR = range(len(ROUTES))

# The share of a prediction's displacement that a Gram route may get wrong; beyond it the SVD is taken.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-9}


class Resolution(NamedTuple):
    """What rounding does to one block's singular values, relative to the largest, s1.

    gram:  a Gram matrix accumulated in float64 has eigenvalues within gram s1^2 of the exact ones;
    svd:   the float64 SVD of the block has singular values within svd s1 of the exact ones;
    least: eigenvalues kept on a Gram route must exceed least s1^2, or the block goes to the SVD.
    """

    gram: float
    svd: float
    least: float


class Plan(NamedTuple):
    """How one batch of equal blocks is computed.

    side: "snapshots" (tall, n > m: the Gram matrix is F^T F, m x m) or "weights" (wide: F F^T, n x n);
    engine: "kernel" (Numba, one block per thread) or "library" (BLAS and LAPACK);
    bytes: data read once plus result written once; flops: multiply-adds of the Gram route, times two.
    """

    side: str
    engine: str
    order: int
    bytes: int
    flops: int


def plan(blocks: int, n: int, m: int, dtype, steps: int = 1) -> Plan:
    """Route and cost of predicting `blocks` blocks of n weights from m snapshot pairs.

    >>> plan(2000, 785, 32, "float32").side, plan(20, 785, 1875, "float32").engine
    ('snapshots', 'library')
    """
    itemsize = np.dtype(dtype).itemsize
    order = min(n, m)
    side = "snapshots" if n > m else "weights"
    gram = n * m * (m + 1) if n > m else m * n * (n + 1) + (2 * m * n * n if steps > 1 else 4 * n * m)
    solve = order**3 // 3 + 2 * order * order * max(steps, 1)
    readout = 2 * n * m if n > m else 2 * n * n
    return Plan(
        side,
        "kernel" if order <= KERNEL_ORDER else "library",
        order,
        blocks * n * (m + 2) * itemsize,
        blocks * (gram + solve + readout),
    )


def iterates(order: int, cutoff: tuple[str, float]) -> bool:
    """Whether of such a block's directions a few are sought first; where they do not do, a Gram matrix is made.

    >>> iterates(1875, ("relative", 1e-2)), iterates(1875, ("energy", 0.9)), iterates(785, ("rank", 3))
    (True, False, False)
    """
    kind = KINDS[cutoff[0]]
    few = needs_largest_only(kind) or (kind == RANK and 0 < int(cutoff[1]) < order)
    return order >= ITERATIVE_ORDER and few


@functools.lru_cache(maxsize=1024)
def resolution(n: int, m: int, dtype) -> Resolution:
    """Rounding bounds for blocks of n weights and m columns of `dtype`.

    A float64 dot product of length l errs by about sqrt(l) units in the last place, with overwhelming
    probability (Higham & Mary 2019, theorem 2.4), and by more where rounding errors of a very long one are
    correlated; the eigensolver by a few more, and one-sided Jacobi by about the root of how many rotations a row
    takes. Measured errors stay below these bounds, by a factor of two on ordinary data.
    """
    eps = 2.0**-52
    length, order = max(n, m), min(n, m)
    gram = (8.0 + 2.0 * math.sqrt(order) + math.sqrt(length) + length / 4096) * eps
    return Resolution(gram, (4.0 + 3.0 * math.sqrt(order)) * eps, gram / TOLERANCE[np.dtype(dtype)])


def triage(size, last):
    """EIGEN if a Gram matrix of this trace is usable beside |x_last|^2, else NON_FINITE, ZERO, or SVD, which scales."""
    if LEAST_TRACE < size < MOST_TRACE and last < MOST_TRACE:
        return EIGEN
    if not math.isfinite(size + last):
        return NON_FINITE
    return SVD if size > 0.0 else ZERO


def unit_of(size):
    """The power of two that data with this sum of squares is divided by, so that its Gram matrix has a trace near 1."""
    return math.ldexp(1.0, math.frexp(size)[1] // 2)
