"""Eigenvalues of the reduced operators, and operators with their eigenvalues clipped."""

from __future__ import annotations

import numpy as np

from .contract import Factors

LOOSE = 1e-6  # of the radius, by which clipping may leave an eigenvalue outside
DEPENDENT = 1e4  # the condition number of eigenvectors from which it may: rounding is that number's square times 2e-16
HOPELESS = 2.0**60  # from which on nothing of a clipped operator is certain, wherever its eigenvalues seem to lie


def _finite(factors: Factors):
    """Index, rank and (r, r) operator of every block that has a finite one."""
    for b, r in enumerate(factors.rank):
        operator = factors.operator[b, :r, :r]
        if r and np.isfinite(operator).all():
            yield b, int(r), operator


def eigenvalues(factors: Factors) -> np.ndarray:
    """The eigenvalues of K that can differ from zero: (B, r) complex128, largest modulus first, 0-padded.

    Those of U^T K U, which K shares (Tu et al. 2014, theorem 1).
    """
    out = np.zeros((len(factors.rank), factors.operator.shape[1]), np.complex128)
    for b, r, operator in _finite(factors):
        values = np.linalg.eigvals(operator).astype(np.complex128)
        out[b, :r] = values[np.lexsort((-values.imag, -values.real, -np.abs(values)))]
    return out


def modes(factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (B, r), ordered as by `eigenvalues`, and vectors (B, r, r) with Phi = (readout) vectors.

    Exact modes (Tu et al. 2014, definition 1): Phi = Fp V S^-1 p / lambda for the eigenvector p of the
    reduced operator; a mode with lambda = 0 is left unscaled. Both 0-padded.
    """
    values = np.zeros((len(factors.rank), factors.operator.shape[1]), np.complex128)
    vectors = np.zeros((*values.shape, values.shape[1]), np.complex128)
    for b, r, operator in _finite(factors):
        unsorted, P = np.linalg.eig(operator)
        order = np.lexsort((-unsorted.imag, -unsorted.real, -np.abs(unsorted)))
        values[b, :r] = unsorted[order]
        scale = np.where(values[b, :r] == 0, 1.0, values[b, :r])
        vectors[b, :r, :r] = P[:, order] / scale
    return values, vectors


def clip(factors: Factors, radius: float) -> tuple[Factors, np.ndarray]:
    """Factors of Phi clip(Lambda) Psi*, eigenvalues of modulus > radius moved onto that circle.

    With P the eigenvectors of the reduced operator A = P L P^-1, A becomes P clip(L) P^-1 and the readout is
    multiplied by P clip(L)/L P^-1; a block without anything to clip keeps its operator as it is. Then
    K^T x_last = readout A^(T-1) start holds at every T >= 1. (A plus what clipping takes from it would be
    uncertain by the largest eigenvalue that was there.)

    Singular values that are rounding make operators of any size, with eigenvectors so nearly dependent that clipping
    them leaves values outside. The smallest singular values are then dropped, as a coarser cutoff would, until all
    lie inside.

    Returns:
        The factors and, per block, the 2-norm condition number of its eigenvectors: (B,) float64, 1 where
        nothing was clipped. The clipped operator is uncertain by about that number times radius times 2e-16.
        Two eigenvalues that are one in exact arithmetic, a straight line's at 1, have a huge one, and where
        rounding puts one of them outside, clipping it loses the line; observe a constant (Affine) for these.
    """
    condition = np.ones(len(factors.rank))
    readout, operator = factors.readout.copy(), factors.operator.copy()
    for b, A, pairs in _outside(factors, radius):
        clipped = _clipped(A, pairs, radius)
        if clipped is None:
            continue
        r = len(A)
        A, turn, condition[b] = clipped
        k = len(A)
        operator[b, :r, :r], operator[b, :k, :k] = 0.0, A
        readout[b, :, :k], readout[b, :, k:r] = factors.readout[b, :, :k] @ turn, 0.0
    return factors._replace(readout=readout, operator=operator), condition


def _outside(factors: Factors, radius: float):
    """Index, operator and eigenpairs of every block with a finite operator and an eigenvalue outside."""
    r = factors.operator.shape[1]
    finite = np.where(np.arange(r)[:, None] < factors.rank[:, None, None], np.isfinite(factors.operator), True)
    usable = finite.all(axis=(1, 2)) & (factors.rank > 0)
    for rank in np.unique(factors.rank[usable]).tolist():
        at = np.flatnonzero(usable & (factors.rank == rank))
        operators = factors.operator[at, :rank, :rank]
        values, P = np.linalg.eig(operators)
        for k in np.flatnonzero((np.abs(values) > radius).any(axis=1)):
            real = not np.any(np.imag(values[k]))  # as of the block alone, whatever the others' are
            yield at[k], operators[k], (values[k].real, P[k].real) if real else (values[k], P[k])


def _clipped(A: np.ndarray, pairs: tuple, radius: float) -> tuple[np.ndarray, np.ndarray, float] | None:
    """A, or as many of its leading coordinates as hold the radius once clipped, what the readout is multiplied by,
    and the condition number of the eigenvectors; None where nothing is outside."""
    for k in _fewer(len(A)):
        values, P = pairs if k == len(A) else np.linalg.eig(A[:k, :k])
        moduli = np.abs(values)
        beyond = moduli > radius
        if not beyond.any():
            return None if k == len(A) else (A[:k, :k], np.eye(k), 1.0)
        condition = np.linalg.cond(P)
        shrunk = np.where(beyond, radius / np.where(beyond, moduli, 1.0), 1.0)
        try:
            back = np.linalg.inv(P)
        except np.linalg.LinAlgError:
            continue
        clipped, turn = ((P * (values * shrunk)) @ back).real, ((P * shrunk) @ back).real
        if condition <= DEPENDENT or (condition < HOPELESS and _within(clipped, radius * (1.0 + LOOSE))):
            return clipped, turn, float(condition)
    return np.zeros((0, 0)), np.zeros((0, 0)), np.inf  # never seen: a single value has one eigenvector


def _fewer(r: int):
    """r, and ever fewer coordinates to try."""
    while r:
        yield r
        r = min(r - 1, max(32, 3 * r // 4))


def _within(A: np.ndarray, radius: float) -> bool:
    """Whether A's eigenvalues lie in the circle."""
    return bool(np.isfinite(A).all()) and bool(np.abs(np.linalg.eigvals(A)).max() <= radius)
