"""What is timed: batches of random blocks with given singular values, and the calls of every kernel on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from .. import cutoff as rules
from ..backends import each_large_block, tridiagonalize
from .devices import Gpu, Host

LAST_VALUE = {"full": 1e-2, "truncated": 1e-7}  # singular values run from 1 to this
UNRESOLVED = 1.5  # times the cutoff: where the smallest one counts, but may be too small for a Gram matrix
LONG_FLOPS = 1e10  # blocks that take about a second a call
DISTINCT = 64  # blocks made; a batch repeats them
MOST_BLOCKS = 1 << 18  # for kernels that take next to nothing a block
MADE_BYTES = 32 << 20  # of float64 while they are made
ONE = np.array([1])


def rule_of(n: int, m: int) -> tuple[str, float]:
    """One cutoff for both dtypes: float64's own would truncate nothing of 1e-7."""
    return rules.resolve("array_api", n, m, np.float32)


def last_value(n: int, m: int, data: str) -> float:
    """The smallest singular value of such data, beside a largest of 1."""
    return UNRESOLVED * rule_of(n, m)[1] if data == "unresolved" else LAST_VALUE[data]


def memory(n: int, m: int, blocks: int, dtype: str) -> float:
    """Bytes that profiling this size takes, about: data, result, Gram matrices and Factors, blocks in the making."""
    q, data = min(n, m), n * (m + 2)
    making = 3 * 8 * data * _distinct(n, m, blocks) / _stacked(n, m)
    return blocks * (3.0 * data * np.dtype(dtype).itemsize + 8.0 * 8 * q * q) + making


def _distinct(n: int, m: int, blocks: int) -> int:
    return min(blocks, DISTINCT, max(1, MADE_BYTES // (8 * n * (m + 1))))


def _stacked(n: int, m: int) -> int:
    """How many times the long side of a block repeats itself: a large one takes too long to make otherwise."""
    short, long = sorted((n, m))
    return max(1, min(8 * long * short // MADE_BYTES, long // short))


def snapshots(n: int, m: int, blocks: int, dtype, last: float, seed: int = 0, xp=np):
    """Random snapshots (m+1, blocks, n), as recorded, whose F has singular values from 1 to `last`, geometric.

    xp: whose array it is to be; only distinct blocks travel to a device.
    """
    rng, distinct = np.random.default_rng(seed), _distinct(n, m, blocks)
    short, long = sorted((n, m))
    times = _stacked(n, m)
    F = _orthonormal(rng, distinct, long // times, short) * (np.geomspace(1.0, last, short) / math.sqrt(times))
    F = np.tile(F @ _orthonormal(rng, distinct, short, short), (1, times, 1))
    F = np.pad(F, ((0, 0), (0, long - F.shape[1]), (0, 0)))
    if n <= m:
        F = F.swapaxes(1, 2)
    X = np.empty((m + 1, distinct, n), dtype)
    X[:-1] = F.transpose(2, 0, 1)
    X[-1] = rng.normal(size=(distinct, n)) / math.sqrt(n)
    return xp.take(xp.asarray(X), xp.arange(blocks) % distinct, axis=1)


def _orthonormal(rng, count: int, rows: int, columns: int) -> np.ndarray:
    """Random matrices (count, rows, columns) with orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(count, rows, columns)))[0]


class Workload:
    """A batch of blocks and the calls to time on it. What a kernel needs from another one is made at its first call.

    Args:
        X: snapshots (m+1, B, n), where the device wants them.
        cutoff: pair (kind, value).
        device: whose kernels are called.
        least: bytes of Gram matrices to solve at least, and of Factors to evolve: those of the blocks are much
            smaller than their snapshots, and repeated until there are as many.
    """

    def __init__(self, X, cutoff: tuple[str, float], device: Host | Gpu, least: tuple[int, int] = (0, 0)):
        self.X, self.cutoff, self.device, self.least = X, cutoff, device, least
        self.n, self.m, self.blocks = X.shape[2], len(X) - 1, X.shape[1]
        self.kernels = device.kernels

    @functools.cached_property
    def grams(self):
        """Gram matrices of the blocks, over and over."""
        S = self.kernels.gram(self.X)
        return self._repeat(S, min(self.least[0] / S.nbytes, MOST_BLOCKS / len(S)))

    @functools.cached_property
    def factors(self):
        """Reduced operators of `grams`, over and over."""
        factors = self._solve()
        times = min(self.least[1] / max(factors.operator.nbytes, 1), MOST_BLOCKS / len(factors.rank))
        return type(factors)(*(self._repeat(part, times) for part in factors))

    def _repeat(self, array, times: float):
        return self.device.xp.concatenate([array] * max(1, math.ceil(times)))

    @functools.cached_property
    def coefficients(self):
        """Coefficients of the next state of each block."""
        return self.kernels.evolve(self.factors, ONE)[: self.blocks].copy()

    def _solve(self):
        return self.kernels.solve(self.grams, self.n, self.m, self.cutoff, self.X.dtype)

    def calls(self) -> dict[str, Callable[[], object]]:
        """What to time, by kernel, each after those it needs."""
        kernels = self.kernels
        extra = {} if self.device.name == "cpu" else {"record": self._record}
        return {
            "gram": lambda: kernels.gram(self.X),
            "solve": self._solve,
            "evolve": lambda: kernels.evolve(self.factors, ONE),
            "advance": lambda: kernels.advance(self.factors, self.factors.start, 1),
            "reconstruct": lambda: kernels.reconstruct(self.X, self.coefficients),
            "predict": lambda: kernels.predict(self.X, 1, self.cutoff),
            "pinv": lambda: kernels.pinv(self.X[:-1], self.cutoff),
            **extra,
        }

    @functools.cached_property
    def _record(self) -> Callable[[], object]:
        return self.device.recorder(self.batch("record"), self.n, self.X.dtype)

    @functools.cached_property
    def parts(self) -> dict[str, Callable[[], object]]:
        """What `predict` of large blocks leaves to BLAS and LAPACK: a product of float64 data, its tridiagonal form."""
        lines = [np.asarray(self.X[:-1, b], np.float64) for b in range(self.blocks)]
        if self.n > self.m:
            lines = [A.T for A in lines]
        G, order = [A.T @ A for A in lines], min(self.n, self.m)

        def tridiagonal(b: int):
            return tridiagonalize(G[b].copy())

        return {
            "product": lambda: each_large_block(lambda b: lines[b].T @ lines[b], self.blocks, order),
            "tridiagonal": lambda: each_large_block(tridiagonal, self.blocks, order),
        }

    def batch(self, kernel: str) -> int:
        """Blocks in one call of a kernel."""
        if kernel == "solve":
            return len(self.grams)
        if kernel == "record":  # of a snapshot alone: as many nodes as fill the batch's bytes
            return max(1, min(self.device.batch_bytes // (self.n * self.X.dtype.itemsize), MOST_BLOCKS))
        return len(self.factors.rank) if kernel in ("evolve", "advance") else self.blocks

    @property
    def rank(self) -> int:
        """The median rank of the blocks; of those that take about a second a call all singular values count."""
        if self.device.plan(self.n, self.m, self.X.dtype).flops > LONG_FLOPS:
            return min(self.n, self.m)
        return int(np.median(self.device.host(self.factors.rank)))
