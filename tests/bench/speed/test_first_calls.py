"""The page of first calls is what the committed results say; a tiny measurement has every figure."""

from statistics import median

import pytest

from bench.common import pages
from bench.speed import first_calls as bench
from bench.speed import first_calls_worker as worker


def results(**cpu):
    """Results of one repeat, with these CPU seconds of `predict`."""
    calls = {"predict": {place: {"cpu_seconds": value, "seconds": value} for place, value in cpu.items()}}
    env = {"commit": "0123456789ab", "dirty": True, "date": "today", "processor": "P", "cores": 2,
           "versions": {"numba": "1"}}  # fmt: skip
    return {"environment": env, "repeats": [{"calls": calls, "imports": {}}]}


def test_the_page_shows_the_committed_results():
    assert pages.shown("first-calls") == bench.table_of(*bench.load())


def test_what_the_page_says_in_words_is_so():
    said = (bench.pages.PAGES / "first-calls.md").read_text()
    before, now = (bench.figure(median(bench.seconds(found, "predict", "empty"))) for found in bench.load())
    outcome = "reached" if float(now) <= 4 else "missed"
    assert f"takes {now} CPU seconds, {before} before; the figure to reach, 4, is {outcome}." in said
    after = bench.figure(median(bench.seconds(bench.load()[1], "fit", "after predict")))
    assert f"`fit` after it takes {after}, where 3 was to reach." in " ".join(said.split())


def test_the_committed_results_are_complete():
    before, now = bench.load()
    assert now["repeats"] and before["repeats"]
    for name in bench.FUNCTIONS:
        for found in (before, now):
            assert all(0 < value < 60 for value in bench.seconds(found, name, "empty"))
            assert len(bench.seconds(found, name, "filled")) == len(found["repeats"])
            assert bool(bench.seconds(found, name, "after predict")) == (name != bench.PREDICT)


def test_the_table_says_before_now_and_what_is_to_reach():
    said = bench.table_of(results(empty=20.0, filled=0.2), results(empty=5.0, filled=0.05))
    row = next(line for line in said.splitlines() if line.startswith("| `predict(X, 1)`, float32"))
    assert row.endswith("| 20 | 5.0 ✗ 4 |  |  | 0.05 ✓ 0.08 |")
    assert "Now: commit 0123456789 with changes, today, P, 2 cores, numba 1; repeats: 1." in said


def test_every_function_of_the_table_is_called_by_the_worker():
    calls = worker.functions()
    assert set(calls) == set(bench.FUNCTIONS)
    for name in ("gram", "pinv"):
        found = worker.call(name)
        assert found["cpu_seconds"] >= 0 and found["seconds"] > 0


def test_a_child_answers_and_a_failure_is_told_in_a_line(tmp_path):
    found = bench.child("import", "json, math", cache=tmp_path)
    assert found["cpu_seconds"] >= 0
    with pytest.raises(SystemExit, match="import no_such_package: ModuleNotFoundError"):
        bench.child("import", "no_such_package", cache=tmp_path)
