"""Operators of single blocks, gathered, merged and trimmed."""

import numpy as np
import pytest

from fastkoop.kernels import factors
from fastkoop.kernels.contract import COORDINATES, Factors


def reduced(rank, order=3, tall=True, route=3):
    rng = np.random.default_rng(rank)
    basis = rng.normal(size=(order, rank))
    readout = basis if tall else rng.normal(size=(order, rank))
    square, start = rng.normal(size=(rank, rank)), rng.normal(size=rank)
    return factors.Reduced(basis, readout, square, start, rank, 0.5, 2.0, 1.0, True, route)


@pytest.mark.parametrize("tall", [True, False])
def test_assembled_blocks_are_padded_with_zeros(tall):
    parts = [reduced(2, tall=tall), factors.empty(3, 0), reduced(1, tall=tall)]
    got = factors.assemble(parts, 3)
    assert (
        got.rank.tolist() == [2, 0, 1] and got.route.tolist() == [3, 0, 3] and got.edge.tolist() == [True, False, True]
    )
    assert (got.readout is got.basis) == (tall and all(part.readout is part.basis for part in parts))
    for b, part in enumerate(parts):
        for name in COORDINATES:
            block, own = getattr(got, name)[b], getattr(part, name)
            np.testing.assert_array_equal(block[tuple(slice(size) for size in own.shape)], own)
            assert np.count_nonzero(block) == np.count_nonzero(own)
    assert factors.assemble([], 3).basis.shape == (0, 3, 0)


def test_merged_blocks_take_their_place():
    whole = factors.assemble([reduced(1), reduced(1), factors.empty(3, 4)], 3)
    exact = factors.assemble([reduced(3)], 3)
    got = factors.merge(whole, np.array([1]), exact)
    assert got.rank.tolist() == [1, 3, 0] and got.operator.shape == (3, 3, 3) and got.readout is got.basis
    np.testing.assert_array_equal(got.operator[1], exact.operator[0])
    back = factors.merge(got, np.array([1]), factors.assemble([reduced(2)], 3))
    assert back.operator.shape == (3, 2, 2)
    np.testing.assert_array_equal(back.start[0], [whole.start[0, 0], 0.0])


def test_trimming_keeps_what_needs_no_trimming():
    whole = factors.assemble([reduced(2)], 3)
    assert factors.trim(whole) is whole
    wider = Factors(**{
        name: np.pad(array, [(0, int(axis in COORDINATES.get(name, ()))) for axis in range(array.ndim)])
        for name, array in whole._asdict().items()
    })  # fmt: skip
    for got, expected in zip(factors.trim(wider), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_ends():
    assert factors.ends(np.array([3.0, 2.0, 1.0]), 2.0) == (6.0, 2.0)
    assert factors.ends(np.array([])) == (0.0, 0.0)
