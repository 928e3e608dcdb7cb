"""fit -> KoopmanOperator: an operator per block, in its own few coordinates, with reports one can trust."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import backends, checks, pool
from .backends import COORDINATES, NON_FINITE, SVD, backend_for
from .cutoff import Cutoff
from .fitting import kept_of, operators, refuse_what_does_not_fit, stabilized
from .forecast import Forecasting
from .interop import arrays, traced
from .interop.traced import in_scope
from .limit import REASONS, limits_of
from .linalg import refuse_non_finite, time_major, warn_of_overflow
from .machine import free_memory
from .modes import Modes
from .observables import ObservablesLike
from .options import Options, Stabilize
from .walk import Readout, States, Walk


@traced.opaque
def fit(
    X: Any,
    Y: Any = None,
    *,
    weights: Any = None,
    cutoff: Cutoff = "array_api",
    observables: ObservablesLike = "identity",
    stabilize: Stabilize = None,
    out_of_span: str = "drop",
    time_axis: int = -1,
    check_finite: bool = True,
    refine: bool = False,
) -> KoopmanOperator:
    """The Koopman operator K = Fp pinv(F) of every block, truncated at the cutoff; K is not formed.

    Tall blocks (n > m) get at most m non-zero eigenvalues: K acts on what F spans. Wide ones (n <= m) of
    full rank get the least-squares operator. Rank-deficient ones the minimum-norm operator; an all-zero
    block has rank 0 and predicts zero.

    Args:
        X: snapshots (..., n, m+1), float32 or float64, columns oldest first: a NumPy or CuPy array or a
            PyTorch tensor with any strides. The operator refers to X's memory and does not copy it: leave it
            unchanged while the operator is in use. A list or tuple holds several trajectories, of any lengths, whose
            pairs are pooled, none across a join; predictions start at the end of the last one. Pairs are copied.
        Y: the successors of X's columns, (..., n, m) both, where pairs are no trajectory; predictions start at its
            last column.
        weights: of the squared error, one number >= 0 a trajectory, or one a pair.
        cutoff: which singular values of F count, see `fastkoop.cutoff`.
        observables: "identity", the weights themselves, as published; `Affine()`, `Delay(d)`, `Momentum()`, or a
            tuple of these, see `fastkoop.observables`. Predictions stay (..., n); with a constant fitting copies a
            part of the snapshots to float64 at a time, and so it does of wide blocks (n <= m) with anything but the
            defaults of observables, stabilize and out_of_span.
        stabilize: None, as published; "clip" moves eigenvalues of modulus > 1 onto the unit circle at
            every number of steps; a float clips at that radius; "project" takes the nearest operator that stretches
            no vector (singular values of K above 1 become 1): no state grows but by what a constant adds, or what is
            carried. Not with `Delay` or `Momentum`: what they stack grows and shrinks in turn where nothing diverges,
            and would be held back by that.
        out_of_span: "drop" what F cannot represent of x_last, as published (K x_last is what K makes of the rest), or
            "carry" it along as it is: it is added to every state.
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
    options = Options(cutoff, observables, stabilize, out_of_span)
    refine, check_finite = checks.flag("refine", refine), checks.flag("check_finite", check_finite)
    if Y is not None or weights is not None or isinstance(X, (list, tuple)):
        return _pooled(X, Y, weights, time_axis, options, refine=refine, check_finite=check_finite)
    source = arrays.read(X)
    snapshots = time_major(source.data, time_axis)
    options.observables.check(len(snapshots))
    options.observables.weights(snapshots.shape[-1])
    with source.scope():
        backend = backend_for(source.place)
        refuse_what_does_not_fit(backend, snapshots, options, source)
        op = KoopmanOperator(snapshots, options, backend, source, refine=refine, check_finite=check_finite)
        if check_finite and source.place.on_host:
            refuse_non_finite(op._published.route, snapshots.shape[1:-1])
        return op


def _pooled(X, Y, weights, time_axis: int, options: Options, *, refine: bool, check_finite: bool) -> KoopmanOperator:
    """`fit` of several trajectories, or of pairs."""
    sources, views = pool.read(X, Y, time_axis, options)
    options.observables.weights(views[0].shape[-1])
    with sources[-1].scope():
        backend = backend_for(sources[-1].place)
        pairs = pool.pool_of(views, Y is not None, weights, options, backend.xp)
        newest = views[-1] if Y is None else backend.xp.stack([views[0][-1], views[1][-1]])
        op = KoopmanOperator(
            newest, options, backend, sources[-1], refine=refine, check_finite=check_finite, pairs=pairs
        )
        if check_finite and sources[-1].place.on_host:
            refuse_non_finite(op._published.route, newest.shape[1:-1])
        return op


NOT_PICKLED = ("backend", "_xp", "_source", "_X", "_readout")


def _is_dense(X) -> bool:
    """Whether a block's weights lie side by side, which some kernels' order of summation depends on."""
    return X.strides[-1] == X.itemsize


def _memory_order(X) -> tuple[int, ...]:
    """X's axes from the one with the largest steps in memory to that with the smallest."""
    dense = _is_dense(X)
    return tuple(sorted(range(X.ndim), key=lambda axis: (dense and axis == X.ndim - 1, -abs(X.strides[axis]))))


class KoopmanOperator(Modes, Forecasting):
    """Koopman operators of a batch of blocks, from `fastkoop.fit`.

    Reports are those of `Reports`. It can be copied and pickled, snapshots and all, and predicts the same bits then.
    """

    @classmethod
    def over(cls, X, options: Options, spread) -> KoopmanOperator:
        """From time-major snapshots X (m+1, ..., n), unchecked; spread: what fits blocks of which X is a part."""
        source = arrays.read(X)
        with source.scope():
            return cls(source.data, options, backend_for(source.place), source, spread)

    def __init__(
        self, snapshots, options: Options, backend, source: arrays.Array, spread=None, *, refine=False,
        check_finite=True, kept=None, pairs: pool.Pool | None = None,
    ):  # fmt: skip
        self._X, self.options, self.backend, self._xp, self._source = snapshots, options, backend, backend.xp, source
        self._spread, self._check_finite, self._refine, self._kept = spread, check_finite, refine, kept
        self._pool = pairs
        observed, columns = options.observables.observed, len(snapshots)
        self._batch, self._n = snapshots.shape[1:-1], options.observables.weights(snapshots.shape[-1])
        self._columns = slice(self._n)  # of the observables' rows that are read out
        rows, self._pairs = observed.delay * snapshots.shape[-1], columns - observed.delay
        self._tall = spread is not None or observed.tall(snapshots.shape[-1], columns)
        if pairs is not None:
            self._pairs, self._tall = len(pairs.before), False
        self._large = backend.plan(1, rows, self._pairs, snapshots.dtype).engine == "library"
        if pairs is not None:
            found = pairs.fitted(backend, options, refine)
        elif spread is None:
            if kept is None and source.place.on_host and not refine:
                self._kept = kept_of(backend, snapshots, options)
            found = operators(backend, snapshots, options, refine=refine, kept=self._kept)
        else:
            found = backends.observed.moved(backend.xp, spread.fitted(backend.host(snapshots)))
        self._published = found.factors
        with np.errstate(over="ignore", invalid="ignore"):
            found, self._eigenvector_condition = stabilized(backend, found, options)
        self._lifted = found._replace(gains=None)
        constant = options.carry or observed.affine
        self._factors = self._augmented(options.carry) if constant else found.factors
        self._readout = self._reading(snapshots)

    def _reading(self, snapshots) -> Readout:
        """How weights are read out of these snapshots."""
        read = None if snapshots is None else snapshots[..., self._columns]
        if read is not None and self._tall:
            read = read[self.options.observables.observed.delay - self.options.carry :]
        return Readout(self.backend, self._source.place, read, self._tall, self._large, self._columns.start or 0)

    def released(self) -> KoopmanOperator:
        """The same without snapshots: its reports, but no predictions; see `on`."""
        other = self._twin()
        other._X, other._source, other._readout = None, self._source.emptied(), self._reading(None)
        return other

    def on(self, X) -> KoopmanOperator:
        """The same with snapshots X (m+1, ..., n) to read weights out of, equal to those that it was fitted to."""
        other = self._twin()
        other._source = arrays.read(X)
        other._X, other._readout = other._source.data, self._reading(other._source.data)
        return other

    def _twin(self) -> KoopmanOperator:
        """Another operator that shares all this one has."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict:
        """For copies and pickles; snapshots keep their order in memory, and with it every bit of what is made of them.

        Raises:
            TypeError: parts of the blocks are on other ranks.
        """
        if self._spread is not None:
            raise TypeError(
                "KoopmanOperator: expected whole blocks, got some whose other parts are on other ranks; save the "
                "phase's state_dict() on every rank instead"
            )
        state = {name: value for name, value in self.__dict__.items() if name not in NOT_PICKLED}
        state["_source"] = self._source.emptied()
        if self._X is not None:
            order = _memory_order(self._X)
            memory = self._xp.ascontiguousarray(self._X.transpose(order))
            if self._source.kind in ("jax", "dlpack"):  # lent to us, and not to be handed on
                memory = memory.copy()
            state["snapshots"] = self._source.wrap(memory), order, _is_dense(self._X)
        return state

    def __setstate__(self, state: dict) -> None:
        memory, order, dense = state.pop("snapshots", (None, (), True))
        self.__dict__.update(state)
        self._X = None
        if memory is not None:
            self._source = arrays.read(memory)
            self._X = self._source.data.transpose(np.argsort(order))
        self.backend = backend_for(self._source.place)
        self._xp = self.backend.xp
        if memory is not None and _is_dense(self._X) != dense:
            spaced = self._xp.empty((*self._X.shape[:-1], 2 * self._X.shape[-1]), self._X.dtype)[..., ::2]
            spaced[...] = self._X
            self._X = spaced
        self._readout = self._reading(self._X)

    def _watchful(self, check_finite: bool | None) -> bool:
        """Whether states are looked at, as the caller says, or else as `fit` was told."""
        return self._check_finite if check_finite is None else checks.flag("check_finite", check_finite)

    @in_scope
    def check(self) -> None:
        """Raise if a block was not finite; on a CPU `fit` has done so already unless check_finite=False."""
        refuse_non_finite(self.backend.host(self._published.route), self._batch)

    @in_scope
    def predict(self, steps: Any, *, check_finite: bool | None = None) -> Any:
        """K^steps x_last.

        Args:
            steps: an integer >= 0, math.inf, or a 1-D sequence of k of them, in any order. math.inf is the mean of ever
                more states (von Neumann's mean ergodic limit): what lies along eigenvalues inside the unit circle
                vanishes, with a constant it goes to its fixed point; along those within 1e-8 of 1 it stays, along
                others on the circle it averages out. Infinite where there is none, see `limit_reason`.
            check_finite: False takes states beyond the dtype as infinities, without a warning; None is what
                `fit` was given.

        Returns:
            (..., n) for an integer, (..., n, k) for a sequence, of X's kind, dtype and device. Many states
            lie in memory one after another (a view of (k, ..., n)).

        Warns:
            RuntimeWarning: as `fastkoop.predict`.
        """
        check_finite = self._watchful(check_finite)
        needed = (checks.how_many(steps) or 1) * len(self._factors.rank) * self._n * self._X.itemsize
        if self._source.place.on_host:
            checks.memory(f"steps: {checks.how_many(steps)} states", needed, free_memory, "ask for fewer at a time")
        counts, single = checks.step_counts(steps)
        states = self._states(counts)
        if check_finite and (counts == checks.FOREVER).any():
            limits = np.flatnonzero(self._limits[1])
            if len(limits):
                checks.warn(checks.no_limit(int(limits[0]), len(limits), self._batch, self._X.dtype))
            check_finite = False
        if check_finite and self._source.place.on_host and (counts.any() or self._source.dtype):
            warn_of_overflow(states, self._published.route, self._batch, self._source)
        return self._handed_over(states, single)

    def _handed_over(self, states, single: bool):
        """States (k, B, n) in the caller's kind and shape."""
        out = states.reshape(len(states), *self._batch, states.shape[-1])
        return self._source.wrap(out[0] if single else self._xp.moveaxis(out, 0, -1))

    @in_scope
    def velocities(self, steps: Any) -> Any:
        """Velocities that `Momentum` observes beside the weights, after so many steps, as `predict` gives weights.

        Args:
            steps: as `predict`.

        Raises:
            ValueError: the operator does not observe them.
        """
        if not self.options.observables.momentum:
            raise checks.InputError(
                f"velocities: expected an operator that observes Momentum(), got {self.options.observables}"
            )
        counts, single = checks.step_counts(steps)
        other = self._twin()
        other._columns = slice(self._n, 2 * self._n)
        other._readout = other._reading(self._X)
        return self._handed_over(other._states(counts), single)

    def _states(self, counts: np.ndarray):
        """States (k, B, n) at the given numbers of steps."""
        B = len(self._factors.rank)
        later = np.unique(counts[counts > 0])
        states = self._later(later[later < checks.FOREVER])
        if np.array_equal(later, counts) and len(states) == len(counts):
            out = states
        else:
            out = self.backend.aligned_empty((len(counts), B, self._n), self._X.dtype)
            for k, count in enumerate(counts):
                if count == checks.FOREVER:
                    out[k] = self._limit_states()
                else:
                    out[k] = states[int(np.searchsorted(later, count))] if count else self._weights(-1)
        out[:, self._published.route == NON_FINITE] = np.nan
        return out

    @functools.cached_property
    def _limits(self) -> tuple:
        """Coordinates (B, r) that the states settle at, and indices of why a block's do not."""
        factors, host = self._lifted.factors, self.backend.host
        arrays = (factors.operator, self._lifted.drift, factors.start, factors.rank)
        return limits_of(*map(host, arrays))

    def _limit_states(self):
        """The limits' weights (B, n); infinite where there is none."""
        limits, reasons = self._limits
        start = self._xp.asarray(np.where(reasons[:, None], 0.0, limits))
        if self._factors is not self._lifted.factors:  # with the constant
            start = self._xp.concatenate([self._xp.ones((len(start), 1)), start], axis=1)
        settled = self._factors._replace(start=self._xp.ascontiguousarray(start))
        states = self._readout.states(self.backend.evolve(settled, np.array([1])))[0]
        states[self._xp.asarray(reasons > 0)] = np.inf
        return states

    @property
    def limit_reason(self) -> np.ndarray:
        """Why `predict(math.inf)` is infinite, per block, in words, a NumPy array.

        "": it is not; "diverges": an eigenvalue lies outside the unit circle; "drifts": something moves along the
        eigenvalue 1 at every step, as along a straight line.

        >>> fit(np.array([[[1.0, 0.5, 0.25]], [[1.0, 2.0, 4.0]]])).limit_reason.tolist()
        ['', 'diverges']
        """
        return np.array(REASONS)[self._limit_reasons()].reshape(self._batch)

    @in_scope
    def _limit_reasons(self) -> np.ndarray:
        return self._limits[1]

    def _later(self, steps: np.ndarray):
        """States (k, B, n) at ascending steps >= 1: of snapshots, or of each large block's few rows where that is less.

        Snapshots cost k q n multiply-adds a block, rows (q + k) rank n; a block's own sizes decide.
        """
        B, n, q, k = len(self._factors.rank), self._n, self._factors.readout.shape[1], len(steps)
        large = self._tall and self._source.place.on_host and self._large
        rows = k * (q - self._factors.rank) > q * self._factors.rank if large else np.zeros(B, np.bool_)
        if not rows.any():
            return self._readout.states(self.backend.evolve(self._factors, steps))
        out = self.backend.aligned_empty((k, B, n), self._X.dtype)
        for b, index in enumerate(np.ndindex(self._batch)):
            snapshots, factors = self._readout.snapshots[(slice(None), *index, None)], self._one(b)
            readout = self._readout._replace(snapshots=snapshots)
            if rows[b]:
                out[:, b] = States([(readout, factors)]).at(steps)[:, 0]
            else:
                out[:, b] = readout.states(self.backend.evolve(factors, steps))[:, 0]
        return out

    def _one(self, b: int):
        """Factors of block b alone, in its own rank's coordinates."""
        r = self._factors.rank[b]
        own = {name: array[b : b + 1] for name, array in self._factors._asdict().items()}
        for name, axes in COORDINATES.items():
            cut = tuple(slice(r) if axis in axes else slice(None) for axis in range(own[name].ndim))
            own[name] = np.ascontiguousarray(own[name][cut])
        return self._factors._replace(**own)

    @in_scope
    def walk(self, *, check_finite: bool | None = None) -> Walk:
        """A walk along the predicted states, one after another, without looking ahead unless asked to.

        Args:
            check_finite: as `predict`.
        """
        check_finite = self._watchful(check_finite)
        watched = self._published.route if check_finite and self._source.place.on_host else None
        return Walk(States([self.parts]), self._batch, self._source, watched)

    @property
    def parts(self) -> tuple[Readout, Any]:
        """What `States` is made of: how weights are read out, and the factors of the operators."""
        return self._readout, self._factors

    def _earlier(self, columns: int) -> KoopmanOperator:
        """The operator of the first snapshots alone, by a corner of what has been kept."""
        first, observed = self._X[:columns], self.options.observables.observed
        tall = self._kept is not None and observed.tall(first.shape[-1], columns)
        kept = self._kept.corner(columns) if tall else None
        refine = self._refine or (kept is None and self._unsettled)
        return KoopmanOperator(
            first, self.options, self.backend, self._source, self._spread, refine=refine, check_finite=False, kept=kept
        )

    @property
    def _unsettled(self) -> bool:
        """Whether no block was settled by its Gram matrix, so that those of its first snapshots are not worth a try."""
        return self._source.place.on_host and self._spread is None and bool((self._published.route == SVD).all())

    def _without_last(self):
        if self._pool is not None:
            pairs = self._pool.without_last()
            rest = KoopmanOperator(self._X[:-1], self.options, self.backend, self._source, pairs=pairs)
            return rest._states(np.array([1]))[0]
        earlier = KoopmanOperator(self._X[:-1], self.options, self.backend, self._source, self._spread)
        return earlier._states(np.array([1]))[0]
