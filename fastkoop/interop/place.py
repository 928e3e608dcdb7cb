"""Where an array lives."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """The host's memory, or that of one CUDA device.

    >>> str(Place("cuda", 1)), Place().on_host
    ('cuda:1', True)
    """

    kind: str = "cpu"  # or "cuda"
    ordinal: int = 0

    @property
    def on_host(self) -> bool:
        """Whether a CPU reads and writes it, and results can be looked at without waiting for a device."""
        return self.kind == "cpu"

    def __str__(self) -> str:
        return self.kind if self.on_host else f"{self.kind}:{self.ordinal}"


HOST = Place()
