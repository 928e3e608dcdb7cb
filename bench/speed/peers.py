"""What FastKoop is measured against: the library routines a user would call, and the report's own loop.

A peer gets a batch (m+1, B, n) as it was recorded, in its own kind of array (`take`, not timed: zero copy where
its library can), and returns the predicted states (B, n), or all of them (T, B, n). Every peer truncates at the
same relative cutoff. What an expert would write by hand is in experts.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import threadpoolctl
import torch

from . import experts

SMALL = 96  # blocks up to this order are better off with repeated squaring than with a matrix-vector product a step


class Problem(NamedTuple):
    """What to predict: singular values above cutoff * s1 count; the state after `steps`, or all states."""

    cutoff: float
    steps: int
    states: bool


@dataclass(frozen=True)
class Peer:
    """One contender.

    kind: "library", "shown" (answers another question when the cutoff bites), "report", "expert" or "rank-aware";
    variants: name -> make(problem) -> function of one batch; the quickest on the case's own data is taken.
    """

    name: str
    kind: str
    variants: dict[str, Callable[[Problem], Callable]]
    take: Callable = torch.from_numpy
    compiles: bool = False  # its first call on a shape compiles
    waits: bool = False  # for its result, on a GPU, as it works on a stream of its own


def squares_pay(n: int, steps: int) -> bool:
    """Whether n x n squarings beat a matrix-vector product a step (measured, roughly)."""
    return n <= SMALL and steps > max(n * math.log2(max(steps, 2)) / 8, 4)


def powered(M, x, steps: int):
    """M^steps x of a stack of matrices and column vectors (..., n, 1), by whichever way is quicker."""
    if not squares_pay(x.shape[-2], steps):
        for _ in range(steps):
            x = M @ x
        return x
    while steps:
        if steps & 1:
            x = M @ x
        steps >>= 1
        if steps:
            M = M @ M
    return x


def through(F, Fp, x, P, problem: Problem, stack):
    """K^T x with K = Fp P, for stacks F, Fp (B, n, m), x (B, n, 1) and P = F^+ (B, m, n)."""
    n, m = F.shape[-2:]
    if n > m:
        return (Fp @ powered(P @ Fp, P @ x, problem.steps - 1) if problem.steps > 1 else Fp @ (P @ x))[..., 0]
    if problem.steps == 1:
        return (Fp @ (P @ x))[..., 0]
    return _walk(Fp @ P, x, problem, stack)


def _walk(K, x, problem: Problem, stack):
    """K^T x, or every state on the way, of formed operators K (B, n, n)."""
    if not problem.states:
        return powered(K, x, problem.steps)[..., 0]
    states = []
    for _ in range(problem.steps):
        x = K @ x
        states.append(x[..., 0])
    return stack(states)


# numpy


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def _numpy_stacked(problem: Problem):
    def run(X):
        blocks = X.transpose(1, 2, 0)
        F, Fp, x = blocks[..., :-1], blocks[..., 1:], blocks[..., -1:]
        return through(F, Fp, x, np.linalg.pinv(F, rcond=problem.cutoff), problem, np.stack)

    return run


def _numpy_looped(problem: Problem):
    def run(X):
        out = []
        for b in range(X.shape[1]):
            block = X[:, b].T
            F, Fp, x = block[:, :-1], block[:, 1:], block[:, -1:]
            out.append(through(F, Fp, x, np.linalg.pinv(F, rcond=problem.cutoff), problem, np.stack))
        return np.stack(out, axis=-2)

    return run


def _one_thread(make):
    """The same with BLAS held to one thread."""

    def limited(problem: Problem):
        run = make(problem)

        def one(X):
            with _blas().limit(limits=1, user_api="blas"):
                return run(X)

        return one

    return limited


# torch


def _torch_threads(make) -> dict[str, Callable]:
    """With all of torch's threads, and with one: for many small LAPACK calls a second thread is often in the way."""

    def single(problem: Problem):
        run = make(problem)

        def one(X):
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return run(X)
            finally:
                torch.set_num_threads(threads)

        return one

    return {"one thread": single, "all threads": make}


def torch_pinv(problem: Problem):
    def run(X):
        blocks = X.permute(1, 2, 0)
        F, Fp, x = blocks[..., :-1], blocks[..., 1:], blocks[..., -1:]
        return through(F, Fp, x, torch.linalg.pinv(F, rtol=problem.cutoff), problem, torch.stack)

    return run


def torch_lstsq(driver: str, problem: Problem):
    """F^+ is never formed: lstsq solves for what it would be applied to."""

    def solve(A, b):
        return torch.linalg.lstsq(A, b, rcond=problem.cutoff, driver=driver).solution

    def run(X):
        blocks = X.permute(1, 2, 0)
        F, Fp, x = blocks[..., :-1], blocks[..., 1:], blocks[..., -1:]
        if problem.steps == 1:
            return (Fp @ solve(F, x))[..., 0]
        if F.shape[-2] > F.shape[-1]:
            M = solve(F, Fp)  # its last column is F^+ x
            return (Fp @ powered(M, M[..., -1:], problem.steps - 1))[..., 0]
        K = solve(F.mT, Fp.mT).mT  # K F = Fp, transposed
        return _walk(K.contiguous(), x, problem, torch.stack)

    return run


# jax


def _jax_array(X: np.ndarray):
    import jax.numpy as jnp

    return jnp.asarray(X)


def jax_pinv(problem: Problem):
    import jax
    import jax.numpy as jnp

    def one(block):
        F, Fp, x = block[:-1].T, block[1:].T, block[-1][:, None]
        return through(F, Fp, x, jnp.linalg.pinv(F, rtol=problem.cutoff), problem, jnp.stack)

    compiled = jax.jit(jax.vmap(one, in_axes=1))
    return lambda X: compiled(X).block_until_ready()


@functools.cache
def _the_reports_functions(cutoff: float):
    import jax
    import jax.numpy as jnp

    @jax.jit
    def fit(block):
        return block[1:].T @ jnp.linalg.pinv(block[:-1].T, rtol=cutoff)

    @jax.jit
    def step(K, w):
        return jnp.einsum("bij,bj->bi", K, w)

    return fit, step


def _the_reports(problem: Problem):
    """The report's code: a jitted K = Fp pinv(F) for one node after another, then jitted products, step by step."""
    import jax.numpy as jnp

    fit, step = _the_reports_functions(problem.cutoff)

    def run(X):
        K = jnp.stack([fit(X[:, b]) for b in range(X.shape[1])])
        w, states = X[-1], []
        for _ in range(problem.steps):
            w = step(K, w).block_until_ready()  # each state is used before the next one
            states.append(w)
        return np.stack(states)

    return run


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "numpy pinv",
            "library",
            {
                "looped, one thread": _one_thread(_numpy_looped),
                "looped, all threads": _numpy_looped,
                "stacked, one thread": _one_thread(_numpy_stacked),
                "stacked, all threads": _numpy_stacked,
            },
            take=lambda X: X,
        ),
        Peer("torch pinv", "library", _torch_threads(torch_pinv)),
        Peer("torch gelsd", "library", _torch_threads(functools.partial(torch_lstsq, "gelsd"))),
        Peer("torch gelsy", "shown", _torch_threads(functools.partial(torch_lstsq, "gelsy"))),
        Peer("jax pinv", "library", {"": jax_pinv}, take=_jax_array, compiles=True),
        Peer("the report's", "report", {"": _the_reports}, take=_jax_array, compiles=True),
        *(
            Peer(name, kind, variants, compiles="compiled" in name)
            for name, kind, variants in experts.contenders(powered)
        ),
    )
}
