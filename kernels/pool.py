"""A small thread pool of FastKoop's own, one per process.

Numba's stock layers die after a fork or under concurrent callers; kernels here release the GIL and
work on a range of blocks each, so plain threads are enough. Which thread runs which range never
changes a result.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

WORK_PER_THREAD = 1 << 18  # multiply-adds; handing less to a second thread costs more than it saves
RANGES_PER_THREAD = 4  # uneven blocks (truncated beside full rank) even out over more, smaller ranges

_lock = threading.Lock()
_threads: int | None = None
_executor: tuple[int, int, ThreadPoolExecutor] | None = None  # (process id, threads, pool)


def available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        return os.cpu_count() or 1


def get_num_threads() -> int:
    """Threads that FastKoop's CPU kernels use."""
    return _threads or available_cores()


def set_num_threads(threads: int) -> None:
    """Set how many threads FastKoop's CPU kernels use in this process; results do not depend on it."""
    global _threads
    _threads = max(1, int(threads))


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor
    with _lock:
        if _executor is None or _executor[:2] != (os.getpid(), threads):
            if _executor is not None and _executor[0] == os.getpid():
                _executor[2].shutdown(wait=False)  # queued work still finishes
            _executor = (os.getpid(), threads, ThreadPoolExecutor(threads, "fastkoop"))
        return _executor[2]


def _forget_after_fork() -> None:
    global _lock, _executor
    _lock, _executor = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def over_blocks(kernel, blocks: int, work: int, *arguments) -> None:
    """Call `kernel(first, last, *arguments)` over ranges that cover 0 .. blocks, in parallel.

    work is about how many multiply-adds all blocks take; little work stays on the caller's thread.
    """
    threads = min(get_num_threads(), blocks, 1 + work // WORK_PER_THREAD)
    if threads <= 1:
        if blocks:
            kernel(0, blocks, *arguments)
        return
    ranges = min(blocks, threads * RANGES_PER_THREAD)
    edges = [blocks * i // ranges for i in range(ranges + 1)]
    pool = _pool(threads)
    futures = [pool.submit(kernel, edges[i], edges[i + 1], *arguments) for i in range(1, ranges)]
    kernel(edges[0], edges[1], *arguments)
    for future in futures:
        future.result()
