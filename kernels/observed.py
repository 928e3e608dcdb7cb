"""Operators on more than the weights of one iterate: delays and a constant observable; and the non-expansive ones.

The pairs (Z_t, Z_t+1) of such observables are not snapshots X (columns, n) side by side, but the Gram matrix of a tall
block's is still made of X's: a delay sums it along its diagonals, a constant takes the means out, a reflection of the
columns that leaves one fewer. So the data is read once, as without them. The pairs of wide blocks are few numbers, and
stacked as they are.

Functions take the contract that computes: the CPU's module or `cuda.Cuda`.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np

from . import cpu
from .contract import COORDINATES as FACTOR_COORDINATES
from .contract import Factors
from .cpu.large import over_large, quiet
from .cpu.threads import get_num_threads
from .exact import by_svd, centred, stacked, uncentred
from .factors import merge
from .plan import EIGEN, NON_FINITE, UNRESOLVED, ZERO, resolution
from .triangles import Kept, StandIns, stand_ins

WORKSPACE = 1 << 27  # bytes of Gram matrices, or of converted numbers, that are worked on at a time
STRIP = 1 << 24  # bytes of float64 numbers that a tall block is converted to at a time
TOGETHER = 1 << 16  # numbers of blocks whose singular vectors are found in one call
GAIN = 1e4  # W^T W does not tell what is near 1 beside such singular values of W; the block's own pairs then do


class Observed(NamedTuple):
    """What is observed of a block: `delay` snapshots on top of each other, the newest first; affine: a constant, too.

    Z_t = [X_t; X_(t-1); ...] has delay n rows. With a constant the operator is affine, Z -> A Z + b, and A the
    least-squares operator of pairs that are centred, F on its own mean and Fp on its own.
    """

    delay: int = 1
    affine: bool = False

    def shape(self, n: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the matrix that is inverted, for blocks of n weights and so many snapshots."""
        return self.delay * n, columns - self.delay - self.affine

    def tall(self, n: int, columns: int) -> bool:
        """Whether that matrix has more rows than columns."""
        rows, pairs = self.shape(n, columns)
        return rows > pairs


class Lifted(NamedTuple):
    """Operators of observables, before their constant is one of the coordinates.

    In coordinates y = U^T (Z - mean F) a step is y -> operator y + drift, and weights are mean Fp + (Fp readout) y of
    tall blocks, mean + readout y of wide ones. Columns past a block's rank are zero.
    """

    factors: Factors  # of the centred pairs; basis and readout of tall blocks act on the pairs' own columns
    drift: Any  # (B, r) float64: U^T (mean Fp - mean F); 0 without a constant
    mean: Any | None  # (B, delay n) of wide blocks: mean Fp
    rest: Any | None  # (B, delay n) of wide blocks: what U does not represent of Z_last - mean F
    gains: Any | None  # (B, r, r): some R with R^T R = W^T W, K = W U^T, where it was asked for


@quiet
def fit(
    contract, X, cutoff, observed: Observed, *, refine: bool = False, gains: bool = False, dtype=None, known=None
) -> Lifted:
    """Operators of what is observed of the snapshots X (m+1, ..., n), each on the route that resolves the cutoff.

    Args:
        contract: `fastkoop.kernels` or a CUDA device's.
        X: float32 or float64, any strides, with at least delay + 1 snapshots, one more if affine.
        cutoff: pair (kind, value) for the matrix of `Observed.shape`.
        refine: the SVD of the pairs themselves for every block, in host memory.
        gains: make what `non_expansive` needs.
        dtype: of the data that X stands in for, if it is not X's own.
        known: of tall blocks what has been kept, with Gram matrices as `gram` makes them; triangles that are made are
            put there.
    """
    dtype, first, parts = dtype or X.dtype, 0, []
    for part in _slices(X, observed):
        count = math.prod(part.shape[1:-1])
        made = None if known is None else known.of(slice(first, first + count))
        parts.append(_fit(contract, part, cutoff, observed, refine, gains, dtype, made))
        first += count
    return _stack(contract.xp, parts)


def _slices(X, observed: Observed):
    """The blocks of X in parts that fit the workspace, or that threads can share."""
    X = X if X.ndim > 2 else X[:, None]
    columns, *batch, n = X.shape
    with contextlib.suppress(ValueError, TypeError):  # strides that cannot be merged: the first axis alone is sliced
        X = X.reshape((columns, math.prod(batch), n), copy=False) if isinstance(X, np.ndarray) else X
    rows, pairs = observed.shape(n, columns)
    if rows > pairs:
        numbers = 4 * columns**2 + (columns * min(n, _strip(columns)) if observed.affine else 0)
    else:
        numbers = 2 * columns * rows + 4 * rows**2
    beside = math.prod(X.shape[2:-1])
    some = max(WORKSPACE // max(1, 8 * numbers * beside), -(-get_num_threads() // max(1, beside)), 1)
    return [X[:, at : at + some] for at in range(0, max(X.shape[1], 1), some)]


def _fit(contract, X, cutoff, observed: Observed, refine: bool, gains: bool, dtype, known: Kept | None) -> Lifted:
    """`fit` of blocks that fit the workspace."""
    n, tall = X.shape[-1], observed.tall(X.shape[-1], len(X))
    every = np.arange(math.prod(X.shape[1:-1]))
    if len(every) and (refine or (known is not None and known.known.all())):  # better than Gram matrices
        return moved(contract.xp, _exactly(contract, X, every, cutoff, observed, gains, dtype, known))
    if tall:
        S = gram(contract, X, observed) if known is None else known.gram
        lifted = from_gram(contract, S, n, observed, cutoff, dtype, gains=gains)
    else:
        lifted = _from_pairs(contract, X, cutoff, observed, gains, dtype)
    suspects = unsettled(contract, lifted, dtype)
    if not len(suspects):
        return lifted
    exact = _exactly(contract, X, suspects, cutoff, observed, gains, dtype, known)
    if len(suspects) == len(lifted.factors.rank):
        return moved(contract.xp, exact)
    return replace(contract, lifted, suspects, exact)


def unsettled(contract, lifted: Lifted, dtype) -> np.ndarray:
    """Blocks that a Gram matrix does not settle: squares of float64 data may over- or underflow, too."""
    again = (UNRESOLVED,) if dtype == np.float32 else (UNRESOLVED, ZERO, NON_FINITE)
    suspects = np.isin(contract.host(lifted.factors.route), again)
    if lifted.gains is not None:
        suspects |= (contract.host(lifted.gains) ** 2).sum(axis=(1, 2)) > GAIN**2
    return np.flatnonzero(suspects)


@quiet
def gram(contract, X, observed: Observed):
    """Gram matrices (B, m+1, m+1) of tall blocks' snapshots; if affine, of their distances from one that stands still.

    A sum over weights, so that shards of a block's weights add up; and which snapshot is taken off does not matter to
    an affine operator, but that what it cannot see is small: weights are large beside how far they move.
    """
    if not observed.affine:
        return contract.gram(X, "snapshots")
    columns, *batch, n = X.shape
    out = contract.xp.zeros((math.prod(batch), columns, columns))
    for at in range(0, n, _strip(columns)):
        out += contract.gram(_distances(contract, X[..., at : at + _strip(columns)])[0], "snapshots")
    return out


def _strip(columns: int) -> int:
    """Weights of a block that are converted at a time; of the block's size alone, so that its bits are."""
    return max(64, STRIP // (8 * columns))


def _distances(contract, X):
    """Snapshots less an origin, float64, and that origin: the middle one, for numbers that never move to be exactly 0,
    and the mean of what is left, so that one snapshot far from all the others is in none of their distances."""
    X = X.astype(np.float64, order="C")  # the same layout for all, and the same bits
    origin = X[len(X) // 2].copy()
    X -= origin
    middle = _mean(contract, X).reshape(origin.shape)
    X -= middle
    return X, origin + middle


def _mean(contract, Z):
    """Means (B, n) of snapshots (columns, ..., n) over time."""
    return _sums(contract, Z, contract.xp.full((math.prod(Z.shape[1:-1]), len(Z)), 1.0 / len(Z)))


def _sums(contract, rows, coefficients):
    """Sums over rows (q, ..., k) with coefficients (B, q): (B, k), with bits that are a block's own."""
    return contract.combine(contract.xp.ascontiguousarray(rows), coefficients[:, None], products=False)[0]


@quiet
def from_gram(contract, gram, n: int, observed: Observed, cutoff, dtype, *, gains: bool = False) -> Lifted:
    """Operators of tall blocks of n weights from their Gram matrices as `gram` makes them.

    Route "unresolved" where float64 products cannot resolve the cutoff; see `cpu.solve`.
    """
    xp, columns = contract.xp, gram.shape[1]
    rows, pairs = observed.shape(n, columns)
    S = _along_diagonals(gram, observed.delay)
    if observed.affine:
        G, H = centred(xp, centred(xp, S[:, :-1, :-1]).swapaxes(1, 2)), S[:, :-1, 1:]
        means = (H.mean(axis=2) - S[:, :-1, :-1].mean(axis=2))[:, :, None]  # F^T (mean Fp - mean F)
        last = (S[:, :-1, -1] - S[:, :-1, :-1].mean(axis=2))[:, :, None]
        H = centred(xp, centred(xp, H).swapaxes(1, 2)).swapaxes(1, 2)
        means, last = centred(xp, means), centred(xp, last)
        layout = xp.concatenate([G, H, last.swapaxes(1, 2)], axis=1)
        factors, drift = _tall(contract, contract.solve(layout, pairs, rows, cutoff, dtype), G, means)
        _doubt(factors, xp.einsum("bii->b", S[:, :-1, :-1]), resolution(rows, pairs, dtype).least)
    else:
        factors = contract.solve(S, rows, pairs, cutoff, dtype)
        drift = xp.zeros(factors.start.shape)
    after = _roots(contract, factors, lambda B, at: B.swapaxes(1, 2) @ (S[at, 1:, 1:] @ B)) if gains else None
    return Lifted(factors, drift, None, None, after)


def _doubt(factors: Factors, size, least: float) -> None:
    """Route "unresolved" where centring leaves too little of a Gram matrix of trace `size`, whose rounding stays."""
    lost = (factors.route == EIGEN) & (factors.smallest**2 < least * size)
    factors.route[lost], factors.edge[lost] = UNRESOLVED, True


def _roots(contract, factors: Factors, products):
    """R (B, r, r) with R^T R = products(readout, blocks), 0 where these are not finite."""
    xp = contract.xp
    roots = xp.zeros(factors.operator.shape)
    for at, rank in _by_rank(contract, factors):
        matrices = products(factors.readout[at][:, :, :rank], at)
        matrices = xp.where(xp.isfinite(matrices).all(axis=(1, 2))[:, None, None], matrices, 0.0)
        squares, Q = xp.linalg.eigh((matrices + matrices.swapaxes(1, 2)) / 2.0)
        roots[at, :rank, :rank] = xp.sqrt(xp.maximum(squares, 0.0))[:, :, None] * Q.swapaxes(1, 2)
    return roots


def _by_rank(contract, factors: Factors):
    """(blocks, rank) of every rank that there is but 0, so that a block's bits do not depend on others' ranks."""
    ranks = contract.host(factors.rank)
    for rank in np.unique(ranks[ranks > 0]):
        yield contract.xp.asarray(np.flatnonzero(ranks == rank)), int(rank)


def _along_diagonals(S, delay: int):
    """Gram matrices of delayed snapshots from those of snapshots."""
    size = S.shape[1] - delay + 1
    return sum((S[:, k : k + size, k : k + size] for k in range(1, delay)), start=S[:, :size, :size])


def _tall(contract, factors: Factors, G, means) -> tuple[Factors, Any]:
    """Factors of tall blocks from those that `solve` gives for [F^T F; F^T Fp; (F^T x_last)^T] as if they were wide.

    Its eigenvectors V of G = F^T F are right singular vectors of F, and its coordinates S U^T x instead of U^T x.
    All in m - 1 coordinates of columns that sum to zero; readout and basis are not. Beside them the drift (B, r), from
    means = F^T (mean Fp - mean F).
    """
    xp, (B, m, r) = contract.xp, factors.basis.shape
    basis, drift = xp.zeros((B, m + 1, r)), xp.zeros((B, r))
    operator, start = xp.zeros(factors.operator.shape), xp.zeros(factors.start.shape)
    for at, rank in _by_rank(contract, factors):
        V = factors.basis[at][:, :, :rank]
        squares = (V * (G[at] @ V)).sum(axis=1)
        s = xp.sqrt(xp.where(squares > 0.0, squares, 1.0))
        V = V / s[:, None]
        drift[at, :rank] = (V.swapaxes(1, 2) @ means[at])[:, :, 0]
        basis[at, :, :rank] = uncentred(xp, V)
        operator[at, :rank, :rank] = factors.operator[at][:, :rank, :rank] / s[:, :, None] * s[:, None]
        start[at, :rank] = factors.start[at][:, :rank] / s
    return factors._replace(basis=basis, readout=basis, operator=operator, start=start), drift


def _from_pairs(contract, X, cutoff, observed: Observed, gains: bool, dtype) -> Lifted:
    """`fit` of wide blocks, by the Gram matrices of their stacked pairs."""
    rows, pairs = observed.shape(X.shape[-1], len(X))
    data, origin = _distances(contract, X) if observed.affine else (X.astype(np.float64, order="C"), None)
    Z = stacked(contract.xp, data.reshape(len(X), -1, X.shape[-1]), observed.delay)
    S = contract.gram(Z, "weights")
    before, mean, last = _means(contract, Z, observed)
    if observed.affine:
        size = contract.xp.einsum("bii->b", S[:, :rows])
        S[:, :rows] -= (len(Z) - 1) * before[:, :, None] * before[:, None]
        S[:, rows : 2 * rows] -= (len(Z) - 1) * mean[:, :, None] * before[:, None]
        S[:, 2 * rows] = last
    factors = contract.solve(S, rows, pairs, cutoff, dtype)
    if observed.affine:
        _doubt(factors, size, resolution(rows, pairs, dtype).least)
        drift = _sums(contract, factors.basis.swapaxes(0, 1), mean - before)
        mean = mean + contract.xp.tile(origin.reshape(-1, X.shape[-1]), (1, observed.delay))
    else:
        drift = contract.xp.zeros(factors.start.shape)
    rest = last - _sums(contract, factors.basis.transpose(2, 0, 1), factors.start)
    after = _roots(contract, factors, lambda W, _: W.swapaxes(1, 2) @ W) if gains else None
    return Lifted(factors, drift, mean, rest, after)


def _means(contract, Z, observed: Observed):
    """Means of F and Fp over time, and x_last past the former; zeros without a constant."""
    if not observed.affine:
        return contract.xp.zeros(Z.shape[1:]), contract.xp.zeros(Z.shape[1:]), Z[-1]
    before, after = _mean(contract, Z[:-1]), _mean(contract, Z[1:])
    return before, after, Z[-1] - before


def _exactly(contract, X, chosen, cutoff, observed: Observed, gains: bool, dtype, known: Kept | None) -> Lifted:
    """`fit` of a few blocks, of which those are chosen, by the SVD of their pairs in host memory.

    Pairs of tall blocks are those of what stands in for them, see `triangles`.
    """
    columns, n = len(X), X.shape[-1]
    X = X.reshape(columns, -1, n)
    if known is not None:
        part = known.stand_ins(X, chosen)
    else:
        if contract is not cpu:
            X, chosen = contract.host(X[:, chosen]), np.arange(len(chosen))
        if observed.tall(n, columns):
            part = stand_ins(X, chosen, centre_of(columns, observed))
        else:
            part = StandIns(X[:, chosen].swapaxes(0, 1).astype(np.float64), np.ones(len(chosen)))
    most = max(1, min(TOGETHER // (columns * part.rows.shape[2]), -(-len(chosen) // get_num_threads())))
    together = [slice(at, at + most) for at in range(0, len(chosen), most)]

    def reduce(k: int) -> Lifted:
        few = StandIns(*(array[together[k]] for array in part))
        return Lifted(*by_svd(few, n, cutoff, observed, dtype, gains))

    return _stack(np, over_large(reduce, len(together), min(observed.shape(n, columns))))


def centre_of(columns: int, observed: Observed) -> int | None:
    """The snapshot that is taken off before anything is made of the others, if any is."""
    return columns // 2 if observed.affine else None


def keep(gram, observed: Observed) -> Kept:
    """What to hand to `fit` as `known`, from Gram matrices (B, m+1, m+1) of tall blocks as `gram` makes them."""
    return Kept(gram, True, centre_of(gram.shape[1], observed))


COORDINATES = {"drift": (1,), "gains": (1, 2)}  # axes of Lifted's arrays that run over coordinates


def replace(contract, lifted: Lifted, chosen: np.ndarray, exact: Lifted) -> Lifted:
    """Operators with those of the chosen blocks, which come from the host, put in their place."""
    merged = merge(Factors(*map(contract.host, lifted.factors)), chosen, exact.factors)
    values, r = {}, merged.operator.shape[1]
    for name in Lifted._fields[1:]:
        array, axes = getattr(lifted, name), COORDINATES.get(name, ())
        if array is not None:
            values[name] = _sized(np, contract.host(array), axes, r)
            values[name][chosen] = _sized(np, getattr(exact, name), axes, r)
    return moved(contract.xp, Lifted(merged, **{name: values.get(name) for name in Lifted._fields[1:]}))


def moved(xp, lifted: Lifted) -> Lifted:
    """The same in the memory of xp."""
    others = (None if array is None else xp.asarray(array) for array in lifted[1:])
    return Lifted(Factors(*map(xp.asarray, lifted.factors)), *others)


def _sized(xp, array, axes: tuple[int, ...], r: int):
    """A copy whose coordinates are r: zeros come on, or go."""
    shape = [r if axis in axes else size for axis, size in enumerate(array.shape)]
    out = xp.zeros(shape, array.dtype)
    common = tuple(slice(min(size, old)) for size, old in zip(shape, array.shape, strict=True))
    out[common] = array[common]
    return out


def _stack(xp, parts: list[Lifted]) -> Lifted:
    """One batch of several, one after another."""
    if len(parts) == 1:
        return parts[0]
    r = max(part.factors.operator.shape[1] for part in parts)

    def together(arrays: list, axes: tuple[int, ...]):
        return xp.concatenate([_sized(xp, array, axes, r) for array in arrays])

    factors = (
        together([getattr(part.factors, name) for part in parts], FACTOR_COORDINATES.get(name, ()))
        for name in Factors._fields
    )
    others = (
        None if getattr(parts[0], name) is None
        else together([getattr(part, name) for part in parts], COORDINATES.get(name, ()))
        for name in Lifted._fields[1:]
    )  # fmt: skip
    return Lifted(Factors(*factors), *others)


@quiet
def non_expansive(contract, lifted: Lifted) -> Lifted:
    """The nearest operators, in the Frobenius norm, that stretch no vector: singular values above 1 become 1.

    Nearest since singular values of two matrices differ by no more than the matrices (Mirsky 1960, Quart. J. Math. 11).
    K = W U^T has those of W = P S Q^T, and so has R; readout and operator are multiplied by Q min(1, 1/S) Q^T.
    """
    xp, factors = contract.xp, lifted.factors
    readout, operator = factors.readout.copy(), factors.operator.copy()
    for at, rank in _by_rank(contract, factors):
        _, gains, Qt = xp.linalg.svd(lifted.gains[at][:, :rank, :rank])
        turn = (Qt.swapaxes(1, 2) * (1.0 / xp.maximum(gains, 1.0))[:, None]) @ Qt
        beyond = (gains[:, 0] > 1.0)[:, None, None]  # others keep their bits
        for array, rows in ((readout, slice(None)), (operator, slice(rank))):
            before = array[at][:, rows, :rank]
            array[at, rows, :rank] = xp.where(beyond, before @ turn, before)
    return lifted._replace(factors=factors._replace(readout=readout, operator=operator))


@quiet
def augmented(contract, lifted: Lifted, pairs: int, observed: Observed, carry: bool) -> Factors:
    """Factors with the constant 1 as their first coordinate, so that states are readout operator^(t-1) start.

    Args:
        lifted: operators.
        pairs: columns of F, delays allowed for.
        carry: add what U does not represent of the last observables, as it is, to every state. Coefficients of tall
            blocks then combine all the snapshots from F's first to x_last, not Fp's alone.
    """
    xp, factors = contract.xp, lifted.factors
    B, r = factors.start.shape
    start, operator = xp.ones((B, r + 1)), xp.zeros((B, r + 1, r + 1))
    start[:, 1:], operator[:, 0, 0], operator[:, 1:, 0], operator[:, 1:, 1:] = (
        factors.start, 1.0, lifted.drift, factors.operator,
    )  # fmt: skip
    constant, readout = constants(contract, lifted, pairs, observed, carry, factors.start, pairs), factors.readout
    if lifted.mean is None and carry:
        readout = xp.concatenate([xp.zeros((B, 1, r)), readout], axis=1)
    readout = xp.concatenate([constant[:, :, None], readout], axis=2)
    rank = xp.where(factors.route == NON_FINITE, factors.rank, factors.rank + 1)
    return factors._replace(basis=readout, readout=readout, operator=operator, start=start, rank=rank)


def constants(contract, lifted: Lifted, pairs: int, observed: Observed, carry: bool, y, at: int):
    """What the constant adds to the next state's coefficients (B, q): mean Fp, and what y leaves of snapshot `at`.

    For states that follow the observables Z_at, at = pairs the last, whose coordinates are y.
    """
    xp, factors = contract.xp, lifted.factors
    if lifted.mean is not None:
        return lifted.mean + lifted.rest if carry else lifted.mean
    share = 1.0 / pairs if observed.affine else 0.0
    out = xp.zeros((len(y), pairs + carry))
    out[:, int(carry) :] = share
    if carry:
        out[:, :-1] -= share + _sums(contract, factors.basis.transpose(2, 0, 1), y)
        out[:, at] += 1.0
    return out
