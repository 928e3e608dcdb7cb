"""The page's tables are what the committed results say, and so are the sentences around them."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import typer  # noqa: E402

from bench.common import pages  # noqa: E402
from bench.evidence import pays, report  # noqa: E402
from fastkoop import cli  # noqa: E402
from fastkoop.checks import InputError  # noqa: E402
from fastkoop.experiments import phases  # noqa: E402
from fastkoop.experiments.paired import paired  # noqa: E402
from fastkoop.experiments.sweep import baseline, best_baseline, never_diverges, ranking  # noqa: E402


@pytest.fixture(scope="module")
def reports():
    """The recommended settings in the report's setting, by partition."""
    return {partition: pays.read(f"report-{partition}", "results.json")["runs"] for partition in pays.PARTITIONS}


def ends(runs):
    return np.array([run["koopman"]["jumped"]["test_loss"] for run in runs])


@pytest.mark.parametrize("part", pays.TABLES)
def test_the_page_shows_the_committed_results(part):
    assert pages.shown("pays", part) == pays.TABLES[part]()


def test_every_job_is_complete_with_its_seeds_alone():
    for name in pays.JOBS:
        (path,) = (pays.FOLDER / name).iterdir()  # nothing that the command draws again
        results = json.loads(path.read_text())
        assert results["complete"] and results["config"]["seeds"] == 5 and results["config"]["dataset"] == "mnist"


def test_jobs_are_commands_as_they_are_called_today():
    """Every option is one of its command's, and none is kept for old times' sake."""
    commands = typer.main.get_command(cli.app).commands
    for words in [*pays.JOBS.values(), *(["compare", *report.COMMON, *more] for more in report.SETTINGS.values())]:
        command, options = commands[words[0]], {word for word in words[1:] if word.startswith("--")}
        shown = {name for option in command.params if not option.hidden for name in option.opts}
        assert options <= shown and "--dataset" not in options
        command.make_context(words[0], words[1:])


def test_parts_are_chosen_by_how_their_names_begin():
    assert pays.chosen(["report"]) == ["report-node", "report-layer", "report-network"]
    assert pays.chosen(["smooth", "noise"]) == ["smooth", "noise"]
    assert set(pays.chosen([])) == {*pays.JOBS, *pays.PARTS} >= {"smooth", "candidates"}
    with pytest.raises(InputError, match=r"^job: expected the beginning of one of sweep, .*, forecast, got 'rep0rt'"):
        pays.chosen(["report", "rep0rt"])


def test_recommended_settings_never_diverge():
    """At T = 1, 2, 5 and 10 epochs, with every partition and on every seed, below where they set out."""
    results = pays.read("sweep", "sweep.json")
    best = results["settings"][ranking(results)[0][1]]
    assert (best["cutoff"], best["stabilize"], best["window"]) == ("Rank(k=1)", 0.875, pays.WINDOW)
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


def test_what_the_page_says_of_averages_and_lines_is_so(reports):
    for runs in reports.values():
        baselines = {name: [run["baselines"][name]["test_loss"] for run in runs] for name in runs[0]["baselines"]}
        against = {name: paired(ends(runs), losses) for name, losses in baselines.items()}
        assert against["optimizer"].wins == 5 and against["mean"].wins == 4 and -0.025 < against["mean"].share < -0.02
        assert abs(against["moving"].share) < 0.005 and against["moving"].p > 0.3
        assert 0.002 < against["line"].share < 0.006
        assert 0.045 < against["optimizer mean"].share < against["optimizer moving"].share < 0.065
        phase = np.median([sum(run["optimizer"]["step_seconds"]) for run in runs])
        jump = np.median([run["koopman"]["record_seconds"] for run in runs])
        assert 0.1 < jump / phase < 0.2
    gains = []
    for job, _, wanted in pays.TRIED:
        results = pays.read(f"tried-{job}", "sweep.json")
        i = next(i for _, i in ranking(results) if wanted.items() <= results["settings"][i].items())
        losses = [run["test_loss"][-1] for run in results["runs"] if run["setting"] == i]
        average, line = (paired(losses, baseline(results, best_baseline(results, kind), "test_loss"))
                         for kind in ("moving", "line"))  # fmt: skip
        assert average.share > -0.01 and (line.share > -0.01 or job == "start")
        gains.append(average.share < 0 and average.p < 0.05)
        assert not (gains[-1] and line.share < 0 and line.p < 0.05)
    assert len(gains) == 11 and sum(gains) == 2


def test_what_the_page_says_of_repeated_phases_is_so():
    found = {name: phases.comparisons(pays.read(f"phases-{name}", "phases.json")) for name in pays.PHASES}
    equal = {name: held["moving average, equal gradients"] for name, held in found.items()}
    assert equal["published"].share > 0.29 and equal["published"].p < 0.05
    assert 0 < equal["guarded"].share < equal["recommended"].share / 1.9 < 0.01 and equal["recommended"].p > 0.1
    assert 0.01 < found["recommended"]["moving average, equal seconds"].share < 0.03
    assert -0.11 < equal["sgd"].share < -0.09 and equal["sgd"].wins == 5
    assert -0.03 < found["sgd"]["moving average, equal seconds"].share < -0.02
    line = found["sgd"]["moving average, jumps along the line"]
    assert abs(line.share) < 0.01 and line.p > 0.1
    through = found["sgd"]["moving average, the optimizer through all that the jumps stood for"]
    assert through.share > 0.1 and through.wins == 0
