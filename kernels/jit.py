"""How the kernels are compiled: without the GIL, cached on disk, IEEE semantics kept.

`jit` is for control flow; `jit_sums` also lets LLVM reorder sums, which is what vectorises a dot
product. Neither assumes the absence of NaN or infinity.

A trap for whoever edits kernels: Numba's cache looks at the file of the function that is called,
not at the files of the functions it calls. `tests/conftest.py` therefore keys the cache folder on
the text of all kernels.
"""

from functools import partial

import numba

jit = partial(numba.njit, nogil=True, cache=True, error_model="numpy")
jit_sums = partial(jit, fastmath={"reassoc", "contract", "nsz"})
