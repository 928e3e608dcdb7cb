"""The README's table is what the committed results say."""

import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report():
    """bench/report.py as a module: bench/ is no package."""
    spec = importlib.util.spec_from_file_location("bench_report", ROOT / "bench" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_committed_results(report):
    assert report.readme.shown("report") == report.table()
    assert len(report.table().splitlines()) == 2 + len(report.SETTINGS)


def test_every_setting_is_there_with_its_figures_and_seeds(report):
    for name, options in report.SETTINGS.items():
        folder = report.RESULTS / name
        results = json.loads((folder / "results.json").read_text())
        seeds = int(options[options.index("--seeds") + 1]) if "--seeds" in options else 1
        assert results["complete"] and len(results["runs"]) == seeds == results["config"]["seeds"]
        assert results["config"]["dataset"] == "mnist" and results["config"]["partition"] in options
        for figure in ("accuracy.png", "loss.png", "time.png", "weights.png"):
            assert (folder / figure).read_bytes().startswith(b"\x89PNG")


def test_the_published_behaviour_is_reproduced(report):
    """An early dip below the starting loss, then deterioration over two epochs."""
    results = json.loads((report.RESULTS / "node-T2-jax" / "results.json").read_text())
    for run in results["runs"]:
        losses = [float("inf") if loss is None else loss for loss in run["koopman"]["test_loss"]]
        assert min(losses[1:20]) < losses[0]
        assert losses[-1] > 1.2 * min(losses)


def test_layer_and_network_peak_below_the_limit(report):
    for name in ("layer-T1-jax", "layer-T2-jax", "network-T1-jax"):
        results = json.loads((report.RESULTS / name / "results.json").read_text())
        assert results["machine"]["peak_memory_bytes"] < 1.5e9
