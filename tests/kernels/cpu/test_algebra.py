"""The algebra of one block: the certificate is a proof, and answers without eigenvectors are those with them."""

import numpy as np
import pytest
from cases import EPS64, Doors, tile, tile_of, with_singular_values

from fastkoop.kernels.cpu import algebra as module
from fastkoop.kernels.cpu.dense import QL_ITERATIONS, ROTATIONS
from fastkoop.kernels.cutoffs import KINDS
from fastkoop.kernels.plan import EIGEN, LEAST_TRACE, MOST_TRACE, NON_FINITE, SVD, ZERO, resolution

algebra = Doors(module)

BOUNDS = resolution(200, 24, np.float32)


def gram(rng, m, last):
    F = with_singular_values(rng, 200, m, np.geomspace(1, last, m))
    G = F.T @ F
    return G / np.trace(G)


def certified(G, cutoff, kind="relative"):
    m = len(G)
    return algebra.certified(tile(G), m, KINDS[kind], cutoff, 24, 1.0, tuple(BOUNDS), tile_of(m, m))


@pytest.mark.parametrize("m", [1, 2, 8, 24, 64])
def test_the_certificate_holds_up_to_the_cutoff(m, rng):
    """The smallest value is far, then by a per cent, on either side of the cutoff."""
    for last in (1e-2, 1e-3):
        G = gram(rng, m, last)
        s = np.sqrt(np.linalg.eigvalsh(G))
        ratio = s[0] / np.linalg.norm(s**2) ** 0.5  # the certificate bounds the largest value by the Frobenius norm
        assert certified(G, 0.1 * ratio)
        assert certified(G, 0.99 * ratio)
        assert not certified(G, 1.01 * s[0] / s[-1])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_certified_is_of_full_rank(seed):
    """Values at random distances around the cutoff: whenever the proof passes, all of them exceed it."""
    rng = np.random.default_rng(seed)
    passed = 0
    for _ in range(40):
        G = gram(rng, int(rng.integers(2, 20)), 10 ** rng.uniform(-3, -1))
        s = np.sqrt(np.linalg.eigvalsh(G).clip(0))
        near = 1 + rng.normal() * 10 ** rng.uniform(-12, 0)
        cutoff = s[0] / s[-1] * (near if rng.integers(2) else rng.uniform())
        if certified(G, cutoff):
            passed += 1
            assert s[0] > cutoff * s[-1] * (1 - 1e-12)
    assert passed


def test_no_certificate_without_a_largest_value(rng):
    G = gram(rng, 6, 0.5)
    assert certified(G, 1e-3)
    for kind in ("rank", "energy", "median"):
        assert not certified(G, 1.0, kind)
    assert not certified(np.full((6, 6), np.nan), 1e-3)
    assert not certified(np.ones((6, 6)), 1e-3)


@pytest.mark.parametrize(
    ("size", "last", "expected"),
    [(1.0, 0.0, EIGEN), (2 * LEAST_TRACE, 0.5 * MOST_TRACE, EIGEN), (0.5 * LEAST_TRACE, 0.0, SVD), (0.0, 1.0, ZERO),
     (2 * MOST_TRACE, 1.0, SVD), (1.0, 2 * MOST_TRACE, SVD), (np.inf, 1.0, NON_FINITE), (1.0, np.nan, NON_FINITE)],
)  # fmt: skip
def test_triage_by_sums_of_squares(size, last, expected):
    assert algebra.triage(size, last) == expected


@pytest.mark.parametrize(("value", "expected"), [(1e-200, SVD), (1e200, SVD), (0.0, ZERO), (np.nan, NON_FINITE)])
def test_triage_by_the_data_where_sums_overflow_or_vanish(value, expected):
    flat = np.full(6, value)
    with np.errstate(over="ignore"):
        size = float(flat @ flat)
    assert algebra.triage_block(size, size, flat, 0, 3, 1, 3, 2) == expected


def truncated_solve(G, g, kind, value):
    m = len(G)
    x, spectrum = g.copy(), np.empty((2, m))
    rotations, sweeps = np.empty((2, ROTATIONS * m * m)), np.empty((QL_ITERATIONS * m, 3), np.int64)
    status = algebra.truncated_solve(
        tile(G), m, x, KINDS[kind], value, 24, 1.0, tuple(BOUNDS), tile_of(5, m), spectrum, rotations, sweeps
    )
    return status, x


@pytest.mark.parametrize("m", [1, 2, 3, 8, 21, 32, 64, 96])
@pytest.mark.parametrize(("kind", "value"), [("relative", 1e-3), ("rank", 2.0), ("energy", 0.99), ("median", 1.5)])
def test_solving_without_eigenvectors(m, kind, value, rng):
    for last in (1e-2, 1e-5):
        G = gram(rng, m, last)
        g = rng.normal(size=m)
        squares, V = np.linalg.eigh(G)
        squares, V = squares[::-1], V[:, ::-1]
        s = np.sqrt(squares)
        keep = {
            "relative": s > value * s[0],
            "rank": np.arange(m) < value,
            "energy": np.arange(m) <= np.searchsorted(np.cumsum(squares) / squares.sum(), value),
            "median": (s > value * np.median(s)) | (np.arange(m) == 0),
        }[kind]
        status, x = truncated_solve(G, g, kind, value)
        least = squares[keep][-1] if keep.any() else 1.0
        gap = least - squares[~keep][0] if keep.any() and not keep.all() else least
        if least < BOUNDS.least:
            assert status == SVD
            continue
        assert status == EIGEN
        expected = V[:, keep] @ ((V[:, keep].T @ g) / squares[keep])
        np.testing.assert_allclose(x, expected, rtol=0, atol=64 * EPS64 * np.linalg.norm(g) / (gap * least))


def test_what_the_gram_matrix_cannot_tell(rng):
    G = gram(rng, 12, 1e-9)
    assert truncated_solve(G, np.ones(12), "relative", 1e-8)[0] == SVD
    assert truncated_solve(G, np.ones(12), "rank", 12.0)[0] == SVD
    assert truncated_solve(np.full((4, 4), np.nan), np.ones(4), "relative", 1e-3)[0] == SVD
