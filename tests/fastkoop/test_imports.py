"""What imports what: the rooms' order, and no framework where none is asked for."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDER = (
    "kernels", "backends", "linalg", "walk", "koopman", "recording", "step_cost", "torch_adapter", "experiments", "cli",
)  # fmt: skip
TORCH = ("recording", "step_cost", "torch_adapter", "experiments")  # the rooms that may import torch
FRAMEWORKS = {"torch", "cupy", "jax"}
SOURCES = [
    *sorted((ROOT / "kernels").rglob("*.py")),
    *sorted(path for path in (ROOT / "fastkoop").rglob("*.py")),
]  # fmt: skip


def room(path):
    """The room of a file: kernels, a module of fastkoop/, or experiments."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "kernels" else parts[1]


def imports(path, module_level=False):
    """Absolute dotted names that a file imports, its relative ones resolved as they are installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = [*(("fastkoop",) if parts[0] == "kernels" else ()), *parts[:-1]]
    tree = ast.parse(path.read_text())
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if module_level and node in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *((node.module or "").split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def test_the_sources_are_seen():
    assert {"cpu", "blocks"} <= {path.stem for path in SOURCES if room(path) == "kernels"}
    assert {"linalg", "koopman", "arrays"} <= {room(path) for path in SOURCES}
    assert "fastkoop.kernels.cutoffs.KINDS" in set(imports(ROOT / "kernels" / "cpu.py"))
    assert "torch" in set(imports(ROOT / "fastkoop" / "arrays.py"))
    assert "torch" not in set(imports(ROOT / "fastkoop" / "arrays.py", module_level=True))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
class TestDirection:
    def test_kernels_know_nothing_of_fastkoop(self, path):
        if room(path) == "kernels":
            assert all(name.startswith("fastkoop.kernels") for name in imports(path) if name.startswith("fastkoop"))

    def test_backends_is_the_only_door_to_kernels(self, path):
        if room(path) not in ("kernels", "backends", "__init__"):  # the package shows its kernels as they are
            assert not [name for name in imports(path) if name.startswith("fastkoop.kernels")]

    def test_one_way(self, path):
        here = room(path)
        for name in imports(path):
            if not name.startswith("fastkoop."):
                continue
            there = name.split(".")[1]
            if here in ORDER and there in ORDER:
                assert ORDER.index(there) <= ORDER.index(here), f"{here} imports {name}"
            if here in ("arrays", "checks", "cutoff", "partition"):
                assert there not in ORDER, f"{here} imports {name}"

    def test_torch_only_at_the_adapter_and_beyond(self, path):
        found = {name.split(".")[0] for name in imports(path, module_level=True)} & FRAMEWORKS
        allowed = {"torch"} if room(path) in TORCH else set()
        if path.name == "cuda.py" and room(path) == "kernels":
            allowed = {"cupy"}
        assert found <= allowed


@pytest.mark.parametrize("module", ["fastkoop", "fastkoop.kernels", "fastkoop.partition"])
def test_importing_loads_no_framework(module):
    code = f"import sys, {module}; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_numpy_in_needs_no_torch():
    code = (
        "import sys, numpy as np, fastkoop as fk; fk.fit(np.ones((2, 3))).predict(1); "
        f"print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names():
    import fastkoop

    assert {"predict", "pinv", "fit", "Rank", "Energy", "kernels", "set_num_threads"} <= set(fastkoop.__all__)
    for name in fastkoop.__all__:
        assert hasattr(fastkoop, name)
    for name in ("gram", "solve", "evolve", "lift"):
        assert name in fastkoop.kernels.__all__
