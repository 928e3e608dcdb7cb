"""Every CUDA kernel on small blocks, each answer compared with the reference: what a memory or race checker watches.

compute-sanitizer --tool memcheck python -m bench gpu kernels --device cuda
python -m bench gpu kernels --device emulated
"""

from __future__ import annotations

import time

import numpy as np

from bench.common.devices import device_of
from fastkoop.kernels import reference
from fastkoop.kernels.cuda import instances

RULE = ("relative", 1e-4)
ORDERS = (3, 6, 14, 22, 38, 64)  # every instance of the Gram kernels, tall and wide
LONG = ((9000, 32), (8, 40_000))  # shared by several CTAs
TOLERANCE = 1e-3  # of the reference's norm: this looks for wild answers, tests/kernels/cuda has the bounds


def shapes() -> list[tuple[int, int]]:
    """(n, m) of all blocks."""
    pairs = [pair for order in ORDERS for pair in ((order + 37, order), (order, order + 37))]
    return [(1, 40), *pairs, *LONG]


def snapshots(rng, n: int, m: int, dtype) -> np.ndarray:
    """(m+1, 4, n): full rank, truncated, far beyond what a Gram matrix resolves, and constant."""
    order = min(n, m)
    blocks = []
    for last in (0.1, 1e-2, 1e-9):
        U, V = (np.linalg.qr(rng.normal(size=(size, order)))[0] for size in (n, m))
        values = np.geomspace(1.0, last, order)
        if last < 0.1:
            values[order // 2 :] *= 1e-6
        blocks.append(np.concatenate([(U * values) @ V.T, rng.normal(size=(n, 1)) / np.sqrt(n)], axis=1))
    blocks.append(np.repeat(rng.normal(size=(n, 1)), m + 1, axis=1))
    return np.ascontiguousarray(np.stack(blocks).transpose(2, 0, 1).astype(dtype))


def calls(device, X: np.ndarray) -> None:
    """Every function of the contract on one batch; predictions are compared with the reference."""
    kernels, there = device.kernels, device.put(X)
    m, n = len(X) - 1, X.shape[2]
    steps = np.array([1, 3])
    factors = kernels.fit(there, RULE)
    kernels.reconstruct(there, kernels.evolve(factors, steps))
    kernels.reconstruct(there, kernels.evolve(kernels.fit(there, RULE, refine=True), steps))
    kernels.advance(factors, factors.start, 2)
    kernels.reconstruct(there, kernels.xp.ascontiguousarray(factors.readout.transpose(0, 2, 1)))
    kernels.solve(kernels.gram(there), n, m, RULE, X.dtype)
    kernels.pinv(there[:-1], RULE)
    for to in (np.float32, np.float64):
        device.recorder(4, n, X.dtype, to)()
    for count in (1, 3):
        states = device.host(kernels.predict(there, count, RULE)[0])
        for b, state in enumerate(states):
            expected = reference.predict(X[:, b].T, count, RULE)
            error = np.linalg.norm(state - expected)
            if not error <= TOLERANCE * np.linalg.norm(expected):
                raise SystemExit(f"n = {n}, m = {m}, {X.dtype}, T = {count}, block {b}: off by {error:.2e}")


def run(device: str, seconds: float) -> None:
    """Run all shapes, or those that the seconds allow, and name the kernels that were not launched."""
    device, end, rng = device_of(device), time.monotonic() + seconds, np.random.default_rng(0)
    device.exact_allocations()
    seen, missed = set(), 0
    for n, m in shapes():
        for dtype in (np.float32, np.float64):
            if time.monotonic() > end:
                missed += 1
                continue
            X = snapshots(rng, n, m, dtype)
            seen |= {one["name"] for one in device.launches_of(lambda X=X: calls(device, X))}
    left = [name for name in instances(device.kernels.device) if name.replace("fastkoop::", "") not in seen]
    print(f"{len(seen)} kernels ran and agree with the reference" + (f"; {missed} shapes left out" if missed else ""))
    if left:
        print(f"not launched: {', '.join(left)}")
