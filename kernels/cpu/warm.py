"""Kernels compiled ahead: for images, CI, and whoever wants no pause at the first call."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from .. import cpu
from ..contract import Factors
from ..plan import KERNEL_ORDER

FULL, FINE, FEW = ("relative", 1e-6), ("relative", 1e-12), ("rank", 1.0)


def warm_up(all: bool = False) -> dict[str, float]:
    """Compile what a first `predict` of float32 and float64 needs, or every kernel that there is.

    What is compiled already, in this process or on disk (`cache.cache_place`), takes next to no time.

    Args:
        all: wide blocks, truncation, many steps, pseudo-inverses and fits, too.

    Returns:
        Seconds that passed until each kernel was ready, by name and dtype.
    """
    seconds = {}
    for dtype in (np.float32, np.float64):
        for name, call in {**_common(dtype), **(_others(dtype) if all else {})}.items():
            begin = time.perf_counter()
            call()
            seconds[f"{name}, {np.dtype(dtype)}"] = time.perf_counter() - begin
    return seconds


def _block(dtype, n: int, m: int) -> np.ndarray:
    """Snapshots (m+1, 1, n) of full rank."""
    return np.random.default_rng(0).normal(size=(m + 1, 1, n)).astype(dtype)


def _common(dtype) -> dict[str, Callable]:
    """What a first prediction of tall blocks takes."""
    return {"predict": lambda: cpu.predict(_block(dtype, 9, 2), 1, FULL)}


def _others(dtype) -> dict[str, Callable]:
    """Everything else."""
    tall, wide, single = _block(dtype, 9, 2), _block(dtype, 2, 9), _block(dtype, 1, 3)
    large = _block(dtype, KERNEL_ORDER + 9, KERNEL_ORDER + 1)
    factors = Factors(*(np.zeros((1, *shape)) for shape in ((2, 1), (2, 1), (1, 1), (1,))), np.ones(1, np.int64),
                          *np.ones((3, 1)), np.zeros(1, np.bool_), np.zeros(1, np.int8))  # fmt: skip
    some, twice = np.ones((1, 4, 2)), tall[[0, 0, 1]]
    return {
        "predict, truncated": lambda: cpu.predict(tall, 1, FEW),
        "predict, truncated, many steps": lambda: cpu.predict(tall, 5, FEW),
        "predict, very many steps": lambda: cpu.predict(tall / 4, 10**4, FULL),
        "predict, wide": lambda: cpu.predict(wide, 1, FULL),
        "predict, wide, truncated": lambda: cpu.predict(wide, 1, FEW),
        "predict, wide, many steps": lambda: (cpu.predict(wide, 5, FULL), cpu.predict(wide, 5, FEW)),
        "predict, single weights": lambda: (cpu.predict(single, 2, FULL), cpu.predict(single[:, :, ::-1], 0, FULL)),
        "predict, by QR and SVD": lambda: cpu.predict(twice, 1, FINE),
        "predict, large": lambda: cpu.predict(large, 1, FEW),
        "pinv": lambda: cpu.pinv(tall, FULL),
        "pinv, wide": lambda: cpu.pinv(wide, FULL),
        "pinv, truncated": lambda: cpu.pinv(tall, FEW),
        "fit": lambda: cpu.fit(tall, FULL),
        "fit, wide": lambda: cpu.fit(wide, FULL),
        "fit, by SVD": lambda: cpu.fit(tall, FULL, refine=True),
        "evolve": lambda: (cpu.evolve(factors, np.array([1, 2])), cpu.evolve(factors, np.array([1, 10**4]))),
        "advance": lambda: cpu.advance(factors, factors.start, 2),
        "follow": lambda: cpu.follow(cpu.rows_of(tall[:1]), factors, np.ones((1, 1)), factors.start, 1),
        "reconstruct": lambda: (cpu.combine(tall, some[:, :1]), cpu.combine(tall, some)),
    }
