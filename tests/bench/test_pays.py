"""bench/pays.py: the README's tables are what the committed results say, and so are the sentences around them."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bench import pays, readme  # noqa: E402
from fastkoop.experiments.sweep import never_diverges  # noqa: E402


@pytest.fixture(scope="module")
def reports():
    """The recommended settings in the report's setting, by partition."""
    return {partition: pays.read(f"report-{partition}", "results.json")["runs"] for partition in pays.PARTITIONS}


def ends(runs):
    return np.array([run["koopman"]["jumped"]["test_loss"] for run in runs])


@pytest.mark.parametrize("part", pays.TABLES)
def test_the_readme_shows_the_committed_results(part):
    assert readme.shown(part) == pays.TABLES[part]()


def test_every_job_is_complete_with_its_seeds_and_figures():
    for name, options in pays.JOBS.items():
        (path,) = (pays.RESULTS / name).glob("*.json")
        results = json.loads(path.read_text())
        assert results["complete"] and results["config"]["seeds"] == 5 and results["config"]["dataset"] == "mnist"
        assert "--sweep" in options or list((pays.RESULTS / name).glob("*.png"))
        assert not list((pays.RESULTS / name).glob("*.html"))


def test_recommended_settings_never_diverge():
    """At T = 1, 2, 5 and 10 epochs, with every partition and on every seed, below the optimizer's last iterate."""
    results = pays.read("sweep", "sweep.json")
    for partition in pays.PARTITIONS:
        wanted = {"partition": partition, "window": pays.WINDOW, "observables": "Affine()", "stabilize": 0.875,
                  "cutoff": "Rank(k=1)", "out_of_span": "drop"}  # fmt: skip
        assert never_diverges(results, results["settings"].index(wanted))


def test_recommended_settings_end_below_the_optimizer_s_mean_on_every_seed(reports):
    for runs in reports.values():
        means = [np.mean(run["optimizer"]["test_loss"][1:]) for run in runs]
        assert np.all(ends(runs) < means)


def test_recommended_settings_are_within_two_percent_of_swa(reports):
    for runs in reports.values():
        assert ends(runs).mean() < 1.02 * np.mean([run["baselines"]["mean"]["test_loss"] for run in runs])
