"""Recordings: a model's parameters into time-major buffers, and states back into the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import increment_version

from .koopman import KoopmanOperator
from .partition import Group, Parameter, Piece
from .walk import states_together

ALIGNMENT = 16  # bytes that rows of a recording are padded to
TURNED = 1 << 20  # bytes of a full ring that are turned at a time, and held twice meanwhile


class RecordingPlan(NamedTuple):
    """Bytes that recording takes: per snapshot, and for `capacity` snapshots (None: it grows as needed)."""

    bytes_per_snapshot: int
    capacity: int | None
    bytes: int | None


class Recording:
    """One group's buffer (time, rows, padded n) and the model's parameters that go in and out of it."""

    def __init__(self, group: Group, parameters: dict[str, nn.Parameter], storage_dtype: torch.dtype | None):
        self.group = group
        self.members = [(piece, parameters[piece.parameter.name]) for piece in group.pieces]
        dtypes = {member.dtype for _, member in self.members}
        self.dtype = storage_dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)
        self.largest = min(torch.finfo(dtype).max for dtype in dtypes | {self.dtype})
        lane = ALIGNMENT // self.dtype.itemsize
        self.width = -(-group.n // lane) * lane
        self.buffer: torch.Tensor | None = None
        self._array: np.ndarray | None = None  # the buffer as NumPy sees it, whose copies cost a third of torch's
        self._views: list[tuple[int, np.ndarray | None]] = [(0, None)] * len(self.members)
        self._sum: torch.Tensor | None = None  # iterates of an unfinished window

    @property
    def bytes_per_snapshot(self) -> int:
        return self.group.rows * self.width * self.dtype.itemsize

    def allocate(self, capacity: int) -> None:
        """A buffer for `capacity` snapshots that keeps what has been recorded."""
        old = self.buffer
        self.buffer = self._zeros(capacity)
        if old is not None:
            self.buffer[: len(old)] = old
        self._array = self.buffer.numpy()

    def _zeros(self, snapshots: int) -> torch.Tensor:
        """Memory that any later call may write to, whatever mode or default device this one runs under."""
        with torch.inference_mode(False):
            return torch.zeros(snapshots, self.group.rows, self.width, dtype=self.dtype, device="cpu")

    def write(self, slot: int) -> None:
        """Copy the parameters into a snapshot."""
        row = self._array[slot]
        for i, (piece, member) in enumerate(self.members):
            source = self.view(i)
            target = row[:, piece.start : piece.start + piece.width]
            if source is None:
                torch.from_numpy(target).copy_(rows_of(member, piece.parameter, self.group.rows))
            else:
                target[...] = source

    def view(self, i: int) -> np.ndarray | None:
        """Parameter i as a NumPy view (rows, width), remembered by address; None if torch has to convert it."""
        piece, member = self.members[i]
        address, view = self._views[i]
        if view is None or member.data_ptr() != address:
            rows = rows_of(member, piece.parameter, self.group.rows)
            direct = rows.dtype == self.dtype and rows.data_ptr() == member.data_ptr() and not rows.is_neg()
            view = rows.numpy() if direct else None
            self._views[i] = (member.data_ptr(), view)
        return view

    def turn(self, turned: int) -> None:
        """Turn the buffer so that snapshot `turned` comes first, in place: a few columns at a time."""
        flat = self._array.reshape(len(self._array), -1)
        columns = max(1, TURNED // (len(flat) * flat.itemsize))
        for at in range(0, flat.shape[1], columns):
            part = flat[:, at : at + columns]
            part[...] = np.roll(part, -turned, axis=0)

    def accumulate(self, first: bool) -> None:
        """Add the parameters to the sum of a window that `finish` turns into a snapshot."""
        if self._sum is None:
            self._sum = self._zeros(2)
        row = self._sum[0 if first else 1]
        for piece, member in self.members:
            row[:, piece.start : piece.start + piece.width].copy_(rows_of(member, piece.parameter, self.group.rows))
        if not first:
            self._sum[0] += self._sum[1]

    def finish(self, slot: int, count: int) -> None:
        """Write the mean of the window's `count` iterates into a snapshot."""
        torch.div(self._sum[0], count, out=self.buffer[slot])

    def apply(self, states: torch.Tensor) -> None:
        """Set the parameters to (rows, n) states, in place."""
        for piece, member in self.members:
            into(member.detach(), piece, states)

    @torch.no_grad()
    def move(self, states: Sequence[torch.Tensor]) -> int:
        """Set the parameters to the states of their blocks; how many blocks were kept as not finite."""
        kept, pieces, at = 0, [], 0
        for state in states:
            rows = state.reshape(self.group.rows, -1)
            values = state.numpy()
            if not -self.largest <= values.min() <= values.max() <= self.largest:  # NaN compares false
                bad = ~(state.abs() <= self.largest).all(dim=-1, keepdim=True)
                kept += int(bad.sum())
                current = self.current()[:, at : at + rows.shape[1]]
                rows = torch.where(bad.expand(state.shape).reshape(rows.shape), current, rows)
            pieces.append(rows)
            at += rows.shape[1]
        self.apply(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1))
        return kept

    def current(self) -> torch.Tensor:
        """The parameters as (rows, n), without a loss of bits."""
        return torch.cat([rows_of(m, p.parameter, self.group.rows) for p, m in self.members], dim=1)


def rows_of(member: torch.Tensor, parameter: Parameter, rows: int) -> torch.Tensor:
    """A parameter as (rows, width), its units first; a view where its strides allow."""
    value = member.detach()
    if value.ndim and rows == parameter.units:
        value = value.movedim(parameter.unit_axis, 0)
    return value.reshape(rows, -1)


def into(member: torch.Tensor, piece: Piece, rows: torch.Tensor) -> None:
    """Copy a parameter's columns of a group's (rows, n) into the parameter, the inverse of `rows_of`."""
    target = member
    if piece.parameter.unit_axis and len(rows) == piece.parameter.units:
        target = member.movedim(piece.parameter.unit_axis, 0)
    value = rows[:, piece.start : piece.start + piece.width]
    target.copy_(value if value.shape == target.shape else value.reshape(target.shape))


class Copy(NamedTuple):
    """Columns of a batch's blocks that go into a parameter."""

    target: np.ndarray  # a view of the parameter, (rows, columns)
    batch: int
    blocks: slice
    columns: slice  # of the blocks' entries as (rows, -1)


class Mover:
    """Moves all parameters one state on, in few calls: no allocation, check or torch operation a layer.

    States of layers with equal blocks are made together and copied through NumPy views of the parameters. A
    bound on the states tells that all are finite; where it cannot, every layer goes through `Recording.move`.
    """

    def __init__(self, recordings: Sequence[Recording], operators: Sequence[Sequence[KoopmanOperator]]):
        self._recordings = recordings
        parts = [op.parts for layer in operators for op in layer]
        self._batches, places = states_together(operators[0][0].backend, parts)
        self._shapes = [[op.rank.shape for op in layer] for layer in operators]
        found = iter(places)
        self._places = [[next(found) for _ in layer] for layer in operators]
        self._views: list[np.ndarray | None] = []
        self._copies: list[Copy] | None = None
        self._members = [member for recording in recordings for _, member in recording.members]
        self._limit = min(recording.largest for recording in recordings) / 2

    def restart(self) -> None:
        """Back to the newest snapshot."""
        for states in self._batches:
            states.restart()

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
