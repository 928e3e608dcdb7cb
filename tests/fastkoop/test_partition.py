"""Which weights share an operator: coverage, the granularities, what is not a matrix, and every error."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastkoop.partition import GRANULARITIES, Parameter, groups

LINEAR = [Parameter("0.weight", (5, 7)), Parameter("0.bias", (5,))]
MLP = [*LINEAR, Parameter("2.weight", (3, 5)), Parameter("2.bias", (3,))]


def layout(found):
    """Groups in a form that reads well in an assertion."""
    return [(g.name, g.rows, g.n, [(p.parameter.name, p.start, p.width) for p in g.pieces]) for g in found]


# The granularities


def test_node_rows_are_units_with_their_bias_last():
    assert layout(groups(MLP, "node")) == [
        ("0", 5, 8, [("0.weight", 0, 7), ("0.bias", 7, 1)]),
        ("2", 3, 6, [("2.weight", 0, 5), ("2.bias", 5, 1)]),
    ]
    assert [g.block_sizes for g in groups(MLP, "node")] == [[(5, 8)], [(3, 6)]]


def test_node_is_the_default():
    assert groups(MLP) == groups(MLP, "node")


def test_weight_is_one_block_per_number():
    found = groups(MLP, "weight")
    assert layout(found) == layout(groups(MLP, "node"))
    assert [g.block_sizes for g in found] == [[(40, 1)], [(18, 1)]]


@pytest.mark.parametrize(
    ("q", "sizes"),
    [
        (1, [(40, 1)]),
        (2, [(20, 2)]),
        (3, [(10, 3), (5, 2)]),
        (5, [(5, 5), (5, 3)]),
        (7, [(5, 7), (5, 1)]),  # the bias is the remainder
        (8, [(5, 8)]),
        (9, [(5, 8)]),  # larger than the row: the row
        (10**9, [(5, 8)]),
    ],
)
def test_quasi_node_chunks_rows_and_leaves_the_remainder(q, sizes):
    [group] = groups(LINEAR, "quasi-node", q=q)
    assert group.block_sizes == sizes


def test_layer_is_one_row():
    assert layout(groups(MLP, "layer")) == [
        ("0", 1, 40, [("0.weight", 0, 35), ("0.bias", 35, 5)]),
        ("2", 1, 18, [("2.weight", 0, 15), ("2.bias", 15, 3)]),
    ]
    assert [g.block_sizes for g in groups(MLP, "layer")] == [[(1, 40)], [(1, 18)]]


def test_network_is_one_row_in_all():
    [group] = groups([*MLP, Parameter("norm.weight", (3,)), Parameter("scale", ())], "network")
    assert (group.name, group.granularity, group.block_sizes) == ("network", "network", [(1, 62)])
    assert [p.parameter.name for p in group.pieces][-2:] == ["norm.weight", "scale"]


# Patterns


def test_mapping_gives_each_layer_its_granularity_and_the_first_match_wins():
    found = groups(MLP, {"0.*": "layer", "*.weight": "quasi-node", "*": "quasi-node"}, q=4)
    assert [(g.name, g.granularity, g.block_sizes) for g in found] == [
        ("0", "layer", [(1, 40)]),
        ("2", "quasi-node", [(3, 4), (3, 2)]),
    ]
    assert [g.q for g in found] == [None, 4]


def test_mapping_separates_a_bias_of_another_granularity():
    found = groups(LINEAR, {"*.bias": "weight", "*": "node"})
    assert [(g.granularity, g.rows, g.n) for g in found] == [("node", 5, 7), ("weight", 5, 1)]
    assert [p.parameter.name for g in found for p in g.pieces] == ["0.weight", "0.bias"]


def test_mapping_gathers_only_its_part_into_the_network():
    found = groups([*MLP, Parameter("4.weight", (2, 3))], {"2.*": "node", "*": "network"})
    assert [(g.name, [p.parameter.name for p in g.pieces]) for g in found] == [
        ("2", ["2.weight", "2.bias"]),
        ("network", ["0.weight", "0.bias", "4.weight"]),
    ]


def test_patterns_are_case_sensitive():
    with pytest.raises(ValueError, match=r"no pattern matches '0\.weight'"):
        groups(LINEAR, {"0.WEIGHT": "node", "0.bias": "node"})


# What is not a matrix with a bias


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param(
            [Parameter("bn.weight", (6,)), Parameter("bn.bias", (6,))],
            [("bn", 6, 2, [("bn.weight", 0, 1), ("bn.bias", 1, 1)])],
            id="norm: a row per channel",
        ),
        pytest.param([Parameter("m.bias", (4,))], [("m.bias", 4, 1, [("m.bias", 0, 1)])], id="lone bias"),
        pytest.param([Parameter("emb.weight", (11, 3))], [("emb", 11, 3, [("emb.weight", 0, 3)])], id="embedding"),
        pytest.param([Parameter("gain", ())], [("gain", 1, 1, [("gain", 0, 1)])], id="scalar"),
        pytest.param([Parameter("token", (1, 1, 8))], [("token", 1, 8, [("token", 0, 8)])], id="class token"),
        pytest.param(
            [Parameter("conv.weight", (4, 3, 2, 2)), Parameter("conv.bias", (4,))],
            [("conv", 4, 13, [("conv.weight", 0, 12), ("conv.bias", 12, 1)])],
            id="convolution: a row per output channel",
        ),
        pytest.param(
            [Parameter("up.weight", (3, 5, 2, 2), unit_axis=1), Parameter("up.bias", (5,))],
            [("up", 5, 13, [("up.weight", 0, 12), ("up.bias", 12, 1)])],
            id="transposed convolution: units on axis 1",
        ),
        pytest.param(
            [
                Parameter("a.in_proj_weight", (12, 4)),
                Parameter("a.in_proj_bias", (12,)),
                Parameter("a.out_proj.weight", (4, 4)),
                Parameter("a.out_proj.bias", (4,)),
            ],
            [
                ("a", 12, 5, [("a.in_proj_weight", 0, 4), ("a.in_proj_bias", 4, 1)]),
                ("a.out_proj", 4, 5, [("a.out_proj.weight", 0, 4), ("a.out_proj.bias", 4, 1)]),
            ],
            id="attention",
        ),
        pytest.param(
            [
                Parameter("rnn.weight_ih_l0", (8, 3)),
                Parameter("rnn.weight_hh_l0", (8, 2)),
                Parameter("rnn.bias_ih_l0", (8,)),
                Parameter("rnn.bias_hh_l0", (8,)),
            ],
            [
                ("rnn.weight_ih_l0", 8, 4, [("rnn.weight_ih_l0", 0, 3), ("rnn.bias_ih_l0", 3, 1)]),
                ("rnn.weight_hh_l0", 8, 3, [("rnn.weight_hh_l0", 0, 2), ("rnn.bias_hh_l0", 2, 1)]),
            ],
            id="LSTM: each matrix with its own bias",
        ),
        pytest.param(
            [Parameter("m.weight", (4, 3)), Parameter("m.bias", (3,))],
            [("m", 4, 3, [("m.weight", 0, 3)]), ("m.bias", 3, 1, [("m.bias", 0, 1)])],
            id="a bias of another length is not the matrix's",
        ),
        pytest.param(
            [Parameter("weight", (4, 3)), Parameter("bias", (4,))],
            [("weight", 4, 4, [("weight", 0, 3), ("bias", 3, 1)])],
            id="the model itself is the layer",
        ),
        pytest.param(
            [Parameter("m.a", (4,)), Parameter("m.b", (3,)), Parameter("m.c", (4,))],
            [("m", 4, 2, [("m.a", 0, 1), ("m.c", 1, 1)]), ("m.b", 3, 1, [("m.b", 0, 1)])],
            id="vectors share a layer by module and length",
        ),
        pytest.param(
            [Parameter("a.v", (4,)), Parameter("b.v", (4,))],
            [("a.v", 4, 1, [("a.v", 0, 1)]), ("b.v", 4, 1, [("b.v", 0, 1)])],
            id="vectors of two modules do not",
        ),
    ],
)
def test_layers(parameters, expected):
    assert layout(groups(parameters, "node")) == expected


def test_vectors_of_two_granularities_do_not_share():
    found = groups([Parameter("bn.weight", (6,)), Parameter("bn.bias", (6,))], {"*.bias": "layer", "*": "node"})
    assert [(g.granularity, g.rows, g.n) for g in found] == [("node", 6, 1), ("layer", 1, 6)]


def test_empty_parameters_are_dropped():
    found = groups([Parameter("0.weight", (0, 5)), Parameter("0.bias", (0,)), *MLP[2:]], "network")
    assert layout(found) == [("network", 1, 18, [("2.weight", 0, 15), ("2.bias", 15, 3)])]


def test_layers_are_in_the_order_of_their_first_parameter():
    found = groups([Parameter("norm.weight", (2,)), *MLP, Parameter("norm.bias", (2,))], "node")
    assert [g.name for g in found] == ["norm", "0", "2"]


@pytest.mark.parametrize(
    ("parameters", "partition"),
    [
        pytest.param(
            [Parameter("m.weight", (4, 3)), Parameter("m.scale", (4,)), Parameter("m.shift", (4,))],
            "node",
            id="a matrix beside two vectors",
        ),
        pytest.param(
            [Parameter(f"m.{name}", (size,)) for name, size in zip("abcd", (4, 4, 3, 3), strict=True)],
            "node",
            id="vectors of two lengths",
        ),
        pytest.param(
            [Parameter("network.weight", (4, 3)), Parameter("head.weight", (2, 4))],
            {"network.*": "node", "*": "network"},
            id="a module called network",
        ),
    ],
)
def test_every_group_has_its_own_name(parameters, partition):
    """Reports, errors and `KoopmanPhase.operators` go by name."""
    names = [group.name for group in groups(parameters, partition)]
    assert len(set(names)) == len(names) > 1, names


@pytest.mark.parametrize("shape", [(4,), (4, 3), ()])
def test_no_group_is_nameless(shape):
    found = groups([Parameter("weight", shape), Parameter("bias", shape[:1])], "node")
    assert all(group.name for group in found)


# Properties over random models

LEAVES = ("weight", "bias", "in_proj_weight", "in_proj_bias", "weight_hh_l0", "bias_hh_l0", "gain")


@st.composite
def cases(draw):
    """Parameters of a few modules, of 0 to 4 dimensions and not all empty, a partition of them and its q."""
    names = st.tuples(st.sampled_from(["", "a.", "a.b.", "c.0."]), st.sampled_from(LEAVES))
    parameters = []
    for prefix, leaf in draw(st.lists(names, min_size=1, max_size=9, unique=True)):
        least = draw(st.sampled_from([0, 1, 1, 1]))
        shape = tuple(draw(st.lists(st.integers(least, 4), max_size=4)))
        axis = draw(st.integers(0, 1)) if len(shape) >= 2 else 0
        parameters.append(Parameter(prefix + leaf, shape, axis))
    present = [parameter for parameter in parameters if parameter.size]
    assume(present)
    one, other = draw(st.sampled_from(GRANULARITIES)), draw(st.sampled_from(GRANULARITIES))
    some = draw(st.sampled_from(present)).name
    partition = draw(st.sampled_from([one, {"*": one}, {some: other, "*": one}]))
    used = {one}
    if isinstance(partition, dict) and len(partition) == 2:
        used = {other} | ({one} if len(present) > 1 else set())
    return parameters, partition, draw(st.integers(1, 12)) if "quasi-node" in used else None


def entries(group, padding=3):
    """A recording (2, rows, n + padding) of distinct numbers >= 0, -1 in the padding."""
    buffer = np.full((2, group.rows, group.n + padding), -1.0)
    buffer[:, :, : group.n] = np.arange(2 * group.rows * group.n).reshape(2, group.rows, group.n)
    return buffer


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_parameter_is_covered_once(case):
    found = groups(*case)
    pieces = [piece for group in found for piece in group.pieces]
    present = [parameter.name for parameter in case[0] if parameter.size]
    assert sorted(piece.parameter.name for piece in pieces) == sorted(present)
    for group in found:
        at = 0
        for piece in group.pieces:  # side by side, no gap, no overlap
            assert piece.start == at
            assert piece.width * group.rows == piece.parameter.size
            assert group.rows in (1, piece.parameter.units)
            at += piece.width
        assert at == group.n
        assert sum(math.prod(size) for size in group.block_sizes) == group.rows * group.n


@given(cases())
@settings(max_examples=100, deadline=None)
def test_blocks_see_every_number_once_and_no_padding(case):
    for group in groups(*case):
        buffer = entries(group)
        views = group.blocks(buffer)
        assert [(math.prod(v.shape[1:-1]), v.shape[-1]) for v in views] == group.block_sizes
        seen = np.concatenate([view[0].ravel() for view in views])
        assert np.array_equal(np.sort(seen), np.arange(group.rows * group.n))
        assert all(np.shares_memory(view, buffer) for view in views)


# Views of a recording


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("partition", "q"), [("weight", None), ("quasi-node", 3), ("quasi-node", 99), ("node", None), ("layer", None)]
)
def test_blocks_are_views_of_the_recording(kind, padding, partition, q):
    [group] = groups(LINEAR, partition, q)
    buffer = entries(group, padding)
    truth = buffer.copy()
    if kind == "torch":
        buffer = pytest.importorskip("torch").from_numpy(buffer)
    views = group.blocks(buffer)
    assert [(math.prod(v.shape[1:-1]), v.shape[-1]) for v in views] == group.block_sizes
    flat = truth[:, :, : group.n]
    expected = {
        "weight": [flat[..., None]],
        "node": [flat],
        "layer": [flat],
        "quasi-node": [flat[:, :, :6].reshape(2, 5, 2, 3), flat[:, :, 6:]] if q == 3 else [flat],
    }[partition]
    for view, values in zip(views, expected, strict=True):
        assert np.array_equal(np.asarray(view), values)
        assert np.shares_memory(np.asarray(view), np.asarray(buffer))
        view[...] = -2.0  # written through
    assert bool((buffer[:, :, : group.n] == -2.0).all())
    assert bool((buffer[:, :, group.n :] == -1.0).all())


def test_blocks_of_part_of_a_recording_keep_its_strides():
    [group] = groups(LINEAR, "quasi-node", q=4)
    buffer = np.zeros((9, 5, 12))
    [view] = group.blocks(buffer[:4])
    assert view.shape == (4, 5, 2, 4)
    assert view.strides == (5 * 12 * 8, 12 * 8, 4 * 8, 8)


# Errors


@pytest.mark.parametrize("partition", ["nodes", "Node", "", None, 3, ("node",)])
def test_unknown_granularity(partition):
    with pytest.raises(ValueError, match=r"partition: expected one of 'weight', 'quasi-node', .*, got"):
        groups(MLP, partition)


@pytest.mark.parametrize("partition", [{"*": "nodes"}, {"0.*": "node", "*": None}])
def test_unknown_granularity_in_a_mapping(partition):
    with pytest.raises(ValueError, match=r"partition: expected one of 'weight', 'quasi-node', .*, got"):
        groups(MLP, partition)


@pytest.mark.parametrize("partition", [{}, {"0.*": "node"}])
def test_parameter_without_a_pattern(partition):
    with pytest.raises(ValueError, match=r"partition: no pattern matches '.*'; add \"\*\" as the last one"):
        groups(MLP, partition)


def test_pattern_without_a_parameter():
    with pytest.raises(ValueError, match=r"partition: the pattern 'embed.\*' matches no parameter"):
        groups(MLP, {"embed.*": "layer", "*": "node"})


def test_q_missing():
    with pytest.raises(ValueError, match='q: the partition "quasi-node" needs q'):
        groups(MLP, "quasi-node")
    with pytest.raises(ValueError, match='q: the partition "quasi-node" needs q'):
        groups(MLP, {"0.*": "quasi-node", "*": "node"})


@pytest.mark.parametrize("partition", ["weight", "node", "layer", "network", {"*": "node"}])
def test_q_without_a_quasi_node(partition):
    with pytest.raises(ValueError, match='q: only the partition "quasi-node" takes q, got q=4 with'):
        groups(MLP, partition, q=4)


@pytest.mark.parametrize("q", [0, -1])
def test_q_out_of_range(q):
    with pytest.raises(ValueError, match=f"q: expected an integer >= 1, got {q}"):
        groups(MLP, "quasi-node", q=q)


@pytest.mark.parametrize("q", [2.0, "2", True])
def test_q_not_an_integer(q):
    with pytest.raises(TypeError, match="q: expected an integer, got"):
        groups(MLP, "quasi-node", q=q)


@pytest.mark.parametrize("parameters", [[], [Parameter("0.weight", (0, 5))]])
def test_no_parameters(parameters):
    with pytest.raises(ValueError, match="partition: the model has no parameters to record"):
        groups(parameters)
