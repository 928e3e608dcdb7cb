"""The hardware-focused core: arrays in, arrays out; knows no framework but NumPy, Numba and CuPy.

Letters, everywhere: ``B`` blocks, ``n`` weights in a block, ``m`` snapshot pairs, ``X`` snapshots, ``F`` all
but the last, ``Fp`` all but the first, ``K = Fp pinv(F)``. Arrays here are time-major, (m+1, ..., n), with any
strides; a cutoff is a pair (kind, value). Four steps make a prediction, each public, so that a Gram
matrix accumulated elsewhere (over shards, over time) can be solved and read out here:

>>> import numpy as np
>>> from fastkoop import kernels
>>> X = np.random.default_rng(0).normal(size=(4, 2, 50)).cumsum(axis=0)   # 3 pairs, 2 blocks, 50 weights
>>> S = kernels.gram(X[..., :2], "snapshots") + kernels.gram(X[..., 2:])    # two shards of the weights
>>> factors = kernels.solve(S, n=50, m=3, cutoff=("relative", 1e-12), dtype=X.dtype)
>>> states = kernels.reconstruct(X, kernels.evolve(factors, np.array([1, 10])))    # (steps, blocks, weights)
>>> states.shape, factors.rank.tolist()
((2, 2, 50), [3, 3])

`fit`, `predict` and `pinv` are the fused forms behind `fastkoop.fit`, `predict` and `pinv`; they read
the data itself and therefore take the SVD where a Gram matrix cannot resolve the cutoff. Results are
allocated here, 64-byte aligned. `cuda.backend(ordinal)` has the same functions for the arrays of a CUDA
device; `xp` is a backend's array module, `host` copies out of its memory. Nothing is checked here beyond what
memory safety needs: the public door, `fastkoop`, does that once.
"""

from . import observed
from .contract import Backend, Factors, Rule
from .cpu import advance, combine, evolve, fit, follow, gram, host, pinv, predict, reconstruct, rows_of, solve, xp
from .cpu.cache import cache_place
from .cpu.layout import aligned_empty
from .cpu.threads import get_num_threads, set_num_threads
from .cpu.warm import warm_up
from .plan import ROUTES, Plan, plan
from .spectrum import clip, eigenvalues, modes

__all__ = [
    "ROUTES", "Backend", "Factors", "Plan", "Rule", "advance", "aligned_empty", "cache_place", "clip", "combine",
    "eigenvalues", "evolve", "fit", "follow", "get_num_threads", "gram", "host", "modes", "observed", "pinv", "plan",
    "predict", "reconstruct", "rows_of", "set_num_threads", "solve", "warm_up", "xp",
]  # fmt: skip
