"""Where kernels are measured: the host's cores or one CUDA device, each with its own timer, memory and ceilings.

Profile and benchmark are written once, against what these two classes have in common.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

import numba.core.event
import numpy as np

from .. import backends
from ..machine import describe_machine, free_memory
from .throughput import GEMM_ORDER, Ceilings, cache_bytes, measure, measure_ceilings, wall


class Host:
    """This machine's cores: NumPy arrays, the wall clock, FastKoop's threads."""

    name = "cpu"
    xp = np
    kernels = backends.kernels
    batch_bytes = 64 << 20  # of snapshots in a batch
    rotate_bytes = 1 << 24  # several times a core's L2: small batches are rotated over so much data
    order = GEMM_ORDER

    @property
    def abreast(self) -> int:
        """Large blocks that are worked on at the same time."""
        return backends.get_num_threads()

    @property
    def private_cache(self) -> int:
        """Bytes of the caches that data should exceed, all cores' together."""
        return cache_bytes()["L2"] * backends.get_num_threads()

    def plan(self, n: int, m: int, dtype) -> backends.Plan:
        """Engine and cost of a block."""
        return backends.plan(1, n, m, dtype)

    def put(self, array: np.ndarray) -> np.ndarray:
        """The array where the kernels want it."""
        return array

    def host(self, array) -> np.ndarray:
        """The array as NumPy's."""
        return np.asarray(array)

    def timer(self, function: Callable[[], object]) -> float:
        """Seconds of one call."""
        return wall(function)

    waiting_timer = timer

    def release(self) -> None:
        """Nothing: NumPy gives memory back at once."""

    def free_memory(self) -> float:
        """Bytes that may still be taken."""
        return free_memory()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[Callable[[], bool]]:
        """Yields a function that tells whether anything has been compiled meanwhile."""
        with numba.core.event.install_recorder("numba:compile") as recorder:
            yield lambda: bool(recorder.buffer)

    def ceilings(self) -> list[Ceilings]:
        """Of one thread, and of all."""
        return [measure_ceilings(threads) for threads in sorted({1, backends.get_num_threads()})]

    def described(self) -> dict:
        """The machine of profile.json."""
        return {**describe_machine(), "cache_bytes": cache_bytes()}


class Gpu:
    """A CUDA device through the contract on it (kernels/cuda).

    Between two events a device may wait for the host to enqueue the next launch. So the timer first fills memory for a
    few milliseconds: meanwhile the host gets ahead, and what the last call left in L2 goes.
    """

    name = "cuda"
    abreast = 4  # large blocks of a batch, one after another
    head_start = 16 << 30  # bytes to fill: about 4 ms on an H200, longer on slower devices
    public = True  # FastKoop's public functions take its arrays
    order = 8192  # of the square matrices whose product is timed

    def __init__(self, kernels=None):
        self.kernels = backends.cuda() if kernels is None else kernels
        self.xp = self.kernels.xp
        self._filled = None

    @property
    def private_cache(self) -> int:
        """Bytes of the device's L2."""
        return int(self.xp.cuda.Device(self.kernels.driver.ordinal).attributes["L2CacheSize"])

    @property
    def batch_bytes(self) -> int:
        """Bytes of snapshots in a batch: many times what L2 holds, so that no call finds what the last one read."""
        return 8 * self.private_cache

    @property
    def rotate_bytes(self) -> int:
        """Small batches are rotated over so much data."""
        return 4 * self.private_cache

    def plan(self, n: int, m: int, dtype) -> backends.Plan:
        """Engine and cost of a block."""
        return self.kernels.plan(1, n, m, dtype)

    def put(self, array: np.ndarray):
        """A copy in device memory."""
        return self.xp.asarray(array)

    def host(self, array) -> np.ndarray:
        """A copy in host memory."""
        return self.kernels.driver.host(array)

    def timer(self, function: Callable[[], object]) -> float:
        """Seconds of one call between two events on the current stream."""
        if self._filled is None:
            self._filled = self.xp.empty(4 * self.private_cache, self.xp.uint8)
        start, stop = (self.xp.cuda.Event() for _ in range(2))
        for _ in range(-(-self.head_start // self._filled.nbytes)):
            self._filled.fill(0)
        start.record()
        function()
        stop.record()
        stop.synchronize()
        return self.xp.cuda.get_elapsed_time(start, stop) / 1e3

    def waiting_timer(self, function: Callable[[], object]) -> float:
        """Seconds of one call that waits for its own result, on whatever stream it works."""
        self.xp.cuda.runtime.deviceSynchronize()
        return wall(function)

    def captured(self, function: Callable[[], object]) -> Callable[[], object]:
        """The call as a CUDA graph: a function that replays it, and returns the arrays that every replay fills.

        Its memory is its own, so that nothing else is put where a replay writes.
        """
        pool, stream = self.xp.cuda.MemoryPool(), self.xp.cuda.Stream(non_blocking=True)
        self.xp.cuda.runtime.deviceSynchronize()
        with self.xp.cuda.using_allocator(pool.malloc), stream:
            function()  # compiles, and fills the pool
            stream.synchronize()
            stream.begin_capture()
            try:
                result = function()
            finally:
                graph = stream.end_capture()
        kept = pool, result

        def replay():
            graph.launch()
            return kept[1]

        return replay

    def release(self) -> None:
        """Give memory back that nothing uses any more."""
        self.xp.get_default_memory_pool().free_all_blocks()

    def exact_allocations(self) -> None:
        """From now on every array is an allocation of its own, so that a memory checker sees where it ends."""
        self.xp.cuda.set_allocator(None)

    def free_memory(self) -> float:
        """Bytes of the device that may still be taken."""
        return float(self.xp.cuda.runtime.memGetInfo()[0])

    @contextlib.contextmanager
    def compiling(self) -> Iterator[Callable[[], bool]]:
        """Yields a function that tells whether anything has been compiled, and not found on disk, meanwhile."""
        before = self._compiled()
        yield lambda: self._compiled() != before

    def _compiled(self) -> int:
        """Kernels in CuPy's cache on disk."""
        folder = pathlib.Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()
        return sum(1 for _ in folder.iterdir()) if folder.exists() else 0

    def ceilings(self) -> list[Ceilings]:
        """Copy bandwidth and matrix rates (cuBLAS) of the device."""
        size = min(32 * self.private_cache, int(self.free_memory() / 8))
        source, target = (self.xp.ones(size // 8) for _ in range(2))
        copied = measure(lambda: self.xp.copyto(target, source), 9, timer=self.timer)
        rates = (self._matrix_rate(dtype) for dtype in (np.float32, np.float64))
        return [Ceilings(None, 2 * source.nbytes / copied.low, *rates)]

    def _matrix_rate(self, dtype) -> float:
        a, b = (self.put(part) for part in np.random.default_rng(0).random((2, self.order, self.order)).astype(dtype))
        out = self.xp.empty_like(a)
        return 2 * self.order**3 / measure(lambda: self.xp.matmul(a, b, out=out), 5, timer=self.timer).low

    def described(self) -> dict:
        """The machine of profile.json: the host, the device, the driver and CUDA's versions."""
        runtime, device = self.xp.cuda.runtime, self.kernels.device
        return {
            **describe_machine(),
            "device": device.name,
            "capability": list(device.capability),
            "multiprocessors": device.multiprocessors,
            "memory_bytes": int(runtime.memGetInfo()[1]),
            "cache_bytes": {"L2": self.private_cache},
            "cuda_driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
            "nvrtc": list(self.xp.cuda.nvrtc.getVersion()),
        }

    def launches_of(self, function: Callable[[], object]) -> list[dict]:
        """What a call launches of FastKoop's own kernels: name, CTAs, threads, shared memory, registers, occupancy.

        Occupancy is the share of a multiprocessor's threads that are resident at once.
        """
        driver, seen = self.kernels.driver, []
        self.kernels.driver = _Watched(driver, seen)
        try:
            function()
        finally:
            self.kernels.driver = driver
        return [self._launch(*one) for one in dict.fromkeys(seen)]

    def _launch(self, name: str, grid: tuple[int, int], threads: int, shared: int) -> dict:
        registers = self.kernels.driver.registers(name)
        resident = backends.resident(self.kernels.device, threads, shared, registers)
        return {
            "name": name.replace("fastkoop::", ""),
            "ctas": grid[0] * grid[1],
            "threads": threads,
            "shared_bytes": shared,
            "registers": registers,
            "resident_ctas": resident,
            "occupancy": resident * threads / self.kernels.device.threads,
        }

    def recorder(self, blocks: int, n: int, dtype, to=None) -> Callable[[], object]:
        """A call that records one snapshot of `blocks` nodes: their weights are one parameter, their biases another."""
        weights, biases = (self.xp.ones(size, dtype) for size in (blocks * (n - 1), blocks))
        row = self.xp.empty(blocks * n, dtype if to is None else to)
        strips = self.put(backends.strips(self.kernels, [(weights, 0, blocks, n - 1), (biases, n - 1, blocks, 1)], n))
        return lambda: (weights, biases, self.kernels.record(strips, dtype, row))


class _Watched:
    """A driver that notes its launches."""

    def __init__(self, driver, seen: list):
        self._driver, self._seen = driver, seen

    def __getattr__(self, name: str):
        return getattr(self._driver, name)

    def launch(self, name, grid, threads, shared, arguments) -> None:
        self._seen.append((name, tuple(grid), threads, shared))
        self._driver.launch(name, grid, threads, shared, arguments)


def open_device(name: str) -> Host | Gpu:
    """The device of this name, "cpu" or "cuda".

    Raises:
        ValueError: naming what is missing, and the cure.
    """
    return Host() if name == "cpu" else Gpu()
