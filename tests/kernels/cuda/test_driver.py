"""What the driver asks of CuPy, noted by a stand-in."""

import sys
import types

import pytest

from fastkoop.kernels.cuda.driver import Driver, entry


class Kernel:
    """A compiled kernel that remembers its attributes."""

    shared_size_bytes, num_regs = 16, 40


class Module:
    """What CuPy was asked to compile; no name expressions, whose modules its disk cache does not serve."""

    def __init__(self, code, options, **others):
        assert not others
        self.code = code

    def get_function(self, name):
        kernel = Kernel()
        kernel.name, kernel.code = name, self.code
        return kernel


class Attached:
    """cupy.cuda.Device."""

    def __init__(self, ordinal):
        names = ("MultiProcessorCount", "MaxSharedMemoryPerMultiprocessor", "MaxThreadsPerMultiProcessor")
        more = ("MaxRegistersPerMultiprocessor", "MaxBlocksPerMultiprocessor")
        self.attributes = {
            "ComputeCapabilityMajor": 9,
            "ComputeCapabilityMinor": 0,
            "MaxSharedMemoryPerBlockOptin": 1000,
        }
        self.attributes |= dict.fromkeys((*names, *more), 32)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def driver(monkeypatch):
    """A driver over a CuPy that compiles nothing."""
    cupy, profiler = types.ModuleType("cupy"), types.ModuleType("cupyx.profiler")
    runtime = types.SimpleNamespace(getDeviceProperties=lambda ordinal: {"name": b"stand-in"})
    cupy.cuda, cupy.RawModule = types.SimpleNamespace(Device=Attached, runtime=runtime), Module
    profiler.time_range = None
    for name, module in {"cupy": cupy, "cupyx": types.ModuleType("cupyx"), "cupyx.profiler": profiler}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return Driver(0)


def test_kernels_are_compiled_under_their_bare_name(driver):
    kernel = driver.kernel("fastkoop::record<float, double>")
    assert kernel.name == "record" and kernel.code == entry("fastkoop::record<float, double>")
    assert driver.kernel("fastkoop::record<float, double>") is kernel


@pytest.mark.parametrize(
    "name", ["predict<float, fastkoop::Tensor, 2>", "gram<double, fastkoop::Vector, 1>", "solve<4>", "certify<2>"]
)
def test_kernels_that_live_in_shared_memory_ask_for_all_of_it(driver, name):
    kernel = driver.kernel(f"fastkoop::{name}")
    assert kernel.preferred_shared_memory_carveout == 100
    assert kernel.max_dynamic_shared_size_bytes == 1000 - 16


def test_kernels_that_read_through_l1_leave_it_alone(driver):
    assert not hasattr(driver.kernel("fastkoop::combine<float>"), "preferred_shared_memory_carveout")
    assert driver.registers("fastkoop::combine<float>") == 40 and driver.address(None) == 0
    assert driver.device.capability == (9, 0) and driver.device.name == "stand-in"
