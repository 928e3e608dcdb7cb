"""What is installed is what lies here: packages, CUDA sources, types, guide pages, one version."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import fastkoop

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"fastkoop": ROOT / "fastkoop", "fastkoop.kernels": ROOT / "kernels"}
BUILD = "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"


def packages():
    """Every folder with Python files, by the name that it is installed under."""
    for package, folder in FOLDERS.items():
        for path in sorted({path.parent for path in folder.rglob("*.py")}):
            inner = path.relative_to(folder).parts
            yield ".".join([package, *inner])


def installed(path):
    """Where a file of the tree lies in the wheel."""
    inside = path.relative_to(ROOT)
    return str(pathlib.Path("fastkoop", "kernels", *inside.parts[1:]) if inside.parts[0] == "kernels" else inside)


def expected():
    """All files that a wheel must hold."""
    patterns = ("*.py", "*.cu", "*.cuh", "py.typed", "*.md")
    for folder in FOLDERS.values():
        for pattern in patterns:
            yield from (installed(path) for path in folder.rglob(pattern) if path != ROOT / "kernels" / "README.md")


def test_every_package_is_listed():
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(packages())


def test_a_wheel_holds_every_file(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path / "tree"
    for name in ("fastkoop", "kernels"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(tmp_path)]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"fastkoop-{fastkoop.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = set(expected())
    assert {"fastkoop/py.typed", "fastkoop/CHANGELOG.md", "fastkoop/kernels/cuda/src/predict.cu"} <= wanted
    assert wanted - held == set()
    assert {name for name in held if ".dist-info/" not in name} == wanted


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["project"]["dynamic"] and "version" not in PROJECT["project"]
    changes = (ROOT / "fastkoop" / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == fastkoop.__version__


def test_ci_pins_what_lints():
    pins = (ROOT / ".ci" / "constraints.txt").read_text()
    for requirement in PROJECT["project"]["optional-dependencies"]["lint"]:
        assert re.search(rf"^{re.split('[<>=]', requirement)[0]}==", pins, re.MULTILINE)
