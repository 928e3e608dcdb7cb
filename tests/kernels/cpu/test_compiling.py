"""What only kernels call is no machine code by itself, kernels are, and a Numba that is not known has its own way."""

import gc
import subprocess
import sys

import numba
import numpy as np
import pytest

from fastkoop.kernels.cpu import cache, compiling, dense, simd
from fastkoop.kernels.cpu.jit import jit, kernel


@jit
def twice(x):
    return 2.0 * x


def quadruple(x):
    return twice(twice(x))


@pytest.fixture
def nothing_kept(monkeypatch, tmp_path):
    """No kernels on disk yet."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    cache.places.cache_clear()
    yield
    monkeypatch.undo()
    cache.places.cache_clear()


@pytest.fixture(params=[True, False])
def collecting(request):
    """Whether the garbage collector is on."""
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_a_kernel_takes_in_what_it_calls(collecting, nothing_kept):
    compiled = kernel(quadruple)
    assert compiled(3.0) == 12.0 and gc.isenabled() is collecting
    result = next(iter(compiled.overloads.values()))
    assert type(result.library) is compiling.Library
    (ingredient,) = twice.overloads.values()
    assert isinstance(ingredient.library, compiling.Ingredient)
    with pytest.raises(RuntimeError, match="no machine code"):
        ingredient.library.get_pointer_to_function(ingredient.fndesc.llvm_func_name)


def test_garbage_is_collected_again_after_an_error():
    def wrong(x):
        return x.nothing

    assert gc.isenabled()
    with pytest.raises(Exception, match="nothing"):
        kernel(wrong)(1.0)
    assert gc.isenabled()


def test_views_of_rows():
    @kernel
    def total(row, first, length):
        rest, part = simd.tail(row, first), simd.span(row, first, length)
        return len(rest), len(part), dense.dot(rest, rest, len(rest)), dense.dot(part, part, len(part))

    row = np.random.default_rng(0).normal(size=11)
    for first, length in ((0, 11), (3, 4), (10, 1), (11, 0)):
        rest, part = row[first:], row[first : first + length]
        assert total(row, first, length)[:2] == (len(rest), len(part))
        np.testing.assert_allclose(total(row, first, length)[2:], (rest @ rest, part @ part), rtol=1e-14)


ANOTHER = """
import numba
numba.version_info = numba.version_info._replace(short=(9, 0))
import numpy as np
from fastkoop import kernels
from fastkoop.kernels.cpu import pipelines
X = np.random.default_rng(0).normal(size=(4, 2, 9)).astype(np.float32)
states, _ = kernels.predict(X, 1, ("relative", 1e-6))
F, Fp = X[:-1].transpose(1, 2, 0), X[1:].transpose(1, 2, 0)
expected = Fp @ np.linalg.pinv(F) @ X[-1][:, :, None]
print(pipelines.KERNEL, np.abs(states - expected[:, :, 0]).max() < 1e-5)
"""


def test_another_numba_compiles_in_its_own_way(tmp_path):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin"}
    for _ in range(2):  # the second time from disk
        done = subprocess.run(
            [sys.executable, "-c", ANOTHER], capture_output=True, text=True, env=environment, check=True
        )
        assert done.stdout.split() == ["{}", "True"]


SHARED = """
import sys
import numpy as np
from fastkoop.kernels.cpu import algebra, dense
from fastkoop.kernels.cpu.jit import kernel

@kernel
def norm(x):
    return dense.dot(x, x, len(x))

@kernel
def twice_the_norm(x):
    return dense.dot(x, x, len(x)) * 2.0

@kernel
def factor(A):
    dense.cholesky(A, 1, 1)
    return A[0, 0]

@kernel
def factor_twice(A):
    return factor(A) + dense.cholesky(A, 1, 1)

def lowered_before(function):
    return sum(function.stats.cache_hits.values())

if sys.argv[1].startswith("factor"):
    A = np.array([[9.0] + 7 * [0.0]])
    print({"factor": factor, "factor_twice": factor_twice}[sys.argv[1]](A), lowered_before(dense.cholesky))
else:
    print({"norm": norm, "twice": twice_the_norm}[sys.argv[1]](np.arange(4.0)), lowered_before(dense.dot))
"""


def test_another_process_links_what_was_lowered_before(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)

    def run(name):
        environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin"}
        command = [sys.executable, str(tmp_path / "shared.py"), name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert run("norm") == ["14.0", "0"]
    assert run("twice") == ["28.0", "1"]
    assert run("factor") == ["3.0", "0"]  # which calls others
    assert run("factor_twice") == ["4.0", "1"]
    assert run("norm") == ["14.0", "0"]  # a kernel that was compiled needs nothing else
