"""The page's table is what the committed results say."""

import json

from bench.common import pages
from bench.evidence import report


def test_the_page_shows_the_committed_results():
    assert pages.shown("report") == report.table_of()
    assert len(report.table_of().splitlines()) == 2 + len(report.SETTINGS)


def test_every_setting_is_there_with_its_seeds():
    for name, options in report.SETTINGS.items():
        [path] = (report.FOLDER / name).iterdir()  # nothing that the command draws again
        results = json.loads(path.read_text())
        seeds = int(options[options.index("--seeds") + 1]) if "--seeds" in options else 1
        assert results["complete"] and len(results["runs"]) == seeds == results["config"]["seeds"]
        assert results["config"]["dataset"] == "mnist" and results["config"]["partition"] in options


def test_the_published_behaviour_is_reproduced():
    """An early dip below the starting loss, then deterioration over two epochs."""
    results = json.loads((report.FOLDER / "node-T2-jax" / "results.json").read_text())
    for run in results["runs"]:
        losses = [float("inf") if loss is None else loss for loss in run["koopman"]["test_loss"]]
        assert min(losses[1:20]) < losses[0]
        assert losses[-1] > 1.2 * min(losses)


def test_layer_and_network_peak_below_the_limit():
    for name in ("layer-T1-jax", "layer-T2-jax", "network-T1-jax"):
        results = json.loads((report.FOLDER / name / "results.json").read_text())
        assert results["machine"]["peak_memory_bytes"] < 1.5e9
