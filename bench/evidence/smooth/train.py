"""Training with jumps: record, extrapolate, let the guard choose, go on, until the budget of gradients is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import methods
from .problems import Problem


@dataclass(frozen=True)
class Pace:
    """How a method jumps: after `rest` steps it records `pairs` more.

    velocity: of an iteration with momentum at a jump: "keep", "reset", or "predict", which makes it a part of the
        state that is extrapolated and moved.
    scale: of Nesterov's step, in those of gradient descent.
    """

    pairs: int = 12
    rest: int = 0
    velocity: str = "keep"
    scale: float = 1.0


@dataclass
class Outcome:
    """Where a run ended: the loss over the optimum, CPU seconds, jumps tried and taken."""

    gap: float
    seconds: float
    gradients: float
    jumps: int = 0
    taken: int = 0


def step(problem: Problem, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An iteration of gradient descent, with PyTorch's momentum."""
    v = problem.momentum * v + problem.value_and_gradient(w)[1]
    return w - problem.lr * v, v


def jumping(problem: Problem, propose: Callable | None, pace: Pace, budget: int) -> tuple[np.ndarray, Outcome]:
    """Gradient descent with jumps; `propose` None is without."""
    w, v, spent, done = problem.start, np.zeros_like(problem.start), 0.0, Outcome(0.0, 0.0, 0.0)
    cost = pace.rest + pace.pairs + (methods.CANDIDATES + 1) * methods.GUARD
    whole, d = pace.velocity == "predict", len(problem.start)
    while propose is not None and spent + cost <= budget:
        recorded = []
        for i in range(pace.rest + pace.pairs + 1):
            if i:
                w, v = step(problem, w, v)
            if i >= pace.rest:
                recorded.append(np.concatenate([w, problem.lr * v]) if whole else w)
        spent += cost
        done.jumps += 1
        candidates = propose(np.array(recorded))
        losses = [finite(problem, candidate[:d]) for candidate in candidates]
        best = int(np.argmin(losses))
        if losses[best] < finite(problem, w):
            done.taken += 1
            w = candidates[best][:d]
            if whole:
                v = candidates[best][d:] / problem.lr
            elif pace.velocity == "reset":
                v = np.zeros_like(v)
    while spent + 1 <= budget:
        w, v = step(problem, w, v)
        spent += 1
    done.gradients = spent
    return w, done


def finite(problem: Problem, w: np.ndarray) -> float:
    """The loss; infinite where it is no number."""
    with np.errstate(over="ignore", invalid="ignore"):
        value = problem.value(w) if np.isfinite(w).all() else np.inf
    return value if np.isfinite(value) else np.inf


def run(problem: Problem, method: str, pace: Pace, budget: int | None = None) -> Outcome:
    """A method's run of a problem."""
    budget = budget or problem.budget
    began = time.process_time()
    if method == "Nesterov":
        w, done = methods.nesterov(problem, budget, pace.scale), Outcome(0.0, 0.0, budget)
    elif method == "L-BFGS":
        w, done = methods.lbfgs(problem, budget), Outcome(0.0, 0.0, budget)
    else:
        propose = None if method == "none" else methods.EXTRAPOLATIONS[method.partition(",")[0]]
        w, done = jumping(problem, propose, pace, budget)
    done.seconds = time.process_time() - began
    done.gap = max(finite(problem, w) - problem.optimum, 0.0)
    return done
