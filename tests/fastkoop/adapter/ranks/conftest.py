"""Runs `training.py` under torchrun, once for two ranks and once for three; every test reads what the ranks report."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")

SCRIPT = pathlib.Path(__file__).with_name("training.py")


def quiet_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def run(ranks: int, script, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=quiet_environment())


@pytest.fixture(scope="session")
def torchrun():
    """`torchrun(ranks, script, *arguments)`, finished."""
    return run


@pytest.fixture(scope="session")
def environment():
    """Of a process that is to be quiet."""
    return quiet_environment()


@pytest.fixture(scope="session")
def script():
    """What the ranks run."""
    return SCRIPT


@pytest.fixture(scope="session", params=[2, 3])
def reports(request, tmp_path_factory):
    """What every rank reports, by scenario."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    finished = run(request.param, SCRIPT, folder)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]
