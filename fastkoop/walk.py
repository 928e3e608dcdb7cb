"""Walk and States: K x_last, K^2 x_last, ... one after another, for the price of a few rows a block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .backends import NON_FINITE, backend_for
from .interop import arrays
from .interop.place import Place
from .interop.traced import in_scope
from .linalg import warn_of_overflow

JOINED = 1 << 18  # numbers in the rows of a batch up to which it is worth sharing kernel calls with others


class Readout(NamedTuple):
    """How weights are read out of an operator's coefficients (B, k, q)."""

    backend: Any
    place: Place
    snapshots: Any  # (q, ..., n) that the coefficients of tall blocks combine; a wide block's hold its weights first
    tall: bool
    large: bool  # blocks for BLAS and LAPACK
    first: int = 0  # of a wide block's rows, the one that is read out first

    def states(self, coefficients, *, products: bool = True):
        """Weights (k, B, n) in the snapshots' dtype."""
        if self.tall:
            return self.backend.combine(self.snapshots, coefficients, products=products)
        return self.backend.reconstruct(self.snapshots, coefficients[..., self.first :], side="weights")

    def rows(self, factors):
        """Rows (r, B, n) whose combinations with coordinates y are the weights, so that snapshots need not be read."""
        coefficients = self.backend.xp.ascontiguousarray(factors.readout.swapaxes(1, 2))
        return self.states(coefficients, products=self.large)


class States:
    """The states of a batch of blocks, one step after another: r^2 + n r multiply-adds each.

    The batch may come from several operators with the same n and dtype, so that they share kernel calls.
    Holds its own copy of all it needs (r rows of n numbers a block): the snapshots may be overwritten.
    """

    def __init__(self, parts: Sequence[tuple[Readout, Any]], *, overwrites: bool = False):
        """parts: readout and factors of each operator; overwrites: each state lies in the memory of the last."""
        self.backend, self._place = parts[0][0].backend, parts[0][0].place
        xp, self.n = self.backend.xp, parts[0][0].snapshots.shape[-1]
        rows = _joined(xp, [readout.rows(factors) for readout, factors in parts])
        self._factors = _coordinates(xp, [factors for _, factors in parts])
        self._bad = self._factors.route == NON_FINITE
        self._any_bad = bool(self._bad.any())
        self._weight = _largest(xp, rows)
        self._memory, self._rows = rows, self.backend.rows_of(rows)
        self._overwrites, self._out = overwrites, None
        self.restart()

    def __getstate__(self) -> dict:
        """For copies and pickles: what a backend makes of memory is made again where they are taken."""
        return {name: value for name, value in self.__dict__.items() if name not in ("backend", "_rows")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.backend = backend_for(self._place)
        self._rows = self.backend.rows_of(self._memory)

    def restart(self) -> None:
        """Back to the last snapshot."""
        self.steps = 0
        self._y, self._at = self._factors.start, 1  # coordinates of the state at step `_at`
        self._first, self._passed = 1, None
        self._held: Sequence[Any] = ()
        self._bounds: Sequence[float] = ()

    @property
    def coordinates(self):
        """Coordinates (B, r) of the present state, from which `resume` goes on; None at the last snapshot."""
        return self._passed[:, self.steps - self._first] if self.steps else None

    def resume(self, steps: int, coordinates) -> None:
        """Go on from the state `steps` past the last snapshot, as if the walk had come there."""
        self.restart()
        if steps:
            self.steps = self._at = self._first = steps
            self._y = self.backend.xp.array(coordinates, np.float64)
            self._passed = self._y[:, None]

    def step(self, count: int = 1, ahead: int = 1) -> np.ndarray:
        """The state (B, n), `count` >= 1 steps further on; one pass makes this one and the `ahead` - 1 after it.

        Looking ahead changes no bit and saves the overhead of a pass; the states are then held in memory.
        """
        self.steps += count
        if self.steps - self._first >= len(self._held):
            self._pass(self.steps, ahead)
        return self._held[self.steps - self._first]

    def _pass(self, at: int, ahead: int) -> None:
        if ahead == 1:
            state, self._y, bound = self.backend.follow(
                self._rows, self._factors, self._weight, self._y, at - self._at, self._out
            )
            self._passed, self._bounds, self._held = self._y[:, None], (bound,), (state,)
            self._at = self._first = at
            if self._overwrites:
                self._out = state
        else:
            self._pass_many(at, ahead)
        if self._any_bad:
            for state in self._held:
                state[self._bad] = np.nan

    @np.errstate(over="ignore", invalid="ignore")  # `bound` is infinite then
    def _pass_many(self, at: int, ahead: int) -> None:
        if at != self._at:
            self._y = self.backend.advance(self._factors, self._y, at - self._at)
        y = self._passed = self.backend.evolve(self._factors._replace(start=self._y), np.arange(1, ahead + 1))
        self._y, self._at = self.backend.xp.ascontiguousarray(y[:, -1]), at + ahead - 1
        self._bounds = self.backend.xp.einsum("bkr,br->k", abs(y), self._weight).tolist()
        self._held, self._first = tuple(self.backend.combine(self._rows, y, products=False)), at

    def at(self, steps: np.ndarray) -> np.ndarray:
        """States (k, B, n) at ascending steps >= 1, as a matrix product where that is faster; the walk stays put."""
        states = self.backend.combine(self._rows, self.backend.evolve(self._factors, steps))
        if self._any_bad:
            states[:, self._bad] = np.nan
        return states

    def bound(self) -> float:
        """No entry of the present state is larger in modulus; NaN or infinity where that cannot be told.

        Sums |y_k| max_i |row_k[i]| over a block, or over all: far less to read than the states themselves.
        """
        return self._bounds[self.steps - self._first]


class Walk:
    """The states K x_last, K^2 x_last, ... one at a time: r^2 + n r multiply-adds each.

    Holds its own copy of all it needs (r rows of n numbers a block), so that X may be overwritten; it can be copied and
    pickled, and goes on with the same bits.
    """

    def __init__(self, states: States, batch: tuple[int, ...], source: arrays.Array, watched=None):
        """watched: the routes of blocks whose overflow is reported."""
        self._states, self._batch, self._source, self._watched = states, batch, source.emptied(), watched

    @property
    def steps(self) -> int:
        """Steps from the last snapshot to the state that was returned last."""
        return self._states.steps

    def restart(self) -> None:
        """Back to the last snapshot."""
        self._states.restart()

    @property
    def coordinates(self) -> np.ndarray | None:
        """Coordinates (B, r) of the state that was returned last, in host memory; None at the last snapshot."""
        y = self._states.coordinates
        return None if y is None else np.array(self._states.backend.host(y))

    @in_scope
    def resume(self, steps: int, coordinates: np.ndarray | None) -> None:
        """Go on from the state `steps` past the last snapshot, whose coordinates these are."""
        self._states.resume(steps, coordinates)

    @in_scope
    def step(self, count: int = 1, ahead: int = 1) -> Any:
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


def states_together(parts: Iterable[tuple[Readout, Any]]) -> tuple[list[States], list[tuple[int, slice]]]:
    """States of many operators, small ones with the same n and dtype in one batch; each state overwrites the last.

    Returns:
        The States, and for each part which of them it is in, and which of its blocks it owns.
    """
    batches: dict[tuple, list] = {}
    places = []
    for i, (readout, factors) in enumerate(parts):
        B, n = len(factors.rank), readout.snapshots.shape[-1]
        small = B * n * factors.operator.shape[1] <= JOINED
        batch = batches.setdefault((n, readout.snapshots.dtype, -1 if small else i), [])
        first = sum(len(other.rank) for _, other in batch)
        batch.append((readout, factors))
        places.append((batch, slice(first, first + B)))
    order = list(batches.values())
    index = {id(batch): k for k, batch in enumerate(order)}
    return [States(batch, overwrites=True) for batch in order], [(index[id(batch)], blocks) for batch, blocks in places]


def _coordinates(xp, parts: list):
    """Factors of all parts as one batch whose readout is the identity: `evolve` then returns the coordinates y."""
    B, r = sum(len(part.rank) for part in parts), max(part.operator.shape[1] for part in parts)
    operator, start, first = xp.zeros((B, r, r)), xp.zeros((B, r)), 0
    for part in parts:
        count, own = part.start.shape
        operator[first : first + count, :own, :own] = part.operator
        start[first : first + count, :own] = part.start
        first += count
    identity = xp.tile(xp.eye(r), (B, 1, 1))
    whole = {"basis": identity, "readout": identity, "operator": operator, "start": start}
    for name in parts[0]._fields:
        if name not in whole:
            whole[name] = xp.concatenate([getattr(part, name) for part in parts])
    return parts[0]._replace(**whole)


def _joined(xp, parts: list):
    """Rows (r, B, n) of all parts, zero past a part's own r."""
    if len(parts) == 1:
        return parts[0]
    shape = max(len(rows) for rows in parts), sum(rows.shape[1] for rows in parts), parts[0].shape[2]
    out, first = xp.zeros(shape, parts[0].dtype), 0
    for rows in parts:
        out[: len(rows), first : first + rows.shape[1]] = rows
        first += rows.shape[1]
    return out


def _largest(xp, rows):
    """max_i |row_k[i]| per block and coordinate, (B, r) float64."""
    if not rows.shape[2]:
        return xp.zeros(rows.shape[1::-1])
    return xp.ascontiguousarray(xp.maximum(rows.max(axis=2), -rows.min(axis=2)).T, np.float64)
