"""Forecasts of a model: whether its operators predict the end of their own recording, layer by layer and as a whole."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from ..forecast import SPLIT, SQUARES, Forecast, Overall, judge, plain, summed
from .buffers import GroupBuffer
from .fits import Fits
from .parts import Parts
from .ranks import Spread, shard_of


class Forecasts(dict[str, Forecast]):
    """Forecasts by layer; `overall` is of all blocks together, as plain numbers."""

    overall: Overall


class Layer:
    """The operators of a layer's batches of blocks, whose reports are there also when the recording has gone on."""

    def __init__(self, operators: list):
        self._operators = [op.released() for op in operators]

    @property
    def overshoot(self) -> torch.Tensor:
        """See `KoopmanOperator.overshoot`; float64 per block."""
        return torch.cat([op.overshoot.flatten().cpu() for op in self._operators])


def forecasts(parts: Parts, fits: Fits, position: float) -> Forecasts:
    """The forecast of every layer; see `KoopmanPhase.forecast`."""
    operators_of_all = fits.ready(position)
    if fits.forecasts is not None:
        return fits.forecasts
    groups = [*zip(parts.with_operators(operators_of_all), parts.spreads, strict=True)]
    squares = [np.concatenate([op.misses() for op in operators]) for (_, operators), _ in groups]
    sums = [summed(blocks) for blocks in squares]
    total = np.zeros(len(SQUARES))
    for layer, ((recording, _), spread) in zip(sums, groups, strict=True):
        total = total + layer / copies(recording, spread, parts)
    if parts.ranks is not None:  # whose blocks are others
        total = parts.ranks.sum("forecast", total)
    judged = judge(np.concatenate([*squares, sums, total[None]]))  # at once: a call costs more than what it judges
    by_layer, first = Forecasts(), 0
    for number, (blocks, ((recording, operators), _)) in enumerate(zip(squares, groups, strict=True)):
        told = (torch.from_numpy(values[first : first + len(blocks)].copy()) for values in judged)
        by_layer[recording.group.name] = Forecast(*told, plain(judged, number - len(groups) - 1), Layer(operators))
        first += len(blocks)
    by_layer.overall = plain(judged, -1)
    fits.forecasts = by_layer
    return by_layer


def copies(recording: GroupBuffer, spread: Spread | None, parts: Parts) -> int:
    """How many ranks judge the same blocks of a recording: all of blocks that are spread, or that every rank has."""
    if parts.ranks is None:
        return 1
    names = {piece.parameter.name for piece in recording.group.pieces}
    shards = filter(None, (shard_of(name, parts.parameters.by_name[name]) for name in names))
    sizes = [] if spread is not None else [dist.get_world_size(shard.group) for shard in shards]
    return max(1, parts.ranks.size // min(sizes, default=1))


def length(vectors: torch.Tensor, spread) -> torch.Tensor:
    """Norms of vectors (..., n), whose other parts lie on other ranks if they are spread."""
    squares = vectors.double().square().sum(dim=-1)
    if spread is not None:
        squares = torch.from_numpy(spread.ranks.sum("forecast", squares.cpu().numpy())).to(squares.device)
    return squares.sqrt()


def pace(snapshots: torch.Tensor, spread) -> torch.Tensor:
    """How far blocks (m+1, ..., n) came in an interval on average since the first part of the recording ended."""
    ahead = max(1, len(snapshots) - round(SPLIT * len(snapshots)))
    return length(snapshots[-1] - snapshots[-1 - ahead], spread) / ahead
