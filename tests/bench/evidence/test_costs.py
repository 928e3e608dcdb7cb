"""The page on costs is what the committed results say; multiples are counted right."""

import json

import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.evidence import costs  # noqa: E402


@pytest.fixture(scope="module")
def results():
    """The committed run."""
    return json.loads(costs.FILE.read_text())


def test_the_page_shows_the_committed_results(results):
    assert pages.shown("costs", "verdict") == costs.verdict(results)
    assert pages.shown("costs") == costs.table_of(results)


def test_every_part_of_every_case_was_measured(results):
    assert len(results["cases"]) == 12 and results["far"] == costs.FAR
    for case in results["cases"]:
        assert set(case["seconds"]) == set(case["peaks"]) == {"fit", *costs.PARTS}
        assert all(len(taken) >= 5 and min(taken) >= 0 for taken in case["seconds"].values())
        assert case["recording"] == 4 * (case["pairs"] + 1) * 16750


def test_the_page_says_in_how_many_cases_a_forecast_is_not_small(results):
    found = [costs.multiples(case)["forecast"] for case in results["cases"]]
    assert (round(min(found), 1), round(max(found), 1)) == (0.1, 1.0)  # as `KoopmanOperator.forecast` says
    assert f"in {sum(value > 0.5 for value in found)} of 12 cases it is above a half" in pages.shown("costs", "verdict")


def test_multiples_are_of_the_same_round():
    seconds = {"fit": [1.0, 2.0, 4.0], "forecast": [1.0, 1.0, 1.0], "gate": [3.0, 2.0, 9.0], "jump": [2.0, 2.0, 1.0],
               "limit": [1.0, 4.0, 8.0]}  # fmt: skip
    assert costs.multiples({"seconds": seconds}) == {"forecast": 0.5, "gate": 1.0, "jump": 1.0, "limit": 2.0}


def test_a_case_is_measured_and_put_back():
    phase = costs.recorded("smooth", "network", 6)
    before = [p.detach().clone() for p in phase.parts.parameters.all]
    case = costs.measure(phase, rounds=1)
    assert all(torch.equal(a, b) for a, b in zip(before, phase.parts.parameters.all, strict=True))
    assert all(value > 0 for value in case["peaks"].values()) and len(case["seconds"]["fit"]) == 1
