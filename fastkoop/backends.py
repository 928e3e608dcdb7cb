"""The only door to kernels/: which backend computes for an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import kernels
from .checks import InputError, integer
from .interop.place import Place
from .kernels import observed, pooled, triangles
from .kernels.contract import COORDINATES
from .kernels.cpu import large
from .kernels.cpu.cache import cache_place
from .kernels.cpu.lapack import tridiagonalize
from .kernels.plan import NON_FINITE, ROUTES, SVD, Plan, iterates, plan, resolution

__all__ = [
    "COORDINATES", "NON_FINITE", "ROUTES", "SVD", "Plan", "backend_for", "cache_place", "cuda", "each_large_block",
    "get_num_threads", "iterates", "kernels", "observed", "plan", "pooled", "resident", "resolution", "set_num_threads",
    "strips", "triangles", "tridiagonalize",
]  # fmt: skip


def backend_for(place: Place) -> Any:
    """The module, or the object, with the contract's functions for arrays that live there."""
    return kernels if place.on_host else cuda(place.ordinal)


def cuda(ordinal: int = 0):
    """The contract's functions on a CUDA device.

    Raises:
        ValueError: naming what is missing - CuPy, a driver, a device - and the cure.
    """
    from .kernels.cuda import backend

    try:
        return backend(ordinal)
    except ImportError as error:
        raise InputError(
            f'device: "cuda" needs CuPy ({error}); pip install "fastkoop[cuda12]" or "fastkoop[cuda13]", by the CUDA '
            "that the driver supports"
        ) from None
    except RuntimeError as error:  # of CuPy: no driver, or no device
        raise InputError(f'device: "cuda" finds no usable device ({error}); name "cpu"') from None


def resident(device, threads: int, shared: int, registers: int) -> int:
    """CTAs of a launch that a multiprocessor of the CUDA device holds at once."""
    from .kernels.cuda.launch import Launch, grid

    return grid(1 << 30, Launch(threads, shared), device, registers) // device.multiprocessors


def strips(contract, parameters: list[tuple], n: int) -> np.ndarray:
    """What a CUDA device's `record` takes, as bytes: contiguous parameters (array, first column, rows, columns).

    Row i of each goes into columns first .. first + columns of row i of a snapshot (rows, n).
    """
    from .kernels.cuda import STRIP, split

    made = np.zeros(len(parameters), STRIP)
    for k, (array, first, rows, columns) in enumerate(parameters):
        made[k] = (contract.driver.address(array), first, rows, columns, columns, 1, n)
    return split(made, parameters[0][0].dtype.itemsize).view(np.uint8)


def each_large_block(function: Callable[[int], object], blocks: int, order: int) -> list:
    """[function(b) for b in range(blocks)], with the threads that blocks of this order get in BLAS and LAPACK."""
    return large.over_large(function, blocks, order)


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
