"""What imports what: the rooms' order, and no framework where none is asked for."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDER = (
    "kernels", "checks", "files", "cutoff", "partition", "interop", "backends", "machine", "observables", "options",
    "linalg", "walk", "reports", "limit", "forecast", "modes", "fitting", "pool", "operator", "spectra", "profile",
    "adapter", "torch_adapter", "lightning", "huggingface", "experiments", "comparison", "console", "cli",
)  # fmt: skip
TORCH = ("adapter", "torch_adapter", "lightning", "huggingface", "experiments")  # the rooms that may import torch
FRAMEWORKS = {"torch", "cupy", "jax"}
SOURCES = [
    *sorted((ROOT / "kernels").rglob("*.py")),
    *sorted(path for path in (ROOT / "fastkoop").rglob("*.py")),
]  # fmt: skip


def room(path):
    """The room of a file: kernels, or a module or folder of fastkoop/."""
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
    assert {"pool", "fused"} <= {path.stem for path in SOURCES if room(path) == "kernels"}
    assert {"linalg", "operator", "interop"} <= {room(path) for path in SOURCES}
    assert "fastkoop.kernels.cutoffs.keeps_constant" in set(imports(ROOT / "kernels" / "cpu" / "__init__.py"))
    assert "torch" in set(imports(ROOT / "fastkoop" / "interop" / "arrays.py"))
    assert "torch" not in set(imports(ROOT / "fastkoop" / "interop" / "arrays.py", module_level=True))


def test_every_room_has_its_place():
    """A new module or folder of fastkoop/ is put into ORDER, after all that it imports."""
    assert {room(path) for path in SOURCES} - {"__init__"} <= set(ORDER)


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
            if here != "__init__" and there in ORDER:
                assert ORDER.index(there) <= ORDER.index(here), f"{here} imports {name}"
            if here in ("checks", "cutoff", "partition", "interop"):  # what no kernel is needed for
                assert there != "kernels", f"{here} imports {name}"

    def test_torch_only_at_the_adapter_and_beyond(self, path):
        found = {name.split(".")[0] for name in imports(path, module_level=True)} & FRAMEWORKS
        allowed = {"torch"} if room(path) in TORCH else set()
        if path.parent.name == "cuda" and room(path) == "kernels":
            allowed = {"cupy"}
        assert found <= allowed


@pytest.mark.parametrize("module", ["fastkoop", "fastkoop.kernels", "fastkoop.partition"])
def test_importing_loads_no_framework(module):
    code = f"import sys, {module}; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


WATCHED = """
import sys
class Watch:
    asked = set()
    def find_spec(self, name, path=None, target=None):
        self.asked.add(name.partition(".")[0])
sys.meta_path.insert(0, Watch())
import numpy as np, fastkoop as fk
class Exporter:
    def __dlpack__(self, **options):
        return np.ones((2, 3)).__dlpack__(**options)
    def __dlpack_device__(self):
        return 1, 0
X = {make}
Watch.asked.clear()
fk.predict(X, 2), fk.pinv(X), fk.fit(X).predict([0, 1]), fk.fit(X).summary()
print(sorted({frameworks!r} & Watch.asked))
"""


@pytest.mark.parametrize(
    ("own", "make"),
    [
        (None, "np.ones((2, 3))"),
        ("torch", "__import__('torch').ones(2, 3)"),
        ("jax", "__import__('jax').numpy.ones((2, 3))"),
        (None, "Exporter()"),
    ],
    ids=["numpy", "torch", "jax", "exporter"],
)
def test_an_array_needs_no_other_framework(own, make):
    """None but its own is even looked for, installed or not."""
    if own:
        pytest.importorskip(own)
    code = WATCHED.format(make=make, frameworks=FRAMEWORKS - {own})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_public_names():
    import fastkoop

    functions = {"predict", "pinv", "fit", "kernels", "set_num_threads"}
    assert functions | {"Rank", "Energy", "Affine", "Delay", "Momentum"} <= set(fastkoop.__all__)
    for name in fastkoop.__all__:
        assert hasattr(fastkoop, name)
    for name in ("gram", "solve", "evolve", "reconstruct"):
        assert name in fastkoop.kernels.__all__
