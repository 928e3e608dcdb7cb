"""Estimated cycles a block: every loop has a trip count, the sums add up, and the page shows them."""

import json

import pytest

from bench.common import pages
from bench.gpu import cycles
from bench.speed.cases import select
from fastkoop.kernels.cuda import launch

VERSIONS = json.loads(cycles.FILE.read_text())["versions"]


def test_every_loop_has_a_trip_count():
    known = set(cycles.counts(785, 32, True))
    for version in VERSIONS.values():
        for code in version["kernels"].values():
            assert {unit for parts in code["stages"].values() for unit in parts} <= known


@pytest.mark.parametrize(("n", "m"), [(785, 8), (785, 32), (785, 64), (11, 1000), (21, 1875)])
def test_trip_counts_cover_a_block(n, m):
    turns = cycles.counts(n, m, True)
    shape = launch.shape_of("predict", n, m, m + 1, n <= m, 4)
    threads = launch.launch_of(shape, cycles.predictions.H200).threads
    assert turns["group"] * 4 * threads / 32 == shape.lines
    assert turns["panel"] * 8 >= min(n, m) > turns["panel"] * 8 - 8
    if n > m:
        assert (turns["product"] + turns["product again"]) * threads >= n * m
    else:
        assert turns["line product"] * threads >= n * shape.lines
    pairs = min(n, m) // 2 * (min(n, m) - 1 + min(n, m) % 2)
    assert turns["round"] * ((min(n, m) + 1) // 2) >= pairs


@pytest.mark.parametrize("case", select(list(cycles.CASES)), ids=lambda case: case.name)
def test_a_block_costs_the_sum_of_its_stages(case):
    for version in VERSIONS.values():
        cost = cycles.cycles(version, case)
        assert cost["cycles"] == pytest.approx(sum(cost["stages"].values())) and min(cost["stages"].values()) >= 0
        assert 0 < cost["share"] < 1 and cost["resident"] >= 1


def test_nothing_became_slower():
    for case, before, after in cycles.results():
        assert after["cycles"] < 0.6 * before["cycles"], case.name


def test_registers_are_the_compilers():
    table = json.loads(((cycles.predictions.ROOT) / "tests/kernels/cuda/resources.json").read_text())["kernels"]["90"]
    for name, code in VERSIONS["after"]["kernels"].items():
        assert (code["registers"], code["spills"]) == (table[name]["registers"], table[name]["spills"]), name


def test_the_page_shows_them_as_estimates():
    assert pages.shown("cuda", "cycles") == cycles.table()
    assert "Estimates" in cycles.table() and "no GPU has run this" in cycles.table()
