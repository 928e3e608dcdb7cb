"""RecordingPlan: the bytes of a recording, before it is made."""

from __future__ import annotations

from typing import NamedTuple

from ..checks import InputError


class GroupPlan(NamedTuple):
    """A group of parameters on this rank.

    exchange: what a fit exchanges between ranks, "none", "gram" or "snapshots", and exchange_bytes of it, which is
    None while the number of snapshots is open.
    """

    name: str
    granularity: str
    blocks: int
    weights: int
    bytes_per_snapshot: int
    exchange: str = "none"
    exchange_bytes: int | None = 0


class RecordingPlan(NamedTuple):
    """Bytes that recording takes on this rank.

    bytes: all of it, for `capacity` snapshots of `bytes_per_snapshot` and `fixed_bytes` beside them (a window's sum,
    the base of bfloat16 snapshots); None if no capacity is given: the buffer then doubles whenever it is full.
    fit_bytes: what a fit or a jump takes for a while on top, where snapshots have to be brought back; its own Gram
    matrices, of (m+1)^2 numbers a block that is worked on, not counted. every: optimizer iterations a snapshot.
    """

    bytes_per_snapshot: int
    capacity: int | None
    bytes: int | None
    every: int
    storage_dtype: str
    storage_device: str
    fixed_bytes: int
    fit_bytes: int | None
    groups: tuple[GroupPlan, ...]

    @property
    def exchange_bytes(self) -> int | None:
        """What a fit exchanges between ranks; None while the number of snapshots is open."""
        exchanged = [group.exchange_bytes for group in self.groups]
        return None if None in exchanged else sum(exchanged)

    def __str__(self) -> str:
        total = "grows as needed" if self.bytes is None else f"{self.capacity} of them {size(self.bytes)}"
        lines = [
            f"a snapshot every {self.every} iterations, {size(self.bytes_per_snapshot)} in {self.storage_dtype} on "
            f"{self.storage_device}; {total}"
        ]
        if self.fit_bytes:
            lines.append(f"a fit takes {size(self.fit_bytes)} more for a while")
        for group in self.groups:
            told = "" if group.exchange == "none" else f", ranks exchange {group.exchange}"
            told += f" ({size(group.exchange_bytes)})" if group.exchange_bytes else ""
            lines.append(
                f"{group.name}: {group.blocks} {group.granularity} blocks, {group.weights} weights, "
                f"{size(group.bytes_per_snapshot)} a snapshot{told}"
            )
        return "\n".join(lines)


def size(count: float) -> str:
    """Bytes in words.

    >>> size(126_000_000)
    '126 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def refuse(needed: int, free: float, per_snapshot: int, snapshots: int, device: str) -> None:
    """Raise if a buffer does not fit.

    Raises:
        ValueError: with the numbers, and what would fit.
    """
    if needed <= free:
        return
    most = max(0, int((free - (needed - snapshots * per_snapshot)) // max(per_snapshot, 1)))
    cure = f"capacity={most} fits" if most >= 2 else "not even two fit"
    raise InputError(
        f"capacity: {snapshots} snapshots of {size(per_snapshot)} take {size(needed)} on {device}, where {size(free)} "
        f"are free; {cure}; every=k records each k-th iteration, storage_dtype=torch.bfloat16 halves float32 snapshots"
    )
