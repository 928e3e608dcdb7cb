"""The rarer ways through a block, each compiled when a block first needs it.

What a kernel calls Numba links into it and optimises again, so that a kernel with every way in it took 20 seconds to
compile, of which most blocks need a fifth. The fused kernels therefore get the *address* of a part that all calls of
one kind share, or 0: then the block is left pending, and done again once the part is there. A part takes a block's
Gram matrix and some memory, whatever the data's dtype and layout, and calls that cost nothing beside its work.
"""

from __future__ import annotations

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..plan import CHOLESKY, EIGEN
from .algebra import (
    advance,
    advance_companion,
    advance_wide,
    decompose,
    inverse_apply,
    reduce_snapshots,
    reduce_weights,
    truncated_solve,
)
from .dense import QL_ITERATIONS, ROTATIONS, cholesky, clear_rows, copy_rows, copy_upper, matvec
from .gram import mirror
from .jit import jit, jit_part
from .scratch import integers_in, rows_in, stride_of
from .selection import companion_squaring_pays, squaring_pays
from .simd import copy, lanes

ROWS, ROW = types.Array(types.float64, 2, "C"), types.Array(types.float64, 1, "C")
SIGNATURE = types.int64(
    ROWS, ROWS, ROW, ROW, types.int64, types.int64, types.int64, types.float64, types.int64, types.float64,
    types.UniTuple(types.float64, 3),
)  # fmt: skip
# Routes of blocks that are to be done again with the part for blocks that are not certified, or are.
UNCERTIFIED, CERTIFIED = -1, -2


@intrinsic
def run_part(
    typingctx, address, S, D, x, memory, order, steps, kind, value, digits, scale, resolution
):  # fmt: skip
    """The route of a block by the part at this address; see `Part`."""

    def code(context, builder, signature, arguments):
        kind = context.call_conv.get_function_type(SIGNATURE.return_type, SIGNATURE.args)
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        status, route = context.call_conv.call_function(
            builder, function, SIGNATURE.return_type, SIGNATURE.args, arguments[1:]
        )
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return route

    return types.int64(types.int64, *SIGNATURE.args), code


class Part:
    """A function of (S, D, x, memory, order, steps, kind, value, digits, scale, resolution) that returns a route.

    S: the upper triangle of the normalized Gram matrix, with x_last's column beside it if tall; D: Fp F^T of a wide
    block; x: what is solved for, overwritten by the answer; memory: `room(order)` numbers to work in.
    """

    def __init__(self, function):
        self._function, self.address = function, 0  # 0 until it is compiled

    def compile(self) -> None:
        """Make the part ready, from disk where it is kept."""
        if not self.address:
            self._function.compile(SIGNATURE)
            result = self._function.overloads[SIGNATURE.args]
            self.address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


@jit
def room(order):
    """Numbers that a part works in."""
    return 7 * order * stride_of(order) + 10 * stride_of(order) + 2 * _logged(order) + 3 * QL_ITERATIONS * order


@jit
def _logged(order):
    """Room for a log of rotations."""
    return lanes(ROTATIONS * order * order)


@Part
@jit_part
def truncated_step(S, D, x, memory, order, steps, kind, value, digits, scale, resolution):
    """x <- S^+ x, truncated."""
    width, log = stride_of(order), _logged(order)
    A, work = rows_in(memory, 0, order, width), rows_in(memory, order * width, 7, width)
    clear_rows(A, order)
    clear_rows(work, 7)
    rotations = rows_in(memory, (order + 7) * width, 2, log)
    sweeps = integers_in(memory, (order + 7) * width + 2 * log, QL_ITERATIONS * order, 3)
    mirror(S, order)
    copy_rows(S, A, order, order)
    return truncated_solve(
        A, order, x, kind, value, digits, scale, resolution, work, work[5:], rotations, sweeps
    )  # fmt: skip


@jit
def _begun(S, rows, memory, order):
    """A full copy of S, five matrices beside it, eight rows and a log without rotations, in a part's memory."""
    width = stride_of(order)
    size = order * width
    A, sweeps = rows_in(memory, 0, order, width), integers_in(memory, 6 * size + 8 * width, 1, 3)
    mirror(S, rows)
    clear_rows(A, order)
    copy_rows(S, A, order, order)
    a, b = rows_in(memory, size, order, width), rows_in(memory, 2 * size, order, width)
    c, d = rows_in(memory, 3 * size, order, width), rows_in(memory, 4 * size, order, width)
    return A, a, b, c, d, rows_in(memory, 5 * size, order, width), rows_in(memory, 6 * size, 8, width), sweeps


@Part
@jit_part
def truncated_tall(S, D, x, memory, order, steps, kind, value, digits, scale, resolution):
    """x <- coefficients of K^steps x_last by the reduced operator of a tall block."""
    A, Z, basis, operator, P, Q, work, sweeps = _begun(S, order + 1, memory, order)
    d, y, spare = work[5], work[6], work[7]
    route, rank, _, _ = decompose(A, order, kind, value, digits, scale, resolution, work, sweeps, d, Z)
    if route == EIGEN:
        reduce_snapshots(S, order, rank, d, Z, basis, operator, y, work[0])
        advance(operator, rank, y, steps - 1, spare, P, Q)
        matvec(basis, y, order, rank, x)
    return route


@Part
@jit_part
def truncated_wide(S, D, x, memory, order, steps, kind, value, digits, scale, resolution):
    """x = x_last <- K^steps x_last by the reduced operator of a wide block."""
    A, Z, basis, operator, readout, P, work, sweeps = _begun(S, order, memory, order)
    d, y, spare = work[5], work[6], work[7]
    route, rank, _, _ = decompose(A, order, kind, value, digits, scale, resolution, work, sweeps, d, Z)
    if route == EIGEN:
        reduce_weights(D, x, order, rank, d, Z, basis, readout, operator, y)
        advance(operator, rank, y, steps - 1, spare, P, A)  # A has served
        matvec(readout, y, order, rank, x)
    return route


@Part
@jit_part
def far_tall(S, D, x, memory, order, steps, kind, value, digits, scale, resolution):
    """x = F^+ x_last <- (F^+ Fp)^(steps - 1) x of a tall block of full rank, by squaring where that is less work."""
    width = stride_of(order)
    size = order * width
    work = rows_in(memory, 3 * size, 2, width)
    a, spare = work[0], work[1]
    M, P, Q = (
        rows_in(memory, 0, order, width),
        rows_in(memory, size, order, width),
        rows_in(memory, 2 * size, order, width),
    )
    copy(x, a, 0, order)
    advance_companion(a, order, steps - 1, x, spare, M, P, Q)
    return CHOLESKY


@Part
@jit_part
def full_wide(S, D, x, memory, order, steps, kind, value, digits, scale, resolution):
    """x = x_last <- (D S^-1)^steps x of a wide block of full rank."""
    width = stride_of(order)
    size = order * width
    work = rows_in(memory, 4 * size, 2, width)
    y, spare = work[0], work[1]
    R, operator = rows_in(memory, 0, order, width), rows_in(memory, size, order, width)
    clear_rows(R, order)
    P, Q = rows_in(memory, 2 * size, order, width), rows_in(memory, 3 * size, order, width)
    copy_upper(S, R, order, order)
    cholesky(R, order, order)
    if squaring_pays(steps, order):
        for i in range(order):
            inverse_apply(R, order, D[i], spare, operator[i])  # K = D C^-1, to be squared
        advance(operator, order, x, steps, spare, P, Q)
    else:
        advance_wide(R, D, order, steps, x, spare, y)
    return CHOLESKY


def rest_of(wide: bool, steps: int, hopeless: bool) -> Part | None:
    """The part for blocks that are not certified; None where it could not answer one."""
    if hopeless:
        return None
    return truncated_step if steps == 1 else truncated_wide if wide else truncated_tall


def far_of(wide: bool, steps: int, m: int) -> Part | None:
    """The part for certified blocks, where one step or a recurrence does not do."""
    if wide:
        return full_wide if steps > 1 else None
    return far_tall if companion_squaring_pays(steps - 1, m) else None
