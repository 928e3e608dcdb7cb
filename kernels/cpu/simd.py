"""Loops over rows of float64 in whole vectors, and prefetching, as Numba intrinsics.

LLVM guards a loop that stores into one row what it computes from others with checks that the rows do not overlap,
and ends it with a scalar remainder; on rows of tens of numbers that costs more than the arithmetic. These loops
have neither: `first` and `last` are multiples of LANES, within rows that are padded to one.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from .jit import jit

LANES = 8  # an AVX-512 register; LLVM splits it where registers are narrower
# The register block of `add_products` must fit the registers: MICRO^2 sums and 2 MICRO operands.
MICRO = 3
MICRO_LANES = 8 if "avx512f" in (config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten()) else 4
INDEX, DOUBLE = ir.IntType(64), ir.DoubleType()
VECTOR = ir.VectorType(DOUBLE, LANES)


@jit
def lanes(n):
    """n, up to a multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES


def _data(context, builder, kind, array):
    """Pointer to an array's first entry."""
    return context.data_model_manager[kind].get(builder, array, "data")


def _multiply_add(builder, a, b, c):
    """a b + c, rounded once."""
    name = f"llvm.fma.v{a.type.count}f64"
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(fma, [a, b, c])


def _sum(builder, vector):
    """The sum of a vector's lanes, in pairs."""
    name, kind = f"llvm.vector.reduce.fadd.v{vector.type.count}f64", ir.FunctionType(DOUBLE, [DOUBLE, vector.type])
    reduce = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(reduce, [DOUBLE(-0.0), vector], fastmath=("reassoc",))


def _rows(*rows):
    """Whether these are types of float64 arrays whose rows' numbers are neighbours."""
    return all(isinstance(row, types.Array) and row.dtype == types.float64 and row.layout == "C" for row in rows)


def _view(context, builder, kind, array, first, length):
    """`length` numbers of a row from `first` on."""
    model, nothing = context.data_model_manager[kind], ir.Constant(ir.PointerType(ir.IntType(8)), None)
    data = builder.gep(model.get(builder, array, "data"), [first])
    view = model.set(builder, model.set(builder, array, data, "data"), length, "nitems")
    shape = builder.insert_value(model.get(builder, array, "shape"), length, 0)
    view = model.set(builder, view, shape, "shape")
    return model.set(builder, model.set(builder, view, nothing, "meminfo"), nothing, "parent")


def _is_row(array):
    """Whether this is the type of a row of numbers that lie side by side."""
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"


@intrinsic
def tail(typingctx, row, first):
    """row[first:], which must not outlive the row; 0 <= first <= len(row). A slice takes ten times the code."""
    if not _is_row(row):
        return None

    def code(context, builder, signature, arguments):
        shape = context.data_model_manager[row].get(builder, arguments[0], "shape")
        length = builder.sub(builder.extract_value(shape, 0), arguments[1])
        return _view(context, builder, row, *arguments, length)

    return row(row, types.int64), code


@intrinsic
def span(typingctx, row, first, length):
    """row[first : first + length] in the same way."""
    if not _is_row(row):
        return None

    def code(context, builder, signature, arguments):
        return _view(context, builder, row, *arguments)

    return row(row, types.int64, types.int64), code


@intrinsic
def copy(typingctx, source, target, first, last):
    """target[first:last] = source[first:last], rows that do not overlap; first <= last."""
    if not _rows(source, target):
        return None

    def code(context, builder, signature, arguments):
        rows = [_data(context, builder, *pair) for pair in zip(signature.args[:2], arguments[:2], strict=True)]
        first, last = arguments[2:]
        source, target = (builder.gep(row, [first]) for row in rows)
        cgutils.raw_memcpy(builder, target, source, builder.sub(last, first), ir.Constant(INDEX, 8))
        return context.get_dummy_value()

    return types.void(source, target, types.int64, types.int64), code


@intrinsic
def clear(typingctx, target, first, last):
    """target[first:last] = 0; first <= last."""
    if not _rows(target):
        return None

    def code(context, builder, signature, arguments):
        row = _data(context, builder, signature.args[0], arguments[0])
        size = builder.mul(builder.sub(arguments[2], arguments[1]), ir.Constant(INDEX, 8))
        cgutils.memset(builder, builder.gep(row, [arguments[1]]), size, 0)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64), code


class _Body:
    """What the body of a loop may say: vectors of rows at the loop's index, and fused multiply-adds."""

    def __init__(self, context, builder, kinds, values):
        self._builder = builder
        self._values = [
            _data(context, builder, kind, value) if isinstance(kind, types.Array) else self._all(value)
            for kind, value in zip(kinds, values, strict=True)
        ]

    def _all(self, value):
        one = self._builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        return self._builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    def scalars(self, count):
        return self._values[:count]

    def row(self, i, index):
        return self._builder.bitcast(self._builder.gep(self._values[i], [index]), ir.PointerType(VECTOR))

    def load(self, pointer):
        vector = self._builder.load(pointer)
        vector.align = 8
        return vector

    def store(self, vector, pointer):
        self._builder.store(vector, pointer).align = 8

    def add_product(self, total, a, b):
        return _multiply_add(self._builder, a, b, total)

    def minus(self, a):
        return self._builder.fneg(a)

    def product(self, a, b):
        return self._builder.fmul(a, b)


def _loop(scalars: int, arrays: tuple, body):
    """Signature and code of an intrinsic f(first, last, scalars ..., rows ...)."""
    if any(not isinstance(a, types.Array) or a.dtype != types.float64 or a.layout != "C" for a in arrays):
        return None  # Numba then says which call does not fit
    signature = types.void(types.int64, types.int64, *[types.float64] * scalars, *arrays)

    def code(context, builder, signature, arguments):
        say = _Body(context, builder, signature.args[2:], arguments[2:])
        first, last = arguments[:2]
        with cgutils.for_range_slice(builder, first, last, ir.Constant(INDEX, LANES), INDEX) as (index, _):
            body(say, *say.scalars(scalars), *[say.row(scalars + i, index) for i in range(len(arrays))])
        return context.get_dummy_value()

    return signature, code


@intrinsic
def scale(typingctx, first, last, a, row):
    """row *= a."""

    def body(say, a, row):
        say.store(say.product(a, say.load(row)), row)

    return _loop(1, (row,), body)


@intrinsic
def subtract2(typingctx, first, last, a, b, x, y, row):
    """row -= a x + b y."""

    def body(say, a, b, x, y, row):
        total = say.add_product(say.load(row), say.minus(a), say.load(x))
        say.store(say.add_product(total, say.minus(b), say.load(y)), row)

    return _loop(2, (x, y, row), body)


@intrinsic
def subtract4(typingctx, first, last, a, b, c, d, x, y, z, w, row):
    """row -= a x + b y + c z + d w."""

    def body(say, a, b, c, d, x, y, z, w, row):
        total = say.load(row)
        for scalar, other in ((a, x), (b, y), (c, z), (d, w)):
            total = say.add_product(total, say.minus(scalar), say.load(other))
        say.store(total, row)

    return _loop(4, (x, y, z, w, row), body)


@intrinsic
def subtract2_and_sum(typingctx, first, last, a, b, c, d, e, f, x, y, row, other, total):
    """row -= a x + b y and other -= d x + e y, then total += c row + f other: two rows of a rank-two update and of
    the next product with the matrix in one pass."""

    def body(say, a, b, c, d, e, f, x, y, row, other, total):
        left, right, sum_ = say.load(x), say.load(y), say.load(total)
        for p, q, share, at in ((a, b, c, row), (d, e, f, other)):
            new = say.add_product(say.load(at), say.minus(p), left)
            new = say.add_product(new, say.minus(q), right)
            say.store(new, at)
            sum_ = say.add_product(sum_, share, new)
        say.store(sum_, total)

    return _loop(6, (x, y, row, other, total), body)


@intrinsic
def add(typingctx, first, last, a, x, row):
    """row += a x."""

    def body(say, a, x, row):
        say.store(say.add_product(say.load(row), a, say.load(x)), row)

    return _loop(1, (x, row), body)


@intrinsic
def inner(typingctx, last, x, y):
    """The product of two rows over 0 .. last, a positive multiple of LANES."""
    if any(not isinstance(row, types.Array) or row.dtype != types.float64 or row.layout != "C" for row in (x, y)):
        return None

    def code(context, builder, signature, arguments):
        rows = [_data(context, builder, *pair) for pair in zip(signature.args[1:], arguments[1:], strict=True)]
        before, loop, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        k, total = builder.phi(INDEX), builder.phi(VECTOR)
        k.add_incoming(INDEX(0), before)
        total.add_incoming(ir.Constant(VECTOR, [0.0] * LANES), before)
        left, right = (builder.load(builder.bitcast(builder.gep(row, [k]), ir.PointerType(VECTOR))) for row in rows)
        left.align = right.align = 8
        new, following = _multiply_add(builder, left, right, total), builder.add(k, INDEX(LANES))
        total.add_incoming(new, loop)
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[0]), loop, done)
        builder.position_at_end(done)
        return _sum(builder, new)

    return types.float64(types.int64, x, y), code


@intrinsic
def rotate(typingctx, first, last, c, s, x, y):
    """Givens rotation: x, y <- c x - s y, s x + c y."""

    def body(say, c, s, x, y):
        a, b = say.load(x), say.load(y)
        say.store(say.add_product(say.product(c, a), say.minus(s), b), x)
        say.store(say.add_product(say.product(s, a), c, b), y)

    return _loop(2, (x, y), body)


@intrinsic
def add_products(typingctx, width, T, i, left, U, j, right, S):
    """S[i:i+3, j:j+3] += T[i:i+3, left:] U[j:j+3, right:]^T over `width` numbers, a positive multiple of MICRO_LANES.

    Nine sums of MICRO_LANES each stay in registers; six loads feed nine multiply-adds.
    """
    if any(
        not isinstance(A, types.Array) or A.dtype != types.float64 or A.layout != "C" or A.ndim != 2 for A in (T, U, S)
    ):
        return None
    vector = ir.VectorType(DOUBLE, MICRO_LANES)

    def code(context, builder, signature, arguments):
        width, T, i, left, U, j, right, S = arguments
        rows = []
        for kind, A, row, column in ((signature.args[1], T, i, left), (signature.args[4], U, j, right),
                                     (signature.args[7], S, i, j)):  # fmt: skip
            array = context.make_array(kind)(context, builder, A)
            across = builder.sdiv(cgutils.unpack_tuple(builder, array.strides)[0], INDEX(8))
            for k in range(MICRO):
                start = builder.add(builder.mul(builder.add(row, INDEX(k)), across), column)
                rows.append(builder.gep(array.data, [start]))
        before, loop, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(INDEX)
        k.add_incoming(INDEX(0), before)
        sums = [builder.phi(vector) for _ in range(MICRO * MICRO)]
        operands = [builder.load(builder.bitcast(builder.gep(row, [k]), ir.PointerType(vector))) for row in rows[:6]]
        for operand in operands:
            operand.align = 8
        totals = []
        for i, total in enumerate(sums):
            totals.append(_multiply_add(builder, operands[i // MICRO], operands[MICRO + i % MICRO], total))
            total.add_incoming(ir.Constant(vector, [0.0] * MICRO_LANES), before)
            total.add_incoming(totals[i], loop)
        following = builder.add(k, INDEX(MICRO_LANES))
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, width), loop, done)
        builder.position_at_end(done)
        for i, total in enumerate(totals):
            one = _sum(builder, total)
            entry = builder.gep(rows[2 * MICRO + i // MICRO], [INDEX(i % MICRO)])
            builder.store(builder.fadd(builder.load(entry), one), entry)
        return context.get_dummy_value()

    number = types.int64
    return types.void(number, T, number, number, U, number, number, S), code


@intrinsic
def turn4(typingctx, flat, start, stride, p, q, r, s, at):
    """p, q, r, s [at:at+4] = the numbers 0, 1, 2, 3 of four runs in `flat`, `stride` apart: a 4 x 4 transpose."""
    rows = (p, q, r, s)
    if any(not isinstance(row, types.Array) or row.dtype != types.float64 or row.layout != "C" for row in rows):
        return None
    if not (isinstance(flat, types.Array) and flat.ndim == 1 and flat.layout == "C"):
        return None
    four = ir.VectorType(DOUBLE, 4)

    def code(context, builder, signature, arguments):
        kind = context.get_data_type(flat.dtype)
        source = _data(context, builder, flat, arguments[0])
        runs = []
        for i in range(4):
            first = builder.add(arguments[1], builder.mul(arguments[2], INDEX(i)))
            run = builder.load(builder.bitcast(builder.gep(source, [first]), ir.PointerType(ir.VectorType(kind, 4))))
            run.align = flat.dtype.bitwidth // 8
            runs.append(run if kind == DOUBLE else builder.fpext(run, four))

        def mix(a, b, *order):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), 4), list(order)))

        even, odd = (mix(runs[0], runs[1], i, 4 + i, 2 + i, 6 + i) for i in (0, 1))
        even_, odd_ = (mix(runs[2], runs[3], i, 4 + i, 2 + i, 6 + i) for i in (0, 1))
        turned = [mix(a, b, i, i + 1, i + 4, i + 5) for i in (0, 2) for a, b in ((even, even_), (odd, odd_))]
        for vector, row in zip(turned, arguments[3:7], strict=True):
            entry = builder.gep(_data(context, builder, p, row), [arguments[7]])
            builder.store(vector, builder.bitcast(entry, ir.PointerType(four))).align = 8
        return context.get_dummy_value()

    return types.void(flat, types.int64, types.int64, *rows, types.int64), code


@intrinsic
def address_of(typingctx, array, index):
    """Where array[index] lies, whether there is such an element or not."""
    if not (isinstance(array, types.Array) and array.ndim == 1):
        return None

    def code(context, builder, signature, arguments):
        data = _data(context, builder, signature.args[0], arguments[0])
        return builder.ptrtoint(builder.gep(data, [arguments[1]]), INDEX)

    return types.int64(array, types.int64), code


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address to be brought to the L2 cache; any is safe."""

    def code(context, builder, signature, arguments):
        byte, integer = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        call = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte] + [integer] * 3), "llvm.prefetch.p0"
        )
        where = builder.inttoptr(arguments[0], byte)
        builder.call(call, [where] + [ir.Constant(integer, value) for value in (0, 2, 1)])  # read, L2, data
        return context.get_dummy_value()

    return types.void(types.int64), code
