"""Modes of a model's parameters, and pruning by their size.

Koopman magnitude pruning: W. T. Redman, M. Fonoberova, R. Mohr, I. G. Kevrekidis and I. Mezić, "An Operator Theoretic
View on Pruning Deep Neural Networks", ICLR 2022 (arXiv 2110.14856). Near convergence it is global magnitude pruning;
before, it prunes by where the weights are going.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from .. import checks
from ..checks import InputError
from ..operator import KoopmanOperator
from .buffers import into, local
from .selection import chosen, patterns

if TYPE_CHECKING:
    from .phase import KoopmanPhase


def modes(phase: KoopmanPhase, near: complex = 1.0) -> dict[str, torch.Tensor]:
    """See `KoopmanPhase.modes`."""
    near = _point(near)
    shares = {}
    for recording, operators in phase.parts.with_operators(phase.fits.ready(phase.position)):
        rows = [torch.from_numpy(nearest(op, near)).reshape(recording.group.rows, -1) for op in operators]
        joined = torch.cat(rows, dim=1).to(recording.device)
        for piece, member in recording.members:
            value = torch.empty_like(member, requires_grad=False)
            into(local(value), piece, joined)
            shares[piece.parameter.name] = value
    return shares


def _point(near) -> complex:
    """A finite point of the complex plane."""
    if isinstance(near, (complex, np.complexfloating)):
        point = complex(near)
    else:
        point = complex(checks.number("near", near, "a real or complex number"))
    if not cmath.isfinite(point):
        raise InputError(f"near: expected a finite number, got {near}; 1.0 is what training converges to")
    return point


def nearest(op: KoopmanOperator, near: complex) -> np.ndarray:
    """What the eigenvalue nearest to a point contributes to the newest snapshot: (B, n) in the snapshots' dtype.

    With A = P L P^-1 the reduced operator and y = P c the state's coordinates one step on, the share of eigenvalue j is
    P_j c_j / l_j; a conjugate pair counts as one, and an eigenvalue 0 contributes nothing.
    """
    readout, factors = op.parts
    backend = readout.backend
    values, vectors = (backend.host(array) for array in backend.modes(factors))
    start, ranks = backend.host(factors.start), backend.host(factors.rank)
    coordinates = np.zeros(start.shape)
    for b, r in enumerate(ranks):
        if r == 0 or not np.isfinite(vectors[b]).all():
            continue
        own, P = values[b, :r], vectors[b, :r, :r]
        j = int(np.argmin(np.abs(own - near)))
        if own[j] == 0:
            continue
        amplitudes = np.linalg.lstsq(P, start[b, :r].astype(complex), rcond=None)[0]
        share = P[:, j] * amplitudes[j] / own[j]
        coordinates[b, :r] = share.real * (1 if own[j].imag == 0 else 2)
    combined = np.einsum("bqr,br->bq", backend.host(factors.readout), coordinates)
    return backend.host(readout.states(backend.xp.asarray(combined[:, None])))[0]


def pruning_masks(
    phase: KoopmanPhase,
    keep: float = 0.05,
    *,
    scope: str = "global",
    near: complex = 1.0,
    include: str | Iterable[str] | None = None,
) -> dict[str, torch.Tensor]:
    """Masks that keep the weights whose mode nearest to an eigenvalue is largest.

    Args:
        phase: one with a recording; it is fitted if that has not been done. A smooth, short recording with
            `observables=Affine()` gives the mode of eigenvalue 1 exactly: the operator's fixed point.
        keep: share of the weights to keep, 0 < keep <= 1.
        scope: "global" ranks all weights together, "layer" those of each parameter.
        near: the eigenvalue.
        include: name patterns (fnmatch) of parameters to prune, as "*.weight"; None prunes all that was recorded.

    Returns:
        By parameter name, a mask of 0 and 1 in the parameter's shape, dtype and device, for
        `torch.nn.utils.prune.custom_from_mask`.

    Raises:
        ValueError, TypeError: naming the argument; the model is sharded; nothing was recorded.

    >>> import torch
    >>> from torch.nn.utils import prune
    >>> from fastkoop.torch_adapter import KoopmanPhase
    >>> model = torch.nn.Linear(10, 4)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> phase = KoopmanPhase(model)
    >>> handle = phase.attach(optimizer)
    >>> for _ in range(6):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(1, 10)).square().sum().backward()
    ...     optimizer.step()
    >>> masks = pruning_masks(phase, keep=0.25, include="weight")
    >>> _ = prune.custom_from_mask(model, "weight", masks["weight"])
    >>> int((model.weight != 0).sum())
    10
    """
    keep = checks.number("keep", keep, "a share between 0 and 1")
    if not 0 < keep <= 1:
        raise InputError(f"keep: expected a share, 0 < keep <= 1, got {keep}; 0.05 keeps one weight in twenty")
    checks.choice("scope", scope, ("global", "layer"))
    if phase.parts.parameters.sharded:
        raise InputError(
            "phase: expected a model whose parameters are whole, got sharded ones; gather the model and record that, "
            "or prune before sharding"
        )
    sizes = {name: share.abs().double() for name, share in modes(phase, near).items()}
    wanted = patterns("include", include, list(sizes))
    sizes = {name: size for name, size in sizes.items() if chosen(name, wanted, [])}
    if scope == "layer":
        kept = {name: _largest(size.flatten(), keep).view(size.shape) for name, size in sizes.items()}
    else:
        together = _largest(torch.cat([size.flatten() for size in sizes.values()]), keep)
        parts = together.split([size.numel() for size in sizes.values()])
        kept = {name: part.view(size.shape) for (name, size), part in zip(sizes.items(), parts, strict=True)}
    dtypes = phase.parts.parameters.by_name
    return {name: mask.to(dtypes[name].dtype) for name, mask in kept.items()}


def _largest(sizes: torch.Tensor, keep: float) -> torch.Tensor:
    """True for the share `keep` of the largest, of equal ones the first; at least one."""
    count = max(1, math.floor(keep * sizes.numel() + 0.5))
    order = torch.sort(sizes, descending=True, stable=True).indices
    return torch.zeros_like(sizes, dtype=torch.bool).scatter_(0, order[:count], True)
