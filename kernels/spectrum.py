"""Eigenvalues of the reduced operators, and operators with their eigenvalues clipped."""

from __future__ import annotations

import numpy as np

from .cpu import Factors


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
    """Eigenvalues (B, r), ordered as by `eigenvalues`, and vectors (B, r, r) with Phi = (lift) vectors.

    Exact modes (Tu et al. 2014, definition 1): Phi = Fp V S^-1 p / lambda for the eigenvector p of the
    reduced operator; a mode with lambda = 0 is left unscaled. Both 0-padded.
    """
    values = np.zeros((len(factors.rank), factors.operator.shape[1]), np.complex128)
    vectors = np.zeros((*values.shape, values.shape[1]), np.complex128)
    for b, r, operator in _finite(factors):
        found, P = np.linalg.eig(operator)
        order = np.lexsort((-found.imag, -found.real, -np.abs(found)))
        values[b, :r] = found[order]
        scale = np.where(values[b, :r] == 0, 1.0, values[b, :r])
        vectors[b, :r, :r] = P[:, order] / scale
    return values, vectors


def clip(factors: Factors, radius: float) -> tuple[Factors, np.ndarray]:
    """Factors of Phi clip(Lambda) Psi*, eigenvalues of modulus > radius moved onto that circle.

    With p_i and q_i* the right and left eigenvectors of the reduced operator A (q_i* p_i = 1),
    A becomes A + sum (clip(l_i) - l_i) p_i q_i* and the lift is multiplied by
    I + sum (clip(l_i)/l_i - 1) p_i q_i*, over the eigenvalues that are clipped; a block without any keeps
    its operator as it is. Then K^T x_last = lift A^(T-1) start holds at every T >= 1.

    Returns:
        The factors and, per block, the 2-norm condition number of its eigenvectors: (B,) float64, 1 where
        nothing was clipped. The clipped operator is uncertain by about that number times 2e-16.
    """
    condition = np.ones(len(factors.rank))
    lift, operator = factors.lift.copy(), factors.operator.copy()
    for b, r, A in _finite(factors):
        values, P = np.linalg.eig(A)
        moduli = np.abs(values)
        beyond = moduli > radius
        if not beyond.any():
            continue
        condition[b] = np.linalg.cond(P)
        p, q = P[:, beyond], np.linalg.inv(P)[beyond]
        clipped = values[beyond] * (radius / moduli[beyond])
        operator[b, :r, :r] = A + ((p * (clipped - values[beyond])) @ q).real
        turn = np.eye(r) + ((p * (clipped / values[beyond] - 1.0)) @ q).real
        lift[b, :, :r] = factors.lift[b, :, :r] @ turn
    return factors._replace(lift=lift, operator=operator), condition
