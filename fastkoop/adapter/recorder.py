"""Recorder: snapshots of a model over time, a ring or a growing buffer for each group of its parameters."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from .. import checks
from ..machine import free_memory
from . import recording_plan as plan
from .buffers import GroupBuffer, into, local
from .recording_plan import GroupPlan, RecordingPlan

FIRST_CAPACITY = 64  # snapshots; doubled whenever full unless the capacity is given


class Recorder:
    """Takes a snapshot every `every` iterations, or the mean of the last `window` of them.

    capacity: snapshots to hold, the newest; None doubles the buffers whenever they are full.
    """

    def __init__(self, recordings: Sequence[GroupBuffer], every: int, window: int, capacity: int | None):
        self.every, self.window = _interval(every, window)
        self.capacity = None if capacity is None else checks.integer("capacity", capacity, least=2)
        self.recordings = list(recordings)
        self.allocated = 0
        self.clear()

    def clear(self) -> None:
        """Forget every snapshot and the time it took; buffers are kept."""
        self.seconds = 0.0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget every snapshot: the next is the first."""
        self.iterations = 0  # optimizer steps seen
        self.taken = 0  # snapshots ever taken
        for recording in self.recordings:
            recording.forget()

    def release(self) -> None:
        """Forget every snapshot and give their memory back."""
        self.begin_anew()
        self.allocated = 0
        for recording in self.recordings:
            recording.release()

    @property
    def newest_is_last(self) -> bool:
        """Whether the iterate that was seen last is in the newest snapshot, and not between two."""
        return self.taken > 0 and self.iterations % self.every == 0

    @property
    def snapshots(self) -> int:
        """Snapshots that are held."""
        return self.taken if self.capacity is None else min(self.taken, self.capacity)

    def record(self) -> None:
        """Record the parameters after an optimizer step."""
        phase = self.iterations % self.every
        if phase >= self.every - self.window:
            began = time.perf_counter()
            self._take(first=phase == self.every - self.window, done=phase == self.every - 1)
            self.seconds += time.perf_counter() - began
        self.iterations += 1  # not before, so that what failed may be tried again

    def _take(self, first: bool, done: bool) -> None:
        """The parameters into the newest snapshot, or into the sum of its window."""
        slot = self._slot() if done or not self.allocated else None
        for recording in self.recordings:
            if self.window > 1:
                recording.accumulate(first)
                if done:
                    recording.finish(slot, self.window)
            else:
                recording.write(slot)
        self.taken += done

    def _slot(self) -> int:
        """Where the next snapshot goes; makes room."""
        capacity = self.capacity or max(FIRST_CAPACITY, self.allocated)
        if self.capacity is None and self.taken >= capacity:
            capacity *= 2
        self.allocate(capacity)
        return self.taken % capacity

    def allocate(self, capacity: int) -> None:
        """Buffers for so many snapshots.

        Raises:
            ValueError: they do not fit into the memory that is free, with the numbers; nothing is lost.
        """
        if capacity <= self.allocated:
            return
        self.refuse_what_does_not_fit(capacity)
        for recording in self.recordings:
            recording.allocate(capacity)
        self.allocated = capacity

    def refuse_what_does_not_fit(self, capacity: int) -> None:
        """Raise, with the numbers, if buffers for so many snapshots do not fit."""
        per_snapshot = sum(recording.bytes_per_snapshot for recording in self.recordings)
        fixed = 0 if self.allocated else sum(recording.fixed_bytes(self.window) for recording in self.recordings)
        largest = max((recording.bytes_per_snapshot for recording in self.recordings), default=0)
        # a buffer that grows is there twice while it is copied
        needed = per_snapshot * (capacity - self.allocated) + fixed + largest * self.allocated
        for home in {recording.home for recording in self.recordings}:
            free = torch.cuda.mem_get_info(home)[0] if home.type == "cuda" else free_memory()
            plan.refuse(needed, free, per_snapshot, capacity - self.allocated, str(home))

    def plan(self, exchanges: Sequence[tuple[str, int | None]]) -> RecordingPlan:
        """Bytes that recording takes; exchanges: what a fit of each group exchanges between ranks."""
        recordings, held = self.recordings, self.capacity
        groups = tuple(
            GroupPlan(
                recording.group.name, recording.group.granularity,
                sum(blocks for blocks, _ in recording.group.block_sizes), recording.group.rows * recording.group.n,
                recording.bytes_per_snapshot, *exchange,
            )
            for recording, exchange in zip(recordings, exchanges, strict=True)
        )  # fmt: skip
        per_snapshot = sum(recording.bytes_per_snapshot for recording in recordings)
        fixed = sum(recording.fixed_bytes(self.window) for recording in recordings)
        fit = None if held is None else max((recording.fit_bytes(held) for recording in recordings), default=0)
        return RecordingPlan(
            per_snapshot, held, None if held is None else per_snapshot * held + fixed, self.every,
            _names(str(recording.stored).removeprefix("torch.") for recording in recordings),
            _names(str(recording.home) for recording in recordings), fixed, fit, groups,
        )  # fmt: skip

    def put_in_order(self) -> None:
        """Turn a full ring in place, oldest snapshot first."""
        turned = self.taken % self.allocated if self.taken > self.allocated else 0
        if turned:
            for recording in self.recordings:
                recording.turn(turned)
        self.taken = min(self.taken, self.allocated)

    def average(self) -> dict[str, torch.Tensor]:
        """The mean of the snapshots by parameter name, in the parameters' shapes and dtypes."""
        mean = {}
        for recording in self.recordings:
            rows = recording.snapshots(self.snapshots).mean(dim=0, dtype=torch.float64)
            for piece, member in recording.members:
                value = torch.empty_like(member, requires_grad=False)
                into(local(value), piece, rows)
                mean[piece.parameter.name] = value
        return mean

    def state(self) -> dict:
        """The whole recording; tensors share its memory."""
        held = min(self.taken, self.allocated)
        for recording in self.recordings:
            recording.wait()
        return {
            "iterations": self.iterations, "taken": self.taken, "allocated": self.allocated, "seconds": self.seconds,
            "buffers": [recording.buffer[:held] if held else None for recording in self.recordings],
            "bases": [recording.base for recording in self.recordings],
            "sums": [recording.sum for recording in self.recordings],
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: its snapshots do not fit the memory that is free; nothing has changed then.
        """
        self.allocate(max(self.allocated, state["allocated"]))
        for recording, buffer, base, total in zip(
            self.recordings, state["buffers"], state["bases"], state["sums"], strict=True
        ):
            recording.restore(buffer, base, total)
        self.iterations, self.taken, self.seconds = state["iterations"], state["taken"], state["seconds"]


def _names(names) -> str:
    """Distinct names, joined."""
    return " and ".join(dict.fromkeys(names)) or "-"


def _interval(every: int, window: int) -> tuple[int, int]:
    """Iterations between snapshots and iterates in each snapshot's mean."""
    every = checks.integer("every", every, least=1)
    window = checks.integer("window", window, least=1)
    if every == 1:
        every = window
    if window > every:
        raise checks.InputError(f"window: expected at most every={every} iterates, got {window}")
    return every, window
