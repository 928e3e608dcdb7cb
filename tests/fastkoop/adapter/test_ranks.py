"""Blocks spread over ranks: torchrun on two and three ranks equals one process; ranks that die or disagree are told."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fastkoop.adapter.ranks import Shard, Spread, exchange, localized  # noqa: E402
from fastkoop.options import Options  # noqa: E402
from fastkoop.partition import Parameter, groups  # noqa: E402

RANKS = pathlib.Path(__file__).with_name("ranks.py")
SCENARIOS = (
    "node", "weight", "quasi-node", "layer", "network", "affine", "delay", "momentum", "fine", "float64", "half",
    "decoder", "decoder layers", "matlab", "median", "shared", "shared layers", "ddp",
)  # fmt: skip
LOCAL = ("node", "weight", "quasi-node")  # partitions whose blocks lie on one rank each


def quiet_environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def torchrun(ranks, script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=quiet_environment())


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    """What every rank found, by scenario."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    done = torchrun(request.param, RANKS, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ranks_equal_one_process(found, scenario):
    for theirs in found:
        check(theirs[scenario], exact=scenario not in ("fine", "matlab"))


def check(each, exact=True):
    assert each["recorded"] == 0.0 and each["rollback"] == 0.0  # so that only the moves are compared
    assert each["moved"] > 1e-3
    rounding = (4 if exact else 256) * np.finfo(np.float32).eps * each["size"]
    assert each["jump"] <= rounding and each["step"] <= rounding
    assert each["resumed"] and each["same"] and each["horizon"]
    assert each["guards"] < 1e-4  # what a guard sees is what was moved, not what FSDP2 had gathered before


def test_replicas_of_shards_count_once(tmp_path):
    done = torchrun(4, RANKS, tmp_path, "replicated")
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(4):
        check(json.loads((tmp_path / f"rank{rank}.json").read_text())["shared"])


def test_ranks_exchange_what_was_planned(found):
    for theirs in found:
        for scenario in LOCAL:
            assert theirs[scenario]["sent"] == theirs[scenario]["planned"] == 0
        for scenario in ("layer", "network", "affine", "delay", "decoder layers"):
            beside = 3 * (8 * 3 + 8) + 3 * 8 * len(found) * 3  # three numbers and a flag a block, and sizes
            assert 0 < theirs[scenario]["sent"] <= theirs[scenario]["planned"] + beside
        assert all(0 < theirs[scenario]["messages"] < 2000 for scenario in SCENARIOS)


def test_other_bits_on_another_rank_are_mended(found):
    assert all(theirs["mended"] for theirs in found)


def test_ranks_that_do_not_do_the_same_all_hear_of_it(found):
    for rank, theirs in enumerate(found):
        said = theirs["disagreements"]
        assert "fit: expected the same snapshots on all ranks, got rank 0: 3, rank 1: 4" in said["recorded less"]
        assert "jump: expected the same steps on all ranks, got rank 0: 2, rank 1: 3" in said["other steps"]
        assert "jump: expected the same limits on all ranks, got rank 0: None, rank 1: Limits" in said["other limits"]
        own = "OSError: no data"
        assert said["guard"].startswith(own if rank == 1 else "RankError: guard: rank 1 of ")
        assert rank == 1 or "failed (OSError: no data); the parameters are put back" in said["guard"]
        assert said["unmoved"]
        assert "InputError: layer 0: X: " in said["nan in a layer"] and "NaN" in said["nan in a layer"]
        assert ("rank 1: layer" in said["nan in a node"]) == (rank != 1) and "NaN" in said["nan in a node"]


def test_a_block_that_overflows_on_one_rank_is_kept_on_all(found):
    if len(found) == 2:
        assert all(theirs["torn"] == {"kept": [1], "same": True} for theirs in found)


def test_empty_gathered_and_replaced_parameters(found):
    for theirs in found:
        assert theirs["emptied"]["position"] == 4 and theirs["emptied"]["sharded"]
        assert "0.weight was replaced after this phase was made" in theirs["emptied"]["replaced"]


@pytest.mark.parametrize("how", ["dies", "is silent"])
def test_a_rank_that_is_lost_is_told_in_time(how, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**quiet_environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(tmp_path), how], env={**environment, "RANK": str(rank)},
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


def test_the_example_of_the_guide(tmp_path):
    guide = (RANKS.parents[3] / "fastkoop" / "guide" / "ranks.md").read_text()
    script = tmp_path / "train.py"
    example = guide.partition("<!-- fsdp -->\n```python\n")[2].partition("```")[0]
    leave = "import os, sys\nsys.stdout.flush()\nos._exit(0)\n"  # as in ranks.py
    script.write_text(example + leave)
    done = torchrun(2, script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("jump over 10 steps") == 2 and done.stdout.count(" bytes sent") == 2


# what a rank has of a group, without any other


def described():
    layer = [Parameter("0.weight", (7, 30)), Parameter("0.bias", (7,))]
    return groups(layer, "node")[0], groups(layer, "layer")[0]


def test_rows_that_lie_whole_on_a_rank_need_nobody():
    node, _ = described()
    shards = {"0.weight": Shard(0, 4, 3, 7, None), "0.bias": Shard(0, 4, 3, 7, None)}
    own, spread = localized(node, shards)
    assert spread is None
    assert (own.rows, own.n) == (3, 31)
    assert [piece.parameter.shape for piece in own.pieces] == [(3, 30), (3,)]


def test_blocks_that_are_cut_are_spread():
    node, layer = described()
    across = {"0.weight": Shard(1, 10, 10, 30, "ranks"), "0.bias": Shard(0, 4, 3, 7, "ranks")}
    own, spread = localized(node, across, str)
    assert spread == Spread("ranks", 31, cut=1, shared=0)
    assert (own.rows, own.n) == (7, 11)
    weight, bias = own.pieces
    assert (weight.width, weight.rows, weight.first) == (10, 7, 0)
    assert (bias.width, bias.rows, bias.first) == (1, 3, 4)
    own, spread = localized(layer, {"0.weight": Shard(0, 4, 3, 7, "ranks"), "0.bias": None}, str)
    assert spread == Spread("ranks", 217, cut=0, shared=7)  # the bias is on every rank, and comes last
    assert (own.n, own.pieces[-1].start) == (97, 90)


def test_quasi_nodes_are_not_cut():
    quasi = groups([Parameter("0.weight", (7, 30)), Parameter("0.bias", (7,))], "quasi-node", q=4)[0]
    with pytest.raises(ValueError, match="would cut its quasi-node blocks"):
        localized(quasi, {"0.weight": Shard(1, 10, 10, 30, None), "0.bias": None}, str)


@pytest.mark.parametrize(
    ("n", "snapshots", "how", "size"), [(15700, 1876, "gram", 8 * 1876**2), (785, 1876, "snapshots", 4 * 785 * 1876),
                                        (3000, 1876, "snapshots", 4 * 3000 * 1876), (100, 9, "gram", 8 * 81)],
)  # fmt: skip
def test_whatever_is_fewer_bytes_is_exchanged(n, snapshots, how, size):
    setting = Options("jax", "identity", None, "drop")
    assert exchange(1, Spread(None, n, 0, 0), snapshots, setting, 4) == (how, size)
