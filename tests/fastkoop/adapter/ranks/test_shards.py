"""What a rank holds of a group's blocks."""

import pytest

torch = pytest.importorskip("torch")

from torch.distributed.tensor import placement_types as placements  # noqa: E402

from fastkoop.adapter.ranks import Shard, Spread, localized, shard_of  # noqa: E402
from fastkoop.partition import Parameter, groups  # noqa: E402


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


class Placed:
    """A tensor with placements on a mesh, as far as `shard_of` looks."""

    def __init__(self, *placements):
        self.placements, self.shape, self.device_mesh = placements, (8, 6), Mesh()

    def to_local(self):
        return torch.zeros(4, 6)


class Mesh:
    """Two axes of two ranks, of which this is the second on each."""

    def size(self, axis):
        return 2

    def get_local_rank(self, axis):
        return 1

    def get_group(self, axis):
        return f"group {axis}"


def test_placements_are_right_or_refused_by_name():
    rows, columns, whole, sums = placements.Shard(0), placements.Shard(1), placements.Replicate(), placements.Partial()
    assert shard_of("w", Placed(whole, rows)) == Shard(0, 4, 4, 8, "group 1")
    assert shard_of("w", Placed(rows, whole)) == Shard(0, 4, 4, 8, "group 0")
    assert shard_of("w", Placed(whole, whole)) is None
    for mixed in ((rows, columns), (rows, rows), (whole, sums), (columns, sums)):
        with pytest.raises(ValueError, match=r"model: expected layers\.0 replicated or sharded along one axis, got"):
            shard_of("layers.0", Placed(*mixed))


def test_quasi_nodes_are_not_cut():
    quasi = groups([Parameter("0.weight", (7, 30)), Parameter("0.bias", (7,))], "quasi-node", q=4)[0]
    with pytest.raises(ValueError, match="would cut its quasi-node blocks"):
        localized(quasi, {"0.weight": Shard(1, 10, 10, 30, None), "0.bias": None}, str)
