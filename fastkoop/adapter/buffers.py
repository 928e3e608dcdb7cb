"""Buffers: a model's parameters into time-major memory, group by group, and states back into the parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ..partition import Group, Piece
from .ranks import Spread

ALIGNMENT = 16  # bytes that rows of a recording are padded to
TURNED = 1 << 20  # bytes of a full ring that are turned at a time, and held twice meanwhile
HALVES = (torch.bfloat16,)  # stored as distances from the first snapshot; float16 has too few exponents for them


class GroupBuffer:
    """One group's buffer (time, rows, padded n) and the model's parameters that go in and out of it.

    With velocities a row holds n of them after its n weights. In bfloat16 it holds distances from the first snapshot,
    of which 8 bits are kept; a buffer on another device than the parameters, or in bfloat16, is brought back by
    `snapshots`, a group at a time. spread: how the group's blocks are spread over ranks, if they are.
    """

    def __init__(
        self,
        group: Group,
        parameters: dict[str, nn.Parameter],
        storage_dtype: torch.dtype | None = None,
        storage_device: torch.device | None = None,
        velocity: Callable[[nn.Parameter], torch.Tensor] | None = None,
        spread: Spread | None = None,
    ):
        self.group, self.velocity, self._spread = group, velocity, spread
        self.members = [(piece, parameters[piece.parameter.name]) for piece in group.pieces]
        dtypes = {member.dtype for _, member in self.members}
        exact = torch.float64 if torch.float64 in dtypes else torch.float32
        self.dtype = exact if storage_dtype in (None, *HALVES) else storage_dtype  # what operators are fitted in
        self.stored = storage_dtype or exact
        self.device = self.members[0][1].device
        self.home = storage_device or self.device
        self.largest = min(torch.finfo(dtype).max for dtype in dtypes | {self.dtype})
        self.numbers = group.n * (1 if velocity is None else 2)  # in a row
        lane = ALIGNMENT // self.dtype.itemsize
        self.width = -(-self.numbers // lane) * lane
        self.buffer: torch.Tensor | None = None
        self.base: torch.Tensor | None = None  # what half-precision snapshots are distances from
        self._columns: list[np.ndarray] | None = None  # of the buffer, see `_columns_of`
        self._views: list[tuple[int, np.ndarray | None]] = [(0, None)] * len(self.members)
        self.sum: torch.Tensor | None = None  # iterates of an unfinished window, and room for one more
        self._sums: tuple[torch.Tensor, torch.Tensor, list[np.ndarray] | None] | None = None  # both, and their columns
        self._row: torch.Tensor | None = None  # the parameters, packed
        self._offload = Offload(self) if self.device.type == "cuda" and self.home.type == "cpu" else None

    @property
    def halved(self) -> bool:
        """Whether snapshots are kept in half precision."""
        return self.stored in HALVES

    @property
    def direct(self) -> bool:
        """Whether the buffer can be fitted as it is."""
        return not self.halved and self.home == self.device

    @property
    def bytes_per_snapshot(self) -> int:
        """Of the buffer, on `home`."""
        return self.group.rows * self.width * self.stored.itemsize

    def fixed_bytes(self, window: int) -> int:
        """What recording takes beside the snapshots: packed parameters or a window's sum, the base, rows in flight."""
        rows = (2 if window > 1 else not self.direct) + self.halved + (2 if self._offload else 0)
        return rows * self.group.rows * self.width * self.dtype.itemsize

    def fit_bytes(self, snapshots: int) -> int:
        """What `snapshots` takes."""
        return 0 if self.direct else snapshots * self.group.rows * self.width * self.dtype.itemsize

    def __getstate__(self) -> dict:
        """For copies and pickles, whose NumPy views would be of the original's tensors."""
        return {**self.__dict__, "_columns": None, "_sums": None, "_views": [(0, None)] * len(self.members)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._look()

    def _look(self) -> None:
        self._columns = self._columns_of(self.buffer) if self.buffer is not None and self.direct else None

    def _columns_of(self, memory: torch.Tensor) -> list[np.ndarray] | None:
        """Where each parameter goes in packed rows (time, rows, width), as NumPy sees it, whose copies cost a third of
        torch's; None on a device."""
        if memory.device.type != "cpu":
            return None
        array = memory.numpy()
        return [
            array[:, piece.first : piece.first + piece.rows, piece.start : piece.start + piece.width]
            for piece, _ in self.members
        ]

    def allocate(self, capacity: int) -> None:
        """A buffer for `capacity` snapshots that keeps what has been recorded."""
        self.wait()
        old = self.buffer
        pinned = self._offload is not None
        self.buffer = self._zeros(capacity, self.stored, self.home, pinned)
        if old is not None:
            self.buffer[: len(old)] = old
        self._look()

    def wait(self) -> None:
        """Until all snapshots have arrived where they are kept."""
        if self._offload is not None:
            self._offload.wait()

    def _zeros(self, snapshots: int, dtype=None, device=None, pinned: bool = False) -> torch.Tensor:
        """Memory that any later call may write to, whatever mode or default device this call runs under."""
        dtype, device = dtype or self.dtype, device or self.device
        with torch.inference_mode(False):
            shape = snapshots, self.group.rows, self.width
            return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)

    def write(self, slot: int) -> None:
        """Copy the parameters into a snapshot."""
        if self._columns is None:
            self.put(slot, self.packed())
        else:
            self._pack(self.buffer, self._columns, slot)

    def _pack(self, memory: torch.Tensor, columns: list[np.ndarray], slot: int) -> None:
        """The parameters, and the velocities if these are recorded, into a row of host memory with these columns."""
        for i, target in enumerate(columns):
            source = self.view(i)
            if source is None:
                piece, member = self.members[i]
                torch.from_numpy(target[slot]).copy_(rows_of(member, piece))
            else:
                target[slot] = source
        if self.velocity is not None:
            self._pack_velocities(memory[slot])

    def packed(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The parameters, and the velocities if these are recorded, as (rows, width) on their device."""
        if out is None:
            if self._row is None:
                self._row = self._zeros(1)
            out = self._row[0]
        targets = [out[p.first : p.first + p.rows, p.start : p.start + p.width] for p, _ in self.members]
        sources = [rows_of(member, piece) for piece, member in self.members]
        if self.device.type == "cuda":
            torch._foreach_copy_(targets, sources)  # in few launches
        else:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)
        if self.velocity is not None:
            self._pack_velocities(out)
        return out

    @torch.no_grad()
    def _pack_velocities(self, out: torch.Tensor) -> None:
        for piece, member in self.members:
            start = self.group.n + piece.start
            rows = slice(piece.first, piece.first + piece.rows)
            out[rows, start : start + piece.width].copy_(rows_of(self.velocity(member), piece))

    def put(self, slot: int, row: torch.Tensor) -> None:
        """Store a packed row as a snapshot."""
        if self.halved:
            if self.base is None:
                self.base = self._zeros(1)[0]
                self.base.copy_(row)
            row.sub_(self.base)
        if self._offload is not None:
            self._offload(row, self.buffer[slot])
        else:
            self.buffer[slot].copy_(row)

    def snapshots(self, count: int) -> torch.Tensor:
        """The first `count` snapshots (count, rows, width), ready to be fitted: a view of the buffer if it can be."""
        if self.direct:
            return self.buffer[:count]
        self.wait()
        decoded = self.buffer[:count].to(self.device, self.dtype)
        return decoded.add_(self.base) if self.halved else decoded

    def blocks(self, count: int) -> list[torch.Tensor]:
        """Views (count, ..., block size) of the first `count` snapshots, each a batch of equal blocks.

        Velocities follow their block's weights; blocks smaller than a row are copied then.
        """
        snapshots = self.snapshots(count)
        if self.velocity is None:
            return self.group.blocks(snapshots)
        if self.group.granularity not in ("weight", "quasi-node"):
            return [snapshots[:, :, : self.numbers]]
        pairs = zip(self.group.blocks(snapshots), self.group.blocks(snapshots[:, :, self.group.n :]), strict=True)
        return [torch.cat(pair, dim=-1) for pair in pairs]

    def view(self, i: int) -> np.ndarray | None:
        """Parameter i as a NumPy view (rows, width), remembered by address; None if torch has to convert it."""
        piece, member = self.members[i]
        if hasattr(member, "to_local"):  # a shard, which may move
            return None
        address, view = self._views[i]
        if view is None or member.data_ptr() != address:
            rows = rows_of(member, piece)
            direct = rows.dtype == self.dtype and rows.data_ptr() == member.data_ptr() and not rows.is_neg()
            view = rows.numpy() if direct and rows.device.type == "cpu" else None
            self._views[i] = (member.data_ptr(), view)
        return view

    def turn(self, turned: int) -> None:
        """Turn the buffer so that snapshot `turned` comes first, in place: a few columns at a time."""
        self.wait()
        flat = self.buffer.view(torch.int16 if self.halved else self.dtype).flatten(1)
        columns = max(1, TURNED // (len(flat) * flat.element_size()))
        if flat.device.type == "cpu":
            flat = flat.numpy()
        for at in range(0, flat.shape[1], columns):
            part = flat[:, at : at + columns]
            part[...] = np.roll(part, -turned, axis=0) if isinstance(part, np.ndarray) else part.roll(-turned, 0)

    def accumulate(self, first: bool) -> None:
        """Add the parameters to the sum of a window that `finish` turns into a snapshot."""
        if self._sums is None:
            self.sum = self._zeros(2) if self.sum is None else self.sum
            self._sums = self.sum[0], self.sum[1], self._columns_of(self.sum)
        total, newest, columns = self._sums
        if columns is None:
            self.packed(total if first else newest)
        else:
            self._pack(self.sum, columns, 0 if first else 1)
        if not first:
            total.add_(newest)

    def finish(self, slot: int, count: int) -> None:
        """Write the mean of the window's `count` iterates into a snapshot."""
        if self._columns is not None:
            torch.div(self.sum[0], count, out=self.buffer[slot])
        else:
            self.put(slot, self.sum[0].div_(count))

    def restore(self, buffer: torch.Tensor | None, base: torch.Tensor | None, total: torch.Tensor | None) -> None:
        """Go on from what a recording held: its first snapshots, their base, a window's sum."""
        self.wait()
        if buffer is not None:
            self.buffer[: len(buffer)] = buffer
        self.base = None if base is None else self._zeros(1)[0].copy_(base)
        self.sum, self._sums = None if total is None else self._zeros(2).copy_(total), None

    def forget(self) -> None:
        """What was recorded before no longer matters."""
        self.base = None

    def release(self) -> None:
        """Give all memory back; the next snapshot begins a new recording."""
        self.wait()
        self.buffer = self.base = self.sum = self._sums = self._row = self._columns = None
        if self._offload is not None:
            self._offload = Offload(self)

    @torch.no_grad()
    def drift(self, newest: int, window: int) -> torch.Tensor | None:
        """How far the parameters (rows, n) are from the iterate that was recorded last; None if they are as it was.

        newest: the snapshot that iterate went into, alone or as the last of a window.
        """
        if window > 1 and self.sum is None:
            return None  # of a state that does not say
        self.wait()
        now, n = self.current(), self.group.n
        seen = self.sum[1] if window > 1 else self.buffer[newest]
        seen, stored = seen[:, :n].to(self.device), now.to(self.dtype)
        if window == 1 and self.halved:
            base = self.base[:, :n]
            same, seen = (stored - base).to(self.stored) == seen, seen.to(self.dtype) + base
        else:
            same = stored == seen
        return None if bool(same.all()) else torch.where(same, 0.0, now - seen)

    def apply(self, states: torch.Tensor) -> None:
        """Set the parameters to (rows, n) states, in place, but for those that are frozen by now."""
        for piece, member in self.members:
            if member.requires_grad:
                into(local(member), piece, states)

    @property
    def waits(self) -> bool:
        """Whether the host may look at numbers: on a GPU it would have to wait for them."""
        return self.device.type == "cpu" or self._spread is not None

    @torch.no_grad()
    def move(self, states: Sequence[torch.Tensor], held: Sequence[torch.Tensor | None] | None = None) -> None:
        """Set the parameters to the states of their blocks; those that are not finite, or held, keep their value."""
        rows, _ = self.checked(states, held) if self.waits else (self._unseen(states, held), 0)
        self.apply(rows)

    @torch.no_grad()
    def _unseen(self, states: Sequence[torch.Tensor], held: Sequence[torch.Tensor | None] | None) -> torch.Tensor:
        """Rows as `checked` has them, without a look at any number."""
        kept = []
        for state, stay in zip(states, held or [None] * len(states), strict=True):
            bad = ~(state.abs() <= self.largest).all(dim=-1)
            bad = bad if stay is None else bad | stay
            kept.append(bad[..., None].expand(state.shape).reshape(self.group.rows, -1))
        rows = [state.reshape(self.group.rows, -1) for state in states]
        if len(rows) > 1:
            return torch.where(torch.cat(kept, dim=1), self.current(), torch.cat(rows, dim=1))
        return torch.where(kept[0], self.current(), rows[0])

    @torch.no_grad()
    def checked(
        self, states: Sequence[torch.Tensor], held: Sequence[torch.Tensor | None] | None = None
    ) -> tuple[torch.Tensor, int]:
        """Rows (rows, n) to set the parameters to, and how many blocks of them keep their value as not finite.

        Every rank of a spread group calls this: a block that is not finite on one rank is kept on all.

        Args:
            states: of every batch of blocks.
            held: bool per block of every batch, blocks that keep their value whatever their states are.
        """
        kept, pieces, at = 0, [], 0
        for state, stay in zip(states, held or [None] * len(states), strict=True):
            rows = state.reshape(self.group.rows, -1)
            bad = self._not_finite(state)
            if bad is not None:
                kept += int(bad.sum())
            if stay is not None:
                bad = stay if bad is None else bad | stay
            if bad is not None and bool(bad.any()):
                current = self.current()[:, at : at + rows.shape[1]]
                rows = torch.where(bad[..., None].expand(state.shape).reshape(rows.shape), current, rows)
            pieces.append(rows)
            at += rows.shape[1]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1), kept

    def _not_finite(self, state: torch.Tensor) -> torch.Tensor | None:
        """Bool per block; None where all are finite, which is quicker to see."""
        low, high = (float(state.min()), float(state.max())) if state.numel() else (0.0, 0.0)
        fine = -self.largest <= low <= high <= self.largest  # NaN compares false
        if fine and self._spread is None:
            return None
        bad = ~(state.abs() <= self.largest).all(dim=-1)
        if self._spread is not None:
            bad = torch.from_numpy(self._spread.ranks.sum("jump", bad.cpu().numpy()) > 0).to(state.device)
        return bad

    def current(self) -> torch.Tensor:
        """The parameters as (rows, n), without a loss of bits."""
        dtype = functools.reduce(torch.promote_types, (member.dtype for _, member in self.members), self.dtype)
        out = torch.zeros(self.group.rows, self.group.n, dtype=dtype, device=self.device)
        for piece, member in self.members:
            rows = slice(piece.first, piece.first + piece.rows)
            out[rows, piece.start : piece.start + piece.width] = rows_of(member, piece)
        return out


class Offload:
    """Copies of packed rows from a CUDA device into pinned memory, on a stream of their own, while training goes on.

    At most two rows are in flight, in separate memory, so that the next may be packed meanwhile.
    """

    def __init__(self, recording: GroupBuffer):
        self._recording, self._rows, self._done, self._turn = recording, None, [], 0

    def __call__(self, row: torch.Tensor, target: torch.Tensor) -> None:
        training = torch.cuda.current_stream(row.device)
        if self._rows is None:
            self._rows = torch.empty_like(row).expand(2, *row.shape).clone()
            self._stream = torch.cuda.Stream(row.device)
            self._done = [torch.cuda.Event(), torch.cuda.Event()]
        self._turn ^= 1
        training.wait_event(self._done[self._turn])  # its last copy has left
        self._rows[self._turn].copy_(row)
        self._stream.wait_stream(training)
        with torch.cuda.stream(self._stream):
            target.copy_(self._rows[self._turn], non_blocking=True)
            self._done[self._turn].record(self._stream)

    def wait(self) -> None:
        """Until everything has arrived."""
        for event in self._done:
            event.synchronize()


def local(member: torch.Tensor) -> torch.Tensor:
    """A parameter's memory on this rank, out of autograd's sight."""
    member = member.detach()
    return member.to_local() if hasattr(member, "to_local") else member


def rows_of(member: torch.Tensor, piece: Piece) -> torch.Tensor:
    """A parameter as (rows, width), its units first; a view where its strides allow."""
    value = local(member)
    if value.ndim and piece.rows == piece.parameter.units:
        value = value.movedim(piece.parameter.unit_axis, 0)
    return value.reshape(piece.rows, piece.width)


def into(member: torch.Tensor, piece: Piece, rows: torch.Tensor) -> None:
    """Copy a parameter's columns of a group's (rows, n) into the parameter, the inverse of `rows_of`."""
    target = member
    if piece.parameter.unit_axis and piece.rows == piece.parameter.units:
        target = member.movedim(piece.parameter.unit_axis, 0)
    value = rows[piece.first : piece.first + piece.rows, piece.start : piece.start + piece.width]
    target.copy_(value if value.shape == target.shape else value.reshape(target.shape))
