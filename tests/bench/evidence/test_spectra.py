"""The page of spectra is what the committed results say, and these are what the paper prints."""

import json

import pytest

from bench.common import pages
from bench.evidence import spectra
from fastkoop.checks import InputError


def committed():
    return json.loads((spectra.FOLDER / "published.json").read_text())


def test_the_page_shows_the_committed_results():
    assert pages.shown("spectra") == spectra.table_of()


def test_the_papers_figures_come_out():
    results = committed()
    for name, (mean, deviation) in spectra.PRINTED.items():
        row = results["networks"][name]
        assert (round(row["mean"], 4), round(row["deviation"], 4)) == (mean, deviation)
    assert round(results["methods"]["mirror_descent-gradient_descent"], 4) == 0.0081
    assert round(results["methods"]["mirror_descent-bisection_method"], 3) == 0.746


def test_what_the_page_says_of_the_null():
    rows = committed()["networks"]
    assert rows["5-40"]["exceeded"] == rows["5-10"]["exceeded"] == 0 and rows["10-40"]["p"] < 0.01
    assert rows["5-40"]["nearest"] == 1.0
    assert 1.4 < rows["5-40"]["between"] / rows["5-40"]["within"] < 1.6  # "half as far apart again"
    small = rows["10-40"]
    assert 0.05 < (small["between"] - small["within"]) / small["within"] < 0.15  # "by a tenth"


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"redman-dir: expected a folder with gradient_descent_eigs\.npy"):
        spectra.folder(str(tmp_path))
