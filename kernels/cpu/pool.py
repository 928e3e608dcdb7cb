"""A small thread pool of FastKoop's own, one per process.

Numba's stock layers die after a fork or under concurrent callers; kernels here release the GIL and
work on a range of blocks each, so plain threads are enough. Which thread runs which range never
changes a result.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

from threadpoolctl import threadpool_limits

WORK_PER_THREAD = 1 << 22  # multiply-adds, half a millisecond; waking a thread for less costs more than it saves
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
            # an earlier pool is dropped, not shut down: a caller may hold it; its idle threads end with it
            _executor = (os.getpid(), threads, ThreadPoolExecutor(threads, "fastkoop"))
        return _executor[2]


def _forget_after_fork() -> None:
    global _lock, _executor, _limiting, _limited
    if _limited:
        _limit.restore_original_limits()
    _lock, _executor, _limiting, _limited = threading.Lock(), None, threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


_limiting = threading.Lock()
_limited = 0
_limit = None


@contextlib.contextmanager
def one_blas_thread():
    """BLAS held to one thread while several blocks are in LAPACK at a time; callers may nest and overlap."""
    global _limited, _limit
    with _limiting:
        if _limited == 0:
            _limit = threadpool_limits(limits=1, user_api="blas")
        _limited += 1
    try:
        yield
    finally:
        with _limiting:
            _limited -= 1
            if _limited == 0:
                _limit.restore_original_limits()


def each_block(function, blocks: int, alone: bool) -> list:
    """[function(b) for b in range(blocks)]: in parallel with a BLAS thread each, or one after another with all."""
    if not blocks:
        return []  # not even a look at the BLAS libraries, which costs a millisecond
    if not alone:
        return [function(b) for b in range(blocks)]
    results = [None] * blocks

    def run(first: int, last: int) -> None:
        for b in range(first, last):
            results[b] = function(b)

    with one_blas_thread():
        over_blocks(run, blocks, blocks * WORK_PER_THREAD)
    return results


def over_blocks(kernel, blocks: int, work: int, *arguments) -> None:
    """Call `kernel(first, last, *arguments)` over ranges that cover 0 .. blocks, in parallel.

    work is about how many multiply-adds all blocks take; little work stays on the caller's thread, which
    always takes part.
    """
    threads = min(get_num_threads(), blocks, 1 + work // WORK_PER_THREAD)
    if threads <= 1:
        if blocks:
            kernel(0, blocks, *arguments)
        return
    large = work >= blocks * WORK_PER_THREAD  # then a range of several would keep the last thread long
    count = blocks if large else min(blocks, threads * RANGES_PER_THREAD)
    ranges = iter([(blocks * i // count, blocks * (i + 1) // count) for i in range(count)])
    take = threading.Lock()

    def help_out() -> None:
        nonlocal ranges
        while True:
            with take:
                mine = next(ranges, None)
            if mine is None:
                return
            kernel(*mine, *arguments)

    pool = _pool(get_num_threads())
    helpers = [pool.submit(help_out) for _ in range(threads - 1)]
    try:
        help_out()
    finally:
        with take:
            ranges = iter(())  # after an error: the others finish what they have begun
        wait(helpers)
    for helper in helpers:
        helper.result()
