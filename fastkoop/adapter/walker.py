"""Walker: where the parameters are past the newest snapshot, and one recorded interval further on."""

from __future__ import annotations

from .. import checks
from .fits import Fits
from .mover import Mover, Walks
from .parameters import Saved
from .parts import Parts


class Walker:
    """Moves the parameters along the predicted states, one recorded interval at a time.

    Attributes:
        position: iterations past the newest snapshot.
        departure: the parameters before the first move since that snapshot; None while there was none.
    """

    def __init__(self, parts: Parts, fits: Fits):
        self._parts, self._fits = parts, fits
        self.forget()

    def forget(self) -> None:
        """There is a new snapshot: nothing has moved since."""
        self.departure: Saved | None = None
        self.position = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        """There are new operators: the walk along the old ones is over."""
        self._mover: Mover | Walks | None = None
        self._walked = 0
        self._coordinates: list | None = None  # of the walk that a state came from

    def step(self, ahead: int) -> None:
        """See `KoopmanPhase.step`."""
        operators, every = self._fits.ready(self.position), self._parts.recorder.every
        self._parts.parameters.reshard()
        if self._mover is None:
            self._mover = self._made(operators)
            if self._coordinates is None:
                self._walked = 0
            else:  # as a state that was loaded had it
                self._mover.resume(self._walked // every, self._coordinates)
        if self.position != self._walked:
            self._mover.restart()
            self._walked = 0
        if self.departure is None:
            self.departure = self._parts.parameters.save(buffers=False)
        self._mover.step((self.position - self._walked) // every + 1, ahead)
        self.position += every
        self._walked = self.position

    def _made(self, operators: list[list]) -> Mover | Walks:
        parts = self._parts
        plain = all(recording.direct and recording.device.type == "cpu" for recording in parts.recordings)
        if plain and not any(parts.spreads):
            return Mover(parts.recordings, operators)
        return Walks(parts.recordings, [bound for _, bound in parts.with_operators(operators)])

    def back(self) -> None:
        """Put the parameters back as they were before the first move; see `KoopmanPhase.rollback`."""
        if self.departure is None:
            raise checks.InputError("rollback: there was no step or jump since the last snapshot")
        self._parts.parameters.restore(self.departure)
        self.departure, self.position, self._coordinates = None, 0, None

    def state(self) -> dict:
        """Where the parameters are, and the way back."""
        coordinates = self._coordinates if self._mover is None else self._mover.coordinates
        return {
            "position": self.position, "walked": self._walked,
            "coordinates": coordinates if self._walked else None, "departure": self.departure,
        }  # fmt: skip

    def restore(self, position: int, walked: int, coordinates: list | None, departure: Saved | None) -> None:
        """Go on from a `state`."""
        self.forget()
        self.position, self._walked, self._coordinates, self.departure = position, walked, coordinates, departure
