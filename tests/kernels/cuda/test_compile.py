"""Every kernel compiles for every architecture without a warning, and takes what the committed table says."""

import json

import compiler
import pytest

COMMITTED = json.loads(compiler.TABLE.read_text())
SPILLS = 64  # bytes a thread that may go to local memory on a device that FastKoop is made for


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
def test_the_table_has_no_large_spills(architecture):
    for name, numbers in COMMITTED["kernels"][str(architecture)].items():
        assert numbers["spills"] <= SPILLS, name


def test_the_matrix_unit_is_used():
    pytest.importorskip("cuda.bindings")
    kernel = "fastkoop::gram<float, fastkoop::Tensor, 1>"
    for architecture in (80, 90, 100):
        code = compiler.virtual_code(architecture, kernel)
        assert "mma.sync.aligned.m8n8k4.row.col.f64" in code and "cp.async.cg.shared.global" in code
    code = compiler.virtual_code(75, kernel)  # compiles there too, though sum_kind never chooses it
    assert "mma.sync" not in code and "cp.async" not in code and "shfl.sync" in code


def test_warnings_and_errors_would_show():
    pytest.importorskip("cuda.bindings")
    log, _ = compiler.compile_for(90, ["k"], "__global__ void k(double* x) { int unused; x[0] = 1.0; }")
    assert "warning" in log
    with pytest.raises(compiler.CompileError, match="undefined"):
        compiler.compile_for(90, ["k"], "__global__ void k(double* x) { x[0] = missing; }")
