"""Which blocks a move leaves alone, and why: rank 0, limits, the forecast's gate, a limit that is infinite."""

from __future__ import annotations

import math

import numpy as np
import torch

from .fits import Fits
from .forecast import forecasts, length, pace
from .jump_options import JumpOptions
from .parts import Parts

RANK_0, FORECAST = "rank 0", "forecast"

Reasons = dict[str, torch.Tensor]  # bool per block of a batch


class Holds:
    """Why blocks stay where they are, whatever is predicted for them.

    A gate lets a block move if its own forecast and that of all blocks together pay, and only as far as it would come
    at the pace of the recording's end: a forecast looks no further than that end, and what decays slows down.
    """

    def __init__(self, parts: Parts, fits: Fits, options: JumpOptions):
        self._parts, self._fits, self._options = parts, fits, options
        self._known: dict[int, list[Reasons]] = {}
        self._doubtful: list[torch.Tensor] | None = None
        self._is_shut = False
        self._paces: dict[int, list[torch.Tensor]] = {}

    def shut(self, position: float) -> bool:
        """Whether the forecast holds every block, on all ranks."""
        limit = None if self._options.limits is None else self._options.limits.forecast
        if self._options.gate is None and limit is None:
            return False
        if self._doubtful is None:
            told = forecasts(self._parts, self._fits, position)
            self._doubtful = [torch.zeros(len(layer.error), dtype=torch.bool) for layer in told.values()]
            for doubtful, layer in zip(self._doubtful, told.values(), strict=True):
                if self._options.gate is not None:
                    doubtful |= ~layer.pays | (not told.overall.pays)
                if limit is not None:
                    doubtful |= ~(layer.error <= limit)
            free = np.array([float(sum(int((~blocks).sum()) for blocks in self._doubtful))])
            ranks = self._parts.ranks
            self._is_shut = not (free if ranks is None else ranks.sum("forecast", free)).any()
        return self._is_shut

    def of(self, i: int, operators: list) -> list[Reasons]:
        """The reasons that hold blocks of group i, by batch."""
        if i not in self._known:
            self._known[i] = [self._reasons(op) for op in operators]
            if self._doubtful is not None:
                sizes = [op.rank.numel() for op in operators]
                for op, reasons, blocks in zip(operators, self._known[i], self._doubtful[i].split(sizes), strict=True):
                    reasons[FORECAST] = blocks.reshape(op.rank.shape).to(op.rank.device)
        return [dict(reasons) for reasons in self._known[i]]

    def runaways(self, i: int, operators: list, states: list[torch.Tensor], steps: float) -> list[torch.Tensor]:
        """Bool per block of group i, by batch: the gate is on, and the state is further than the recording's pace."""
        if self._options.gate is None or math.isinf(steps):
            return [torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device) for state in states]
        recording, spread = self._parts.recordings[i], self._parts.spreads[i]
        if i not in self._paces:
            views = recording.blocks(self._parts.recorder.snapshots)
            weights = self._fits.options.observables.weights
            self._paces[i] = [pace(view[..., : weights(view.shape[-1])], spread) for view in views]
        return [
            length(state - op.predict(0, check_finite=False), spread) > steps * limit
            for op, state, limit in zip(operators, states, self._paces[i], strict=True)
        ]

    def _reasons(self, op) -> Reasons:
        empty, limits = rank_zero(op), self._options.limits
        reasons = {} if empty is None else {RANK_0: empty}
        return reasons if limits is None else {**reasons, **limits.beyond(op)}


def rank_zero(op) -> torch.Tensor | None:
    """Bool per block: its cutoff dropped every singular value, though its weights are not zero; None if none is so.

    Such an operator predicts zero, or the mean, of weights that it knows nothing about.
    """
    empty = op.rank == 0
    if not bool(empty.any()):
        return None
    empty = empty & (op.predict(0, check_finite=False) != 0).any(dim=-1)
    return empty if bool(empty.any()) else None


def unbounded(op) -> Reasons:
    """Blocks that settle nowhere, by the operator's own word: they diverge, or drift along an eigenvalue 1."""
    words = op.limit_reason
    named = {str(word): torch.from_numpy(words == word).to(op.rank.device) for word in np.unique(words) if word}
    return {word: blocks.reshape(op.rank.shape) for word, blocks in named.items()}


def any_of(reasons: Reasons) -> torch.Tensor | None:
    """Bool per block: whether there is any reason; None where nothing is asked."""
    return torch.stack(list(reasons.values())).any(dim=0) if reasons else None


def counts(batches: list[Reasons]) -> dict[str, int]:
    """Blocks by reason, over the batches of a group."""
    totals: dict[str, int] = {}
    for reasons in batches:
        for name, blocks in reasons.items():
            totals[name] = totals.get(name, 0) + int(blocks.sum())
    return {name: count for name, count in totals.items() if count}
