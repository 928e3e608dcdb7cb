"""The emulation finds what it is there to find: each fault is planted once."""

import os
import pathlib
import subprocess
import sys

import emulator
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
FAULTS = r"""
namespace fastkoop {
__global__ void fine(double* out) {
  SHARED_MEMORY(memory);
  double* const x = reinterpret_cast<double*>(memory);
  x[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = warp_sum(x[blockDim.x - 1 - threadIdx.x]);
}
__global__ void divergent(double* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1.0;
  if (threadIdx.x >= 32) __syncthreads();
}
__global__ void left_early(double* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1.0;
}
__global__ void divergent_warp(double* out) {
  if (threadIdx.x % 2) __syncwarp();
  out[threadIdx.x] = 1.0;
  __syncwarp();
}
__global__ void race(double* out) {
  SHARED_MEMORY(memory);
  double* const x = reinterpret_cast<double*>(memory);
  x[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = x[threadIdx.x ^ 1];
}
__global__ void unwritten(double* out) {
  SHARED_MEMORY(memory);
  out[threadIdx.x] = reinterpret_cast<double*>(memory)[threadIdx.x];
}
__global__ void past_the_end(double* out) {
  SHARED_MEMORY(memory);
  reinterpret_cast<double*>(memory)[64 + threadIdx.x] = 0.0;
  out[threadIdx.x] = 1.0;
}
__global__ void not_waited_for(const double* in, double* out) {
  SHARED_MEMORY(memory);
  double* const x = reinterpret_cast<double*>(memory);
  copy_async<8>(x + threadIdx.x, in + threadIdx.x);
  out[threadIdx.x] = x[threadIdx.x];
}
__global__ void not_waited_for_in_time(const double* in, double* out) {
  SHARED_MEMORY(memory);
  double* const x = reinterpret_cast<double*>(memory);
  copy_async<8>(x + threadIdx.x, in + threadIdx.x);
  out[threadIdx.x] = x[threadIdx.x];
  copies_arrived();
}
__global__ void misaligned(const float* in, double* out) {
  SHARED_MEMORY(memory);
  copy_async<16>(memory + 16 * threadIdx.x, in + 1);
  copies_arrived();
  out[threadIdx.x] = 1.0;
}
__global__ void out_of_bounds(double* out) { out[64 + threadIdx.x] = 1.0; }
__global__ void tile(const double* in, double* out) {
  double c[2] = {0.0, 0.0};
  multiply_add_tile(c, in[threadIdx.x], in[32 + threadIdx.x]);
  out[2 * threadIdx.x] = c[0];
  out[2 * threadIdx.x + 1] = c[1];
}
}
"""
NAMES = [f"fastkoop::{line.split('(')[0].split()[-1]}" for line in FAULTS.splitlines() if line.startswith("__global__")]


@pytest.fixture(scope="module")
def library():
    """The faulty kernels, compiled beside the real sources' device functions."""
    return emulator.build(NAMES, extra=FAULTS)


@pytest.fixture
def run(library):
    """run(name, *arrays, order=0): launch 64 threads with 64 doubles of shared memory; 64 results, NaN at first."""

    def launch(name, *arrays, order=0):
        out = np.full(64, np.nan)
        driver = emulator.Emulated(order=order, library=library)
        driver.launch(f"fastkoop::{name}", (1, 1), 64, 512, (*arrays, out))
        return out

    return launch


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_sound_kernel_runs_in_any_order(run, order):
    expected = np.repeat([np.arange(32, 64).sum(), np.arange(32).sum()], 32)
    assert np.array_equal(run("fine", order=order), expected)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("divergent", "divergent barrier"),
        ("left_early", "thread 5 has ended"),
        ("divergent_warp", "divergent warp barrier"),
        ("past_the_end", "past the end of shared memory"),
    ],
)
def test_faults_are_named(run, fault, message):
    with pytest.raises(RuntimeError, match=message):
        run(fault)


def test_copies_must_be_waited_for(run):
    with pytest.raises(RuntimeError, match="did not wait for"):
        run("not_waited_for", np.ones(64))
    assert np.isnan(run("not_waited_for_in_time", np.ones(64))).all()
    with pytest.raises(RuntimeError, match="not aligned to its 16 bytes"):
        run("misaligned", np.ones(64, np.float32))


def test_shared_memory_starts_as_nan(run):
    assert np.isnan(run("unwritten")).all()


def test_a_race_shows_in_another_order(run):
    assert not np.array_equal(run("race"), run("race", order=1), equal_nan=True)


def test_the_matrix_instruction(library, rng):
    A, B = rng.normal(size=(8, 4)), rng.normal(size=(4, 8))
    lanes = np.concatenate([A.ravel(), B.T.ravel()])  # lane l holds A[l / 4, l % 4] and B[l % 4, l / 4]
    out = np.full(64, np.nan)
    emulator.Emulated(library=library).launch("fastkoop::tile", (1, 1), 32, 0, (lanes, out))
    np.testing.assert_allclose(out.reshape(8, 8), A @ B, rtol=1e-13)


def test_an_unknown_kernel_is_an_error(run):
    with pytest.raises(RuntimeError, match="no such kernel"):
        run("nothing")


SANITIZED = """
import sys
sys.path.insert(0, {here!r})
import numpy as np, emulator
exec(open({script!r}).read())
"""


def sanitized(tmp_path, script):
    """Run a script in a process with AddressSanitizer in front of NumPy's memory, so that arrays end where they end."""
    path = tmp_path / "script.py"
    path.write_text(script)
    runtime = subprocess.run([emulator.COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True)
    environment = {
        "LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc",
        "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    code = SANITIZED.format(here=str(HERE), script=str(path))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_sanitizer_sees_an_access_out_of_bounds(tmp_path):
    script = f"""
library = emulator.build({NAMES!r}, sanitize=True, extra={FAULTS!r})
emulator.Emulated(library=library).launch("fastkoop::out_of_bounds", (1, 1), 64, 0, (np.zeros(64),))
"""
    done = sanitized(tmp_path, script)
    assert done.returncode and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]


def test_the_kernels_are_clean_under_the_sanitizer(tmp_path):
    script = """
from fastkoop.kernels import reference
from fastkoop.kernels.cuda import STRIP, Cuda, launch, split
library = emulator.build(sanitize=True)
rng = np.random.default_rng(0)
launch.LONG_BLOCK, launch.SHARE_LINES = 1 << 14, 256
small = emulator.T4._replace(shared=24_000, shared_total=25_000)
for device in (emulator.H200, small):
    cuda = Cuda(emulator.Emulated(device, library=library))
    for dtype in (np.float32, np.float64):
        for n, m in ((1, 1), (1, 9), (7, 2), (2, 7), (33, 8), (9, 40), (31, 31), (64, 5), (900, 5)):
            X = rng.normal(size=(m + 1, 3, n)).astype(dtype)
            X[:, 1] = X[:1, 1]
            X[1:, 2] = X[1, 2]
            for steps in (1, 3):
                states, route = cuda.predict(X, steps, ("relative", 1e-3))
                for b in range(3):
                    expected = reference.predict(X[:, b].T, steps, ("relative", 1e-3))
                    assert np.linalg.norm(states[b] - expected) <= 1e-3 * np.linalg.norm(expected), (n, m, b)
            cuda.pinv(X[1:], ("rank", 2.0))
            cuda.reconstruct(X, cuda.evolve(cuda.fit(X, ("energy", 0.9), refine=True), np.array([1, 2, 900])))
strips = np.array([(0, 0, 4, 8, 8, 1, 9)], STRIP)
weights = np.ones((4, 8))
strips["from"] = weights.ctypes.data
cuda.record(split(strips, 8).view(np.uint8), np.float64, np.zeros(36))
print("clean")
"""
    done = sanitized(tmp_path, script)
    assert done.returncode == 0 and done.stdout.strip() == "clean", done.stderr[-3000:]
