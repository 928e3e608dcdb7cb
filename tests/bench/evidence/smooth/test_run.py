"""The page of smooth training is what the committed results say, its sentences too; its figures are reached."""

import json
from statistics import median

import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.evidence.smooth import phases, problems, run  # noqa: E402


@pytest.fixture(scope="module")
def results():
    """The committed results."""
    return run.load()


@pytest.fixture(scope="module")
def through_phases():
    """Median gaps through `KoopmanPhase`."""
    settings = json.loads(phases.FILE.read_text())["settings"]
    return {name: median(each["gap"] for each in one["runs"]) for name, one in settings.items()}


def gap(results, name, method="Koopman"):
    return median(run.gaps(results[name], method))


def test_the_page_shows_the_committed_results(results):
    assert pages.shown("smooth", "verdict") == run.verdict(results)
    assert pages.shown("smooth") == run.table_of(results)
    assert pages.shown("smooth", "phases") == phases.table_of(json.loads(phases.FILE.read_text()))


def test_every_problem_is_there_with_its_seeds_and_its_failures(results):
    assert list(results) == list(problems.PROBLEMS)
    for one in results.values():
        assert len(one["rows"]) == 8 + ("momentum" in one["words"])
        for method in one["rows"]:
            assert len(run.gaps(one, method)) == 5
        assert one["budget"] == (500 if one["problem"] in ("mnist", "mnist-mlp") else 800)


def test_the_page_names_those_ahead_first(results):
    first, second, *_ = run.verdict(results).splitlines()
    assert first.startswith("- **L-BFGS ends below Koopman** on ") and "digits softmax regression" in first
    assert second.startswith("- **Nesterov + restart ends below Koopman** on ") and "momentum" in second


def test_the_figures_to_reach_are_reached(results):
    assert gap(results, "digits") <= 1e-6 and gap(results, "kernel-ridge") <= 1e-12
    assert gap(results, "probe") <= 1e-3 and gap(results, "oscillator") <= 0.03
    assert gap(results, "momentum", run.WHOLE) < 0.2 * gap(results, "momentum")


def test_phases_reach_their_figures_and_the_ablations_fail(through_phases):
    assert through_phases["network"] <= 1e-6 and through_phases["node"] <= 1e-4
    assert 0.05 < through_phases["none"] < 0.2
    assert through_phases["momentum-predict"] <= 1e-4 < 0.5 * through_phases["momentum-keep"]
    assert through_phases["adam-predict"] < through_phases["adam-keep"] < through_phases["adam-none"]


def test_verdicts_follow_the_gaps():
    def made(**gaps):
        rows = {name: {"runs": [{"gap": value, "seconds": 1.0}] * 5} for name, value in gaps.items()}
        return {"words": "w", "problem": "p", "rows": rows}

    base = {"none": 1.0, "line": 0.5, "Nesterov": 1e-2, "Koopman": 1e-4, "L-BFGS": 1e-3}
    assert run.ahead(made(**base)) == []
    assert run.ahead(made(**{**base, "L-BFGS": 0.0, "Nesterov": 1e-5})) == ["Nesterov", "L-BFGS"]
    assert run.ahead(made(**{**base, "Koopman": 1e-17, "L-BFGS": 0.0})) == []  # both at the rounding of the loss
    assert "Koopman ends lowest of all that use no line search on 1 of 1" in run.verdict({"p": made(**base)})
    assert "It does not on: w." in run.verdict({"p": made(**{**base, "line": 1e-5})})


def test_time_stands_beside_the_gap(results):
    seconds = json.loads(run.SECONDS.read_text())
    assert set(seconds["problems"]) == set(results) and seconds["rounds"] == run.ROUNDS
    for name, one in results.items():
        assert set(seconds["problems"][name]) == set(one["rows"])
        assert all(len(taken) == run.ROUNDS for taken in seconds["problems"][name].values())
    assert run.clocked({"none": [0.5], "line": [1.0]}, "none") == " · 0.5 s"


@pytest.mark.parametrize("name", ["digits", "wide-net", "oscillator"])
def test_a_guard_s_loss_is_the_gradient_s(name):
    problem = problems.PROBLEMS[name][0](2)
    assert problem.loss is not None and problem.value(problem.start) == problem.value_and_gradient(problem.start)[0]
