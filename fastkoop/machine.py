"""What this machine is and what is installed on it, without importing what is not needed."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import sys

from .backends import get_num_threads

PACKAGES = ("fastkoop", "numpy", "numba", "scipy", "torch", "cupy-cuda12x", "cupy-cuda13x", "jax")


def versions() -> dict[str, str | None]:
    """Installed versions of FastKoop and of what it works with; None for what is not there."""
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def processor() -> str:
    """The processor's name."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict:
    """The machine of results.json."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions().items() if version},
    }


def peak_memory() -> int | None:
    """Largest resident size of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on this platform
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory() -> float:
    """Bytes this process may still take, as the system and its control group tell; 4 GiB where they do not."""
    try:
        meminfo = pathlib.Path("/proc/meminfo").read_text()
        free = int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024.0
    except (OSError, IndexError, ValueError):
        try:
            free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
        except (AttributeError, OSError, ValueError):
            free = 4.0 * 2**30
    group = pathlib.Path("/sys/fs/cgroup")
    try:
        limit, used, stat = ((group / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
        cache = stat.partition("inactive_file ")[2].split()[0]  # given up when it is needed
        return min(free, float(limit) - float(used) + float(cache))
    except (OSError, ValueError, IndexError):  # no control group, or one without a limit
        return free


def kernel_cache() -> str:
    """Where compiled CPU kernels are kept."""
    from .backends import cache_place

    return cache_place() or "in memory only: no folder can be written to"
