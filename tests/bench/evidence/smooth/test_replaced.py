"""Phases that replace steps: the page is what the committed results say, and counts are kept."""

import json
import math
from statistics import median

import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.evidence.smooth import methods, replaced  # noqa: E402


@pytest.fixture(scope="module")
def results():
    """The committed results."""
    return json.loads(replaced.FILE.read_text())


def test_the_page_shows_the_committed_results(results):
    assert pages.shown("smooth", "replaced") == replaced.table_of(results)
    assert set(results["tasks"]) == set(replaced.TASKS) and results["steps"] == replaced.STEPS
    for task in results["tasks"].values():
        assert len(task["runs"]) == 5 and set(task["runs"][0]) == {"plain", *replaced.METHODS}


def test_what_the_page_says_of_them(results):
    for task in results["tasks"].values():
        share = {method: median(replaced.shares(task, method, "gradients")) for method in replaced.METHODS}
        seconds = {method: median(replaced.shares(task, method, "seconds")) for method in replaced.METHODS}
        assert share["koopman"] < 0.1  # "nine steps in ten"
        assert share["l-bfgs"] < share["koopman"] / 2 and seconds["l-bfgs"] < seconds["koopman"] / 3
        assert share["koopman"] < share["nesterov"] and seconds["nesterov"] < seconds["koopman"]


def test_derivatives_that_are_carried_are_those_of_the_network():
    model = replaced.Poisson(0, points=7)
    x = model.x.clone().requires_grad_()
    u = model.network(x)
    [slope] = torch.autograd.grad(u.sum(), x, create_graph=True)
    [bend] = torch.autograd.grad(slope.sum(), x)
    expected = (bend / math.pi**2 + torch.sin(math.pi * x)).square().mean() + u[0].square() + u[-1].square()
    assert model().item() == pytest.approx(expected.item(), rel=1e-12)


def test_guards_are_charged_and_runs_end_at_the_target():
    start = replaced.Count(replaced.Poisson(0))
    first = start.guard()
    done = replaced.jumping("pinn", 0, 0.03, 0.9 * first, (8, 0))
    assert done["loss"] <= 0.9 * first and done["gradients"] <= 20
    assert done["gradients"] % 1 == pytest.approx(done["guards"] * methods.GUARD % 1)
    assert replaced.counted("pinn", 0, 0.9 * first, replaced.lbfgs)["gradients"] < 20


def test_a_run_that_does_not_get_there_is_infinite():
    failed = {"gradients": None, "seconds": None}
    task = {"runs": [{"plain": {"gradients": 10, "seconds": 1.0}, "koopman": failed}]}
    assert replaced.shares(task, "koopman", "gradients") == [math.inf] and replaced.cell([math.inf]) == "∞ (∞ to ∞)"
