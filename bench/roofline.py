"""What this machine can do, measured in the same run: copy bandwidth and matrix rates; and what it is."""

from __future__ import annotations

import datetime
import pathlib
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from fastkoop.kernels import plan
from fastkoop.kernels.pool import available_cores

from fastkoop.machine import describe_machine

ROOT = pathlib.Path(__file__).resolve().parents[1]
ORDER = 1536  # of the matrices whose products are timed
LARGEST_COPY = 1 << 29  # a virtual machine may report a last-level cache of hundreds of MB that is not its own


def cache_bytes(level: int) -> int | None:
    """Size of one cache of this level, as the system tells it."""
    for folder in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((folder / "level").read_text()) == level:
                number, unit = re.fullmatch(r"(\d+)([KM]?)", (folder / "size").read_text().strip()).groups()
                return int(number) << {"": 0, "K": 10, "M": 20}[unit]
        except (OSError, ValueError, AttributeError):
            continue
    return None


def copy_bandwidth(repeats: int = 7) -> float:
    """Bytes a second, read and written, of a copy by all cores of at least four times the last-level cache."""
    cores = available_cores()
    size = min(max(4 * (cache_bytes(3) or 1 << 25), 1 << 27), LARGEST_COPY)
    source, target = np.ones(size // 8), np.zeros(size // 8)
    parts = [slice(i * len(source) // cores, (i + 1) * len(source) // cores) for i in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))
            best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def matrix_rates(repeats: int = 3) -> dict[str, float]:
    """Floating-point operations a second of a matrix product, by library and dtype; best of a few."""
    import torch

    rates = {}
    for dtype in ("float32", "float64"):
        A = np.random.default_rng(0).normal(size=(ORDER, ORDER)).astype(dtype)
        for name, operand in (("numpy", A), ("torch", torch.from_numpy(A))):
            best = float("inf")
            for _ in range(repeats + 1):
                began = time.perf_counter()
                operand @ operand
                best = min(best, time.perf_counter() - began)
            rates[f"{name} {dtype}"] = 2 * ORDER**3 / best
    return rates


def ceilings() -> dict:
    """Copy bandwidth and the best matrix rate of any library and dtype: what floors are made of."""
    rates = matrix_rates()
    return {"copy_bytes_per_second": copy_bandwidth(), "matrix_rates": rates, "flops_per_second": max(rates.values())}


def floor_seconds(batches: list[np.ndarray], steps: int, states: bool, ceiling: dict) -> dict:
    """The least a case can take: data read once and the result written once, or its flops, whichever is longer."""
    size = sum(X.nbytes + X[0].nbytes * (steps if states else 1) for X in batches)
    flops = sum(plan(X.shape[1], X.shape[2], len(X) - 1, X.dtype, steps).flops for X in batches)
    moved, computed = size / ceiling["copy_bytes_per_second"], flops / ceiling["flops_per_second"]
    return {"bytes": size, "flops": flops, "seconds": max(moved, computed), "bound": _bound(moved, computed)}


def _bound(moved: float, computed: float) -> str:
    return "memory" if moved >= computed else "arithmetic"


def environment() -> dict:
    """Machine, versions, caches, commit and date; no path and no host name."""
    import torch

    return {
        **describe_machine(),
        "torch_threads": torch.get_num_threads(),
        "cache_bytes": {f"L{level}": cache_bytes(level) for level in (1, 2, 3)},
        **_commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _commit() -> dict:
    """The commit, and whether the tree differs from it (results aside)."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
