"""Shared blocks, rules, comparisons and the one place where tolerances are derived."""

import importlib

import numpy as np

from fastkoop.kernels import reference
from fastkoop.kernels.cpu import dense as dense_module
from fastkoop.kernels.cpu import scratch
from fastkoop.kernels.cpu.jit import for_python


class Doors:
    """A module's functions as Python can call them, those that only kernels call too."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        value = getattr(self._module, name)
        if getattr(value, "targetoptions", {}).get("no_cpython_wrapper"):
            value = for_python(value)
        setattr(self, name, value)
        return value


dense, tile_of = Doors(dense_module), Doors(scratch).tile_of

SIZES = (1, 2, 31, 33, 63, 100)
SHAPES = tuple((n, m) for n in SIZES for m in SIZES)
ODD_SHAPES = ((1, 1), (2, 1), (1, 2), (5, 2), (2, 5), (33, 31), (31, 31), (31, 33), (100, 33), (33, 100))

# Every kind of cutoff as kernels/ take it; each keeps some and drops some of `graded`'s singular values.
KERNEL_RULES = (
    ("relative", 1e-3),
    ("relative", 0.0),
    ("spacing", 4.0),
    ("rank", 2.0),
    ("energy", 0.99),
    ("median", 1.5),
)

EPS64 = 2.0**-52


def orthogonal(rng, n):
    """A random orthogonal matrix (n, n)."""
    return np.linalg.qr(rng.normal(size=(n, n)))[0]


def orbit(rng, n, m, dtype=np.float64, batch=(), decay=0.98):
    """Snapshots (*batch, n, m+1) of x <- decay Q x with Q orthogonal, so that ||K|| <= about 1 at any T."""
    X = np.empty((*batch, n, m + 1))
    for index in np.ndindex(*batch):
        A = decay * orthogonal(rng, n)
        x = rng.normal(size=n)
        for t in range(m + 1):
            X[(*index, slice(None), t)] = x
            x = A @ x
    return X.astype(dtype)


def with_singular_values(rng, n, m, values):
    """A matrix (n, m), float64, with these min(n, m) singular values."""
    p = min(n, m)
    return (orthogonal(rng, n)[:, :p] * np.asarray(values, float)) @ orthogonal(rng, m)[:p]


def graded(rng, n, m, dtype=np.float64, low=1e-6):
    """Snapshots (n, m+1) whose F has singular values from 1 down to `low`, and an unrelated last one."""
    F = with_singular_values(rng, n, m, np.geomspace(1.0, low, min(n, m)))
    return np.concatenate([F, rng.normal(size=(n, 1)) / np.sqrt(n)], axis=1).astype(dtype)


def special_blocks(rng, n, m, dtype):
    """Name -> snapshots (n, m+1) that break naive code; all finite."""
    base = rng.normal(size=(n, m + 1))
    tiny, huge = (1e-30, 1e30) if dtype == np.float32 else (1e-100, 1e100)
    duplicated = base.copy()
    duplicated[:, : m // 2] = duplicated[:, m - m // 2 : m]
    only_last = np.zeros((n, m + 1))
    only_last[:, -1] = base[:, -1]
    blocks = {
        "zero": np.zeros((n, m + 1)),
        "constant": np.repeat(base[:, :1], m + 1, axis=1),
        "constant weights": np.repeat(base[:1], n, axis=0),
        "duplicated": duplicated,
        "rank one": np.outer(base[:, 0], 0.9 ** np.arange(m + 1)),
        "only the last": only_last,
        "ill-conditioned": graded(rng, n, m, low=1e-9),
        "huge": base * huge,
        "tiny": base * tiny,
    }
    return {name: block.astype(dtype) for name, block in blocks.items()}


def dying(rng, n, m, dtype=np.float32):
    """Snapshots (n, m+1) of a unit that moved once and then died: two different snapshots, F of rank 2."""
    X = np.repeat(rng.normal(size=(n, 1)) * 0.05, m + 1, axis=1).astype(dtype)
    X[:, : max(1, m // 30)] += (1e-5 * rng.normal(size=(n, 1))).astype(dtype)
    return X


def blocks(X):
    """The blocks of (..., n, m+1) one by one, with their index."""
    return ((index, X[index]) for index in np.ndindex(X.shape[:-2]))


def time_major(X):
    """(..., n, m+1) as the (m+1, ..., n) view that kernels/ take."""
    return np.moveaxis(X, -1, 0)


def reduced(X, cutoff):
    """U, s, V^T, U^T K U of the reference, and the largest singular value that does not count."""
    U, s, Vt = reference.truncated_svd(X[:, :-1], cutoff)
    full = np.linalg.svd(np.asarray(X[:, :-1], np.float64), compute_uv=False)
    dropped = full[len(s)] if len(s) < len(full) else 0.0
    A = U.T @ np.asarray(X[:, 1:], np.float64) @ (Vt.T / s)
    return U, s, Vt, A, dropped


def truth(X, steps, cutoff):
    """K^steps x_last of one block: `reference.predict`, or its eigenvalues for many steps."""
    if steps <= 200:
        return reference.predict(X, steps, cutoff)
    U, s, Vt, A, _ = reduced(X, cutoff)
    if not len(s):
        return np.zeros(len(X))
    values, P = np.linalg.eig(A)
    y = (P * values ** (steps - 1)) @ np.linalg.solve(P, U.T @ X[:, -1].astype(np.float64))
    return np.asarray(X[:, 1:], np.float64) @ ((Vt.T / s) @ y.real)


def error_bound(X, steps, cutoff, expected):
    """How far a correct answer may lie from the reference's, in norm: the one tolerance for predictions.

    Rounding the result: eps(dtype) ||ref||. Applying F^+: a Gram matrix errs by eps64 s1^2 (the reference's
    own SVD by eps64 s1), which turns the singular vectors that count by eps64 s1^2 / (s_r^2 - s_(r+1)^2), so
    every step errs by that times ||Fp|| ||x|| / s_r; K then carries it along, hence the sum over powers. Products
    with x_last err by its own length, however little of it F spans.
    """
    rounding = 4.0 * float(np.finfo(X.dtype).eps) * np.linalg.norm(expected)
    if steps == 0:
        return rounding
    U, s, _, A, dropped = reduced(X, cutoff)
    if not len(s):
        return rounding
    powers, growth = np.eye(len(s)), 0.0
    for _ in range(min(steps, 200)):
        growth += np.linalg.norm(powers)
        powers = powers @ A
    growth *= max(1.0, steps / 200)
    turn = s[0] ** 2 / ((s[-1] - dropped) * (s[-1] + dropped))
    after = np.linalg.norm(np.asarray(X[:, 1:], np.float64))
    # beyond sqrt(1 / eps64) the Gram route must have handed over to the SVD, whose turn is s1 / gap
    turn = min(turn, 64.0 * s[0] / (s[-1] - dropped)) if turn > 1e10 else turn
    last = X[:, -1].astype(np.float64)
    carried = 64.0 * turn * np.linalg.norm(U.T @ last) + 4.0 * np.linalg.norm(last)
    return rounding + EPS64 * growth * after / s[-1] * carried


def sensitivity(X, steps, cutoff, noise):
    """How far snapshots that move by `noise`, relative to F's largest singular value, move the reference's answer.

    A backward stable answer is the exact one of such snapshots: noise = resolution(...).svd on the routes of the data
    itself, and resolution(...).gram s1 / s_r by a Gram matrix, which errs by gram s1^2 and so by that in F.
    """
    X = np.asarray(X, np.float64)
    expected, size = reference.predict(X, steps, cutoff), noise * np.linalg.norm(X[:, :-1], 2)
    rng, moved = np.random.default_rng(0), 0.0
    for _ in range(8):
        N = rng.normal(size=X.shape)
        there = reference.predict(X + size / np.linalg.norm(N, 2) * N, steps, cutoff)
        moved = max(moved, np.linalg.norm(there - expected))
    return moved


def assert_states(got, X, steps, cutoff, label=""):
    """The blocks got (..., n) hold K^steps x_last of X (..., n, m+1), within `error_bound`."""
    got = np.asarray(got)
    assert got.shape == X.shape[:-1], (got.shape, X.shape)
    assert got.dtype == X.dtype
    for index, block in blocks(X):
        expected = truth(block, steps, cutoff)
        error = np.linalg.norm(got[index].astype(np.float64) - expected)
        bound = error_bound(block, steps, cutoff, expected)
        underflow = float(np.finfo(X.dtype).smallest_normal) * len(expected)
        # a NaN fails; no bound so loose that a wrong answer could hide behind it
        assert error <= min(bound, 1e-2 * np.linalg.norm(expected)) + underflow, (
            f"{label} block {index} of {X.shape}, T = {steps}, {cutoff}: off by {error:.2e}, "
            f"{error / max(bound, 1e-300):.1f} times the bound, |ref| = {np.linalg.norm(expected):.2e}"
        )


def pinv_bound(F, cutoff, dtype):
    """How far a correct pseudo-inverse may lie from the reference's, in norm (Wedin 1973, and rounding)."""
    full = np.linalg.svd(np.asarray(F, np.float64), compute_uv=False)
    _, s, _ = reference.truncated_svd(F, cutoff, dtype)
    if not len(s):
        return 0.0
    dropped = full[len(s)] if len(s) < len(full) else 0.0
    turn = min(s[0] ** 2 / ((s[-1] - dropped) * (s[-1] + dropped)), 1e10)
    norm = np.sqrt(np.sum(1.0 / s**2))
    return norm * (64.0 * EPS64 * turn * s[0] / s[-1] + 4.0 * float(np.finfo(dtype).eps))


class Exporter:
    """A foreign array that only speaks DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def aligned(array):
    """Whether the array's memory starts on a 64-byte boundary."""
    return array.__array_interface__["data"][0] % 64 == 0


def strided_views(X):
    """Name -> a view equal to X (m+1, B, n) that lies in memory in another way."""
    columns, B, n = X.shape
    views = {"C order": X.copy()}
    for name, order in {
        "time last": (1, 2, 0), "blocks first": (1, 0, 2), "weights first": (2, 1, 0), "weights, time": (2, 0, 1),
        "time, weights": (0, 2, 1),
    }.items():  # fmt: skip
        memory = np.ascontiguousarray(X.transpose(order))
        views[name] = memory.transpose(np.argsort(order))
    padded = np.full((columns + 1, B + 2, n + 5), np.nan, X.dtype)
    padded[1:, 1:-1, 2 : n + 2] = X
    views["padded"] = padded[1:, 1:-1, 2 : n + 2]
    spaced = np.full((2 * columns, 3 * B, 2 * n), np.nan, X.dtype)
    spaced[::2, ::3, 1::2] = X
    views["spaced"] = spaced[::2, ::3, 1::2]
    for axis, name in enumerate(("time", "blocks", "weights")):
        views[f"{name} backwards"] = np.flip(np.flip(X, axis).copy(), axis)
    views["all backwards"] = np.flip(np.flip(X).copy())
    return views


def tile(A):
    """A matrix as the dense kernels take it: rows padded to whole vectors, zero past its columns."""
    padded = tile_of(*A.shape)
    padded[:, : A.shape[1]] = A
    return padded


def kernel_eigh(A):
    """Eigenvalues, largest first, and eigenvectors as rows, by the Numba eigensolver."""
    n = len(A)
    d, Z = np.full(n, np.nan), tile(np.full((n, n), np.nan))
    assert dense.eigh(tile(A), n, d, Z, tile_of(5, n), np.empty((1, 3), np.int64))
    return d, Z[:, :n]


def as_kind(array, kind):
    """A NumPy array, or the tensor that shares its memory."""
    return importlib.import_module("torch").from_numpy(array) if kind == "torch" else array


def check_kind(result, kind, dtype):
    """The result as NumPy, its kind and dtype asserted."""
    assert type(result).__module__.startswith(kind)
    result = np.asarray(result)
    assert result.dtype == dtype
    return result
