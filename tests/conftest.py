"""Set up before anything is imported: a Numba cache that notices every edit, and the shared cases."""

import hashlib
import importlib.util
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def numba_cache() -> str:
    """A cache folder named by the text of all kernels: Numba itself looks only at the file of the function
    that is called, and would run an old copy of an edited one that it calls (kernels/cpu/jit.py)."""
    text = hashlib.sha256()
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        text.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    key = f"fastkoop-{text.hexdigest()[:16]}"
    user = getattr(os, "getuid", lambda: "any")()
    base = pathlib.Path(os.environ.get("NUMBA_CACHE_DIR") or f"{tempfile.gettempdir()}/fastkoop-numba-{user}")
    return str(base if base.name == key else base / key)  # a child process inherits the finished name


os.environ["NUMBA_CACHE_DIR"] = numba_cache()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: more threads only get in each other's way


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
