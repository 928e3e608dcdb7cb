"""What a recording of iterates can be extrapolated by, and the optimizers that need none.

An extrapolation gets the recorded states (m + 1, d), oldest first, and proposes ten candidates (10, d). The guard
takes the one of the least loss, or none. Nesterov's method and L-BFGS spend the budget on their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

import fastkoop

from .problems import Problem

AHEAD = np.array([1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 10**9])  # steps past the last recorded state
CANDIDATES = len(AHEAD)
GUARD = 1 / 3  # of a gradient: what a guard's evaluation is charged


def line(states: np.ndarray) -> np.ndarray:
    """The mean velocity of the recording, carried on for 1 to 4096 steps."""
    velocity = (states[-1] - states[0]) / (len(states) - 1)
    return states[-1] + np.geomspace(1, 4096, CANDIDATES)[:, None] * velocity


def secant(states: np.ndarray) -> np.ndarray:
    """One rate for all weights: how much shorter the second half of the path is than the first (Aitken)."""
    half = (len(states) - 1) // 2
    first, second = states[half] - states[0], states[2 * half] - states[half]
    rate = float(np.clip(first @ second / (first @ first), 0.0, 1 - 1e-9)) ** (1 / half) if first.any() else 0.0
    gone = rate * -np.expm1(AHEAD * np.log(rate)) / (1 - rate) if rate > 0 else np.zeros(CANDIDATES)
    return states[-1] + gone[:, None] * (states[-1] - states[-2])


def mean(states: np.ndarray) -> np.ndarray:
    """Means of the newest part of the recording: of all of it, nine tenths, and so on."""
    return np.array([states[int(k / CANDIDATES * (len(states) - 1)) :].mean(axis=0) for k in range(CANDIDATES)])


def rna(states: np.ndarray) -> np.ndarray:
    """Regularised nonlinear acceleration (Scieur, d'Aspremont & Bach 2016, algorithm 1), ten regularisations."""
    R = np.diff(states, axis=0)
    G = R @ R.T
    G /= np.linalg.norm(G, 2) or 1.0
    found = []
    for weight in np.geomspace(1e-14, 1e-1, CANDIDATES):
        c = np.linalg.lstsq(G + weight * np.eye(len(G)), np.ones(len(G)), rcond=None)[0]
        found.append(c / c.sum() @ states[1:])
    return np.array(found)


def anderson(states: np.ndarray) -> np.ndarray:
    """Anderson mixing of the newest states (Walker & Ni 2011, equation 2.2), ten depths."""
    R, depths = np.diff(states, axis=0), np.unique(np.linspace(1, len(states) - 2, CANDIDATES).round().astype(int))
    found = []
    for depth in depths:
        change = np.diff(R[-depth - 1 :], axis=0)
        weights = np.linalg.lstsq(change.T, R[-1], rcond=None)[0]
        found.append(states[-1] - weights @ np.diff(states[-depth - 1 :], axis=0))
    return np.array(found)


def operator(states: np.ndarray, rank: int = 8) -> fastkoop.KoopmanOperator:
    """The affine operator of all weights together, its eigenvalues held on the unit circle or inside."""
    return fastkoop.fit(
        states[:, None], cutoff=fastkoop.Rank(rank), observables=fastkoop.Affine(), stabilize="clip", time_axis=0
    )


def forecast(states: np.ndarray, rank: int = 8):
    """What the operator says of its own recording: (error, baseline, pays)."""
    return operator(states, rank).forecast().overall


def koopman(states: np.ndarray, rank: int = 8) -> np.ndarray:
    """The operator's states."""
    return operator(states, rank).predict(AHEAD)[0].T


EXTRAPOLATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "line": line, "secant": secant, "RNA": rna, "Anderson": anderson, "Koopman": koopman,
}  # fmt: skip
CHEAP = {"line": line, "secant": secant, "mean": mean}


def nesterov(problem: Problem, budget: int, scale: float = 1.0) -> np.ndarray:
    """Accelerated gradient descent, restarted where it points uphill (O'Donoghue & Candes 2015, gradient scheme)."""
    w = ahead = problem.start
    k = 0
    for _ in range(budget):
        gradient = problem.value_and_gradient(ahead)[1]
        moved = ahead - scale * problem.lr * gradient
        k = 0 if gradient @ (moved - w) > 0 else k + 1
        w, ahead = moved, moved + k / (k + 3) * (moved - w)
    return w


def lbfgs(problem: Problem, budget: int) -> np.ndarray:
    """SciPy's L-BFGS-B; an evaluation of loss and gradient counts as a gradient."""
    return minimize(
        problem.value_and_gradient, problem.start, jac=True, method="L-BFGS-B",
        options={"maxfun": budget, "maxiter": budget, "ftol": 0.0, "gtol": 0.0, "maxcor": 10},
    ).x  # fmt: skip
