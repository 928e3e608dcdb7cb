"""How the kernels are compiled: without the GIL, kept on disk (cache.py), IEEE semantics kept.

`kernel` is for what Python calls; `jit` for what kernels call, which has no door to Python and cannot allocate, so that
neither wrappers nor reference counts are compiled with it; `jit_sums` also lets LLVM reorder sums, which is what
vectorises a dot product. None assumes the absence of NaN or infinity.
"""

from __future__ import annotations

import numba
from numba.core.dispatcher import Dispatcher
from numba.extending import register_jitable

from .cache import KernelCache
from .pipelines import INGREDIENT, KERNEL, SUMS

INSIDE = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
LINKED = {**INSIDE, **INGREDIENT}


def kernel(function, **options):
    """A compiled function, kept in `cache.cache_place()`."""
    options = {**KERNEL, "no_cfunc_wrapper": True, **options}
    compiled = numba.njit(nogil=True, error_model="numpy", **options)(function)
    if isinstance(compiled, Dispatcher):  # it is the function itself under NUMBA_DISABLE_JIT
        # what `enable_caching` sets, which raises where it finds no folder
        compiled._cache = KernelCache(function, announced=not options.get("no_cpython_wrapper"))
    return compiled


def jit(function):
    """A function for kernels to call. Calling it from Python crashes; see `for_python`."""
    return kernel(function, _nrt=False, **LINKED)


def jit_part(function):
    """A function that kernels call by its address."""
    return kernel(function, _nrt=False, **INSIDE)


def jit_sums(function):
    """`jit` with sums in any order."""
    options = {**INSIDE, **SUMS, "fastmath": {"reassoc", "contract", "nsz"}}
    return kernel(function, _nrt=False, **options)


def jit_allocating(function):
    """`jit` of a function that takes memory (scratch.py)."""
    return kernel(function, **LINKED)


def compilable(function):
    """Let kernels call a plain Python function; it stays one for everybody else."""
    return register_jitable(nogil=True, error_model="numpy", _nrt=False, **LINKED)(function)


def for_python(function):
    """A door from Python to a function that kernels call; for tests."""
    options = {name: option for name, option in function.targetoptions.items() if name not in (*INSIDE, "_nrt")}
    compiled = numba.jit(**KERNEL, **options)(function.py_func)
    compiled._cache = KernelCache(function.py_func, "-python")
    return compiled
