"""Blocks spread over two and three ranks are fitted and moved as one process does."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastkoop.adapter.ranks import Spread, exchange  # noqa: E402
from fastkoop.options import Options  # noqa: E402

SCENARIOS = (
    "node", "weight", "quasi-node", "layer", "network", "affine", "delay", "momentum", "fine", "float64", "half",
    "decoder", "decoder layers", "matlab", "median", "shared", "shared layers", "ddp",
    "tensor nodes", "tensor layers", "tensor network",
)  # fmt: skip
LOCAL = ("node", "weight", "quasi-node")  # partitions whose blocks lie on one rank each


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ranks_equal_one_process(reports, scenario):
    for report in reports:
        check(report[scenario], exact=scenario not in ("fine", "matlab"))


def check(report, exact=True):
    assert report["recorded"] == 0.0 and report["rollback"] == 0.0  # so that only the moves are compared
    assert report["moved"] > 1e-3
    rounding = (4 if exact else 256) * np.finfo(np.float32).eps * report["size"]
    assert report["jump"] <= rounding and report["step"] <= rounding
    assert report["resumed"] and report["same"] and report["horizon"]
    assert report["guards"] < 1e-4  # what a guard sees is what was moved, not what FSDP2 had gathered before
    (error, baseline, pays), (*expected, verdict) = report["forecast"]
    np.testing.assert_allclose([error, baseline], expected, rtol=1e-5 if exact else 1e-2)
    assert pays == verdict
    assert report["settled"] > 1e-3 and report["limit"] <= 64 * rounding


def test_replicas_of_shards_count_once(tmp_path, torchrun, script):
    finished = torchrun(4, script, tmp_path, "replicated")
    assert finished.returncode == 0, finished.stderr[-4000:]
    for rank in range(4):
        report = json.loads((tmp_path / f"rank{rank}.json").read_text())
        check(report["shared"])
        assert "InputError: model: expected 0.weight replicated or sharded along one axis, got" in report["mixed"]


def test_ranks_exchange_what_was_planned(reports):
    for report in reports:
        for scenario in LOCAL:
            assert report[scenario]["sent"] == report[scenario]["planned"] == 0
        for scenario in ("layer", "network", "affine", "delay", "decoder layers"):
            beside = 3 * (8 * 3 + 8) + 3 * 8 * len(reports) * 3  # three numbers and a flag a block, and sizes
            assert 0 < report[scenario]["sent"] <= report[scenario]["planned"] + beside
        assert all(0 < report[scenario]["messages"] < 2000 for scenario in SCENARIOS)


@pytest.mark.parametrize("wrap", ["shard", "ddp", "steady"])
def test_three_lines_on_every_rank(reports, wrap):
    """Bit for bit, unless DistributedDataParallel itself does not resume so."""
    for report in reports:
        figures = report["three lines"][wrap]
        assert figures["jumps"] == 2 and figures["same"]
        assert figures["resumed"] == report["plain"].get(wrap, True)


def test_buckets_that_are_rebuilt_are_why_a_run_resumes_on_other_bits(reports):
    """Without FastKoop: three ranks' sums depend on where in a bucket a gradient lies, and a new process starts with
    buckets that its second step rebuilds."""
    for report in reports:
        assert report["plain"] == {"ddp": len(reports) == 2, "settled": True, "steady": True}


def test_placements_that_cannot_be_moved_are_refused_by_name(reports):
    for report in reports:
        for name in ("sums", "both axes", "whole and sums"):
            told = report["refused"][name]
            assert "model: expected weight replicated or sharded along one axis, got placements" in told
            assert "exclude=" in told and report["refused"][f"{name}, left out"] == ["bias"]


def test_one_shard_on_a_mesh_of_two_axes_is_right(reports):
    for rank, report in enumerate(reports):
        chunk = -(-8 // len(reports))
        first = min(rank * chunk, 8)
        assert report["refused"]["rows"] == [0, first, min(chunk, 8 - first), 8]
        assert report["refused"]["columns"] == [1, rank * 6 // len(reports), 6 // len(reports), 6]


def test_a_block_that_overflows_on_one_rank_is_kept_on_all(reports):
    if len(reports) == 2:
        assert all(report["torn"] == {"kept": [1], "same": True} for report in reports)


def test_empty_gathered_and_replaced_parameters(reports):
    for report in reports:
        assert report["emptied"]["position"] == 4 and report["emptied"]["sharded"]
        assert "0.weight was replaced after this phase was made" in report["emptied"]["replaced"]


def test_the_example_of_the_guide(tmp_path, torchrun, script):
    guide = (script.parents[4] / "fastkoop" / "guide" / "ranks.md").read_text()
    training = tmp_path / "train.py"
    example = guide.partition("<!-- fsdp -->\n```python\n")[2].partition("```")[0]
    leave = "import os, sys\nsys.stdout.flush()\nos._exit(0)\n"  # as in training.py
    training.write_text(example + leave)
    finished = torchrun(2, training)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("jump over 10 steps") == 2 and finished.stdout.count(" bytes sent") == 2


@pytest.mark.parametrize(
    ("n", "snapshots", "how", "size"), [(15700, 1876, "gram", 8 * 1876**2), (785, 1876, "snapshots", 4 * 785 * 1876),
                                        (3000, 1876, "snapshots", 4 * 3000 * 1876), (100, 9, "gram", 8 * 81)],
)  # fmt: skip
def test_whatever_is_fewer_bytes_is_exchanged(n, snapshots, how, size):
    options = Options("jax", "identity", None, "drop")
    assert exchange(1, Spread(None, n, 0, 0), snapshots, options, 4) == (how, size)
