"""BLAS and LAPACK without the GIL, for large blocks that are worked on several at a time.

SciPy's own wrappers (`scipy.linalg.lapack`, `.blas`) hold the GIL, so that threads take turns in them. The same
routines of the same library are reached here by the addresses that SciPy publishes for Cython; ctypes releases the
GIL around a call, and threadpoolctl's limits hold as they do for SciPy. NumPy's products, `cholesky` and `svd` release
it themselves.

Arrays are float64 and row-major. Of a symmetric matrix the *upper* triangle counts: what LAPACK, column-major, calls
the lower one. A matrix may be a window of a wider array; vectors are *rows*.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numba.extending import get_cython_function_address

from .threads import blas

FEW = 6  # eigenvectors up to this share of the order are made one by one (measured crossover)
_BLOCK = 64  # columns a blocked routine works on at a time, at most


def _routine(library: str, name: str, arguments: int):
    """call(...) of a routine, to which everything goes by address: bytes, int, float and arrays."""

    @functools.cache
    def routine():
        blas.load()
        address = get_cython_function_address(f"scipy.linalg.cython_{library}", name)
        return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)

    def call(*values) -> None:
        routine()(*[_address(value) for value in values])  # `values` keeps alive what the addresses point to

    return call


def _address(value):
    if isinstance(value, np.ndarray):
        return value.ctypes.data
    if isinstance(value, int):
        return ctypes.byref(ctypes.c_int(value))
    return ctypes.byref(ctypes.c_double(value)) if isinstance(value, float) else value


def _solver(name: str, arguments: int):
    """call(...) -> info of a LAPACK routine; an argument it refuses is a mistake in this file."""
    routine = _routine("lapack", name, arguments)

    def call(*values) -> int:
        info = np.zeros(1, np.intc)
        routine(*values, info)
        if info[0] < 0:
            raise RuntimeError(f"{name}: argument {-info[0]} is wrong")
        return int(info[0])

    return call


_dsyrk = _routine("blas", "dsyrk", 10)
_dsytrd, _dormtr, _dpotrf = _solver("dsytrd", 10), _solver("dormtr", 13), _solver("dpotrf", 5)
_dsterf, _dstemr, _dstedc = _solver("dsterf", 4), _solver("dstemr", 21), _solver("dstedc", 11)


def _lines(A: np.ndarray, name: str, square: bool = False) -> tuple[int, int, int]:
    """Rows, columns and the distance of rows in numbers, of what LAPACK can take as it lies."""
    if A.dtype != np.float64 or A.ndim != 2 or (square and A.shape[0] != A.shape[1]) or not A.size:
        kind = "square matrix" if square else "matrix"
        raise ValueError(f"{name}: expected a float64 {kind} with entries, got {A.dtype} {A.shape}")
    rows, columns = A.shape
    distance = A.strides[0] // 8 if rows > 1 else columns
    if (columns > 1 and A.strides[1] != 8) or distance < columns or A.strides[0] % 8 or not A.flags.aligned:
        raise ValueError(f"{name}: expected rows of neighbouring numbers, got strides {A.strides}; copy it first")
    if not A.flags.writeable and square:
        raise ValueError(f"{name}: expected a matrix that may be overwritten, got a read-only one")
    return rows, columns, distance


def add_gram(lines: np.ndarray, G: np.ndarray, across: bool = False) -> None:
    """G += lines^T lines, or lines lines^T if `across`, in the upper triangle of G: BLAS dsyrk."""
    rows, columns, distance = _lines(lines, "lines")
    order, _, row = _lines(G, "G", square=True)
    n, k = (rows, columns) if across else (columns, rows)
    if order != n:
        raise ValueError(f"G: expected ({n}, {n}) for lines {lines.shape}, got {G.shape}")
    _dsyrk(b"L", b"T" if across else b"N", n, k, 1.0, lines, distance, 1.0, G, row)


def tridiagonalize(A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Diagonal d (n,), off-diagonal e (n - 1,) and beta (n - 1,) of A = Q T Q^T: LAPACK dsytrd.

    Reflector k, of I - beta[k] v v^T, is left in row k of A past column k + 1, where v is understood to be 1.
    """
    n, _, row = _lines(A, "A", square=True)
    d, e, beta, work = np.empty(n), np.empty(n - 1), np.empty(n - 1), np.empty(_BLOCK * n)
    _dsytrd(b"L", n, A, row, d, e, beta, work, len(work))
    return d, e, beta


def eigenvalues(d: np.ndarray, e: np.ndarray) -> np.ndarray | None:
    """All eigenvalues of tridiag(e, d, e), largest first, or None where they do not converge: LAPACK dsterf."""
    values, rest = np.array(d, np.float64), np.array(e, np.float64)
    return None if _dsterf(len(values), values, rest) else values[::-1].copy()


def leading_vectors(d: np.ndarray, e: np.ndarray, count: int) -> np.ndarray | None:
    """Eigenvectors of tridiag(e, d, e) for its `count` largest eigenvalues, largest first, (count, n), or None.

    A few by LAPACK dstemr, which takes n count (Dhillon & Parlett 2004); many, or where that fails, by dstedc.
    """
    n = len(d)
    Z = _some_vectors(d, e, count) if count * FEW <= n else None
    return Z if Z is not None else _all_vectors(d, e, count)


def _some_vectors(d, e, count: int) -> np.ndarray | None:
    n = len(d)
    d, e, values = np.array(d, np.float64), np.append(e, 0.0), np.empty(n)
    Z, support = np.empty((count, n)), np.empty(2 * count + 2, np.intc)
    work, iwork = np.empty(18 * n), np.empty(10 * n, np.intc)
    number, accurate = np.zeros(1, np.intc), np.ones(1, np.intc)
    failed = _dstemr(
        b"V", b"I", n, d, e, 0.0, 0.0, n - count + 1, n, number, values, Z, n, count, support, accurate,
        work, len(work), iwork, len(iwork),
    )  # fmt: skip
    return None if failed or number[0] != count else Z[::-1].copy()


def _all_vectors(d, e, count: int) -> np.ndarray | None:
    n = len(d)
    d, e, Z = np.array(d, np.float64), np.array(e, np.float64), np.empty((n, n))
    work, iwork = np.empty(1 + 4 * n + n * n), np.empty(3 + 5 * n, np.intc)
    failed = _dstedc(b"I", n, d, e, Z, n, work, len(work), iwork, len(iwork))
    return None if failed else Z[::-1][:count].copy()


def rotate_back(A: np.ndarray, beta: np.ndarray, Z: np.ndarray) -> None:
    """Rows z of Z (count, n) become Q z, with the reflectors that `tridiagonalize` left: LAPACK dormtr."""
    n, _, row = _lines(A, "A", square=True)
    count, length, distance = _lines(Z, "Z")
    if length != n:
        raise ValueError(f"Z: expected rows of {n}, got {Z.shape}")
    work = np.empty(_BLOCK * max(count, _BLOCK) + 65 * _BLOCK)
    _dormtr(b"L", b"L", b"N", n, count, A, row, beta, Z, distance, work, len(work))


def is_positive(A: np.ndarray) -> bool:
    """Whether A, overwritten, has a Cholesky factor: LAPACK dpotrf."""
    n, _, row = _lines(A, "A", square=True)
    return _dpotrf(b"L", n, A, row) == 0
