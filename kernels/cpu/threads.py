"""How many threads there are to use, and the one owner of BLAS's own number of them.

FastKoop's number is what `set_num_threads` said, or else the least of: the cores this process may run on (affinity),
what its control groups grant, OMP_NUM_THREADS (which joblib sets in its workers), and BLAS's present limit where
somebody has lowered it since FastKoop was imported (threadpoolctl's `threadpool_limits`).

Large blocks are worked on several at a time with a BLAS thread each. That limit belongs to the whole process in most
libraries, so it has one owner here: the first block sets it, the last one gives it back, whichever threads those are.
threadpoolctl 3.8 lets only the thread that set a limit change it, and ignores others without a word, so OpenBLAS is
asked directly; no ownership of threadpoolctl's is taken, and a limit that a caller sets meanwhile is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import math
import os
import pathlib
import threading

import scipy
from threadpoolctl import ThreadpoolController

_threads: int | None = None
NONE = 1 << 30  # threads: no limit
CGROUPS = pathlib.Path("/sys/fs/cgroup")


def get_num_threads() -> int:
    """Threads that FastKoop's CPU kernels use."""
    return _threads or default_threads()


def set_num_threads(threads: int) -> None:
    """Set how many threads FastKoop's CPU kernels use in this process; results do not depend on it."""
    global _threads
    _threads = max(1, int(threads))


def default_threads() -> int:
    """The number that is used unless `set_num_threads` was called; at least 1."""
    return max(1, min(available_cores(), granted_cores(), asked_threads(), blas.lowered()))


def available_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this platform
        return os.cpu_count() or 1


@functools.cache
def granted_cores() -> float:
    """Cores' worth of time that control groups grant this process, rounded up; infinite without a quota."""
    quotas = [math.inf]
    for path in _own_groups():
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (path / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))  # "max" is no number
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (int((path / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            quotas.append(quota / period if quota > 0 else math.inf)
    least = min(quotas)
    return math.ceil(least) if math.isfinite(least) else least


def _own_groups() -> list[pathlib.Path]:
    """Folders of this process's control groups, of version 2 and of version 1's "cpu", and of those above them."""
    folders = [CGROUPS, CGROUPS / "cpu"]
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                base = CGROUPS if controllers == "" else CGROUPS / "cpu"
                parts = pathlib.PurePosixPath(path).parts[1:]
                folders += [base.joinpath(*parts[: k + 1]) for k in range(len(parts))]
    return folders


def asked_threads() -> float:
    """OMP_NUM_THREADS, the first number of its list; infinite where it says none."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else math.inf


def _load_lapack() -> None:
    """Load the library that lapack.py calls.

    Out of SciPy's wheels alone: to import `scipy.linalg`, which would load it, takes as long as to import NumPy.
    """
    libraries = list((pathlib.Path(scipy.__file__).parents[1] / "scipy.libs").glob("*openblas*"))
    try:
        for library in libraries:
            ctypes.CDLL(str(library))
    except OSError:
        libraries = []
    if not libraries:
        importlib.import_module("scipy.linalg.cython_lapack")


class _OpenBlas:
    """OpenBLAS with threads of its own: one number for the whole process."""

    def __init__(self, filepath: str):
        self.filepath, library = filepath, ctypes.CDLL(filepath)
        affixes = [(prefix, suffix) for prefix in ("", "scipy_") for suffix in ("", "64_", "_64")]
        names = [f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix, suffix in affixes]
        name = next(name for name in names if hasattr(library, name.format("set")))
        self._get, self._set = getattr(library, name.format("get")), getattr(library, name.format("set"))

    @property
    def num_threads(self) -> int:
        return self._get()

    def set_num_threads(self, threads: int) -> None:
        self._set(threads)


class Blas:
    """The BLAS libraries of this process, their limit held to one thread while anybody asks for that.

    SciPy's is loaded when large blocks first need it: OpenBLAS's threads spin for a tenth of a second when they begin.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._holders = 0
        self._wishes: list[int] = []  # what the libraries are to go back to
        self._shared, self._private = self._find()
        self._first = self._least()
        self._loaded = False  # whether SciPy's is among them
        self._late: list = []  # (library, its own number, the limit) of those that were loaded under a caller's limit

    def load(self) -> None:
        """Load what lapack.py calls, if that has not been done; a limit that a caller has set holds for it, too."""
        if self._loaded:
            return
        with self._lock:
            if self._loaded:
                return
            limit = self._least()
            changed = limit != self._first
            _load_lapack()
            known = {library.filepath for library in (*self._shared, *self._private)}
            for all_of_them, found in zip((self._shared, self._private), self._find(), strict=True):
                for library in found:
                    if library.filepath in known:
                        continue
                    if changed:
                        self._late.append((library, library.num_threads, limit))
                        library.set_num_threads(limit)
                    elif library.num_threads:
                        self._first = min(self._first, library.num_threads)
                    all_of_them.append(library)
                    if self._holders and all_of_them is self._shared:
                        self._wishes.append(library.num_threads)
            if self._holders:
                self._hold()
            self._loaded = True

    @staticmethod
    def _find() -> tuple[list, list]:
        """The libraries whose limit is the whole process's, and those whose limit is a thread's own (OpenMP)."""
        shared, private = [], []
        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            if library.internal_api != "openblas":
                shared.append(library)
            elif library.threading_layer == "openmp":
                private.append(library)
            elif library.threading_layer == "pthreads":
                shared.append(_OpenBlas(library.filepath))
        return shared, private

    def num_threads(self) -> int:
        """The least limit of all libraries, but for what is held here; a large number where there is none."""
        with self._lock:
            return self._least()

    def _least(self) -> int:
        numbers = [library.num_threads for library in (*self._shared, *self._private)]
        if self._holders:
            held = zip(self._wishes, numbers, strict=False)
            numbers[: len(self._wishes)] = [wish if number == 1 else number for wish, number in held]
        return min((number for number in numbers if number), default=NONE)

    def lowered(self) -> int:
        """The present limit, if somebody has lowered it since this module was imported; else a large number."""
        with self._lock:
            self._settle()
            present = self._least()
        return present if present < self._first else NONE

    def _settle(self) -> None:
        """Give libraries that were loaded under a limit their own number once that limit is gone."""
        if not self._late or self._holders:
            return
        ours = {id(library) for library, _, _ in self._late}
        others = [one.num_threads for one in (*self._shared, *self._private) if id(one) not in ours]
        if min(others, default=NONE) == self._first:
            for library, number, limit in self._late:
                if library.num_threads == limit:
                    library.set_num_threads(number)
            self._late = []

    @contextlib.contextmanager
    def one_thread(self):
        """The libraries held to one thread; callers may nest and overlap, on any threads."""
        self.load()
        own = [library.num_threads for library in self._private]
        with self._lock:
            self._settle()
            if not self._holders:
                self._wishes = [library.num_threads for library in self._shared]
            self._holders += 1
            self._hold()
        for library in self._private:
            library.set_num_threads(1)
        try:
            yield
        finally:
            for library, number in zip(self._private, own, strict=True):
                library.set_num_threads(number)
            with self._lock:
                self._hold()
                self._holders -= 1
                if not self._holders:
                    self._give_back()

    def _hold(self) -> None:
        """One thread each; a limit that somebody has set meanwhile is what it goes back to."""
        for k, library in enumerate(self._shared):
            if (number := library.num_threads) != 1:
                self._wishes[k] = number
                library.set_num_threads(1)

    def _give_back(self) -> None:
        for library, number in zip(self._shared, self._wishes, strict=True):
            if number != 1:
                library.set_num_threads(number)

    def after_fork(self) -> None:
        """In a child, where no other thread lives on: nobody holds anything."""
        self._lock = threading.Lock()
        if self._holders:
            self._holders = 0
            self._give_back()


blas = Blas()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=blas.after_fork)
