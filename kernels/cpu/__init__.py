"""The contract's functions on a CPU: Numba kernels for small blocks, BLAS and LAPACK for large ones."""

from __future__ import annotations

import numpy as np

from ..contract import (
    DIGITS,
    Factors,
    Rule,
    ascending,
    check_coefficients,
    check_gram,
    check_side,
)
from ..cutoffs import LEAST_SQUARED, keeps_constant, needs_largest_only
from ..factors import Reduced, assemble, merge, trim
from ..plan import KERNEL_ORDER, NON_FINITE, SVD, UNRESOLVED, ZERO, Plan, plan, resolution
from . import algebra, fused, large, library, parts, refined, svd
from . import gram as blocks
from .large import LIBRARY_ROWS, LIBRARY_STATES, over_large, quiet, reduce_by_svd
from .layout import Blocks, aligned_empty, blocks_of
from .pool import over_blocks
from .prepared import MOST_BLOCKS, prepared

xp = np  # the array module of this backend


def host(array: np.ndarray) -> np.ndarray:
    """The array in host memory, where it is."""
    return np.asarray(array)


def rows_of(array: np.ndarray) -> Blocks:
    """Rows (q, ..., n) as `combine` takes them at least cost."""
    return blocks_of(array)


def _shape(X: np.ndarray, steps: int = 1) -> tuple[Blocks, int, int, Plan]:
    source = blocks_of(X)
    n, m = source.n, source.columns - 1
    return source, n, m, plan(len(source.offsets), n, m, source.dtype, steps)


@quiet
def gram(X: np.ndarray, side: str | None = None) -> np.ndarray:
    """Gram matrices of the snapshots X (m+1, ..., n): all that `solve` needs to know of them.

    Tall blocks (n > m): X^T X, (B, m+1, m+1), a sum over weights; shards of a block's weights add up.
    Wide blocks (n <= m): [F F^T; Fp F^T; x_last^T], (B, 2n+1, n); all but the last row are sums over time.

    Args:
        X: float32 or float64, any strides; the batch in the middle is flattened to B.
        side: "snapshots" or "weights" to say which; a shard of a tall block may have n <= m weights itself.

    Returns:
        float64, accumulated in float64. Not finite where the data is not.

    NumPy: ``np.einsum("sbi,tbi->bst", X, X)`` for tall blocks.
    """
    source, n, m, how = _shape(X)
    check_side(side)
    wide = (side or how.side) == "weights"
    small = (n if wide else m) <= KERNEL_ORDER
    out = np.empty((len(source.offsets), 2 * n + 1, n) if wide else (len(source.offsets), m + 1, m + 1))
    if small:
        kernel = blocks.gram_wide if wide else blocks.gram_tall
        over_blocks(kernel, len(out), how.flops // 2, *source[:5], source.columns, out)
    else:
        make = library.gram_weights if wide else library.gram_snapshots
        for b, S in enumerate(over_large(lambda b: make(source.block(b)), len(out), n if wide else m)):
            out[b] = S
    return out


def solve(gram: np.ndarray, n: int, m: int, cutoff: tuple[str, float], dtype) -> Factors:
    """Reduced operators from the Gram matrices of blocks of n weights and m snapshot pairs.

    U^T K U with U the left singular vectors of F that count (the projected operator of dynamic mode
    decomposition: Schmid 2010; Tu et al. 2014, equation 8), by the eigenpairs of F^T F or F F^T.

    Args:
        gram: (B, m+1, m+1) if n > m, else (B, 2n+1, n), float64; see `gram`.
        n, m: the whole block's true sizes, also where the Gram matrix was summed over shards.
        cutoff: pair (kind, value), see cutoffs.py.
        dtype: of the data, which decides how much of it a Gram matrix resolves.

    Returns:
        Factors. Where float64 products cannot resolve the cutoff, route is "unresolved" and edge is set:
        the rank is then what the Gram matrix says, and only the data itself can tell better.
    """
    check_gram(gram, n, m)
    factors = _solve(gram, n, m, cutoff, dtype)
    unresolved = factors.route == SVD
    factors.route[unresolved], factors.edge[unresolved] = UNRESOLVED, True
    return factors


def _solve(gram: np.ndarray, n: int, m: int, cutoff, dtype) -> Factors:
    """`solve`, with route SVD where the Gram matrix does not suffice."""
    order, wide = min(n, m), n <= m
    kind, value, digits = Rule(*cutoff).numbers(dtype)
    bounds = resolution(n, m, dtype)
    B = len(gram)
    if plan(B, n, m, dtype).engine == "library":
        reduced = over_large(lambda b: library.reduce_gram(gram[b], wide, cutoff, digits, bounds), B, order)
        return assemble(reduced, order)
    arrays = _allocate(B, order, wide)
    kernel = algebra.solve_wide if wide else algebra.solve_tall
    over_blocks(
        kernel, B, 8 * B * order**3, np.ascontiguousarray(gram), kind, value, digits, tuple(bounds), *arrays
    )  # fmt: skip
    return _factors(arrays)


def _allocate(B: int, order: int, wide: bool) -> tuple[np.ndarray, ...]:
    """What kernels fill: basis, readout, operator, start, rank, reports (threshold, largest, smallest), edge, route."""
    basis, operator, start = np.zeros((B, order, order)), np.zeros((B, order, order)), np.zeros((B, order))
    readout = np.zeros((B, order, order)) if wide else basis
    reports, rank, edge, route = np.zeros((B, 3)), np.zeros(B, np.int64), np.zeros(B, np.bool_), np.zeros(B, np.int8)
    return basis, readout, operator, start, rank, reports, edge, route


def _factors(arrays: tuple[np.ndarray, ...]) -> Factors:
    basis, readout, operator, start, rank, reports, edge, route = arrays
    return trim(Factors(basis, readout, operator, start, rank, *reports.T.copy(), edge, route))


def _exactly(source: Blocks, cutoff: tuple[str, float]) -> Factors:
    """Reduced operators from the SVD of every block itself."""
    n, m, B = source.n, source.columns - 1, len(source.offsets)
    order = min(n, m)
    if order > KERNEL_ORDER:
        return reduce_by_svd(source, cutoff)
    kind, value, digits = Rule(*cutoff).numbers(source.dtype)
    arrays = _allocate(B, order, n <= m)
    over_blocks(
        svd.svd_range, B, B * (4 * n * m * order + 16 * order**3), *source[:5], m, kind, value, digits,
        tuple(resolution(n, m, source.dtype)), *arrays,
    )  # fmt: skip
    factors = _factors(arrays)
    failed = np.flatnonzero(factors.route == UNRESOLVED)
    return merge(factors, failed, reduce_by_svd(source.only(failed), cutoff)) if len(failed) else factors


@quiet
def fit(X: np.ndarray, cutoff: tuple[str, float], *, refine: bool = False, known: np.ndarray | None = None) -> Factors:
    """Reduced operators of the snapshots X (m+1, ..., n), each on the route that resolves the cutoff.

    The Gram route where float64 products suffice, the SVD of the block itself where they do not;
    refine=True takes the SVD everywhere. route "non-finite" marks blocks with NaN or infinity. known: the Gram
    matrices of X, where they have been made.
    """
    source, n, m, how = _shape(X)
    digits, bounds, wide = DIGITS[source.dtype], resolution(n, m, source.dtype), n <= m
    B = len(source.offsets)
    if refine:
        return _exactly(source, cutoff)
    if how.engine == "kernel":
        factors = _solve(gram(X) if known is None else known, n, m, cutoff, source.dtype)
    elif known is not None:
        parts = over_large(lambda b: library.reduce_gram(known[b], wide, cutoff, digits, bounds), B, how.order)
        factors = assemble(parts, how.order)
    else:

        def reduce(b: int) -> Reduced:
            return library.reduce_block(source.block(b), wide, cutoff, digits, bounds)

        factors = assemble(over_large(reduce, B, how.order), how.order)
    suspects = np.flatnonzero(factors.route == SVD)
    if source.dtype == np.float64:  # squares of float64 data may overflow, or vanish
        suspects = np.flatnonzero(np.isin(factors.route, (SVD, ZERO, NON_FINITE)))
    return merge(factors, suspects, _exactly(source.only(suspects), cutoff)) if len(suspects) else factors


def evolve(factors: Factors, steps: np.ndarray) -> np.ndarray:
    """Coefficients of K^steps x_last: (B, len(steps), q), float64, for ascending counts steps >= 1.

    readout operator^(steps - 1) start, one small product a step, or repeated squaring over long gaps.
    """
    B, q, r = factors.readout.shape
    steps = ascending(steps)
    out = np.empty((B, len(steps), q))
    work = out.size * r + B * r * r * int(steps[-1] if len(steps) else 0)
    far = len(steps) and np.diff(steps).max(initial=steps[0] - 1) > LEAST_SQUARED
    over_blocks(
        algebra.evolve_range if far else algebra.evolve_near, B, work, factors.readout, factors.operator, factors.start,
        factors.rank, steps, out,
    )  # fmt: skip
    return out


def advance(factors: Factors, start: np.ndarray, steps: int) -> np.ndarray:
    """Coordinates `steps` further on: operator^steps start, (B, r), a new array."""
    y = np.array(start, np.float64, order="C")
    over_blocks(algebra.advance_range, len(y), y.size * y.shape[1] * steps, factors.operator, factors.rank, steps, y)
    return y


def follow(
    rows: Blocks, factors: Factors, largest: np.ndarray, start: np.ndarray, steps: int, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """`advance`, then `combine` of the coordinates with rows (r, ..., n): states (B, n), coordinates, and a bound.

    No entry of the states is larger in modulus than the bound, the largest sum of |y| `largest` over a block's
    coordinates, where largest (B, r) are the moduli that rows reach. out: memory for the states, of an earlier call.
    """
    B, r = start.shape
    if steps > LEAST_SQUARED:
        start, steps = advance(factors, start, steps), 0
    y, bounds = np.array(start, np.float64, order="C"), np.empty(B)
    if out is None:
        out = aligned_empty((B, rows.n), rows.dtype)
    over_blocks(
        blocks.follow_range, B, B * r * (r * steps + rows.n), *rows[:5], r, factors.operator, factors.rank,
        largest, steps, y, bounds, out,
    )  # fmt: skip
    return out, y, max(bounds.tolist()) if 0 < B <= MOST_BLOCKS else float(bounds.max(initial=0.0))


@quiet
def combine(rows: np.ndarray | Blocks, coefficients: np.ndarray, *, products: bool = True) -> np.ndarray:
    """Sums over rows (q, ..., n), or their `Blocks`, with coefficients (B, k, q): (k, B, n) in rows' dtype, aligned.

    Products and sums are float64; products=False never makes them a matrix product of BLAS, so that the bits do
    not depend on how many there are. NumPy: ``np.einsum("bkq,qbn->kbn", coefficients, rows)``.
    """
    source = rows if isinstance(rows, Blocks) else blocks_of(rows)
    check_coefficients(coefficients, len(source.offsets), source.columns)
    B, states, q = coefficients.shape
    out = aligned_empty((states, B, source.n), source.dtype)
    if products and states >= LIBRARY_STATES and q >= LIBRARY_ROWS:
        large.combine(source, coefficients, out)
    else:
        kernel = blocks.combine_few if states < 4 else blocks.combine_range
        over_blocks(kernel, B, out.size * q, *source[:5], q, np.ascontiguousarray(coefficients), out)
    return out


@quiet
def reconstruct(
    X: np.ndarray | Blocks, coefficients: np.ndarray, *, side: str | None = None, products: bool = True
) -> np.ndarray:
    """States from coefficients (B, k, q): (k, B, n) in the dtype of the snapshots X, or their `Blocks`, aligned.

    Tall blocks: Fp times the coefficients, see `combine`. Wide blocks: the coefficients' first n are the states.
    side: "snapshots" or "weights" to say which, where the coefficients are of more than X.
    """
    source = X if isinstance(X, Blocks) else blocks_of(X)
    n, m = source.n, source.columns - 1
    if (side or ("snapshots" if n > m else "weights")) == "snapshots":
        after = source._replace(offsets=source.offsets + source.time_stride, columns=m)
        return combine(after, coefficients, products=products)
    out = aligned_empty((coefficients.shape[1], coefficients.shape[0], n), source.dtype)
    out[:] = coefficients[..., :n].transpose(1, 0, 2)
    return out


def predict(X: np.ndarray, steps: int, cutoff: tuple[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """K^steps x_last of every block, and the route each block took.

    Args:
        X: (m+1, ..., n) float32 or float64, any strides.
        steps: >= 0; 0 is the last snapshot itself.
        cutoff: pair (kind, value), see cutoffs.py.

    Returns:
        (B, n) in X's dtype, 64-byte aligned, and (B,) int8 indices into plan.ROUTES. A block with NaN or
        infinity is NaN, route "non-finite"; its neighbours are untouched.
    """
    call = prepared(X.shape, X.strides, X.dtype, steps, cutoff)
    answer = call(X) if call and call.order <= KERNEL_ORDER else None
    if answer is None:
        return _predict(X, steps, cutoff)
    out, route = answer
    if SVD in route.tolist():
        _finish(blocks_of(X), steps, cutoff, out, route, np.flatnonzero(route == SVD))
    return answer


@quiet
def _predict(X: np.ndarray, steps: int, cutoff: tuple[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """`predict` of any size."""
    source, n, m, how = _shape(X, steps)
    B = len(source.offsets)
    out, route = aligned_empty((B, n), source.dtype), np.zeros(B, np.int8)
    if steps == 0:
        finite = np.ones(B, np.bool_)
        over_blocks(blocks.finite_range, B, X.size, *source[:5], source.columns, finite)
        out[:] = X[-1].reshape(B, n)
        out[~finite] = np.nan
        return out, np.where(finite, route, NON_FINITE).astype(np.int8)
    kind, value, digits = Rule(*cutoff).numbers(source.dtype)
    bounds = resolution(n, m, source.dtype)
    if how.engine == "library" and steps > 1:
        return _follow(source, fit(X, cutoff), steps)
    if how.engine == "library":

        def step(b: int) -> int:
            return library.step_block(source.block(b), n <= m, cutoff, digits, bounds, out[b])

        route[:] = over_large(step, B, how.order)
    elif n == 1 and keeps_constant(kind, value):
        beside = bool((np.diff(source.offsets) == 1).all())
        over_blocks(
            fused.predict_scalars, B, 2 * B * m, source.flat, source.offsets, source.time_stride, beside, m, steps,
            out, route,
        )  # fmt: skip
    else:
        _predict_small(source, how, steps, (kind, value, digits, tuple(bounds)), out, route)
    suspects = np.flatnonzero(route == SVD)
    if how.engine == "library" and source.dtype == np.float64:  # squares of float64 data may overflow, or vanish
        suspects = np.flatnonzero(np.isin(route, (SVD, ZERO, NON_FINITE)))
    if len(suspects):
        _finish(source, steps, cutoff, out, route, suspects)
    return out, route


@quiet
def _finish(source: Blocks, steps: int, cutoff, out: np.ndarray, route: np.ndarray, suspects: np.ndarray) -> None:
    """Answer the blocks at `suspects` from their own data."""
    out[suspects], route[suspects] = _predict_exactly(source.only(suspects), steps, cutoff)


def _predict_small(source: Blocks, how: Plan, steps: int, rule: tuple, out: np.ndarray, route: np.ndarray) -> None:
    """`predict` by the Gram matrices of blocks that the kernels take; parts are compiled for blocks that need them."""
    m, wide = source.columns - 1, how.side == "weights"
    rest = parts.rest_of(wide, steps, refined.beyond(*rule[:3], rule[3][2]))
    far = parts.far_of(wide, steps, m)
    if far and not wide:
        far.compile()
    kernel = fused.predict_wide if wide else fused.predict_tall
    a_block = how.flops // 2 // max(1, len(out))

    def run(source: Blocks, out: np.ndarray, route: np.ndarray) -> None:
        addresses = rest.address if rest else 0, far.address if far else 0
        work = a_block * len(out)
        over_blocks(kernel, len(out), work, *source[:5], m, steps, *rule, *addresses, out, route)

    run(source, out, route)
    if rest is None:
        route[route == parts.UNCERTIFIED] = SVD
    if len(route) and route.min() < 0:
        pending = np.flatnonzero(route < 0)
        if (route == parts.UNCERTIFIED).any():
            rest.compile()
        if (route == parts.CERTIFIED).any():
            far.compile()
        states, routes = np.empty((len(pending), source.n), source.dtype), np.zeros(len(pending), np.int8)
        run(source.only(pending), states, routes)
        out[pending], route[pending] = states, routes


def _predict_exactly(source: Blocks, steps: int, cutoff: tuple[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """`predict` for steps >= 1 from the triangle or the SVD of every block itself."""
    n, m, B = source.n, source.columns - 1, len(source.offsets)
    kind, value, digits = Rule(*cutoff).numbers(source.dtype)
    order, states, routes = min(n, m), np.empty((B, n), source.dtype), np.full(B, UNRESOLVED, np.int8)
    rule, work = (kind, value, digits, tuple(resolution(n, m, source.dtype))), 4 * n * m * order + 16 * order**3
    if order > KERNEL_ORDER:
        kernels = ()
    elif refined.reaches(kind, steps, n, m):
        kernels = refined.predict_refined, svd.predict_exact
    else:
        kernels = (svd.predict_exact,)
    rest = np.arange(B)
    for kernel in kernels:
        left, some, ways = source.only(rest), np.empty((len(rest), n), source.dtype), np.zeros(len(rest), np.int8)
        over_blocks(kernel, len(rest), len(rest) * work, *left[:5], m, steps, *rule, some, ways)
        states[rest], routes[rest] = some, ways
        rest = np.flatnonzero(routes == UNRESOLVED)
    if len(rest):
        left = source.only(rest)
        states[rest], routes[rest] = _follow(left, reduce_by_svd(left, cutoff), steps)
    return states, routes


def _follow(source: Blocks, factors: Factors, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """`predict` for steps >= 1 by the blocks' reduced operators."""
    states = reconstruct(source, evolve(factors, np.array([steps])))[0]
    states[factors.route == NON_FINITE] = np.nan
    return states, factors.route


@quiet
def pinv(F: np.ndarray, cutoff: tuple[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """The pseudo-inverse of every block, and the route each block took.

    Args:
        F: (m, ..., n): columns of the blocks, any strides, float32 or float64.
        cutoff: pair (kind, value), see cutoffs.py.

    Returns:
        (B, m, n) in F's dtype, 64-byte aligned, and (B,) int8 indices into plan.ROUTES.
    """
    source = blocks_of(F)
    B, n, m = len(source.offsets), source.n, source.columns
    kind, value, digits = Rule(*cutoff).numbers(source.dtype)
    bounds, wide = resolution(n, m, source.dtype), n <= m
    out, route = aligned_empty((B, m, n), source.dtype), np.zeros(B, np.int8)
    if plan(B, n, m, source.dtype).engine == "kernel":
        _pinv_small(source, wide, (kind, value, digits, tuple(bounds)), out, route)
    else:
        order = min(n, m)
        route[:] = over_large(
            lambda b: library.pinv_gram(source.block(b), wide, cutoff, digits, bounds, out[b]), B, order
        )
    suspects = np.flatnonzero(route == SVD)
    route[suspects] = over_large(
        lambda i: library.pinv_svd(source.block(suspects[i]), cutoff, digits, bounds, out[suspects[i]]),
        len(suspects),
        min(n, m),
    )
    return out, route


def _pinv_small(source: Blocks, wide: bool, rule: tuple, out: np.ndarray, route: np.ndarray) -> None:
    """`pinv` by the Gram matrices of blocks that the kernels take: by a Cholesky factor, or by their eigenpairs."""
    work = out.size // max(1, len(out)) * min(source.n, source.columns)
    route[:] = parts.UNCERTIFIED
    if needs_largest_only(rule[0]):
        kernel = fused.pinv_wide if wide else fused.pinv_tall
        over_blocks(kernel, len(out), len(out) * work, *source[:5], source.columns, *rule, out, route)
    pending = np.flatnonzero(route == parts.UNCERTIFIED)
    if len(pending):
        inverses, routes = np.empty((len(pending), *out.shape[1:]), out.dtype), np.zeros(len(pending), np.int8)
        over_blocks(
            fused.pinv_range, len(pending), len(pending) * work, *source.only(pending)[:5], source.columns, wide, *rule,
            inverses, routes,
        )  # fmt: skip
        out[pending], route[pending] = inverses, routes
