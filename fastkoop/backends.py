"""The only door to kernels/: which backend computes for an array."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from . import kernels
from .arrays import Array
from .checks import integer
from .kernels.cpu import ALONE_ORDER
from .kernels.layout import blocks_of
from .kernels.plan import NON_FINITE, ROUTES, plan, resolution
from .kernels.pool import each_block

__all__ = [
    "NON_FINITE", "ROUTES", "backend_for", "blocks_of", "each_large_block", "get_num_threads", "plan", "resolution",
    "set_num_threads",
]  # fmt: skip


def backend_for(array: Array) -> ModuleType:
    """The module with the contract's functions for the device that `array` lives on."""
    return kernels  # `arrays.read` lets only CPU arrays through; a CUDA backend picks by device here


def each_large_block(function: Callable[[int], object], blocks: int, order: int) -> list:
    """[function(b) for b in range(blocks)], with the threads that blocks of this order get in BLAS and LAPACK."""
    return each_block(function, blocks, alone=order <= ALONE_ORDER)


def get_num_threads() -> int:
    """Threads that FastKoop's CPU kernels use; by default every core this process may run on."""
    return kernels.get_num_threads()


def set_num_threads(threads: int) -> None:
    """Set how many threads FastKoop's CPU kernels use in this process. Their results do not depend on it.

    Blocks with both n and m above 1024, and products for many states at once, use BLAS's own threads.

    Args:
        threads: at least 1.
    """
    kernels.set_num_threads(integer("threads", threads, least=1))
