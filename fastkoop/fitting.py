"""Factors of a batch of blocks: by its Gram matrices where these are kept, stabilized as it was asked for."""

from __future__ import annotations

import math
from typing import Any

from . import backends
from .interop.arrays import Array
from .linalg import fits
from .options import Options

KEPT = 4  # Gram matrices and triangles are kept if one takes at most one part in so many of a block's memory


def kept_of(backend, X, options: Options) -> backends.triangles.Kept | None:
    """The Gram matrices (B, m+1, m+1) of tall blocks X (m+1, ..., n), if they are worth keeping beside X.

    And with anything but the defaults, triangles of blocks that these do not settle. Corners of both are those of X's
    first snapshots. Nothing of blocks that may be fitted without a Gram matrix.
    """
    observed, columns, n = options.observables.observed, len(X), X.shape[-1]
    if not observed.tall(n, columns) or 8 * columns * KEPT > n * X.itemsize or not math.prod(X.shape[1:-1]):
        return None
    if options.plain and backends.iterates(columns - 1, options.rule(n, columns, X.dtype)):
        return None
    if options.plain:
        return backends.triangles.Kept(backend.gram(X, "snapshots"), False, None)
    return backends.observed.keep(backends.observed.gram(backend, X, observed), observed)


def operators(backend, X, options: Options, *, refine: bool = False, kept=None) -> backends.observed.Lifted:
    """Operators of the snapshots X (m+1, ..., n), as published; kept: `kept_of` X, or of more whose corner this is."""
    observed = options.observables.observed
    rule = options.rule(X.shape[-1], len(X), X.dtype)
    if not options.plain:
        return backends.observed.fit(backend, X, rule, observed, refine=refine, gains=options.project, known=kept)
    known = {} if kept is None else {"known": kept.gram}
    factors = backend.fit(X, rule, refine=refine, **known)
    return backends.observed.Lifted(factors, backend.xp.zeros(factors.start.shape), None, None, None)


def stabilized(backend, found: backends.observed.Lifted, options: Options) -> tuple[backends.observed.Lifted, Any]:
    """The operators that `stabilize` makes of them, and the condition number of the eigenvectors it used."""
    condition = backend.xp.ones(len(found.factors.rank))
    if options.project:
        found = backends.observed.non_expansive(backend, found)
    elif options.stabilize is not None:
        factors, condition = backend.clip(found.factors, options.stabilize)
        found = found._replace(factors=factors)
    return found, condition


def refuse_what_does_not_fit(backend, X, options: Options, source: Array) -> None:
    """Raise before anything is computed if the factors of all blocks take more memory than is free."""
    rows, pairs = options.observables.observed.shape(X.shape[-1], len(X))
    sizes = B, *_ = math.prod(X.shape[1:-1]), rows, max(pairs, 1)
    plan = backend.plan(*sizes, X.dtype)
    factors = 16 * B * plan.order**2 if plan.engine == "kernel" else 0  # of large blocks their rank decides
    fits("fit", backend, sizes, factors // X.itemsize, X, source)
