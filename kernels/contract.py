"""What a backend is: its functions, what they exchange, and the argument checks that all backends share.

`fastkoop.kernels` itself is the CPU's backend, `cuda.backend(ordinal)` a CUDA device's. Both have the functions of
`Backend`, with these names and arguments. What is handed over:

- snapshots X (m+1, ..., n), time first, float32 or float64, in the backend's own memory; columns F (m, ..., n) for
  `pinv`. Any strides of whole elements; a CUDA kernel follows at most four axes of the batch that cannot be merged.
- results, which the backend allocates, on 64 bytes, C-ordered. The batch comes out flattened, B blocks.
- cutoffs as a `Rule`, or the plain pair (kind, value).

A CPU has finished when a function returns. A CUDA device works in order on the caller's current stream, nothing waits
for it and nothing raises for what it finds in the data; the exceptions are its library routes (min(n, m) > 64), whose
ranks are decided on the host, and `host`, `eigenvalues`, `modes` and `clip`.

A backend checks what memory safety needs, by the functions below; the public door, `fastkoop`, checks the rest once.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from .cutoffs import KINDS
from .plan import Plan

DIGITS = {np.dtype(np.float32): 24, np.dtype(np.float64): 53}  # significand bits
COORDINATES = {"basis": (2,), "readout": (2,), "operator": (1, 2), "start": (1,)}  # axes of Factors that run over them


class Rule(NamedTuple):
    """Which singular values count, as kernels take it; see cutoffs.py. A plain pair (kind, value) is as good.

    >>> Rule("relative", 1e-3).numbers("float32")
    (0, 0.001, 24)
    """

    kind: str
    value: float

    def numbers(self, dtype) -> tuple[int, float, int]:
        """The kind's number, the value, and the significand bits of the data."""
        if self.kind not in KINDS:
            raise ValueError(f"cutoff: expected a pair of a kind, {', '.join(KINDS)}, and a number, got {self.kind!r}")
        return KINDS[self.kind], float(self.value), DIGITS[np.dtype(dtype)]


class Factors(NamedTuple):
    """K of B blocks in r coordinates y = U^T w, with q = m (tall) or n (wide); arrays of the backend.

    K = (Fp readout)(F basis)^T of a tall block and readout basis^T of a wide one; `operator` is U^T K U.
    Columns past a block's own rank are zero. r is the largest rank on a CPU, min(n, m) on a CUDA device.
    """

    basis: Any  # (B, q, r) float64: U = F basis (tall) or basis (wide), orthonormal columns
    readout: Any  # (B, q, r) float64: y -> coefficients of Fp (tall) or weights (wide)
    operator: Any  # (B, r, r) float64
    start: Any  # (B, r) float64: U^T x_last
    rank: Any  # (B,) int64
    threshold: Any  # (B,) float64, in the units of the singular values of F
    largest: Any  # (B,) float64 singular value; 0 where rank is 0
    smallest: Any  # (B,) float64 singular value that counts; 0 where rank is 0
    edge: Any  # (B,) bool: a singular value lies so near the threshold that rank +- 1 is as right
    route: Any  # (B,) int8 index into plan.ROUTES


class Backend(Protocol):
    """The functions of a backend; kernels/cpu says what each computes, and its source."""

    xp: Any  # the array module

    def plan(self, blocks: int, n: int, m: int, dtype, steps: int = 1) -> Plan:
        """Side, engine and cost of a batch of equal blocks."""

    def host(self, array) -> np.ndarray:
        """The array in host memory, once the work before it is done: itself on a CPU, a copy of a device's."""

    def rows_of(self, array) -> Any:
        """Rows (q, ..., n) in the form that `combine` takes at least cost."""

    def aligned_empty(self, shape: tuple[int, ...], dtype) -> Any:
        """An uninitialised C-ordered array whose memory starts on a 64-byte boundary."""

    def gram(self, X, side: str | None = None) -> Any:
        """Gram matrices (B, m+1, m+1) of tall blocks, (B, 2n+1, n) of wide ones, float64."""

    def solve(self, gram, n: int, m: int, cutoff: tuple[str, float], dtype) -> Factors:
        """Reduced operators from Gram matrices alone; route "unresolved" where they cannot tell."""

    def fit(self, X, cutoff: tuple[str, float], *, refine: bool = False, known: Any = None) -> Factors:
        """Reduced operators, each on the route that resolves the cutoff; known: the Gram matrices of X."""

    def evolve(self, factors: Factors, steps: np.ndarray) -> Any:
        """Coefficients (B, len(steps), q) of K^steps x_last at ascending counts >= 1, which are in host memory."""

    def advance(self, factors: Factors, start, steps: int) -> Any:
        """Coordinates (B, r) `steps` further on, a new array."""

    def follow(self, rows, factors: Factors, largest, start, steps: int, out=None) -> tuple:
        """`advance`, then `combine` of the coordinates: states (B, n), coordinates (B, r), and their bound.

        out: the states' memory, of an earlier call.
        """

    def combine(self, rows, coefficients, *, products: bool = True) -> Any:
        """Sums (k, B, n) over rows (q, ..., n) with coefficients (B, k, q), in rows' dtype."""

    def reconstruct(self, X, coefficients, *, side: str | None = None, products: bool = True) -> Any:
        """States (k, B, n) from coefficients (B, k, q), in X's dtype."""

    def predict(self, X, steps: int, cutoff: tuple[str, float]) -> tuple:
        """K^steps x_last (B, n), and routes (B,)."""

    def pinv(self, F, cutoff: tuple[str, float]) -> tuple:
        """Pseudo-inverses (B, m, n), and routes (B,)."""

    def eigenvalues(self, factors: Factors) -> Any:
        """Eigenvalues (B, r) of K that can differ from zero; computed on the host."""

    def modes(self, factors: Factors) -> tuple:
        """Eigenvalues (B, r) and vectors (B, r, r) with exact modes (readout) vectors; computed on the host."""

    def clip(self, factors: Factors, radius: float) -> tuple:
        """Factors with eigenvalues moved onto a circle, and condition numbers (B,); computed on the host."""


def check_side(side: str | None) -> None:
    """Raise unless `side` names one."""
    if side not in (None, "snapshots", "weights"):
        raise ValueError(f'side: expected "snapshots", "weights" or None, got {side!r}')


def check_gram(gram, n: int, m: int) -> None:
    """Raise unless these are Gram matrices of blocks of n weights and m pairs."""
    expected = (m + 1, m + 1) if n > m else (2 * n + 1, n)
    if gram.ndim != 3 or gram.shape[1:] != expected:
        raise ValueError(f"gram: expected (B, {expected[0]}, {expected[1]}) for n={n}, m={m}, got {gram.shape}")


def ascending(steps) -> np.ndarray:
    """Step counts as int64 in C order.

    Raises:
        ValueError: they do not ascend, or begin below 1.
    """
    steps = np.ascontiguousarray(steps, np.int64)
    if len(steps) and (steps[0] < 1 or (np.diff(steps) < 0).any()):
        raise ValueError(f"steps: expected ascending counts >= 1, got {steps}")
    return steps


def check_coefficients(coefficients, blocks: int, rows: int) -> None:
    """Raise unless coefficients (B, k, q) are of so many blocks, and of no more rows than there are."""
    if coefficients.ndim != 3 or coefficients.shape[0] != blocks or coefficients.shape[2] > rows:
        raise ValueError(
            f"coefficients: expected (B, k, q) with B = {blocks} and q <= {rows} rows, got {coefficients.shape}"
        )


def check_strides(X) -> None:
    """Raise where strides are not whole elements, as in a field of a structured array."""
    if any(stride % X.dtype.itemsize for stride in X.strides):
        raise ValueError(
            f"X: expected strides in whole elements of {X.dtype.itemsize} bytes, got {X.strides} bytes; "
            "pass ascontiguousarray(X)"
        )
