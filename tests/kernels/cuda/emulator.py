"""The CUDA kernels on the host: the sources, compiled as C++ against emulation.h, behind the driver's interface."""

import ctypes
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

from fastkoop.kernels.cuda import instances
from fastkoop.kernels.cuda.driver import source
from fastkoop.kernels.cuda.launch import Device

HERE = pathlib.Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = ("-std=c++17", "-O1", "-g1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

H200 = Device("emulated H200", (9, 0), 132, 232448, 233472)
T4 = Device("emulated T4", (7, 5), 40, 65536, 65536, threads=1024, ctas=16)


def host_source(names, extra=""):
    """One translation unit: emulation, kernels and a table of entries by name."""
    entries = "\n".join(f'  {{"{name}", &emulation::Entry<&{name}>::call}},' for name in names)
    return f"""#include "emulation.h"
{source()}
#line 1 "extra"
{extra}
#line 1 "entries"
static const struct {{ const char* name; void (*call)(void**); }} ENTRIES[] = {{
{entries}
}};
extern "C" const char* launch(const char* name, unsigned x, unsigned y, unsigned threads, unsigned shared,
                              void** arguments, int order) {{
  for (const auto& entry : ENTRIES)
    if (std::string(name) == entry.name) return emulation::launch(entry.call, x, y, threads, shared, arguments, order);
  return "there is no such kernel";
}}
"""


def build(names=None, sanitize=False, extra=""):
    """Compile, or find what was compiled of this very text; the library's path."""
    names = dict.fromkeys([*instances(H200), *instances(T4)]) if names is None else names
    flags = FLAGS + (SANITIZE if sanitize else ())
    text = host_source(names, extra)
    key = hashlib.sha256("\0".join([text, (HERE / "emulation.h").read_text(), *flags]).encode()).hexdigest()[:16]
    folder = pathlib.Path(tempfile.gettempdir()) / f"fastkoop-emulation-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():
        code = folder / f"{key}-{os.getpid()}.cpp"
        code.write_text(text)
        fresh = code.with_suffix(".so")
        command = [COMPILER, *flags, f"-I{HERE}", str(code), "-o", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[:8000]}")
        fresh.replace(library)
        code.unlink()
    return library


class Poisoned:
    """NumPy, but memory that nobody has written starts as NaN (of integers, -1)."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def empty(shape, dtype=np.float64):
        out = np.empty(shape, dtype)
        out.reshape(-1).view(np.uint8)[...] = 0xFF
        return out


POISONED = Poisoned()


class Emulated:
    """A driver (cuda_driver.Driver) whose device is one host thread; arrays are NumPy's."""

    xp = POISONED

    def __init__(self, device=H200, order=0, registers=64, ctas=3, library=None):
        self.device, self.order, self._registers = device._replace(multiprocessors=1, ctas=ctas), order, registers
        self._library = ctypes.CDLL(str(library or build()))
        self._library.launch.restype = ctypes.c_char_p
        self.launched = []

    def registers(self, name):
        return self._registers

    def launch(self, name, grid, threads, shared, arguments):
        self.launched.append((name, grid, threads, shared))
        assert shared <= self.device.shared
        values = [self._value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        error = self._library.launch(name.encode(), *grid, threads, shared, pointers, self.order)
        if error:
            raise RuntimeError(f"{name}: {error.decode()}")

    @staticmethod
    def _value(argument):
        """What the kernel takes by value: a device array's address, or the number or structure itself."""
        if isinstance(argument, np.ndarray) and (argument.ndim or argument.dtype.names is None):
            return np.array(argument.ctypes.data, np.uint64)
        return np.asarray(argument)

    def address(self, array):
        return 0 if array is None else array.ctypes.data

    def host(self, array):
        return array
