"""Refined solutions against QR and Jacobi rotations, and against LAPACK, where a Gram matrix alone would be wrong."""

import numpy as np
import pytest
from cases import Doors, tile, with_singular_values

from fastkoop import kernels
from fastkoop.kernels import cpu
from fastkoop.kernels.cpu import refined as module
from fastkoop.kernels.cpu import svd
from fastkoop.kernels.cpu.layout import blocks_of
from fastkoop.kernels.cutoffs import ENERGY, RELATIVE, SPACING
from fastkoop.kernels.plan import NON_FINITE, QR, SVD, UNRESOLVED, resolution

refined = Doors(module)

SHAPES = [(21, 32), (32, 21), (8, 8), (60, 7), (7, 60), (1, 9), (9, 1), (96, 80)]
LOW = 2e-6  # of singular values: squared, below what a Gram matrix gives to five digits


def snapshots(rng, n, m, values, blocks=3):
    """(m+1, blocks, n) with these singular values, and a newest snapshot out of their span where it can be."""
    X = np.empty((m + 1, blocks, n), np.float64)
    for b in range(blocks):
        X[:m, b] = with_singular_values(rng, n, m, values).T
    X[m] = X[m - 1] + 0.3 * rng.normal(size=(blocks, n)) / np.sqrt(n)
    return X


def full(p):
    return np.geomspace(1, LOW, p) if p > 1 else np.ones(1)


def dropped(p):
    return np.r_[np.geomspace(1, LOW, p - p // 3), np.geomspace(LOW / 30, 1e-14, p // 3)]


def solved(kernel, X, c, steps=1):
    source, n, m = blocks_of(X), X.shape[2], len(X) - 1
    out, route = np.full(X.shape[1:], np.nan), np.zeros(X.shape[1], np.int8)
    kernel(0, len(out), *source[:5], m, steps, RELATIVE, c, 53, tuple(resolution(n, m, X.dtype)), out, route)
    return out, route


def truth(X, c):
    F, Fp, last = (part.transpose(1, 2, 0) for part in (X[:-1], X[1:], X[-1:]))
    return (Fp @ (np.linalg.pinv(F, rcond=c) @ last))[..., 0]


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("values", [full, dropped])
def test_as_accurate_as_the_svd(n, m, values, rng):
    X = snapshots(rng, n, m, values(min(n, m)))
    got, route = solved(module.predict_refined, X, LOW / 5)
    assert (route == (SVD if values is dropped and min(n, m) > 2 else QR)).all()
    expected = truth(X, LOW / 5)
    error = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected - X[-1], axis=1)
    assert error.max() <= 4 * resolution(n, m, X.dtype).svd / LOW


@pytest.mark.parametrize("steps", [2, 30])
def test_many_steps_of_full_rank(steps, rng):
    X = snapshots(rng, 60, 7, np.geomspace(1, 1e-4, 7))
    got, route = solved(module.predict_refined, X, 1e-5, steps)
    expected, _ = solved(svd.predict_exact, X, 1e-5, steps)
    assert (route == QR).all()
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_what_is_not_proved_is_left(rng):
    """A singular value on the cutoff, one beyond reach, and a block whose squares overflow."""
    on = snapshots(rng, 21, 32, np.r_[np.geomspace(1, 2 * LOW, 20), LOW])
    assert (solved(module.predict_refined, on, LOW)[1] == UNRESOLVED).all()
    beyond = snapshots(rng, 21, 32, np.geomspace(1, 1e-9, 21))
    assert (solved(module.predict_refined, beyond, 1e-10)[1] == UNRESOLVED).all()
    assert (solved(module.predict_refined, 1e200 * on, LOW)[1] == UNRESOLVED).all()
    on[3, 1, 2] = np.nan
    assert solved(module.predict_refined, on, LOW)[1].tolist() == [UNRESOLVED] * 3
    out, route = cpu.predict(on, 1, ("relative", LOW))
    assert route[1] == NON_FINITE and np.isnan(out[1]).all() and np.isfinite(out[[0, 2]]).all()


def test_rank_is_proved_or_refused():
    """2 x 2: of a product that leaves the kept one below the cutoff, and of dropped rows that together pass it."""
    bounds = 1e-15, 1e-15, 1e-12
    for M, rank in (
        ([[1.0, 0.0], [0.0, 0.0]], 1),
        ([[1.0, 0.0], [0.0, 0.26]], 2),
        ([[1.0, 0.49], [0.49, 0.26]], 0),
        ([[1.0, 0.0], [0.0, 0.25]], 0),
    ):
        assert refined.settled_rank(tile(np.array(M)), 2, RELATIVE, 0.5, 53, bounds) == rank
    M = np.diag([1.0, 0.2, 0.2])
    M[1, 2] = M[2, 1] = 0.1
    assert refined.settled_rank(tile(M), 3, RELATIVE, 0.5, 53, bounds) == 0


def test_turning_finds_the_invariant_subspace(rng):
    p, rank = 9, 6
    values, E = np.r_[np.geomspace(1, 1e-6, rank), np.geomspace(1e-8, 1e-12, p - rank)], rng.normal(size=(p, p))
    scale = np.sqrt(values)
    M = scale[:, None] * (np.eye(p) + 1e-4 * (E + E.T)) * scale
    X, P, row = (tile(np.zeros((k, p))) for k in (p, p, 1))
    assert refined.turn(tile(M), p, rank, X, P, row[0])
    X = X[: p - rank, :rank]
    kept = np.vstack([np.eye(rank), X])
    residual = M @ kept - kept @ (M[:rank, :rank] + M[:rank, rank:] @ X)
    # a pass leaves of the last change, at most VANISHED, a share of the scaled products: p times 1e-4 times |E + E^T|
    assert np.abs(residual / values[:rank]).max() <= module.VANISHED * p * 1e-3


def test_which_calls_it_takes():
    assert module.reaches(RELATIVE, 1, 21, 32) and module.reaches(SPACING, 9, 60, 8)
    assert not module.reaches(RELATIVE, 2, 21, 32) and not module.reaches(ENERGY, 1, 21, 32)
    assert not module.reaches(RELATIVE, 10**6, 60, 8)  # squared
    least = resolution(21, 32, np.dtype(np.float32)).least
    assert module.beyond(RELATIVE, 4e-6, 24, least) and not module.beyond(RELATIVE, 4e-5, 24, least)
    assert module.beyond(SPACING, 32.0, 24, least) and not module.beyond(SPACING, 785.0, 24, least)
    assert not module.beyond(ENERGY, 0.99, 24, least)


def test_the_door_takes_it_for_blocks_beyond_a_gram_matrix(rng):
    X = np.concatenate([snapshots(rng, 21, 32, values(21)) for values in (full, dropped)], axis=1).astype(np.float32)
    out, route = kernels.predict(X, 1, ("relative", LOW / 5))
    assert route.tolist() == [QR] * 3 + [SVD] * 3
    alone = [kernels.predict(X[:, b : b + 1], 1, ("relative", LOW / 5))[0][0] for b in range(6)]
    assert np.array_equal(out, alone)  # the same bits in any batch
