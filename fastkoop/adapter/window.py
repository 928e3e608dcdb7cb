"""Window: the Gram matrices of a ring of snapshots, kept up to date as snapshots come and go."""

from __future__ import annotations

import numpy as np
import torch

from .buffers import GroupBuffer

STRIP = 1 << 21  # numbers that are converted to float64 at a time


class Window:
    """Gram matrices (blocks, columns, columns) of a recording's ring, of distances from one of its snapshots.

    A look computes the rows of snapshots that came since the last: columns times n multiply-adds each, and one read of
    the ring for all of them. Distances from a near origin lose no digits where snapshots lie close together. The origin
    is a snapshot of the ring; once the ring has been renewed twice, all rows are computed anew from a newer one.
    """

    def __init__(self, recording: GroupBuffer):
        self._recording = recording
        self._gram: torch.Tensor | None = None  # (B, slots, slots) float64, by slot
        self._origin: list[torch.Tensor] = []
        self._seen = self._since = 0  # snapshots ever taken at the last look, and when the origin was chosen

    def gram(self, taken: int, slots: int) -> torch.Tensor:
        """(B, c, c) float64 of the newest snapshots, oldest first.

        Args:
            taken: snapshots ever taken.
            slots: of the ring.
        """
        held = min(taken, slots)
        views = self._recording.blocks(slots)
        new = min(taken - self._seen, held)
        if self._gram is None or new == held or taken - self._since >= 2 * slots:
            newest = (taken - 1) % slots
            self._origin, self._since, new = [view[newest].clone() for view in views], taken, held
            self._gram = None
        slots_new = torch.tensor([(taken - 1 - back) % slots for back in range(new)], dtype=torch.long)
        rows = torch.cat([_rows(view, at, slots_new) for view, at in zip(views, self._origin, strict=True)])
        if self._gram is None:
            self._gram = rows.new_zeros(len(rows), slots, slots)
        self._gram[:, slots_new] = rows
        self._gram[:, :, slots_new] = rows.transpose(1, 2)
        self._seen = taken
        order = torch.tensor([(taken - held + k) % slots for k in range(held)], dtype=torch.long)
        return self._gram[:, order][:, :, order]

    def roots(self, taken: int, slots: int) -> np.ndarray:
        """Snapshots (B, c, c) with the same Gram matrices, on the host: what an operator does to them is the same.

        NaN in a block that is not finite.
        """
        gram = self.gram(taken, slots).cpu()
        fine = torch.isfinite(gram).all(dim=-1).all(dim=-1)
        values, vectors = torch.linalg.eigh(gram[fine])  # NumPy's wakes all of BLAS's threads, for much more time
        roots = torch.full_like(gram, torch.nan)
        roots[fine] = values.clamp(min=0.0).sqrt()[..., None] * vectors.mT
        return roots.numpy()


def _rows(view: torch.Tensor, origin: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Rows `new` of the Gram matrices of distances (slots, ..., n) from an origin (..., n): (B, new, slots) float64."""
    slots, n = len(view), view.shape[-1]
    view, origin = view.reshape(slots, -1, n), origin.reshape(-1, n)
    rows = torch.zeros(view.shape[1], len(new), slots, dtype=torch.float64, device=view.device)
    width = max(1, STRIP // (slots * view.shape[1]))
    for at in range(0, n, width):
        part = (view[:, :, at : at + width] - origin[:, at : at + width]).double()  # rounded by its own size only
        rows += part[new].permute(1, 0, 2) @ part.permute(1, 2, 0)
    return rows
