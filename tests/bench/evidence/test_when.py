"""The guide's page on when a phase pays, its figure and the README's verdict are what the committed results say."""

import json
import re
import xml.etree.ElementTree as ET
from statistics import median

import pytest

torch = pytest.importorskip("torch")

from bench import ROOT  # noqa: E402
from bench.common import pages  # noqa: E402
from bench.evidence import candidates, when  # noqa: E402
from bench.evidence.smooth import replaced  # noqa: E402
from bench.evidence.smooth import run as smooth  # noqa: E402

GUIDE = (ROOT / "fastkoop" / "guide" / "pays.md").read_text()


def test_page_readme_and_figure_show_the_committed_results():
    assert pages.shown("pays", "verdict", when.GUIDE) == pages.shown("README", "verdict", ROOT) == when.verdict()
    assert pages.shown("pays", "measured", when.GUIDE) == when.measured()
    assert when.FIGURE.read_text() == when.figure()


def test_the_figure_is_a_drawing_of_three_lines():
    drawing = ET.fromstring(when.figure())
    lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 3 and all(len(line.get("points").split()) == len(when.swept()) for line in lines)
    heights = [[float(point.split(",")[1]) for point in line.get("points").split()] for line in lines]
    koopman, cheap = heights[2], heights[1]
    assert koopman[0] - cheap[0] > 60 > 15 > abs(koopman[-1] - cheap[-1])  # its title: by far, and not


def test_what_the_page_says_of_alternatives():
    """L-BFGS ahead on nearly all; of Nesterov a phase is ahead on most."""
    results = smooth.load()
    assert sum("L-BFGS" in smooth.ahead(one) for one in results.values()) >= len(results) - 1
    assert sum("Nesterov" in smooth.ahead(one) for one in results.values()) <= len(results) // 4
    tasks = json.loads(replaced.FILE.read_text())["tasks"].values()
    assert all(median(replaced.shares(task, "l-bfgs", "gradients")) < 0.1 for task in tasks)


def test_noise_is_where_it_ends():
    sweep = when.swept()
    assert sweep[1200]["cheap"] > 100 * sweep[1200]["Koopman"] and sweep[30]["Koopman"] > sweep[30]["cheap"]
    assert sweep[30]["line"] == sweep[30]["cheap"]  # the verdict names the line


def test_no_number_stands_outside_the_generated_parts():
    prose = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->|```.*?```", "", GUIDE, flags=re.DOTALL)
    assert not re.findall(r"\d+%|\d\.\d", prose)


@pytest.fixture(scope="module")
def jumps():
    """Guarded and gated jumps on MNIST."""
    found = json.loads(candidates.FILE.read_text())
    return {name: candidates.all_jumps(found, name) for name in ("candidates", "gate")}


def test_guarded_jumps_never_end_above_the_average(jumps):
    assert len(jumps["candidates"]) == len(jumps["gate"]) == 5 * candidates.JUMPS
    for jump in jumps["candidates"]:
        assert jump["taken"]["validation"] <= jump["mean"]["validation"] * (1 + 1e-6)


def test_the_gate_holds_what_the_forecast_does_not_trust(jumps):
    for jump in jumps["gate"]:
        assert jump["pays"] or jump["held"] > 0


def test_what_the_page_of_noisy_training_says_of_them(jumps):
    guarded = jumps["candidates"]
    assert max(jump["taken"]["test"] / jump["mean"]["test"] for jump in guarded) < 1.0005
    assert sum(jump["candidate"] in ("line", "koopman") for jump in guarded) > len(guarded) / 2
    for against, gains in (("mean", (0.07, 0.01)), ("moving", (0.04, 0.0))):
        for turn, gain in ((0, gains[0]), (-1, gains[1])):
            here = guarded[turn % candidates.JUMPS :: candidates.JUMPS]
            taken, theirs = (sum(jump[side]["test"] for jump in here) for side in ("taken", against))
            assert round(1 - taken / theirs, 2) == gain
    assert not any(jump["pays"] for jump in jumps["gate"]) and all(jump["steps"] == 0 for jump in jumps["gate"])
