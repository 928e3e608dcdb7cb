"""What a rank holds of a group's blocks."""

import pytest

pytest.importorskip("torch")

from fastkoop.adapter.ranks import Shard, Spread, localized
from fastkoop.partition import Parameter, groups


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
