"""What a profile is asked for, checked before anything is measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from .. import checks
from .devices import Gpu, Host
from .workload import LAST_VALUE, UNRESOLVED, memory

# A node of the report's first layer over 8, 32 and 64 steps; a hidden node over 32 steps and over two epochs; a
# single weight, a node and the whole of the first layer over two epochs.
SIZES = ((785, 8), (785, 32), (785, 64), (21, 32), (21, 1875), (1, 1875), (785, 1875), (15700, 1875))


@dataclass(frozen=True)
class Request:
    """One profile. blocks None: as many as make a batch that exceeds the caches, or of large blocks one a thread."""

    sizes: tuple[tuple[int, int], ...] = SIZES
    blocks: int | None = None
    dtype: str = "float32"
    rounds: int = 9
    seconds: float = 40.0
    device: str = "cpu"
    out: str = "fastkoop-profile"

    def checked(self) -> Request:
        """The same.

        Raises:
            ValueError, TypeError: naming the option, what was expected, what was found and the cure.
        """
        checks.choice("device", self.device, ("cpu", "cuda"))
        checks.choice("dtype", self.dtype, ("float32", "float64"))
        checks.integer("rounds", self.rounds, least=1)
        if not 0 < self.seconds < math.inf:
            raise checks.InputError(f"seconds: expected a number > 0, got {self.seconds}")
        if self.blocks is not None:
            checks.integer("blocks", self.blocks, least=1)
        return self

    def fits(self, device: Host | Gpu) -> None:
        """Nothing, if every size fits into the device's memory.

        Raises:
            ValueError: naming the size, its bytes, the device's and the cure.
        """
        for n, m in self.sizes:
            blocks, free = self.batch(n, m, device), device.free_memory()
            needed = memory(n, m, blocks, self.dtype) + 6 * device.batch_bytes
            if needed > free / 2:
                raise checks.InputError(
                    f"sizes: {n}x{m} with {blocks} blocks takes about {needed / 1e9:.1f} GB, more than half "
                    f"of the {free / 1e9:.1f} GB that are free; name a smaller size, or fewer --blocks"
                )

    def batch(self, n: int, m: int, device: Host | Gpu) -> int:
        """Blocks of this size in a batch."""
        if self.blocks is not None:
            return self.blocks
        fitting = max(1, device.batch_bytes // (n * (m + 1) * np.dtype(self.dtype).itemsize))
        return min(fitting, device.abreast) if device.plan(n, m, self.dtype).engine == "library" else fitting

    def described(self) -> dict:
        """The config of profile.json."""
        last = {**LAST_VALUE, "unresolved": f"{UNRESOLVED} times the cutoff"}
        config = {**asdict(self), "steps": 1, "last_singular_value": last}
        del config["out"]
        return config


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Sizes as written on the command line: NxM,NxM,...

    >>> parse_sizes("785x32,21x1875")
    ((785, 32), (21, 1875))
    """
    sizes = []
    for part in text.split(","):
        n, cross, m = part.strip().lower().partition("x")
        if not (cross and n.isdecimal() and m.isdecimal() and int(n) and int(m)):
            raise checks.InputError(
                f"sizes: expected NxM,NxM,... with N weights and M snapshot pairs, both >= 1, got {text!r}; "
                "for example 785x32,21x1875"
            )
        sizes.append((int(n), int(m)))
    return tuple(dict.fromkeys(sizes))
