"""Mover: all parameters one predicted state on, and another, in few calls."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.graph import increment_version

from ..operator import KoopmanOperator
from ..walk import states_together
from .buffers import GroupBuffer


class Copy(NamedTuple):
    """Columns of a batch's blocks that go into a parameter."""

    target: np.ndarray  # a view of the parameter, (rows, columns)
    batch: int
    blocks: slice
    columns: slice  # of the blocks' entries as (rows, -1)
    offset: np.ndarray | None  # to add to them

    def out_of(self, states: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The parameter, what goes into it out of these states of every batch, and the offset."""
        values = states[self.batch][self.blocks].reshape(len(self.target), -1)[:, self.columns]
        return self.target, values, self.offset


class Stays:
    """What keeps a group from its predicted states: blocks that are held, and a start beside the newest snapshot.

    held: bool per block of every batch, or None.
    offset: (rows, n) to add to every state; None where the parameters are as they were recorded.
    """

    def __init__(self, held: Sequence[torch.Tensor | None], offset: torch.Tensor | None = None):
        self.held, self._offset = held, offset

    @property
    def free(self) -> bool:
        """Whether no block is held."""
        return not any(blocks is not None for blocks in self.held)

    @property
    def offset(self) -> np.ndarray | None:
        """What is added to every state, (rows, n); None where nothing is."""
        return None if self._offset is None else self._offset.numpy()

    @property
    def reach(self) -> float:
        """The largest modulus of what is added; infinite where that is not finite."""
        if self._offset is None:
            return 0.0
        return float(torch.nan_to_num(self._offset.abs(), nan=math.inf).max())

    def shifted(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """States of every batch from where the parameters began."""
        if self._offset is None:
            return list(states)
        shifted, at, rows = [], 0, len(self._offset)
        for state in states:
            width = state.numel() // rows
            offset = self._offset[:, at : at + width].reshape(state.shape)
            shifted.append(state + offset)
            at += width
        return shifted

    def unmoved(self, rows: torch.Tensor, recording: GroupBuffer) -> torch.Tensor:
        """The rows, where the parameters began beside the snapshot as they are: adding an offset would round."""
        return rows if self._offset is None else torch.where(self._offset != 0, recording.current(), rows)


class Walks:
    """Moves all parameters one state on, each group by itself: on a GPU, and where blocks are spread over ranks."""

    def __init__(self, recordings: Sequence[GroupBuffer], operators: Sequence[Sequence], stays: Sequence[Stays]):
        self._recordings, self._stays = recordings, stays
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
        for recording, layer, stays in zip(self._recordings, states, self._stays, strict=True):
            recording.move(stays.shifted(layer), stays.held)


class Mover:
    """Moves all parameters one state on, in few calls: no allocation, check or torch operation a layer.

    States of layers with equal blocks are made together and copied through NumPy views of the parameters. A
    bound on the states tells that all are finite; where it cannot, every layer goes through `GroupBuffer.move`.
    """

    def __init__(
        self,
        recordings: Sequence[GroupBuffer],
        operators: Sequence[Sequence[KoopmanOperator]],
        stays: Sequence[Stays],
    ):
        self._recordings, self._stays = recordings, stays
        self._free = all(layer.free for layer in stays)
        self._offsets = [layer.offset for layer in stays] if self._free else []
        parts = [op.parts for layer in operators for op in layer]
        self._batches, places = states_together(parts)
        self._shapes = [[op.rank.shape for op in layer] for layer in operators]
        following = iter(places)
        self._places = [[next(following) for _ in layer] for layer in operators]
        self._copies: list[Copy] | None = None
        self._read: list[np.ndarray] = []  # the states that moves read
        self._moves: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        self._members = [member for recording in recordings for _, member in recording.members]
        self._whole = not any(hasattr(member, "to_local") for member in self._members)
        self._seen: list[tuple[int, bool]] | None = None  # the members' addresses, and which are trained
        self._trained: list[torch.Tensor] = []
        largest = min((recording.largest for recording in recordings), default=0.0)
        reach = max((layer.reach for layer in stays), default=0.0)
        self._limit = largest / 2 if reach <= largest / 2 else -math.inf

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
        bounded = all(batch.bound() <= self._limit for batch in self._batches)
        if copies is None or not bounded:
            self._move_each(states)
            return
        if len(states) != len(self._read) or not all(map(operator.is_, states, self._read)):
            self._read = states
            self._moves = [copy.out_of(states) for copy in copies]
        for target, values, offset in self._moves:
            if offset is None:
                target[...] = values
            else:
                np.add(values, offset, out=target)
        _tell_autograd(self._trained)

    def _prepared(self) -> list[Copy] | None:
        """The copies, made anew where a parameter's memory changed or was frozen; None where torch has to do it."""
        if not (self._free and self._whole):
            return None
        seen = [(member.data_ptr(), member.requires_grad) for member in self._members]
        if seen != self._seen:
            self._seen, self._copies, self._read = seen, None, []
            self._trained = [member for member in self._members if member.requires_grad]
            views = [recording.view(i) for recording in self._recordings for i in range(len(recording.members))]
            if not any(view is None or _overlaps(view) for view in views):
                self._copies = list(self._make_copies(iter(views)))
        return self._copies

    def _make_copies(self, views):
        for recording, places, offset in zip(self._recordings, self._places, self._offsets, strict=True):
            for piece, member in recording.members:
                view, first = next(views), 0
                if not member.requires_grad:
                    continue
                for batch, blocks in places:
                    size = self._batches[batch].n * (blocks.stop - blocks.start) // recording.group.rows
                    low, high = max(first, piece.start), min(first + size, piece.start + piece.width)
                    if low < high:
                        target = view[:, low - piece.start : high - piece.start]
                        added = None if offset is None else offset[piece.first : piece.first + piece.rows, low:high]
                        yield Copy(target, batch, blocks, slice(low - first, high - first), added)
                    first += size

    def _move_each(self, states: list[np.ndarray]) -> None:
        layers = zip(self._recordings, self._places, self._shapes, self._stays, strict=True)
        for recording, places, shapes, stays in layers:
            predicted = [
                torch.from_numpy(states[batch][blocks]).reshape(*shape, -1)
                for (batch, blocks), shape in zip(places, shapes, strict=True)
            ]
            recording.move(stays.shifted(predicted), stays.held)


def _tell_autograd(members: list[torch.Tensor]) -> None:
    """Members have been written to, as by an operation in place."""
    try:
        increment_version(members)
    except TypeError:  # of a PyTorch that takes one at a time
        for member in members:
            increment_version(member)


def _overlaps(view: np.ndarray) -> bool:
    """Whether entries share memory, as an expanded tensor's do; torch refuses to write to those."""
    return any(stride == 0 and length > 1 for stride, length in zip(view.strides, view.shape, strict=True))
