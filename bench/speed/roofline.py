"""The least time a case can take on this machine, from ceilings measured in the same run."""

from __future__ import annotations

import numpy as np
import torch

from fastkoop.kernels import plan
from fastkoop.profile.devices import Gpu, Host
from fastkoop.profile.throughput import measure


def ceilings(device: Host | Gpu) -> dict:
    """Copy bandwidth and the best matrix rate of any library and dtype: what floors are made of."""
    best = device.ceilings()[-1]
    rates = {"blas float32": best.float32, "blas float64": best.float64}
    rates |= {f"torch {dtype}": torch_rate(dtype, device) for dtype in ("float32", "float64")}
    return {"copy_bytes_per_second": best.copy, "matrix_rates": rates, "flops_per_second": max(rates.values())}


def torch_rate(dtype: str, device: Host | Gpu) -> float:
    """Flops a second of PyTorch's product of two square matrices."""
    A = torch.from_dlpack(device.put(np.random.default_rng(0).random((device.order, device.order)).astype(dtype)))
    out = torch.empty_like(A)
    return 2 * device.order**3 / measure(lambda: torch.mm(A, A, out=out), rounds=5, timer=device.timer).low


def floor_seconds(batches: list[np.ndarray], steps: int, states: bool, ceiling: dict) -> dict:
    """The least a case can take: data read once and the result written once, or its flops, whichever is longer."""
    size = sum(X.nbytes + X[0].nbytes * (steps if states else 1) for X in batches)
    flops = sum(plan(X.shape[1], X.shape[2], len(X) - 1, X.dtype, steps).flops for X in batches)
    moved, computed = size / ceiling["copy_bytes_per_second"], flops / ceiling["flops_per_second"]
    bound = "memory" if moved >= computed else "arithmetic"
    return {"bytes": size, "flops": flops, "seconds": max(moved, computed), "bound": bound}
