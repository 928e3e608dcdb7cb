"""Walker: where the parameters are past the newest snapshot, and one recorded interval further on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .. import checks
from .candidates import KOOPMAN
from .fits import Fits
from .held import rank_zero
from .mover import Mover, Stays, Walks
from .parameters import Saved
from .parts import Parts


class Whereabouts(NamedTuple):
    """Where a walker is, see `Walker`."""

    position: float
    departure: Saved | None
    offsets: list[torch.Tensor | None]
    stranded: str


class Walker:
    """Moves the parameters along the predicted states, one recorded interval at a time.

    A walk begins at the newest snapshot; where parameters were changed after the iterate that was recorded last, as a
    loop does that clamps or projects them, at their own state: they are moved as far as the snapshot would be.

    Attributes:
        position: iterations past the newest snapshot; infinite at the limit.
        departure: the parameters before the first move since that snapshot; None while there was none.
        offsets: of every recording, what its parameters were then beside the snapshot; None where nothing.
        velocities: by name, before the first jump that moved them; None while there was none.
        stranded: where the parameters are if no walk leads on from there, in words; else "".
    """

    def __init__(self, parts: Parts, fits: Fits):
        self._parts, self._fits = parts, fits
        self.forget()

    def forget(self) -> None:
        """There is a new snapshot: nothing has moved since."""
        self.departure: Saved | None = None
        self.velocities: dict[str, torch.Tensor] | None = None
        self.offsets: list[torch.Tensor | None] = [None] * len(self._parts.recordings)
        self.position: float = 0
        self.stranded = ""
        self.begin_anew()

    def begin_anew(self) -> None:
        """There are new operators: the walk along the old ones is over."""
        self._mover: Mover | Walks | None = None
        self._walked = 0
        self._coordinates: list | None = None  # of the walk that a state came from

    def depart(self, saved: Saved) -> None:
        """The parameters are about to move for the first time since the newest snapshot, from these values."""
        recorder, before = self._parts.recorder, self.offsets
        self.departure = saved
        if recorder.newest_is_last:
            newest = recorder.snapshots - 1
            self.offsets = [recording.drift(newest, recorder.window) for recording in recorder.recordings]
        if any(offset is not None for offset in [*before, *self.offsets]):
            self.begin_anew()  # a walk knows where it began

    @property
    def whereabouts(self) -> Whereabouts:
        """Where the parameters are; to be set again when they are put back."""
        return Whereabouts(self.position, self.departure, self.offsets, self.stranded)

    @whereabouts.setter
    def whereabouts(self, before: Whereabouts) -> None:
        self.position, self.departure, self.offsets, self.stranded = before

    def arrive(self, position: float, candidate: str) -> None:
        """The parameters are there; a walk leads on only from an operator's states."""
        self.position = position
        self.stranded = f"the recording's {candidate}" if candidate != KOOPMAN else ""
        if math.isinf(position):
            self.stranded = "the limit"

    def check(self, what: str) -> None:
        """Raise unless a walk leads on from where the parameters are."""
        if self.stranded:
            raise checks.InputError(
                f"{what}: the parameters are at {self.stranded}, from where no operator leads on; record again, or "
                "call rollback()"
            )

    def step(self, ahead: int) -> None:
        """See `KoopmanPhase.step`."""
        self.check("step")
        operators, every = self._fits.ready(self.position), self._parts.recorder.every
        self._parts.parameters.reshard()
        if self.departure is None:
            self.depart(self._parts.parameters.save(buffers=False))
        if self._mover is None:
            self._mover = self._walk_along(operators)
            if self._coordinates is None:
                self._walked = 0
            else:  # as a state that was loaded had it
                self._mover.resume(self._walked // every, self._coordinates)
        if self.position != self._walked:
            self._mover.restart()
            self._walked = 0
        self._mover.step((self.position - self._walked) // every + 1, ahead)
        self.position += every
        self._walked = self.position

    def _walk_along(self, operators: list[list]) -> Mover | Walks:
        parts = self._parts
        bound = [fitted for _, fitted in parts.with_operators(operators)]
        stays = [
            Stays([rank_zero(op) for op in fitted], offset)
            for fitted, offset in zip(bound, self.offsets, strict=True)
        ]  # fmt: skip
        plain = all(recording.direct and recording.device.type == "cpu" for recording in parts.recordings)
        kind = Mover if plain and not any(parts.spreads) else Walks
        return kind(parts.recordings, bound, stays)

    def back(self) -> None:
        """Put the parameters back as they were before the first move; see `KoopmanPhase.rollback`."""
        if self.departure is None:
            raise checks.InputError("rollback: there was no step or jump since the last snapshot")
        self._parts.parameters.restore(self.departure)
        if self.velocities is not None and self._parts.velocities is not None:
            self._parts.velocities.put_back(self.velocities)
        self.velocities = None
        self.departure, self.position, self.stranded, self._coordinates = None, 0, "", None

    def state(self) -> dict:
        """Where the parameters are, and the way back."""
        coordinates = self._coordinates if self._mover is None else self._mover.coordinates
        return {
            "position": self.position, "walked": self._walked, "stranded": self.stranded, "offsets": self.offsets,
            "coordinates": coordinates if self._walked else None, "departure": self.departure,
            **({} if self.velocities is None else {"velocities": self.velocities}),
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Go on from a `state`."""
        self.forget()
        self.position, self._walked, self._coordinates = state["position"], state["walked"], state["coordinates"]
        self.departure, self.stranded = state["departure"], state.get("stranded", "")
        self.offsets, self.velocities = state.get("offsets", self.offsets), state.get("velocities")

    def __getstate__(self) -> dict:
        """For copies and pickles: the walk as numbers, without views of the parameters that it moves."""
        return {**self.__dict__, "_mover": None, "_coordinates": self.state()["coordinates"]}
