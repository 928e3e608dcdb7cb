"""recording_plan: what recording, exchanges and fits will take on many ranks, for models that need not fit here."""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .. import checks
from ..operator import fit
from ..options import Options
from ..partition import Group, Parameter, groups
from .buffers import GroupBuffer
from .ranks import Shard, exchange, localized
from .recorder import Recorder
from .recording_plan import RecordingPlan, size
from .selection import select, unit_axis

SAMPLES = ((512, 32), (8, 16384))  # blocks and weights of the two fits that are timed
ROUNDS = 3


class ScalePlan(NamedTuple):
    """What one of `ranks` ranks takes, the first, which holds the most: arithmetic, not a measurement.

    fit_seconds is an estimate from two small fits timed on this machine's CPU: seconds that grow with the number of
    blocks and with that of weights. Exchanges are not in it.
    """

    ranks: int
    plan: RecordingPlan
    fit_seconds: float

    @property
    def bytes(self) -> int:
        """Of the recording, on a rank."""
        return self.plan.bytes

    @property
    def exchange_bytes(self) -> int:
        """That a rank puts into the exchanges of one fit, and so of one jump."""
        return self.plan.exchange_bytes

    def __str__(self) -> str:
        blocks = sum(group.blocks for group in self.plan.groups)
        return (
            f"a rank of {self.ranks}: {blocks} blocks, {size(self.bytes)} for {self.plan.capacity} snapshots in "
            f"{self.plan.storage_dtype}, {size(self.exchange_bytes)} exchanged a jump, about {self.fit_seconds:.2g} s "
            "a fit on a CPU like this one"
        )


def recording_plan(
    model: nn.Module,
    partition="node",
    capacity: int = 12,
    every: int = 1,
    storage_dtype: torch.dtype | None = None,
    *,
    ranks: int = 1,
    q: int | None = None,
    window: int = 1,
    include=None,
    exclude=None,
) -> ScalePlan:
    """What a phase would take on each of `ranks` ranks that FSDP2 shards the model over, along axis 0.

    Args:
        model: any module, also one on the meta device, whose parameters have shapes and dtypes alone.
        partition, q, every, window, include, exclude, storage_dtype: as `KoopmanPhase`.
        capacity: snapshots to hold, >= 2.
        ranks: >= 1.

    Returns:
        ScalePlan: bytes a rank, bytes exchanged a jump, seconds a fit.

    Raises:
        ValueError, TypeError: naming the argument.

    >>> model = nn.Linear(4096, 11008, device="meta")
    >>> plan = recording_plan(model, "layer", capacity=8, storage_dtype=torch.bfloat16, ranks=64)
    >>> plan.exchange_bytes, plan.bytes < 32_000_000
    (512, True)
    """
    ranks = checks.integer("ranks", ranks, least=1)
    capacity = checks.integer("capacity", capacity, least=2)
    options = Options(window=window, every=every)
    parameters = select(model, include, exclude, devices=("cpu", "cuda", "meta"))
    described = [Parameter(name, tuple(p.shape), unit_axis(model, name)) for name, p in parameters.items()]
    shards = {parameter.name: _first_shard(parameter, ranks) for parameter in described}
    recordings, spreads = [], []
    for group in groups(described, partition, q):
        local, spread = localized(group, shards, lambda group: None)
        recordings.append(GroupBuffer(local, parameters, storage_dtype, None, None, spread))
        spreads.append(spread)
    exchanges = [
        ("none", 0) if spread is None
        else exchange(recording.group.rows, spread, capacity, options, recording.dtype.itemsize)
        for recording, spread in zip(recordings, spreads, strict=True)
    ]  # fmt: skip
    plan = Recorder(recordings, options.every, options.window, capacity).plan(exchanges)
    return ScalePlan(ranks, plan, _fit_seconds([recording.group for recording in recordings], capacity))


def _first_shard(parameter: Parameter, ranks: int) -> Shard | None:
    """What the first rank has of a parameter, along axis 0."""
    if ranks == 1 or not parameter.shape:
        return None
    return Shard(0, 0, -(-parameter.shape[0] // ranks), parameter.shape[0], None)


def _fit_seconds(local: list[Group], capacity: int) -> float:
    """From two fits that are timed here."""
    times = [_timed(blocks, n, capacity) / blocks for blocks, n in SAMPLES]
    per_weight = max(times[1] - times[0], 0.0) / (SAMPLES[1][1] - SAMPLES[0][1])
    per_block = max(times[0] - per_weight * SAMPLES[0][1], 0.0)
    sizes = [pair for group in local for pair in group.block_sizes]
    return sum(blocks * (per_block + n * per_weight) for blocks, n in sizes)


@functools.lru_cache(maxsize=64)
def _timed(blocks: int, n: int, snapshots: int) -> float:
    X = np.random.default_rng(0).normal(size=(snapshots, blocks, n)).astype(np.float32).cumsum(axis=0)
    fit(X, time_axis=0)  # compiles
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        fit(X, time_axis=0)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
