"""Operators of pairs that are no single trajectory: several trajectories pooled, pairs with weights.

K minimises sum_t w_t ||z'_t - K z_t||^2 over all pairs, the one of minimum norm, truncated like any other: it is
(Fp D) pinv(F D) with D = diag(sqrt(w)). Gram matrices of the pairs where they resolve the cutoff; where they do not,
the SVD of the pairs, of many by the triangle of their QR. Functions take the contract that computes.
"""

from __future__ import annotations

import types

import numpy as np

from . import cpu
from .contract import DIGITS, Factors
from .cpu import library
from .cpu.large import over_large, quiet
from .factors import assemble
from .observed import STRIP, WORKSPACE, Lifted, _stack, replace, unsettled
from .plan import NON_FINITE, SVD, UNRESOLVED, plan, resolution
from .triangles import lower


@quiet
def fit(contract, pairs: tuple, roots, cutoff, affine: bool, *, refine: bool = False, gains: bool = False) -> Lifted:
    """Operators of blocks whose readout gives weights themselves, as of wide blocks, whatever their shape.

    Args:
        contract: `fastkoop.kernels` or a CUDA device's.
        pairs: F and Fp (M, B, rows), and the state (B, rows) that predictions start at, float32 or float64.
        roots: (M,) float64, square roots of the pairs' weights.
        cutoff: pair (kind, value) for matrices of rows x (M - affine).
        affine: centre F and Fp, each on its own weighted mean.
        refine: the SVD of the pairs themselves for every block.
        gains: make what `non_expansive` needs.
    """
    F, Fp, start = pairs
    M, B, rows = F.shape
    some = max(1, WORKSPACE // (8 * max(1, 3 * M * rows + 3 * min(M, rows) ** 2)))
    parts = []
    for at in range(0, max(B, 1), some):
        blocks = slice(at, at + some)
        part = _Pairs(contract.xp, F[:, blocks], Fp[:, blocks], start[blocks], roots, affine)
        parts.append(_fit(contract, part, cutoff, F.dtype, refine, gains))
    return _stack(contract.xp, parts)


class _Pairs:
    """Pairs of some blocks, centred and weighted: A (B, rows, k) and its successors; k = M - affine columns."""

    def __init__(self, xp, F, Fp, start, roots, affine: bool):
        self.xp, self.dtype = xp, F.dtype
        F, Fp, start = (part.astype(np.float64) for part in (F, Fp, start))
        self.bad = ~(
            xp.isfinite(F).all(axis=(0, 2)) & xp.isfinite(Fp).all(axis=(0, 2)) & xp.isfinite(start).all(axis=1)
        )
        if self.bad.any():
            F[:, self.bad], Fp[:, self.bad], start[self.bad] = 0.0, 0.0, 0.0
        self.origin, self.before, self.after = xp.zeros(start.shape), xp.zeros(start.shape), xp.zeros(start.shape)
        roots = xp.asarray(roots)
        if affine:
            self.origin = start.copy()  # numbers that never move are exactly 0
            F, Fp, start = F - self.origin, Fp - self.origin, xp.zeros(start.shape)
            shares = roots**2 / (roots**2).sum()
            self.before, self.after = (_weighted(shares, side) for side in (F, Fp))
            F, Fp, start = F - self.before, Fp - self.after, start - self.before
        A, after = ((side * roots[:, None, None]).transpose(1, 2, 0) for side in (F, Fp))
        if affine:
            A, after = _without(xp, A, roots), _without(xp, after, roots)
        self.A, self.next, self.start = xp.ascontiguousarray(A), xp.ascontiguousarray(after), start


def _weighted(shares, Z):
    """Weighted means (B, rows) of Z (M, B, rows), of a block's own bits."""
    return (Z * shares[:, None, None]).sum(axis=0)


def _without(xp, A, u):
    """A Q (B, rows, M-1) of A (B, rows, M), Q an orthonormal basis of what is orthogonal to u (M,).

    A Householder reflector that takes u to the first axis, without its first column: no singular value is then zero
    for the centring alone.
    """
    v = u / xp.linalg.norm(u)
    v[0] += 1.0
    v = v / xp.linalg.norm(v)
    return (A - 2.0 * (A @ v)[..., None] * v)[..., 1:]


def _fit(contract, pairs: _Pairs, cutoff, dtype, refine: bool, gains: bool) -> Lifted:
    xp, (B, rows, k) = contract.xp, pairs.A.shape
    A, after, start = pairs.A, pairs.next, pairs.start
    turned = A.swapaxes(1, 2)
    if rows <= k and xp is cpu.xp and plan(B, rows, k, dtype).engine == "library":
        factors = _large(pairs, cutoff, dtype)
    elif rows <= k:
        S = xp.concatenate([A @ turned, after @ turned, start[:, None]], axis=1)
        factors = contract.solve(S, rows, k, cutoff, dtype)
    else:
        S = xp.concatenate([turned @ A, turned @ after, (turned @ start[:, :, None]).swapaxes(1, 2)], axis=1)
        factors = _to_weights(contract, contract.solve(S, k, rows, cutoff, dtype), pairs)
    lifted = _completed(contract, factors, pairs, gains)
    suspects = np.arange(B) if refine else unsettled(contract, lifted, dtype)
    if len(suspects):
        lifted = replace(contract, lifted, suspects, _exactly(contract, pairs, suspects, cutoff, dtype, gains))
    if pairs.bad.any():
        lifted.factors.route[pairs.bad] = NON_FINITE
    return lifted


def _large(pairs: _Pairs, cutoff, dtype) -> Factors:
    """Factors of wide blocks for BLAS: half a Gram matrix, and of the other the product with what is kept."""
    B, rows, k = pairs.A.shape
    digits, bounds = DIGITS[np.dtype(dtype)], resolution(rows, k, dtype)

    def reduce(b: int) -> library.Reduced:
        A, after = pairs.A[b], pairs.next[b]
        C = library.mirrored(library.upper_gram(A, across=True))
        return library.reduce_weights(C, lambda V: after @ (A.T @ V), pairs.start[b], cutoff, digits, bounds)

    factors = assemble(over_large(reduce, B, rows), rows)
    unresolved = factors.route == SVD
    factors.route[unresolved], factors.edge[unresolved] = UNRESOLVED, True
    return factors


def _to_weights(contract, factors: Factors, pairs: _Pairs) -> Factors:
    """Factors on the weights themselves from those of a tall block's columns, as `solve` gives them for A^T A.

    Its basis V holds right singular vectors; U = A V / s. See `observed._tall` for the coordinates.
    """
    xp, V = contract.xp, factors.basis
    AV = pairs.A @ V
    s = xp.sqrt((AV**2).sum(axis=1))
    s = xp.where(s > 0.0, s, 1.0)
    basis, readout = AV / s[:, None], pairs.next @ (V / s[:, None])
    operator, start = factors.operator / s[:, :, None] * s[:, None], factors.start / s
    return factors._replace(basis=basis, readout=readout, operator=operator, start=start)


def _completed(contract, factors: Factors, pairs: _Pairs, gains: bool) -> Lifted:
    """Drift, mean, rest and gains of factors on the weights."""
    xp, U = contract.xp, factors.basis
    drift = (U.swapaxes(1, 2) @ (pairs.after - pairs.before)[:, :, None])[:, :, 0]
    rest = pairs.start - (U @ factors.start[:, :, None])[:, :, 0]
    return Lifted(factors, drift, pairs.after + pairs.origin, rest, _roots(xp, factors) if gains else None)


def _roots(xp, factors: Factors):
    """R (B, r, r) with R^T R = W^T W, W the readout."""
    W, (B, rows, r) = factors.readout, factors.readout.shape
    R, out = xp.linalg.qr(W, mode="r"), xp.zeros((B, r, r))
    out[:, : min(rows, r)] = R
    return out


def _exactly(contract, pairs: _Pairs, suspects: np.ndarray, cutoff, dtype, gains: bool) -> Lifted:
    """Operators of a few blocks by the SVD of their pairs, or of what stands in for them, in host memory."""
    host = {name: contract.host(getattr(pairs, name))[suspects] for name in ("A", "next", "start", "origin", "before",
                                                                            "after")}  # fmt: skip
    rows, k = host["A"].shape[1:]
    digits, bounds = DIGITS[np.dtype(dtype)], resolution(rows, k, dtype)

    def reduce(b: int) -> library.Reduced:
        A, after, start = *condensed(host["A"][b], host["next"][b]), host["start"][b]
        part = library.reduce_pairs(A, after, start, cutoff, digits, bounds)
        return part if rows <= k else part._replace(basis=A @ part.basis, readout=after @ part.readout)

    factors = assemble(over_large(reduce, len(suspects), min(rows, k)), rows)
    return _completed(cpu, factors, types.SimpleNamespace(**host), gains)


def condensed(A: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (rows, 2 rows) whose products among themselves are those of the many pairs (rows, k): the same operator.

    They are the triangle of [A; after] = L Q, see `triangles`: the SVD that follows is of 2 rows columns instead of k.
    """
    rows, k = A.shape
    if k <= 2 * rows:
        return A, after
    strip = max(4 * rows, STRIP // (16 * rows))
    L = lower(np.concatenate([A[:, at : at + strip], after[:, at : at + strip]]) for at in range(0, k, strip))
    return L[:rows], L[rows:]
