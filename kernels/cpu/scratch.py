"""Memory that kernels work in, as Numba intrinsics.

`np.empty` inside a compiled function brings Numba's formatting of error messages with it: a sixth of the time that a
first prediction took to compile. These allocate on cache lines, raise MemoryError, and do nothing else.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.imputils import impl_ret_new_ref
from numba.extending import intrinsic

from .jit import jit, jit_allocating
from .simd import LANES, clear, lanes

ALIGNMENT = 64


def _filled(*arguments, **fields) -> None:
    """Numba's `populate_array`, imported where something is compiled: loading kernels from disk takes none of it."""
    from numba.np.arrayobj import populate_array

    populate_array(*arguments, **fields)


def _allocated(context, builder, kind, shape):
    """A new C-ordered array of 8-byte numbers."""
    size, strides = ir.Constant(shape[0].type, 8), []
    for extent in reversed(shape):
        strides.insert(0, size)
        size = builder.mul(size, extent)
    memory = context.nrt.meminfo_alloc_aligned(builder, size=size, align=context.get_constant(types.uint32, ALIGNMENT))
    data = builder.bitcast(context.nrt.meminfo_data(builder, memory), context.get_data_type(kind.dtype).as_pointer())
    array = context.make_array(kind)(context, builder)
    _filled(array, data=data, shape=shape, strides=strides, itemsize=ir.Constant(shape[0].type, 8), meminfo=memory)
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


def _window(context, builder, kind, memory, arguments):
    """An array over a part of a row of float64, which must outlive it."""
    start, *shape = arguments
    size = ir.Constant(start.type, 8)
    data = builder.gep(context.make_array(types.Array(types.float64, 1, "C"))(context, builder, memory).data, [start])
    data = builder.bitcast(data, context.get_data_type(kind.dtype).as_pointer())
    array = context.make_array(kind)(context, builder)
    _filled(array, data=data, shape=shape, strides=[builder.mul(shape[1], size), size], itemsize=size, meminfo=None)
    return array._getvalue()


def _windows(number):
    """An intrinsic for (rows, columns) such numbers in the memory of a row of float64."""
    kind, row, count = types.Array(number, 2, "C"), types.Array(types.float64, 1, "C"), types.int64

    def window(typingctx, memory, start, rows, columns):
        if memory != row:
            return None

        def code(context, builder, signature, arguments):
            return _window(context, builder, kind, arguments[0], arguments[1:])

        return kind(memory, count, count, count), code

    return intrinsic(window)


rows_in = _windows(types.float64)  # (memory, start, rows, columns) -> float64 (rows, columns) from memory[start] on
integers_in = _windows(types.int64)  # the same as int64


@jit
def stride_of(columns):
    """Numbers from row to row of a tile with so many columns."""
    stride = lanes(columns)
    return stride + LANES if stride % 512 == 0 else stride  # 4096 bytes


@jit_allocating
def tile_of(rows, columns):
    """Zeros (rows, >= columns), every row on a cache line of its own and no two on the same set of the cache."""
    tile = matrix(rows, stride_of(columns))
    for row in range(rows):
        clear(tile[row], 0, tile.shape[1])
    return tile
