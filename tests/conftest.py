"""Set up before anything is imported: where compiled kernels are kept, and the shared cases."""

import hashlib
import importlib.util
import os
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]

# compiled kernels are shared with other checkouts of the same sources; cache.py names the folder below
os.environ.setdefault("NUMBA_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "fastkoop-tests"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: more threads only get in each other's way


# Packages that a few test files import and a machine with a GPU may lack; `pytest -m gpu` goes without those files.
TEST_ONLY = ("mpmath", "pooch", "pydmd")


def lacking() -> dict[str, str]:
    """Test files of this folder that cannot be collected here, and the package that each lacks."""
    absent = [name for name in TEST_ONLY if not _installed(name)]
    wanted = re.compile(rf"^(?:import|from) ({'|'.join(absent)})\b", re.M)
    files = {path: wanted.search(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")} if absent else {}
    return {str(path): match[1] for path, match in files.items() if match}


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a finder that hides it
        return False


LACKING = lacking()
collect_ignore = list(LACKING)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what is left out."""
    for path, name in sorted(LACKING.items()):
        terminalreporter.write_line(f"not collected, {name} is missing: {pathlib.Path(path).name}")


def load_cases() -> None:
    """Make tests/cases.py importable as `cases`: importlib mode puts no test folder on sys.path."""
    spec = importlib.util.spec_from_file_location("cases", ROOT / "tests" / "cases.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)


load_cases()

import cases  # noqa: E402
import pytest  # noqa: E402 - after the cache folder is named

from fastkoop.kernels import get_num_threads, set_num_threads  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_torch():
    """Models are tiny: PyTorch's threads would only wait for each other, and for those of other workers."""
    if "torch" in sys.modules:  # as collection leaves it where a test needs it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def rng(request):
    """Random numbers that depend on the test's name alone."""
    seed = int.from_bytes(hashlib.sha256(request.node.name.encode()).digest()[:8], "little")
    return cases.np.random.default_rng(seed)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both data types."""
    return cases.np.dtype(request.param)


@pytest.fixture
def threads():
    """`set_num_threads`, undone afterwards."""
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)
