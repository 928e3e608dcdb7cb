"""The one entry: every name leads to a module with its verbs, and wrong usage is told in a sentence."""

import importlib
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import bench
from bench.__main__ import BENCHMARKS, OPTIONS, main, parse, parser

SHARED = {
    "gpu": "cuda",
    "phases": "smooth",
    "replaced": "smooth",
    "noise": "forecast",
    "calibration": "forecast",
    "frameworks": "training",
}  # pages by other names


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_verbs_and_a_page(name):
    benchmark = BENCHMARKS[name]
    module = importlib.import_module(f"bench.{benchmark.module}")
    assert all(callable(getattr(module, verb)) for verb in benchmark.verbs)
    assert set(benchmark.options) <= set(OPTIONS)
    page = SHARED.get(name, name)
    assert (bench.PAGES / f"{page}.md").read_text().startswith("# ")


def test_every_page_is_of_a_benchmark_and_every_option_is_taken():
    pages = {path.stem for path in bench.PAGES.glob("*.md")}
    assert pages <= set(BENCHMARKS) | {"cuda", "first-calls"}
    assert set(OPTIONS) >= {option for benchmark in BENCHMARKS.values() for option in benchmark.options}


def test_no_name_lists_the_names(capsys):
    assert main([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BENCHMARKS)


@pytest.mark.parametrize("words", ["A8 R32 --rounds 3", "--rounds 3 A8 R32", "A8 --rounds 3 R32"])
def test_names_may_stand_before_options_or_after_them(words):
    options = parse(parser(), ["speed", "run", *words.split()])
    assert options.names == ["A8", "R32"] and options.rounds == 3


def test_wrong_names_and_options_are_usage_errors(capsys):
    for arguments in (
        ["sped", "run"], ["speed"], ["speed", "walk"], ["speed", "run", "A9"], ["speed", "run", "A8", "--rounds", "0"],
        ["speed", "run", "--device", "tpu"], ["speed", "run", "A8", "--device", "emulated"], ["report", "run", "x"],
        ["pays", "run", "x"], ["gpu", "run"], ["steps", "table", "--seeds", "3"], ["gpu", "x", "y"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2, arguments
    assert "setting: expected one of node-T1-jax" in (said := capsys.readouterr().err)
    assert "case: expected one of A8" in said and "--out: expected a folder" in said


def test_an_installed_fastkoop_comes_first():
    """`python -m` puts the checkout in front; the package moves it to the end."""
    code = "import sys, bench; print(sys.path[-1])"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=bench.ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert pathlib.Path(said.strip() or ".") in (bench.ROOT, pathlib.Path("."))
