"""The device that an option --device names; "emulated" is a CUDA device for machines without one.

    python bench/devices.py --out folder     # `fastkoop profile` of tiny blocks on the emulated device

That one is the kernels as tests/kernels/cuda runs them on the host, behind the same interface: it says whether
everything runs
and what it answers, and nothing about speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import sys

from fastkoop.checks import InputError
from fastkoop.kernels.cuda import Cuda
from fastkoop.machine import describe_machine, free_memory
from fastkoop.profile.devices import Gpu, Host, open_device
from fastkoop.profile.throughput import wall

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEVICES = ("cpu", "cuda", "emulated")
SIZES = ((20, 4), (3, 40), (1, 9), (70, 66))  # of the profile


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
    try:
        return EmulatedGpu() if name == "emulated" else open_device(name)
    except InputError as error:
        raise SystemExit(str(error)) from None


def main() -> None:
    """Profile it."""
    from rich.console import Console

    from fastkoop.profile.profiling import Config, profile
    from fastkoop.profile.table import show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    config = Config(sizes=SIZES, blocks=4, rounds=1, seconds=1.0, device="cuda", out=parser.parse_args().out)
    show(profile(config, device=EmulatedGpu()), Console(width=120))


if __name__ == "__main__":
    main()
