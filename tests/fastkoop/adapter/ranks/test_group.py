"""Ranks agree on what they do: those that differ, die or are late are named on every rank."""

import json
import re
import socket
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")


def test_other_bits_on_another_rank_are_mended(reports):
    assert all(report["mended"] for report in reports)


def test_ranks_that_do_not_do_the_same_all_hear_of_it(reports):
    for rank, report in enumerate(reports):
        heard = report["disagreements"]
        assert "fit: expected the same snapshots on all ranks, got rank 0: 3, rank 1: 4" in heard["recorded less"]
        assert "jump: expected the same steps on all ranks, got rank 0: 2, rank 1: 3" in heard["other steps"]
        assert "jump: expected the same limits on all ranks, got rank 0: None, rank 1: Limits" in heard["other limits"]
        assert heard["guard"].startswith("OSError: no data" if rank == 1 else "RankError: guard: rank 1 of ")
        assert rank == 1 or "failed (OSError: no data); the parameters are put back" in heard["guard"]
        assert heard["unmoved"]
        assert "InputError: layer 0: X: " in heard["nan in a layer"] and "NaN" in heard["nan in a layer"]
        assert ("rank 1: layer" in heard["nan in a node"]) == (rank != 1) and "NaN" in heard["nan in a node"]


@pytest.mark.parametrize(
    ("difference", "match"),
    [
        ("dtype", r"expected the same parameter 0\.weight on all ranks, .* rank 1: \(3, 4\) in torch\.float64"),
        ("shape", r"expected the same parameter 0\.weight on all ranks, got rank 0: \(3, 4\) .* rank 1: \(3, 5\)"),
        ("partition", r"expected the same partition of 0 on all ranks, got rank 0: node q=None, rank 1: layer"),
        ("layers", r"expected the same partition of 0 on all ranks"),
        ("left out", r"expected the same parameter 0\.bias on all ranks, got .* rank 1: none"),
        ("cutoff", r"expected the same cutoff on all ranks, got rank 0: array_api, rank 1: 0\.001"),
        ("every", r"expected the same every on all ranks, got rank 0: 1, rank 1: 2|at least 2 snapshots, got 1"),
        ("capacity", r"expected the same capacity on all ranks, got rank 0: None, rank 1: 9"),
        ("storage", r"expected the same storage_dtype on all ranks"),
        ("fewer snapshots", r"expected at least 2 snapshots, got 1"),
        ("no steps", r"steps: expected an integer >= 0, got -1"),
    ],
)
def test_ranks_that_differ_are_all_told_at_once(reports, difference, match):
    """No rank moves, and none waits for the group's timeout of 100 seconds."""
    for report in reports:
        text, unmoved, seconds = report["differences"][difference]
        assert re.search(match, text), text
        assert unmoved and seconds < 30


@pytest.mark.parametrize("how", ["dies", "is silent"])
def test_a_rank_that_is_lost_is_told_in_time(how, tmp_path, script, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), how], env={**environment, **address, "RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        error = ranks[0].communicate(timeout=120)[1]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    heard = json.loads((tmp_path / "lost.json").read_text()) if (tmp_path / "lost.json").exists() else error
    assert heard["text"].startswith("fit: rank 0 of 2 lost the others ("), heard
    assert "start all ranks again from their last checkpoint" in heard["text"]
    assert heard["same"] and heard["seconds"] < 30
