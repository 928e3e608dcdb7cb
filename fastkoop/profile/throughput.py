"""What a machine can do and what a kernel makes of it: a timer, measured ceilings, the costs, the roofline.

A kernel that reads its data once and writes its result once has the floor max(bytes / copy bandwidth,
flops / matrix rate); floor / time is its share of the roofline (S. Williams, A. Waterman and D. Patterson
2009, "Roofline: an insightful visual performance model", CACM 52(4)). A share above 1 is no mistake where a
kernel mostly reads, which memory does faster than copying, or where the last-level cache holds its data.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.linalg.blas
from threadpoolctl import threadpool_limits

from ..machine import free_memory

GEMM_ORDER = 1536  # a product takes tens of milliseconds on a core; larger ones are no faster
USUAL_CACHES = {"L2": 1 << 20, "last": 32 << 20}  # where the system does not tell


class Timing(NamedTuple):
    """Seconds of one call: the median and the quartiles of some rounds."""

    median: float
    low: float
    high: float
    rounds: int


def wall(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call by a clock on the wall; what it returns is dropped within the time."""
    began = clock()
    function()
    return clock() - began


def measure(
    function: Callable[[], object],
    rounds: int = 9,
    seconds: float = math.inf,
    *,
    least: int = 3,
    warmup: int = 1,
    timer: Callable[[Callable[[], object]], float] = wall,
) -> Timing:
    """Time calls of a function.

    Args:
        function: takes no arguments.
        rounds: calls to time, at most.
        seconds: no further call begins once the calls have taken that long, after the `least` first ones.
        least: calls to time whatever they take (never more than `rounds`).
        warmup: calls before those, not timed.
        timer: calls a function and tells the seconds that it took.

    >>> lasts = iter([3.0, 1.0, 2.0])
    >>> measure(lambda: None, rounds=3, warmup=0, timer=lambda function: next(lasts))
    Timing(median=2.0, low=1.5, high=2.5, rounds=3)
    """
    for _ in range(warmup):
        function()
    taken: list[float] = []
    while len(taken) < rounds and (len(taken) < least or sum(taken) < seconds):
        taken.append(timer(function))
    low, median, high = (float(quartile) for quartile in np.quantile(taken, (0.25, 0.5, 0.75)))
    return Timing(median, low, high, len(taken))


class Cost(NamedTuple):
    """What a kernel cannot avoid, for one block: data read once plus result written once, and arithmetic."""

    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """Flops a byte."""
        return self.flops / self.bytes


# The costs of one block of n weights and m snapshot pairs at T = 1, from data of `size` bytes a number; `rank`
# of its q = min(n, m) singular values count. A multiply-add is two flops; of a symmetric product only one half is
# counted. Gram matrices, Factors and coefficients are float64. Where several ways lead to the result, the
# cheapest textbook way counts, not the one that is implemented.
DOUBLE = 8
REPORTS = 4 * DOUBLE + 2  # rank, threshold, largest and smallest value; edge and route


def gram_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """Tall: (m+1)(m+2)/2 dot products over n weights. Wide: n(n+1)/2 and n^2 dot products over m snapshots."""
    data = n * (m + 1) * size
    if n > m:
        return Cost(data + DOUBLE * (m + 1) ** 2, n * (m + 1) * (m + 2))
    return Cost(data + DOUBLE * (2 * n + 1) * n, m * n * (n + 1) + 2 * m * n * n)


def solve_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """Read the Gram matrix, write basis, readout (tall: the same), operator, start and reports.

    Full rank: Cholesky, q^3/3, and the operator by two triangular solves of q^3 each. Truncated:
    tridiagonalise, 4/3 q^3, turn `rank` vectors back, 2 q^2 rank, and the operator, 2 q^2 rank + 2 q rank^2.
    """
    q, entries = min(n, m), (m + 1) ** 2 if n > m else (2 * n + 1) * n
    factors = (1 if n > m else 2) * q * rank + rank * rank + rank
    flops = q**3 // 3 + 2 * q**3 if rank == q else 4 * q**3 // 3 + 4 * q * q * rank + 2 * q * rank * rank
    return Cost(DOUBLE * (entries + factors) + REPORTS, flops)


def evolve_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """The product readout start, (q, rank) by (rank,)."""
    q = min(n, m)
    return Cost(DOUBLE * (q * rank + rank + q), 2 * q * rank)


def advance_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """The product operator start, (rank, rank) by (rank,)."""
    return Cost(DOUBLE * (rank * rank + 2 * rank), 2 * rank * rank)


def reconstruct_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """Tall: Fp times m coefficients. Wide: the n coefficients are the state; they are copied."""
    if n > m:
        return Cost(n * (m + 1) * size + DOUBLE * m, 2 * n * m)
    return Cost(n * (DOUBLE + size), 0)


def predict_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """Read n (m+1) numbers, write n: all that is between stays in cache.

    Tall: F^T F and F^T x_last, n m (m+3); the solution; Fp times it, 2 n m. Wide: F F^T, m n (n+1); the
    solution; Fp (F^T y), 4 n m. The solution takes Cholesky, q^3/3, and two triangular solves, 2 q^2, or
    truncated a tridiagonalisation, 4/3 q^3, and its reflections applied to one vector there and back, 4 q^2.
    """
    q = min(n, m)
    products = n * m * (m + 3) + 2 * n * m if n > m else m * n * (n + 1) + 4 * n * m
    solution = q**3 // 3 + 2 * q * q if rank == q else 4 * q**3 // 3 + 4 * q * q
    return Cost(n * (m + 2) * size, products + solution)


def pinv_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """Read n m numbers, write as many. The Gram matrix of the short side q < l takes l q (q+1).

    Full rank: Cholesky, q^3/3, and two triangular solves with l right-hand sides, 2 q^2 l. Truncated:
    tridiagonalise, 4/3 q^3, turn `rank` vectors back, 2 q^2 rank, and apply them twice, 4 l q rank.
    """
    q, long = min(n, m), max(n, m)
    if rank == q:
        rest = q**3 // 3 + 2 * q * q * long
    else:
        rest = 4 * q**3 // 3 + 2 * q * q * rank + 4 * long * q * rank
    return Cost(2 * n * m * size, long * q * (q + 1) + rest)


def record_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """One snapshot of a block: n numbers read, as many written."""
    return Cost(2 * n * size, 0)


COSTS: dict[str, Callable[[int, int, int, int], Cost]] = {
    "gram": gram_cost,
    "solve": solve_cost,
    "evolve": evolve_cost,
    "advance": advance_cost,
    "reconstruct": reconstruct_cost,
    "predict": predict_cost,
    "pinv": pinv_cost,
}


# On a GPU recording is a kernel of its own.
RECORD: dict[str, Callable[[int, int, int, int], Cost]] = {"record": record_cost}


def product_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """The Gram matrix of the short side q < l of float64 data, one half of it: l q (q+1)."""
    q, long = min(n, m), max(n, m)
    return Cost(DOUBLE * (q * long + q * q), long * q * (q + 1))


def tridiagonal_cost(n: int, m: int, size: int, rank: int) -> Cost:
    """A symmetric q x q matrix read, its reflections written, 4/3 q^3."""
    q = min(n, m)
    return Cost(2 * DOUBLE * q * q, 4 * q**3 // 3)


# What `predict` of a large block leaves to BLAS and LAPACK, and cannot be faster than.
PARTS: dict[str, Callable[[int, int, int, int], Cost]] = {"product": product_cost, "tridiagonal": tridiagonal_cost}


class Ceilings(NamedTuple):
    """What some threads of this machine, or its whole GPU (threads None), were measured to do at best."""

    threads: int | None
    copy: float  # bytes a second, those read plus those written
    float32: float  # flops a second of a matrix product
    float64: float

    @property
    def whose(self) -> str:
        """In words."""
        return "device" if self.threads is None else "1 thread" if self.threads == 1 else f"{self.threads} threads"

    def rate(self, dtype) -> float:
        """Flops a second that a kernel on data of this dtype is held to: float32 data to the faster of both rates."""
        return self.float64 if np.dtype(dtype) == np.float64 else max(self.float32, self.float64)

    def floor(self, cost: Cost, dtype) -> float:
        """Seconds that no kernel of this cost goes below."""
        return max(cost.bytes / self.copy, cost.flops / self.rate(dtype))

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of the same threads."""
        return Ceilings(self.threads, *(max(pair) for pair in zip(self[1:], other[1:], strict=True)))


def measure_ceilings(threads: int, rounds: int = 5, seconds: float = 0.5) -> Ceilings:
    """Copy bandwidth and matrix rates of this many threads, of the best library present.

    Lower quartiles of the rounds' times: a ceiling is what the machine does undisturbed, and no single lucky round.

    Args:
        threads: that copy, and that BLAS may use.
        rounds, seconds: of each of the five things timed, see `measure`.
    """
    rates = (matrix_rate(dtype, threads, rounds, seconds) for dtype in (np.float32, np.float64))
    return Ceilings(threads, copy_bandwidth(threads, copy_bytes(), rounds, seconds), *rates)


def copy_bandwidth(threads: int, size: int, rounds: int = 5, seconds: float = 0.5) -> float:
    """Bytes a second, read plus written, of threads that each copy their part of `size` bytes with NumPy."""
    source, target = np.ones(size // DOUBLE), np.ones(size // DOUBLE)  # ones, so that every page is there
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:  # np.copyto lets go of the GIL
        timing = measure(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), rounds, seconds)
    return 2 * source.nbytes / timing.low


def matrix_rate(dtype, threads: int, rounds: int = 5, seconds: float = 0.5, order: int = GEMM_ORDER) -> float:
    """Flops a second of a product of two square matrices: NumPy's BLAS or SciPy's, whichever is faster."""
    a, b = np.random.default_rng(0).normal(size=(2, order, order)).astype(dtype)
    c = np.zeros_like(a)
    gemm = scipy.linalg.blas.dgemm if np.dtype(dtype) == np.float64 else scipy.linalg.blas.sgemm
    products = (
        lambda: np.matmul(a, b, out=c),
        lambda: gemm(1.0, b.T, a.T, c=c.T, overwrite_c=1),
    )
    with threadpool_limits(limits=threads, user_api="blas"):
        return max(2 * order**3 / measure(product, rounds, seconds).low for product in products)


def copy_bytes() -> int:
    """Bytes to copy: four times the last-level cache, less where memory is short."""
    return int(min(4 * cache_bytes()["last"], free_memory() / 8))


def cache_bytes(folder: str = "/sys/devices/system/cpu/cpu0/cache") -> dict[str, int]:
    """A core's L2 cache and the last-level cache, in bytes; usual sizes where the system does not tell."""
    levels: dict[int, int] = {}
    for index in sorted(pathlib.Path(folder).glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            text = (index / "size").read_text().strip()
            factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
            levels[int((index / "level").read_text())] = int(text.rstrip("KMG")) * factor
        except (OSError, ValueError):
            continue
    if not levels:
        return dict(USUAL_CACHES)
    return {"L2": levels.get(2, USUAL_CACHES["L2"]), "last": levels[max(levels)]}
