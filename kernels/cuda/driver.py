"""CuPy: builds, caches and launches the CUDA sources on the caller's stream.

`Driver` is the whole of what `Cuda` asks of a device; the tests put an emulated one in its place.
"""

from __future__ import annotations

import functools
import re
from importlib import resources

import numpy as np

from .launch import Device

HEADERS = ("device.cuh", "cutoffs.cuh", "tiles.cuh", "dense.cuh", "algebra.cuh", "jacobi.cuh")
FILES = (
    "predict.cu",
    "gram.cu",
    "certify.cu",
    "solve.cu",
    "evolve.cu",
    "reconstruct.cu",
    "exact.cu",
    "inverse.cu",
    "record.cu",
)
OPTIONS = ("-std=c++17",)
STAGED = ("predict", "gram", "inverse", "certify", "solve")  # their data is in shared memory, not in L1


@functools.cache
def text_of(name: str) -> str:
    """One source file, its lines named in what the compiler says."""
    return f'#line 1 "{name}"\n{resources.files(__package__).joinpath("src", name).read_text()}'


def source(kernel: str | None = None) -> str:
    """The sources that define a kernel, or all of them, as one text: CuPy's cache does not see what is included."""
    files = [name for name in FILES if kernel is None or re.search(rf"__global__[^;{{]*?\b{kernel}\(", text_of(name))]
    return "".join(text_of(name) for name in (*HEADERS, *files[: None if kernel is None else 1]))


def bare(name: str) -> str:
    """The kernel of a name expression: "predict" of "fastkoop::predict<float, fastkoop::Tensor, 2>"."""
    return name.split("<")[0].split("::")[-1]


def entry(name: str) -> str:
    """The source of one instance as an extern "C" kernel called `bare(name)`, its template arguments spelt out.

    CuPy compiles a module with name expressions anew in every process: its cache on disk keeps machine code alone.

    >>> entry("fastkoop::record<float, double>").count('using T = float; using U = double; extern "C" __global__')
    1
    """
    kernel, values = bare(name), re.findall(r"[\w:]+", name.partition("<")[2])

    def spelt(match: re.Match) -> str:
        parameters = re.findall(r"(class|int) (\w+)", match["parameters"] or "")
        lines = [
            f"using {parameter} = {value};" if kind == "class" else f"constexpr int {parameter} = {value};"
            for (kind, parameter), value in zip(parameters, values, strict=True)
        ]
        return " ".join([*lines, 'extern "C" __global__']) + match["rest"]

    definition = rf"(?:template <(?P<parameters>[^>]*)>\n)?__global__(?P<rest>[^;{{]*?\b{kernel}\()"
    return re.sub(definition, spelt, source(kernel))


class Driver:
    """One CUDA device through CuPy.

    Kernels are compiled one by one when they are first launched, and kept: in memory by this driver, on disk by CuPy,
    by their full source, options and the compiler's version.
    """

    def __init__(self, ordinal: int):
        import cupy
        from cupyx.profiler import time_range

        self.xp, self._range = cupy, time_range
        self.ordinal = ordinal
        with cupy.cuda.Device(ordinal) as device:
            found = device.attributes
        self.device = Device(
            cupy.cuda.runtime.getDeviceProperties(ordinal)["name"].decode(),
            (found["ComputeCapabilityMajor"], found["ComputeCapabilityMinor"]),
            found["MultiProcessorCount"],
            found["MaxSharedMemoryPerBlockOptin"],
            found["MaxSharedMemoryPerMultiprocessor"],
            found["MaxThreadsPerMultiProcessor"],
            found["MaxRegistersPerMultiprocessor"],
            found["MaxBlocksPerMultiprocessor"],
        )
        self._kernels: dict = {}

    def kernel(self, name: str):
        """The compiled kernel of a C++ name expression."""
        if name not in self._kernels:
            with self.xp.cuda.Device(self.ordinal):
                kernel = self.xp.RawModule(code=entry(name), options=OPTIONS).get_function(bare(name))
                kernel.max_dynamic_shared_size_bytes = self.device.shared - kernel.shared_size_bytes
                if bare(name) in STAGED:  # by itself the driver keeps as little as one CTA needs
                    kernel.preferred_shared_memory_carveout = 100
            self._kernels[name] = kernel
        return self._kernels[name]

    def registers(self, name: str) -> int:
        """Registers that a thread of the kernel takes."""
        return self.kernel(name).num_regs

    def launch(self, name: str, grid: tuple[int, int], threads: int, shared: int, arguments: tuple) -> None:
        """Run a kernel on the current stream; arguments are arrays, NumPy scalars and structured NumPy arrays."""
        kernel = self.kernel(name)
        with self.xp.cuda.Device(self.ordinal), self._range(f"fastkoop.{bare(name)}"):  # what profilers show
            kernel(grid, (threads,), arguments, shared_mem=shared)

    def address(self, array) -> int:
        """Where an array's first element lies; 0 of none."""
        return 0 if array is None else array.data.ptr

    def host(self, array) -> np.ndarray:
        """A copy in host memory, once the work before it is done."""
        return self.xp.asnumpy(array)


@functools.cache
def driver_for(ordinal: int) -> Driver:
    """The driver of a device, one a process."""
    return Driver(ordinal)
