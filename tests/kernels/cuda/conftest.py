"""The CUDA contract on emulated devices, and on a real one where there is one (pytest -m gpu)."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from fastkoop.kernels.cuda import Cuda, backend

HERE = pathlib.Path(__file__).parent
for name in ("emulator", "compiler"):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])

import emulator  # noqa: E402

# shared memory so small that every tile but the least streams
SMALL = emulator.T4._replace(name="small", shared=40_000, shared_total=42_000)


if emulator.COMPILER is None:
    pytest.skip("the emulation needs a C++ compiler (g++, or the one that CXX names)", allow_module_level=True)


@pytest.fixture(params=["H200", "T4", "small", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request):
    """The contract on every kind of device."""
    if request.param == "gpu":
        return backend(0)
    device = {"H200": emulator.H200, "T4": emulator.T4, "small": SMALL}[request.param]
    return Cuda(emulator.Emulated(device))


@pytest.fixture(autouse=True)
def device_for(request):
    """Tests marked gpu are skipped, with the reason, where there is no device."""
    if request.node.get_closest_marker("gpu"):
        try:
            backend(0)
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"no CUDA device: {error}")


@pytest.fixture
def emulated():
    """Makes the contract on an emulated device whose threads run in a given order."""

    def make(order=0, device=emulator.H200, **options):
        return Cuda(emulator.Emulated(device, order, **options))

    return make


@pytest.fixture
def on():
    """on(cuda, array): the array on that device, strides included."""
    return to_device


def to_device(cuda, array):
    """A device array like a NumPy one, strides included."""
    if cuda.xp is emulator.POISONED:
        return array
    if not array.size:
        return cuda.xp.asarray(array)
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = np.ndarray((high - low,), np.uint8, (np.ctypeslib.ctypes.c_uint8 * (high - low)).from_address(low))
    start = array.__array_interface__["data"][0] - low
    moved = cuda.xp.asarray(memory)
    return cuda.xp.ndarray(array.shape, array.dtype, moved.data + start, array.strides)
