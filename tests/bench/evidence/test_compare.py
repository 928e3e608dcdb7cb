"""The page of compare is what the committed results say, and so are the sentences around its tables."""

import pytest

pytest.importorskip("torch")

from bench import PAGES
from bench.common import pages
from bench.evidence import compare
from fastkoop.experiments.problems.softmax import Softmax


def test_the_page_shows_the_committed_results():
    assert pages.shown("compare", "problems") == compare.problem_table()
    assert pages.shown("compare", "lengths") == compare.length_table()
    assert pages.shown("compare", "softmax") == compare.softmax_table()


def test_the_built_in_lengths_are_those_that_were_chosen():
    found = compare.read("lengths")
    before, recorded, phase = found["chosen"]
    assert Softmax.epochs == (before, before + recorded, phase)
    assert not set(found["seeds"]) & set(range(5)) and len(found["gains"]) == 27
    assert max(min(gains) for *_, gains in found["gains"]) == min(
        next(gains for *key, gains in found["gains"] if key == found["chosen"])
    )


def test_the_sentences_are_what_the_results_say():
    text = " ".join((PAGES / "compare.md").read_text().split())
    runs = compare.read("softmax")["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3, 4] and all(run["pays"] and run["forecast"] for run in runs)
    for run in runs:
        ends = run["baselines"]
        assert run["jump"] < 0.1 * min(ends[key] for key in compare.FREE)
        assert ends["optimizer"] < run["jump"] < 1.07 * ends["optimizer"]
        assert max(ends["nesterov"], ends["l-bfgs"]) < 1e-8 * run["jump"]
    assert "within 7% of 2000 further steps" in text
    late = [gains for before, _, phase, gains in compare.read("lengths")["gains"] if before == 200 and phase == 500]
    assert all(gain < 1 for gains in late for gain in gains)
    entries = compare.read("problems")
    assert [name for name in compare.PROBLEMS if all(entries[name]["pays"])] == ["regression"]
    assert "a jump pays on one of them on all seeds: linear regression" in text
    physics = entries["physics"]
    assert all(physics["forecast"]) and sum(physics["pays"]) == 1 and "says yes on all three seeds" in text
    for said in (" 0.006554", "is at 0.006406", "of sgd end at 0.006554"):
        assert said in physics["verdict"] and said.rpartition(" ")[2] in text
