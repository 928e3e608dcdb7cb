"""Which compiler the kernels take: compiling.py's, or Numba's own in versions that it was not tried with.

The former builds on the inside of Numba, which may change with any version. The kernels do not need it: without it
their first calls take about twice as long.
"""

from __future__ import annotations

import numba
from numba.core.compiler import CompileResult

TRIED = (0, 68)  # the version of Numba that compiling.py was tried with

if numba.version_info.short == TRIED:
    from .compiling import IngredientCompiler, KernelCompiler, SumsCompiler, rebuilt

    KERNEL, INGREDIENT, SUMS = (
        {"pipeline_class": compiler} for compiler in (KernelCompiler, IngredientCompiler, SumsCompiler)
    )
else:
    KERNEL = INGREDIENT = SUMS = {}

    def rebuilt(context, payload: tuple) -> CompileResult:
        """A compiled function as it was written to disk."""
        return CompileResult._rebuild(context, *payload)
