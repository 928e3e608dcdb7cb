"""fit -> KoopmanOperator: an operator per block, in its own few coordinates, with reports one can trust."""

from __future__ import annotations

import functools

import numpy as np

from . import arrays, checks, traced
from . import cutoff as rules
from .backends import NON_FINITE, ROUTES, backend_for
from .linalg import refuse_non_finite, time_major, warn_of_overflow
from .walk import States

OBSERVABLES = ("identity",)


@traced.opaque
def fit(
    X,
    *,
    cutoff="array_api",
    observables="identity",
    stabilize=None,
    time_axis=-1,
    check_finite=True,
    refine=False,
):
    """The Koopman operator K = Fp pinv(F) of every block, truncated at the cutoff; K is not formed.

    Tall blocks (n > m) get at most m non-zero eigenvalues: K acts on what F spans. Wide ones (n <= m) of
    full rank get the least-squares operator. Rank-deficient ones the minimum-norm operator; an all-zero
    block has rank 0 and predicts zero.

    Args:
        X: snapshots (..., n, m+1), float32 or float64, columns oldest first: a NumPy or CuPy array or a
            PyTorch tensor with any strides. The operator refers to X's memory and does not copy it: leave it
            unchanged while the operator is in use.
        cutoff: which singular values of F count, see `fastkoop.cutoff`.
        observables: "identity", the weights themselves, as published.
        stabilize: None, as published; "clip" moves eigenvalues of modulus > 1 onto the unit circle at
            every number of steps; a float clips at that radius.
        time_axis: where time runs; 0 takes a recording buffer (m+1, ..., n) without a copy.
        check_finite: False lets NaN and infinity pass through their own block; on a CUDA device, which is
            not waited for, they do until `check` is called.
        refine: True answers every block by the SVD of F itself, with an error that grows with the
            condition number instead of its square: by a hundred times and more where a Gram matrix just
            suffices. A step of iterative refinement would buy as much there, and nothing where the
            cutoff drops singular values. Otherwise only blocks of which the Gram matrix cannot tell.

    Returns:
        KoopmanOperator.

    Raises:
        ValueError, TypeError: as `fastkoop.predict`.

    NumPy: ``X[..., 1:] @ np.linalg.pinv(X[..., :-1])``.
    Source: Dogra & Redman (2020), NeurIPS 33; dynamic mode decomposition, Schmid (2010), Tu et al. (2014).

    >>> import numpy as np
    >>> t = np.arange(6)
    >>> op = fit(np.stack([0.5**t, 2.0 * 0.9**t]))
    >>> op.eigenvalues.real.round(6)
    array([0.9, 0.5])
    >>> op.predict([0, 1, 2]).shape
    (2, 3)
    """
    source = arrays.read(X)
    snapshots = time_major(source.data, time_axis)
    if not isinstance(observables, str) or observables not in OBSERVABLES:
        raise checks.InputError(f'observables: expected "identity", got {observables!r}')
    radius = checks.radius(stabilize)
    m, n = len(snapshots) - 1, snapshots.shape[-1]
    rule = rules.resolve(cutoff, n, m, snapshots.dtype)
    backend = backend_for(source)
    with source.scope():
        factors = backend.fit(snapshots, rule, refine=bool(refine))
        if check_finite and source.device is None:
            refuse_non_finite(factors.route, snapshots.shape[1:-1])
        return KoopmanOperator(snapshots, factors, backend, source, cutoff, radius, bool(check_finite))


def in_scope(method):
    """The method, run on the stream that is the caller's when it is called, with the caller's memory."""

    @traced.opaque
    @functools.wraps(method)
    def run(self, *arguments, **options):
        with self._source.scope():
            return method(self, *arguments, **options)

    return run


class KoopmanOperator:
    """Koopman operators of a batch of blocks, from `fastkoop.fit`.

    Per-block reports have the batch's shape and X's kind; those that cost something are computed when
    they are first read.
    """

    def __init__(
        self, snapshots, factors, backend, source: arrays.Array, cutoff, radius: float | None, check_finite: bool = True
    ):
        self._X, self.backend, self._xp = snapshots, backend, backend.xp
        self._published, self._check_finite = factors, check_finite
        self._source = source
        self._batch, self._n = snapshots.shape[1:-1], snapshots.shape[-1]
        self._cutoff, self._radius = cutoff, radius
        condition = self._xp.ones(len(factors.rank))
        if radius is not None:
            factors, condition = backend.clip(factors, radius)
        self._factors, self._eigenvector_condition = factors, condition

    def _report(self, values):
        return self._source.wrap(self._xp.ascontiguousarray(values).reshape(self._batch))

    @in_scope
    def check(self) -> None:
        """Raise if a block was not finite; on a CPU `fit` has done so already unless check_finite=False."""
        refuse_non_finite(self.backend.host(self._published.route), self._batch)

    @in_scope
    def predict(self, steps, *, check_finite=None):
        """K^steps x_last.

        Args:
            steps: an integer >= 0, or a 1-D sequence of k of them, in any order.
            check_finite: False takes states beyond the dtype as infinities, without a warning; None is what
                `fit` was given.

        Returns:
            (..., n) for an integer, (..., n, k) for a sequence, of X's kind, dtype and device. Many states
            lie in memory one after another (a view of (k, ..., n)).

        Warns:
            RuntimeWarning: as `fastkoop.predict`.
        """
        counts, single = checks.step_counts(steps)
        states = self._states(counts)
        check_finite = self._check_finite if check_finite is None else check_finite
        if check_finite and self._source.device is None and (counts.max(initial=0) > 1 or self._source.dtype):
            warn_of_overflow(states, self._published.route, self._batch, self._source)
        out = states.reshape(len(counts), *self._batch, self._n)
        return self._source.wrap(out[0] if single else self._xp.moveaxis(out, 0, -1))

    def _states(self, counts: np.ndarray):
        """States (k, B, n) at the given numbers of steps."""
        B = len(self._factors.rank)
        later = np.unique(counts[counts > 0])
        states = self._lifted(later)
        if np.array_equal(later, counts):
            out = states
        else:
            out = self.backend.aligned_empty((len(counts), B, self._n), self._X.dtype)
            last = self._X[-1].reshape(B, self._n)
            for k, count in enumerate(counts):
                out[k] = states[int(np.searchsorted(later, count))] if count else last
        out[:, self._published.route == NON_FINITE] = np.nan
        return out

    def _lifted(self, steps: np.ndarray):
        """States (k, B, n) at ascending steps >= 1: of snapshots, or of each large block's few rows where that is less.

        Snapshots cost k m n multiply-adds a block, rows (m + k) rank n; a block's own sizes decide.
        """
        B, n, m, k = len(self._factors.rank), self._n, len(self._X) - 1, len(steps)
        large = n > m and self._xp is np and self.backend.plan(B, n, m, self._X.dtype).engine == "library"
        rows = k * (m - self._published.rank) > m * self._published.rank if large else np.zeros(B, np.bool_)
        if not rows.any():
            return self.backend.lift(self._X, self.backend.evolve(self._factors, steps))
        out = self.backend.aligned_empty((k, B, n), self._X.dtype)
        for b, index in enumerate(np.ndindex(self._batch)):
            X, factors = self._X[(slice(None), *index, None)], self._one(b)
            if rows[b]:
                out[:, b] = States(self.backend, [(X, factors)]).at(steps)[:, 0]
            else:
                out[:, b] = self.backend.lift(X, self.backend.evolve(factors, steps))[:, 0]
        return out

    def _one(self, b: int):
        """Factors of block b alone, in its own rank's coordinates."""
        r = self._factors.rank[b]
        own = {name: array[b : b + 1] for name, array in self._factors._asdict().items()}
        for name in ("basis", "lift", "operator", "start"):
            own[name] = np.ascontiguousarray(own[name][..., :r])
        own["operator"] = np.ascontiguousarray(own["operator"][:, :r])
        return self._factors._replace(**own)

    @in_scope
    def walk(self) -> Walk:
        """A walk along the predicted states, one after another, without looking ahead unless asked to."""
        watched = self._published.route if self._check_finite and self._source.device is None else None
        return Walk(States(self.backend, [self.parts]), self._batch, self._source, watched)

    @property
    def parts(self) -> tuple:
        """What `States` is made of: the snapshots and the factors of their operators."""
        return self._X, self._factors

    @functools.cached_property
    def _spectrum(self) -> tuple:
        return self.backend.modes(self._factors)

    @property
    @in_scope
    def eigenvalues(self):
        """Eigenvalues of K (after clipping, if any): (..., r) complex128, largest modulus first.

        r is the largest rank in the batch; a block's values past its own rank are zero, as are the n - rank
        further eigenvalues of its K.
        """
        values = self._spectrum[0]
        return self._source.wrap(values.reshape(*self._batch, values.shape[1]))

    @property
    @in_scope
    def modes(self):
        """Exact modes Phi, eigenvectors of K in the order of `eigenvalues`: (..., n, r) complex128.

        Scaled as Phi = Fp V S^-1 p / lambda with unit p (Tu et al. 2014, definition 1).
        """
        vectors = self._xp.ascontiguousarray(self._spectrum[1].transpose(0, 2, 1))
        real, imaginary = (self._rows(self._factors.lift, part) for part in (vectors.real, vectors.imag))
        return self._source.wrap((real + 1j * imaginary).reshape(*self._batch, self._n, vectors.shape[1]))

    def _rows(self, lift, coordinates):
        """(B, n, k) float64 from coordinates (B, k, r): Fp lift (tall) or lift (wide) applied to them."""
        rows = self._combine(lift.transpose(2, 0, 1), coordinates)
        if self._n <= len(self._X) - 1:
            return rows
        return self._combine(self._X[1:], self._xp.ascontiguousarray(rows.transpose(0, 2, 1)))

    def _combine(self, snapshots, coefficients):
        """(B, n, k) float64 sums over snapshots, with bits that do not depend on a small block's neighbours."""
        B, n, m = len(self._factors.rank), self._n, len(self._X) - 1
        large = self.backend.plan(B, n, m, self._X.dtype).engine == "library"
        rows = self.backend.combine(snapshots.astype(np.float64), coefficients, products=large)
        return rows.transpose(1, 2, 0)

    @in_scope
    def matrix(self):
        """K itself, (..., n, n) in X's dtype: n^2 numbers a block, formed only on request; a RuntimeWarning if they do
        not fit it."""
        xp, operator = self._xp, self._factors.operator
        identity = xp.broadcast_to(xp.eye(operator.shape[1]), operator.shape)
        left = self._rows(self._factors.lift, identity)
        right = self._factors.basis
        if self._n > len(self._X) - 1:
            right = self._combine(self._X[:-1], xp.ascontiguousarray(right.transpose(0, 2, 1)))
        with np.errstate(over="ignore"):
            K = (left @ right.transpose(0, 2, 1)).astype(self._X.dtype)
        if self._check_finite and self._source.device is None:
            rows = K.reshape(len(K), self._n**2)
            warn_of_overflow(rows, self._published.route, self._batch, self._source, checks.matrix_overflow)
        return self._source.wrap(K.reshape(*self._batch, self._n, self._n))

    @property
    def rank(self):
        """Singular values of F that count, per block: int64."""
        return self._report(self._published.rank)

    @property
    def threshold(self):
        """What a singular value must exceed to count, per block: float64, in the units of F."""
        return self._report(self._published.threshold)

    @property
    def condition(self):
        """Largest over smallest singular value that counts, per block: float64; NaN at rank 0."""
        return self._report(self._conditions())

    @in_scope
    def _conditions(self):
        with np.errstate(invalid="ignore"):
            return self._published.largest / self._published.smallest

    @property
    def edge(self):
        """Whether a singular value lies so near the threshold that rank +- 1 is as right: bool per block."""
        return self._report(self._published.edge)

    @property
    def route(self) -> np.ndarray:
        """How each block was fitted, in words, a NumPy array.

        "eigen": by the eigenvectors of its Gram matrix; "svd": by its own singular vectors, where that matrix cannot
        resolve the cutoff; "zero": all zero, rank 0; "non-finite".

        >>> X = np.zeros((3, 2, 4))
        >>> X[1:] = [[1.0, 0.5, 0.25, 0.125], [3.0, 2.0, 1.0, 0.5]]
        >>> X[2, 1] = 3.0000001 * X[2, 0]
        >>> fit(X).route.tolist()
        ['zero', 'eigen', 'svd']
        """
        return np.array(ROUTES)[self._host(self._published.route)].reshape(self._batch)

    @in_scope
    def _host(self, values) -> np.ndarray:
        """Values of all blocks in host memory."""
        return self.backend.host(values)

    @property
    def spectral_radius(self):
        """Largest modulus of an eigenvalue of K (after clipping, if any), per block: float64; 0 at rank 0."""
        return self._report(self._radii)

    @functools.cached_property
    @in_scope
    def _radii(self):
        values = self._xp.abs(self.backend.eigenvalues(self._factors))
        return values.max(axis=1) if values.shape[1] else self._xp.zeros(len(values))

    @property
    def eigenvector_condition(self):
        """Condition number of the eigenvectors that clipping went through, per block; 1 where nothing was."""
        return self._report(self._eigenvector_condition)

    @property
    def residual(self):
        """How K misses its own last step, on data it was fitted to: ||K x_(m-1) - x_m|| / ||x_m - x_(m-1)||.

        float64 per block; about 0 for a tall block of full rank, which can explain anything; 1 is as
        wrong as predicting no change. NaN for a block whose last step is zero and met exactly.
        """
        return self._report(self._residuals)

    @functools.cached_property
    @in_scope
    def _residuals(self):
        xp = self._xp
        last = self._X[-1].reshape(-1, self._n)
        before = self._X[-2].reshape(-1, self._n)
        if self._n > len(self._X) - 1:
            # x_(m-1) = F e, so U^T x_(m-1) = S V^T e; rows of the basis (V S^-1)^T have norm 1/s
            basis = xp.ascontiguousarray(self._factors.basis.transpose(0, 2, 1))
            size = xp.abs(basis).max(axis=2)
            size[size == 0.0] = 1.0  # past a block's rank
            norm = xp.linalg.norm(basis / size[..., None], axis=2)
            y = basis[..., -1] / size / xp.where(norm == 0.0, 1.0, norm) ** 2 / size
            coefficients = self._sums(self._factors.lift.transpose(2, 0, 1), y)
            coefficients[:, -1] -= 1.0  # x_m = Fp e: the miss itself is combined, not its two large terms
            miss = self._sums(self._X[1:], coefficients)
        else:
            y = self._sums(self._factors.basis.transpose(1, 0, 2), before.astype(np.float64))
            miss = self._sums(self._factors.lift.transpose(2, 0, 1), y) - last
        return _relative(xp, miss, before, last)

    def _sums(self, rows, coefficients):
        """Sums over rows (q, ..., k) with coefficients (B, q): (B, k), with bits of the block's own."""
        return self.backend.combine(rows, coefficients[:, None])[0]

    @property
    def holdout(self):
        """How an operator fitted without the last pair misses it: ||K' x_(m-1) - x_m|| / ||x_m - x_(m-1)||.

        float64 per block: the trust signal, since that pair is new to it; 1 is as wrong as predicting no
        change. NaN with a single pair, and for a block whose last step is zero and met exactly.
        """
        return self._report(self._holdouts)

    @functools.cached_property
    @in_scope
    def _holdouts(self):
        if len(self._X) < 3:
            return self._xp.full(len(self._factors.rank), np.nan)
        X = self._X[:-1]
        rule = rules.resolve(self._cutoff, self._n, len(X) - 1, X.dtype)
        factors = self.backend.fit(X, rule)
        if self._radius is not None:
            factors, _ = self.backend.clip(factors, self._radius)
        state = self.backend.lift(X, self.backend.evolve(factors, np.array([1])))[0]
        last, before = (self._X[t].reshape(-1, self._n) for t in (-1, -2))
        with np.errstate(over="ignore", invalid="ignore"):
            miss = state.astype(np.float64) - last
        return _relative(self._xp, miss, before, last)

    def summary(self) -> str:
        """The per-block reports as a table, a line per block."""
        found = self._published
        reports = found.rank, found.threshold, self._conditions(), self._radii, self._residuals, self._holdouts
        columns, edges, routes = [self._host(report) for report in reports], self._host(found.edge), self.route.ravel()
        heads = ("threshold", "condition", "radius", "residual", "hold-out")
        lines = ["block         route       rank  " + "  ".join(f"{head:>9}" for head in heads) + "  edge"]
        for b, index in enumerate(np.ndindex(self._batch)):
            rank, *values = (column[b] for column in columns)
            numbers = "  ".join(f"{value:9.3g}" for value in values)
            edge = "yes" if edges[b] else ""
            lines.append(f"{index!s:12}  {routes[b]:10}  {rank:4d}  {numbers}  {edge}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        rank, edge = self._host(self._published.rank), self._host(self._published.edge)
        B = len(rank)
        blocks = f"{B} block{'s' * (B != 1)} of {self._n} weights, {len(self._X) - 1} pairs"
        span = f"{rank.min()}..{rank.max()}" if B else "-"
        routes = ", ".join(np.unique(self.route)) if B else "-"
        return (
            f"KoopmanOperator({blocks}; rank {span} by {rules.describe(self._cutoff)}; "
            f"route {routes}; {int(edge.sum())} on the edge)"
        )


def _relative(xp, miss, x, target):
    """||miss|| / ||target - x|| per block, in float64; NaN where nothing moved and nothing was missed but rounding."""
    eps = np.finfo(target.dtype).eps
    miss, x, target = (array.astype(np.float64) for array in (miss, x, target))
    scale = xp.maximum(xp.abs(target), xp.abs(x)).max(axis=1, keepdims=True)
    scale[scale == 0.0] = 1.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        miss, moved, size = (xp.linalg.norm(part / scale, axis=1) for part in (miss, target - x, target))
        miss[(moved == 0.0) & (miss <= 8 * eps * size)] = 0.0
        return miss / moved


class Walk:
    """The states K x_last, K^2 x_last, ... one at a time: r^2 + n r multiply-adds each.

    Holds its own copy of all it needs (r rows of n numbers a block), so that X may be overwritten.
    """

    def __init__(self, states: States, batch: tuple[int, ...], source: arrays.Array, watched=None):
        """watched: the routes of blocks whose overflow is reported."""
        self._states, self._batch, self._source, self._watched = states, batch, source, watched

    @property
    def steps(self) -> int:
        """Steps from the last snapshot to the state that was returned last."""
        return self._states.steps

    @in_scope
    def step(self, count: int = 1, ahead: int = 1):
        """The state `count` >= 1 steps further on: (..., n), of X's kind and dtype.

        Args:
            count: steps to move on.
            ahead: states to make in one pass, this one and the `ahead` - 1 after it, where looking ahead is
                allowed: the same bits for less time, and `ahead` states of memory.

        Warns:
            RuntimeWarning: as `fastkoop.predict`, at the first step too.
        """
        count, ahead = checks.integer("count", count, least=1), checks.integer("ahead", ahead, least=1)
        state = self._states.step(count, ahead)
        ceiling = min(self._source.ceiling, float(np.finfo(state.dtype).max))
        if self._watched is not None and not self._states.bound() < ceiling:
            warn_of_overflow(state, self._watched, self._batch, self._source)
        return self._source.wrap(state.reshape(*self._batch, state.shape[-1]))
