"""A small thread pool of FastKoop's own, one per process.

Numba's stock layers die after a fork or under concurrent callers; kernels here release the GIL and
work on a range of blocks each, so plain threads are enough. Which thread runs which range never
changes a result, and a pool that takes no work any more leaves all of it to the caller.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from .threads import blas, get_num_threads

WORK_PER_THREAD = 1 << 23  # multiply-adds, half a millisecond; waking a thread for less costs more than it saves
RANGES_PER_THREAD = 4  # uneven blocks (truncated beside full rank) even out over more, smaller ranges

_lock = threading.Lock()
_executor: tuple[int, int, ThreadPoolExecutor] | None = None  # (process id, threads, pool)


def _pool(threads: int) -> ThreadPoolExecutor:
    global _executor
    with _lock:
        if _executor is None or _executor[:2] != (os.getpid(), threads):
            # an earlier pool is dropped, not shut down: a caller may hold it; its idle threads end with it
            _executor = (os.getpid(), threads, ThreadPoolExecutor(threads, "fastkoop"))
        return _executor[2]


def _forget_after_fork() -> None:
    global _lock, _executor
    _lock, _executor = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


class _Job:
    """Ranges of blocks that are still to do, and the threads at work on them."""

    def __init__(self, kernel, arguments: tuple, ranges):
        self._kernel, self._arguments, self._ranges = kernel, arguments, ranges
        self._state = threading.Condition(threading.Lock())
        self._running, self._error = 0, None

    def run(self) -> None:
        """Do ranges while there are any; what a kernel raises is kept for `finish`."""
        while True:
            with self._state:
                mine = next(self._ranges, None)
                if mine is None:
                    return
                self._running += 1
            try:
                self._kernel(*mine, *self._arguments)
            except BaseException as error:
                with self._state:
                    self._error, self._ranges = self._error or error, iter(())
            finally:
                with self._state:
                    self._running -= 1
                    self._state.notify_all()

    def finish(self) -> None:
        """Wait for the threads that have begun a range, not for those that never got to one; raise what they did."""
        with self._state:
            self._ranges = iter(())  # after an interrupt: the others finish what they have begun
            while self._running:
                self._state.wait()
        if self._error is not None:
            raise self._error


def over_blocks(kernel, blocks: int, work: int, *arguments) -> None:
    """Call `kernel(first, last, *arguments)` over ranges that cover 0 .. blocks, in parallel.

    work is about how many multiply-adds all blocks take; little work stays on the caller's thread, which
    always takes part.
    """
    most = min(blocks, 1 + work // WORK_PER_THREAD)
    limit = get_num_threads() if most > 1 else 1
    threads = min(most, limit)
    if threads <= 1:
        if blocks:
            kernel(0, blocks, *arguments)
        return
    large = work >= blocks * WORK_PER_THREAD  # then a range of several would keep the last thread long
    count = blocks if large else min(blocks, threads * RANGES_PER_THREAD)
    job = _Job(kernel, arguments, iter([(blocks * i // count, blocks * (i + 1) // count) for i in range(count)]))
    try:
        for _ in range(threads - 1):
            _pool(limit).submit(job.run)
    except RuntimeError:  # the interpreter is shutting down, or no thread can be had: the caller does it all
        pass
    try:
        job.run()
    finally:
        job.finish()


def each_block(function, blocks: int, alone: bool) -> list:
    """[function(b) for b in range(blocks)]: in parallel with a BLAS thread each, or one after another with all."""
    if not blocks:
        return []  # not even a look at the BLAS libraries
    if not alone:
        return [function(b) for b in range(blocks)]
    results = [None] * blocks

    def run(first: int, last: int) -> None:
        with blas.one_thread():  # also where a thread has a limit of its own
            for b in range(first, last):
                results[b] = function(b)

    with blas.one_thread():
        over_blocks(run, blocks, blocks * WORK_PER_THREAD)
    return results
