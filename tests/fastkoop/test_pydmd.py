"""Eigenvalues, modes and states against PyDMD's exact DMD, whose definition is the same (Tu et al. 2014)."""

import warnings

import numpy as np
import pytest
from cases import graded, orbit

import fastkoop as fk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pydmd = pytest.importorskip("pydmd")


def fitted(X, rank):
    """PyDMD's exact modes of the snapshots X (n, m+1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydmd.DMD(svd_rank=rank, exact=True).fit(X)


@pytest.mark.parametrize("n, m, rank", [(40, 6, 6), (6, 40, 6), (60, 12, 5), (12, 60, 5)])
def test_spectra_agree(rng, n, m, rank):
    X = orbit(rng, n, m) if rank == min(n, m) else graded(rng, n, m, low=1e-3)
    op, theirs = fk.fit(X, cutoff=fk.Rank(rank)), fitted(X, rank)
    scale = np.abs(theirs.eigs).max()
    for value in theirs.eigs:
        at = np.abs(op.eigenvalues - value).argmin()
        assert abs(op.eigenvalues[at] - value) <= 1e-8 * scale
        ours, other = op.modes[:, at], theirs.modes[:, list(theirs.eigs).index(value)]
        along = abs(np.vdot(ours, other)) / np.linalg.norm(ours) / np.linalg.norm(other)
        assert along == pytest.approx(1.0, abs=1e-8)
