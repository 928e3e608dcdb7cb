"""Mover: all parameters one predicted state on, and another, in few calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.graph import increment_version

from ..operator import KoopmanOperator
from ..walk import states_together
from .buffers import Recording


class Copy(NamedTuple):
    """Columns of a batch's blocks that go into a parameter."""

    target: np.ndarray  # a view of the parameter, (rows, columns)
    batch: int
    blocks: slice
    columns: slice  # of the blocks' entries as (rows, -1)


class Walks:
    """Moves all parameters one state on, each group by itself: on a GPU, and where blocks are spread over ranks."""

    def __init__(self, recordings: Sequence[Recording], operators: Sequence[Sequence]):
        self._recordings = recordings
        self._walks = [[op.walk(check_finite=False) for op in layer] for layer in operators]

    def restart(self) -> None:
        """Back to the newest snapshot."""
        for walk in self._each():
            walk.restart()

    def _each(self):
        return (walk for layer in self._walks for walk in layer)

    @property
    def coordinates(self) -> list:
        """Where the walk is, for `resume`."""
        return [walk.coordinates for walk in self._each()]

    def resume(self, steps: int, coordinates: Sequence) -> None:
        """Go on from the state `steps` past the newest snapshot."""
        for walk, y in zip(self._each(), coordinates, strict=True):
            walk.resume(steps, y)

    def step(self, count: int, ahead: int) -> None:
        """Move the parameters `count` >= 1 states on; see `States.step`."""
        states = [[walk.step(count, ahead) for walk in walks] for walks in self._walks]
        for recording, each in zip(self._recordings, states, strict=True):
            recording.move(each)


class Mover:
    """Moves all parameters one state on, in few calls: no allocation, check or torch operation a layer.

    States of layers with equal blocks are made together and copied through NumPy views of the parameters. A
    bound on the states tells that all are finite; where it cannot, every layer goes through `Recording.move`.
    """

    def __init__(self, recordings: Sequence[Recording], operators: Sequence[Sequence[KoopmanOperator]]):
        self._recordings = recordings
        parts = [op.parts for layer in operators for op in layer]
        self._batches, places = states_together(parts)
        self._shapes = [[op.rank.shape for op in layer] for layer in operators]
        found = iter(places)
        self._places = [[next(found) for _ in layer] for layer in operators]
        self._views: list[np.ndarray | None] = []
        self._copies: list[Copy] | None = None
        self._members = [member for recording in recordings for _, member in recording.members]
        self._limit = min((recording.largest for recording in recordings), default=0.0) / 2

    def restart(self) -> None:
        """Back to the newest snapshot."""
        for states in self._batches:
            states.restart()

    @property
    def coordinates(self) -> list[np.ndarray]:
        """Where the walk is, for `resume`."""
        return [states.coordinates for states in self._batches]

    def resume(self, steps: int, coordinates: Sequence[np.ndarray]) -> None:
        """Go on from the state `steps` past the newest snapshot."""
        for states, y in zip(self._batches, coordinates, strict=True):
            states.resume(steps, y)

    def step(self, count: int, ahead: int) -> None:
        """Move the parameters `count` >= 1 states on; see `States.step`."""
        states = [batch.step(count, ahead) for batch in self._batches]
        copies = self._prepared()
        if copies is None or not all(batch.bound() <= self._limit for batch in self._batches):
            self._move_each(states)
            return
        for target, batch, blocks, columns in copies:
            target[...] = states[batch][blocks].reshape(len(target), -1)[:, columns]
        for member in self._members:  # autograd is told, as by an operation in place
            increment_version(member)

    def _prepared(self) -> list[Copy] | None:
        """The copies, made anew where a parameter's memory changed; None where torch has to convert one."""
        views = [recording.view(i) for recording in self._recordings for i in range(len(recording.members))]
        if len(views) != len(self._views) or any(new is not old for new, old in zip(views, self._views, strict=True)):
            self._views, self._copies = views, None
            if not any(view is None or _overlaps(view) for view in views):
                self._copies = list(self._make_copies(iter(views)))
        return self._copies

    def _make_copies(self, views):
        for recording, places in zip(self._recordings, self._places, strict=True):
            for piece, _ in recording.members:
                view, first = next(views), 0
                for batch, blocks in places:
                    size = self._batches[batch].n * (blocks.stop - blocks.start) // recording.group.rows
                    low, high = max(first, piece.start), min(first + size, piece.start + piece.width)
                    if low < high:
                        target = view[:, low - piece.start : high - piece.start]
                        yield Copy(target, batch, blocks, slice(low - first, high - first))
                    first += size

    def _move_each(self, states: list[np.ndarray]) -> None:
        for recording, places, shapes in zip(self._recordings, self._places, self._shapes, strict=True):
            recording.move(
                [
                    torch.from_numpy(states[batch][blocks]).reshape(*shape, -1)
                    for (batch, blocks), shape in zip(places, shapes, strict=True)
                ]
            )


def _overlaps(view: np.ndarray) -> bool:
    """Whether entries share memory, as an expanded tensor's do; torch refuses to write to those."""
    return any(stride == 0 and length > 1 for stride, length in zip(view.strides, view.shape, strict=True))
