"""What the page says of the machine's bounds is what the committed profile says."""

import json

import pytest

from bench.common import pages
from bench.speed import bounds
from fastkoop.profile.request import Request


@pytest.fixture
def altered(tmp_path):
    """A profile with some rows' figures replaced."""

    def alter(**microseconds):
        results = json.loads((bounds.RESULTS / "profile" / "profile.json").read_text())
        for row in results["kernels"]:
            if (row["n"], row["data"]) == (785, "full") and row["m"] == 1875 and row["kernel"] in microseconds:
                row["microseconds_per_block"] = microseconds[row["kernel"]]
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(results))
        return bounds.Profile(path)

    return alter


def test_the_page_shows_the_committed_profile():
    assert pages.shown("speed", "bounds") == bounds.bounds()


def test_the_committed_profile_is_of_the_usual_sizes():
    config = bounds.Profile().results["config"]
    assert config["sizes"] == [list(size) for size in Request().sizes] and config["dtype"] == Request().dtype


def test_the_figures_are_the_profile_s(altered):
    said = bounds.bounds(altered(predict=44_000.0, product=13_000.0, tridiagonal=22_000.0))
    assert "C: of 44 ms a block, BLAS's float64 product alone takes 13 and LAPACK's tridiagonal form 22." in said
