"""The device that an option --device names; "emulated" is a CUDA device for machines without one.

That one is the kernels as tests/kernels/cuda runs them on the host, behind the same interface: it says whether
everything runs and what it answers, and nothing about speed.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from bench import ROOT
from fastkoop.kernels.cuda import Cuda
from fastkoop.machine import describe_machine, free_memory
from fastkoop.profile.devices import Gpu, Host, open_device
from fastkoop.profile.throughput import wall


def emulator():
    """tests/kernels/cuda/emulator.py as a module: the tests are no package."""
    if "emulator" not in sys.modules:
        spec = importlib.util.spec_from_file_location("emulator", ROOT / "tests" / "kernels" / "cuda" / "emulator.py")
        sys.modules["emulator"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["emulator"])
    return sys.modules["emulator"]


class EmulatedGpu(Gpu):
    """An emulated H200, with what only a real one can tell replaced by small numbers."""

    public = False
    order = 64
    private_cache = 1 << 12
    batch_bytes = 1 << 14
    abreast = 1

    def __init__(self):
        device = emulator()
        super().__init__(Cuda(device.Emulated(device.H200)))

    def timer(self, function) -> float:
        """Seconds on the wall."""
        return wall(function)

    waiting_timer = timer

    def captured(self, function):
        """Nothing."""
        raise RuntimeError("an emulated device has no CUDA graphs")

    def release(self) -> None:
        """Nothing: NumPy's memory is given back at once."""

    def exact_allocations(self) -> None:
        """Nothing: NumPy's are."""

    def free_memory(self) -> float:
        """Bytes of the host."""
        return free_memory()

    def _compiled(self) -> int:
        return 0

    def described(self) -> dict:
        """The host, and what is emulated on it."""
        return {**describe_machine(), "device": self.kernels.device.name, "cache_bytes": {"L2": self.private_cache}}


def device_of(name: str) -> Host | Gpu:
    """The device of an option --device; one sentence where there is none."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of a GPU's memory at once
    return EmulatedGpu() if name == "emulated" else open_device(name)
