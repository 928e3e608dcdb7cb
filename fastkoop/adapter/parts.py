"""Parts: what a phase hands to those who fit, walk, jump and save for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .buffers import GroupBuffer
from .optimizer_state import Velocities
from .parameters import Parameters
from .ranks import Ranks, Spread
from .recorder import Recorder


@dataclass(frozen=True)
class Parts:
    """The model's parameters, their recordings, and the ranks that train them together.

    spreads: how the blocks of every recording are spread over ranks; None where they are not.
    setup: the whole model's parameters and groups in words, which have to be alike on all ranks.
    velocities: of the optimizer, where they are recorded.
    """

    parameters: Parameters
    recorder: Recorder
    spreads: list[Spread | None]
    ranks: Ranks | None
    setup: dict[str, str] = field(default_factory=dict)
    velocities: Velocities | None = None

    @property
    def recordings(self) -> list[GroupBuffer]:
        """One for every group of parameters."""
        return self.recorder.recordings

    def with_operators(self, operators: list[list]) -> Iterator[tuple[GroupBuffer, list]]:
        """Every recording with its operators, which read weights out of its snapshots."""
        for recording, fitted in zip(self.recordings, operators, strict=True):
            if not recording.direct:  # their snapshots were let go
                views = recording.blocks(self.recorder.snapshots)
                fitted = [op.on(view) for op, view in zip(fitted, views, strict=True)]
            yield recording, fitted
