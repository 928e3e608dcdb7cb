"""The report's panels: every number can be read off them, whatever the losses are."""

import html.parser
import math
import re

import pytest

from fastkoop.experiments import chart
from fastkoop.experiments.chart import POINTS
from fastkoop.experiments.panels import loss_panel, spectra_panel


class Reader(html.parser.HTMLParser):
    """Titles, and the coordinates of points."""

    def __init__(self, text):
        super().__init__()
        self.titles, self.points, self._title = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._title = tag == "title"
        if tag == "polyline":
            pairs = dict(attributes)["points"].split()
            self.points.append([tuple(map(float, pair.split(","))) for pair in pairs])

    def handle_data(self, data):
        if self._title:
            self.titles.append(data)
            self._title = False


def results(optimizer, koopman, average=0.5, seeds=1):
    def side(losses):
        return {"iteration": list(range(len(losses))), "test_loss": losses}

    run = {"optimizer": side(optimizer), "koopman": side(koopman), "average": {"test_loss": average}}
    return {"config": {"optimizer": "<sgd>"}, "runs": [run] * seeds}


@pytest.mark.parametrize("seeds", [1, 3])
def test_points_tell_their_numbers(seeds):
    read = Reader(loss_panel(results([1.0, 0.5, 0.25], [1.0, 2.0, 4.0], seeds=seeds)))
    assert "<sgd>, iteration 2: 0.25" in read.titles and "Koopman, step by step, iteration 1: 2" in read.titles
    assert "mean of the recorded iterates: 0.5" in read.titles
    optimizer, koopman, _ = read.points
    assert [y for _, y in optimizer] == sorted(y for _, y in optimizer)  # down the page
    assert koopman[1][1] - koopman[2][1] == pytest.approx(koopman[0][1] - koopman[1][1], abs=0.11)  # logarithmic


@pytest.mark.parametrize(
    "koopman", [[1.0, math.inf, math.nan], [1.0, None, 1e300], [1e-320, 0.0, 1e-12], [1.0, -3.0, 2.0]]
)
def test_what_diverges_or_vanishes_stays_within_the_axes(koopman):
    read = Reader(loss_panel(results([1.0, 0.9, 0.8], koopman, average=None)))
    assert all(0 <= x <= 720 and 0 <= y <= 360 for points in read.points for x, y in points)


def test_long_curves_answer_at_some_points_and_nothing_at_none():
    read = Reader(loss_panel(results([1.0] * 5000, [0.5] * 5000)))
    assert len(read.titles) <= 2 * (POINTS + 1) + 1 and len(read.points[0]) == 1668
    assert loss_panel(results([1.0], [1.0])) == "" and loss_panel(results([math.nan] * 3, [math.nan] * 3)) == ""


def test_eigenvalues_lie_where_they_are_around_a_whole_circle():
    layers = {"<w>": [[1.25, 0.0], [3.0, 0.0], [0.0, -0.5]], "b": [[0.5, 0.0]]}
    text = spectra_panel({"runs": [{"koopman": {"eigenvalues": layers}}]})
    assert "&lt;w&gt;: 2 of 3 outside" in text and "1.25+0i, modulus 1.25" in text
    first, second = (part.split("<circle")[1:] for part in text.split("<svg")[1:])
    unit = {name: float(re.search(f'{name}="([^"]*)"', first[0]).group(1)) for name in ("cx", "cy", "r")}
    side = chart.SMALL[0]
    assert unit["cx"] == unit["cy"] == side / 2 and 'class="unit"' in first[0] and unit["r"] < side / 2
    at = [[float(re.search(f'{name}="([^"]*)"', mark).group(1)) for name in ("cx", "cy")] for mark in first[1:]]
    assert at[0] == pytest.approx([side / 2, side / 2 + unit["r"] / 2], abs=0.06)  # -0.5i, drawn first
    assert at[1][0] == pytest.approx(side / 2 + 1.6 * unit["r"], abs=0.15)  # 3, on the edge of axes that reach 1.6
    assert at[2][0] == pytest.approx(side / 2 + 1.25 * unit["r"], abs=0.06)
    assert len(second) == 2 and spectra_panel({"runs": [{"koopman": {}}]}) == ""
