"""Strided views as one flat array and offsets; aligned results."""

import numpy as np
import pytest
from cases import aligned, strided_views

from fastkoop.kernels.cpu import layout


def read(source):
    """All entries through flat, offsets and strides, as the kernels read them."""
    t, b, i = np.ix_(np.arange(source.columns), np.arange(len(source.offsets)), np.arange(source.n))
    return source.flat[source.offsets[b] + t * source.time_stride + i * source.stride]


@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 1, 1), (2, 1, 7), (5, 4, 1)])
def test_every_view_reads_the_same(shape, dtype, rng):
    X = rng.normal(size=shape).astype(dtype)
    for name, view in strided_views(X).items():
        source = layout.blocks_of(view)
        np.testing.assert_array_equal(read(source), X, err_msg=name)
        assert np.shares_memory(source.flat, view), name
        assert source.dtype == dtype
        for b in range(shape[1]):
            np.testing.assert_array_equal(source.block(b), X[:, b], err_msg=name)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_batches_are_flattened_in_order(batch, rng):
    X = rng.normal(size=(4, *batch, 5))
    source = layout.blocks_of(X)
    assert source.batch == batch
    assert len(source.offsets) == int(np.prod(batch))
    if X.size:
        np.testing.assert_array_equal(read(source), X.reshape(4, -1, 5))
        flipped = np.flip(X)
        np.testing.assert_array_equal(read(layout.blocks_of(flipped)), flipped.reshape(4, -1, 5))


def test_broadcast_axes_have_no_stride(rng):
    X = np.broadcast_to(rng.normal(size=(4, 1, 5)), (4, 1000, 5))
    source = layout.blocks_of(X)
    assert len(source.flat) == 20
    assert not source.offsets.any()


def test_the_flat_view_cannot_be_written(rng):
    source = layout.blocks_of(rng.normal(size=(3, 2, 4)))
    assert not source.flat.flags.writeable
    assert not source.block(0).flags.writeable


def test_strides_must_be_whole_elements():
    raw = np.zeros((3, 4), np.dtype([("skip", "i1"), ("x", "f8")]))["x"]
    with pytest.raises(ValueError, match=r"X: expected strides in whole elements of 8 bytes, got .*ascontiguous"):
        layout.blocks_of(raw)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 1, 3), (0, 4)])
def test_aligned_empty(shape, dtype):
    for _ in range(8):
        made = layout.aligned_empty(shape, dtype)
        assert made.shape == shape
        assert made.dtype == dtype
        assert made.flags.c_contiguous
        assert made.flags.writeable
        assert aligned(made) or not made.size
