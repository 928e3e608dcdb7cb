"""Every kernel compiles for every architecture without a warning, and takes what the committed table says."""

import json
import re

import compiler
import pytest

from fastkoop.kernels.cuda.driver import bare, entry, source

COMMITTED = json.loads(compiler.TABLE.read_text())
SPILLS = 0  # bytes a thread that may go to local memory on a device that FastKoop is made for


@pytest.fixture(scope="module")
def compiled():
    """Log and resources by architecture."""
    pytest.importorskip("cuda.bindings")
    return compiler.compile_all()


@pytest.mark.parametrize("architecture", compiler.ARCHITECTURES)
class TestEveryKernel:
    def test_compiles_without_a_warning(self, compiled, architecture):
        log, found = compiled[architecture]
        assert "warning" not in log.lower(), log[:2000]
        assert len(found) == len(compiler.kernels_of(architecture))

    def test_takes_what_the_table_says(self, compiled, architecture):
        if compiler.version() != COMMITTED["nvrtc"]:
            pytest.skip(f"the table is of NVRTC {COMMITTED['nvrtc']}, this is {compiler.version()}")
        assert compiled[architecture][1] == COMMITTED["kernels"][str(architecture)], "compiler.py --write"


@pytest.mark.parametrize("architecture", (80, 90, 100))
def test_nothing_is_spilled(architecture):
    for name, numbers in COMMITTED["kernels"][str(architecture)].items():
        assert numbers["spills"] <= SPILLS, name


@pytest.mark.parametrize("architecture", (75, 90))
def test_no_conversion_flushes_subnormal_numbers(architecture):
    pytest.importorskip("cuda.bindings")
    code = compiler.virtual_code(architecture, *compiler.kernels_of(architecture))
    assert ".ftz.f32" in code or architecture == 90  # pairs of floats: CuPy's option is in force, and allowed for
    assert re.findall(r"cvt[.\w]*\.ftz[.\w]*", code) == []


def test_a_plain_cast_would_flush():
    pytest.importorskip("cuda.bindings")
    cast = "__global__ void k(const float* x, double* y) { y[0] = x[0]; }"
    assert "cvt.ftz.f64.f32" in compiler.virtual_code(90, "k", text=cast)


@pytest.mark.parametrize("architecture", (75, 90))
def test_every_instance_is_one_extern_c_kernel(architecture):
    for name in compiler.kernels_of(architecture):
        assert entry(name).count('extern "C" __global__') == 1, name


@pytest.mark.parametrize(
    "name", ["predict<float, fastkoop::Tensor, 1>", "record<float, double>", "solve<4>", "add_parts"]
)
def test_entries_compile_without_name_expressions(name):
    pytest.importorskip("cuda.bindings")
    name = f"fastkoop::{name}"
    assert f".entry {bare(name)}(" in compiler.virtual_code(90, text=entry(name))


def test_the_matrix_unit_is_used():
    pytest.importorskip("cuda.bindings")
    kernel = "fastkoop::gram<float, fastkoop::Tensor, 1>"
    for architecture in (80, 90, 100):
        code = compiler.virtual_code(architecture, kernel)
        assert "mma.sync.aligned.m8n8k4.row.col.f64" in code and "cp.async.cg.shared.global" in code
    code = compiler.virtual_code(75, kernel)  # compiles there too, though sum_kind never chooses it
    assert "mma.sync" not in code and "cp.async" not in code and "shfl.sync" in code


@pytest.mark.parametrize(
    "kernel", ["predict<float, fastkoop::Tensor, 5>", "gram<float, fastkoop::Tensor, 2>", "solve<4>"]
)
def test_the_compiler_knows_which_memory_is_written(kernel):
    """Through a pointer of unknown memory every access to shared memory costs a look-up."""
    pytest.importorskip("cuda.bindings")
    code = compiler.virtual_code(90, f"fastkoop::{kernel}", text=source(bare(kernel)))
    assert "st.shared.f64" in code and re.findall(r"\bst\.(?!shared|global|local)[\w.]+", code) == []


def test_warnings_and_errors_would_show():
    pytest.importorskip("cuda.bindings")
    log, _ = compiler.compile_for(90, ["k"], "__global__ void k(double* x) { int unused; x[0] = 1.0; }")
    assert "warning" in log
    with pytest.raises(compiler.CompileError, match="undefined"):
        compiler.compile_for(90, ["k"], "__global__ void k(double* x) { x[0] = missing; }")
