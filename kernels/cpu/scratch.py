"""Memory that kernels work in, as Numba intrinsics.

`np.empty` inside a compiled function brings Numba's formatting of error messages with it: a sixth of the time that a
first prediction took to compile. These allocate on cache lines, raise MemoryError, and do nothing else.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.imputils import impl_ret_new_ref
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .jit import jit_allocating
from .simd import LANES, lanes

ALIGNMENT = 64


def _allocated(context, builder, kind, shape):
    """A new C-ordered array of 8-byte numbers."""
    size, strides = ir.Constant(shape[0].type, 8), []
    for extent in reversed(shape):
        strides.insert(0, size)
        size = builder.mul(size, extent)
    memory = context.nrt.meminfo_alloc_aligned(builder, size=size, align=context.get_constant(types.uint32, ALIGNMENT))
    data = builder.bitcast(context.nrt.meminfo_data(builder, memory), context.get_data_type(kind.dtype).as_pointer())
    array = context.make_array(kind)(context, builder)
    populate_array(
        array, data=data, shape=shape, strides=strides, itemsize=ir.Constant(shape[0].type, 8), meminfo=memory
    )
    return impl_ret_new_ref(context, builder, kind, array._getvalue())


@intrinsic
def vector(typingctx, n):
    """Uninitialised float64 (n,)."""
    kind = types.Array(types.float64, 1, "C")
    return kind(types.int64), lambda context, builder, signature, shape: _allocated(context, builder, kind, shape)


@intrinsic
def matrix(typingctx, rows, columns):
    """Uninitialised float64 (rows, columns)."""
    kind = types.Array(types.float64, 2, "C")
    return kind(types.int64, types.int64), lambda context, builder, _, shape: _allocated(context, builder, kind, shape)


@intrinsic
def integers(typingctx, rows, columns):
    """Uninitialised int64 (rows, columns)."""
    kind = types.Array(types.int64, 2, "C")
    return kind(types.int64, types.int64), lambda context, builder, _, shape: _allocated(context, builder, kind, shape)


@jit_allocating
def tile_of(rows, columns):
    """Zeros (rows, >= columns), every row on a cache line of its own and no two on the same set of the cache."""
    stride = lanes(columns)
    if stride % 512 == 0:  # 4096 bytes
        stride += LANES
    tile = matrix(rows, stride)
    for i in range(rows):
        for j in range(stride):
            tile[i, j] = 0.0
    return tile
