"""How the kernels are compiled: without the GIL, cached on disk, IEEE semantics kept.

`jit` is for control flow; `jit_sums` also lets LLVM reorder sums, which is what vectorises a dot
product. Neither assumes the absence of NaN or infinity.
"""

import hashlib
import pathlib
from functools import partial

import numba
from numba.extending import register_jitable


def _drop_stale_cache(folder: pathlib.Path) -> None:
    """Delete compiled kernels that an edit of any kernel file has made stale.

    Numba's cache looks at the file of the function that is called, not at the files of the functions it
    calls, and would go on running an old copy of those.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    cache = folder / "__pycache__"
    stamp = cache / "kernels.sha256"
    try:
        if stamp.exists() and stamp.read_text() == digest.hexdigest():
            return
        for compiled in folder.rglob("__pycache__/*.nb[ic]"):
            compiled.unlink(missing_ok=True)
        cache.mkdir(exist_ok=True)
        stamp.write_text(digest.hexdigest())
    except OSError:
        pass  # not ours to write: an installation for everybody, whose files do not change


_drop_stale_cache(pathlib.Path(__file__).parents[1])

jit = partial(numba.njit, nogil=True, cache=True, error_model="numpy")
jit_sums = partial(jit, fastmath={"reassoc", "contract", "nsz"})


def compilable(function):
    """Let kernels call a plain Python function; it stays one for everybody else."""
    return register_jitable(nogil=True, error_model="numpy")(function)
