"""report.html: one file with everything in it, from any results."""

import html.parser
import re

import pytest

from fastkoop.experiments import chart
from fastkoop.experiments.compare import compare
from fastkoop.experiments.config import Config
from fastkoop.experiments.report import page, write_report
from fastkoop.experiments.verdict import BASELINES, baseline_rows, words


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    options = {
        "t1": 1,
        "t2": 3,
        "T": 2,
        "seeds": 2,
        "eval_every": 6,
        "window": 2,
        "observables": "identity",
        "cutoff": "jax",
    }
    results = compare(Config.of(**options, validation=100, horizon="auto", out=str(out)))
    return results, out


class Reader(html.parser.HTMLParser):
    """Open tags, text, and what is fetched from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.fetched, self.images = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                self.fetched += [] if value.startswith("data:image/png;base64,") else [value]
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_one_file_without_a_network(compared):
    results, out = compared
    path = write_report(results, out)
    reader = Reader()
    reader.feed(path.read_text())
    text = " ".join(reader.words)
    assert reader.open == [] and reader.fetched == [] and reader.images == 0
    assert not re.search(r"https?://|<script|@import|url\(", path.read_text())
    assert all(line in text for line in words(results))
    for said in ("mean of the recorded iterates (SWA)", "spectral radius", "an optimizer step", "phase, walked"):
        assert said in text


def test_names_are_escaped_and_figures_may_be_missing(compared):
    results, _ = compared
    odd = results.as_dict()
    odd["config"]["cutoff"] = "<b>&"
    text = page(odd)
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text
    del odd["paths"]
    assert "Paths of single weights" in text and "Paths of single weights" not in page(odd)


def test_a_phone_can_read_it(compared):
    """What a browser of 390 pixels needs; at 390 and 1280 pixels the page was looked at in Chromium."""
    text = page(compared[0])
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    widths = re.findall(r"(?<!max-)width: *([\d.]+)(px|rem)", text) + re.findall(r'<[a-z]+ [^>]*\bwidth="(\d+)()', text)
    assert widths and all(float(value) * (16 if unit == "rem" else 1) <= 390 for value, unit in widths)
    assert text.count("<table") == text.count('<div class="scroll"><table')  # a wide table scrolls by itself
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 5 and all(drawing.count("<title>") >= 2 for drawing in drawings)
    assert all('aria-label="' in drawing and "viewBox" in drawing for drawing in drawings)
    for name, smallest in (("wide", 366 / chart.WIDE[0]), ("small", 366 / chart.SMALL[0])):  # of 390 less the margins
        (*_, size) = re.findall(rf"svg\.{name} {{ font-size: (\d+)px", text)
        assert float(size) * smallest >= 12


def test_every_baseline_has_a_line(compared):
    results, _ = compared
    for run in results["runs"]:
        own = run["baselines"]
        assert set(own) <= set(BASELINES) and {"start", "mean", "moving", "line", "rank one", "optimizer"} <= set(own)
        assert own["mean"]["test_loss"] == run["average"]["test_loss"]
        assert own["optimizer"]["test_loss"] == run["optimizer"]["test_loss"][-1]
        assert own["start"]["test_loss"] == run["koopman"]["test_loss"][0]
        assert own["optimizer"]["gradients"] > own["mean"]["gradients"] > 0
        assert all("validation_loss" in each for each in own.values())
    lines = baseline_rows(results)
    assert len(lines) > 6 and all("seeds" in line[-1] for line in lines[1:])


def test_a_guarded_jump_is_told(compared):
    results, _ = compared
    jumped = [run["koopman"]["jumped"] for run in results["runs"]]
    assert all(each["guard_seconds"] > 0 for each in jumped)
    assert all(each["rolled_back"] or 0 <= each["steps"] <= 40 for each in jumped)
    assert any("validation images the guarded jump goes" in line for line in words(results))
    assert results["runs"][0]["koopman"]["eigenvalues"].keys() == results["runs"][0]["koopman"]["rank"].keys()
    assert "eigenvalues" not in results["runs"][1]["koopman"]
