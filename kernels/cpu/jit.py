"""How the kernels are compiled: without the GIL, kept on disk (cache.py), IEEE semantics kept.

`jit` is for control flow; `jit_sums` also lets LLVM reorder sums, which is what vectorises a dot
product. Neither assumes the absence of NaN or infinity.
"""

from __future__ import annotations

import numba
from numba.core.dispatcher import Dispatcher
from numba.extending import register_jitable

from .cache import KernelCache


def jit(function, **options):
    """A compiled function, kept in `cache.cache_place()`."""
    compiled = numba.njit(nogil=True, error_model="numpy", **options)(function)
    if isinstance(compiled, Dispatcher):  # it is the function itself under NUMBA_DISABLE_JIT
        compiled._cache = KernelCache(function)  # what `enable_caching` sets, which raises where it finds no folder
    return compiled


def jit_sums(function):
    """`jit` with sums in any order."""
    return jit(function, fastmath={"reassoc", "contract", "nsz"})


def compilable(function):
    """Let kernels call a plain Python function; it stays one for everybody else."""
    return register_jitable(nogil=True, error_model="numpy")(function)
