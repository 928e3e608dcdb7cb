"""Estimated cycles a block: every loop has a trip count, the sums add up, and the page shows them."""

import json

import pytest

from bench.common import pages
from bench.gpu import cycles
from bench.speed.cases import select
from fastkoop.kernels.cuda import launch

VERSIONS, LOOPS = json.loads(cycles.FILE.read_text())["versions"], json.loads(cycles.LOOPS.read_text())


def test_every_loop_has_a_trip_count():
    known = set(cycles.counts(785, 32, True))
    for version in VERSIONS.values():
        for code in version["kernels"].values():
            assert {unit for parts in code["stages"].values() for unit in parts} <= known


@pytest.mark.parametrize("version", VERSIONS)
def test_every_loop_that_is_named_was_read(version):
    for kernel, code in VERSIONS[version]["kernels"].items():
        named = [part for parts in code["stages"].values() for part in parts.values() if isinstance(part, dict)]
        for part in named:
            whole, read = cycles.cost(part, LOOPS[version][kernel]["loops"])
            assert 0 < read <= whole, (kernel, part)
        assert named or kernel == "solve"  # before: nothing of the small eigenproblem


def test_the_loops_of_the_table_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cycles, "LOOPS", tmp_path / "loops.json")
    loop = {"lines": ["a.cu:3 in b.cu:7", "b.cu:8"], "cycles": 12}
    given = {kernel: {"registers": 9, "spills": 0, "loops": [loop, {"lines": [], "cycles": 1}], "instructions": 5}
             for kernel in (*VERSIONS["after"]["kernels"], "another")}  # fmt: skip
    (tmp_path / "given.json").write_text(json.dumps(given))
    cycles.keep("after", tmp_path / "given.json")
    known = json.loads(cycles.LOOPS.read_text())["after"]
    assert list(known) == list(VERSIONS["after"]["kernels"])
    assert known["solve<4>"] == {"registers": 9, "spills": 0, "loops": [["a.cu:3 in b.cu:7", 12]]}
    with pytest.raises(ValueError, match="version: expected before or after"):
        cycles.keep("between", tmp_path / "given.json")


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
    for version in VERSIONS:
        cost = cycles.cycles(version, case)
        assert 0 < cost["read"] < 1
        assert cost["cycles"] == pytest.approx(sum(cost["stages"].values())) and min(cost["stages"].values()) >= 0
        assert 0 < cost["share"] < 1 and cost["resident"] >= 1


def test_every_case_is_where_it_should_be():
    for case, before, after in cycles.results():
        assert after["cycles"] < 0.6 * before["cycles"], case.name
        assert round(after["cycles"] / 1e3) <= cycles.TARGETS[case.name], case.name


def test_registers_are_the_compilers():
    table = json.loads(((cycles.predictions.ROOT) / "tests/kernels/cuda/resources.json").read_text())["kernels"]["90"]
    for name, code in LOOPS["after"].items():
        assert (code["registers"], code["spills"]) == (table[name]["registers"], table[name]["spills"]), name


def test_the_page_shows_them_as_estimates():
    assert pages.shown("cuda", "cycles") == cycles.table()
    assert "Estimates" in cycles.table() and "no GPU has run this" in cycles.table()
