"""The leading eigenpairs of a large Gram matrix: right, proved, or refused."""

import numpy as np
import pytest

from fastkoop.kernels.cpu import library
from fastkoop.kernels.cpu.subspace import leading_eigh
from fastkoop.kernels.plan import resolution

ORDER = 1200
BLUR = resolution(4 * ORDER, ORDER, np.float32).gram


def with_spectrum(rng, values):
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    Q = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return (Q * values) @ Q.T, Q


@pytest.mark.parametrize(("power", "rank"), [(2, 10), (4, 10), (4, 14), (6, 3)])
def test_equals_the_full_decomposition(power, rank, rng):
    values = np.arange(1, ORDER + 1.0) ** -power
    G, Q = with_spectrum(rng, values)
    limit = 0.5 * (values[rank - 1] + values[rank])
    found, V = leading_eigh(G, lambda largest: limit * largest, BLUR)
    assert V.shape == (ORDER, rank) and len(found) == rank + 1
    np.testing.assert_allclose(found[:rank], values[:rank], rtol=1e-9)
    assert np.linalg.norm(V - Q[:, :rank] @ (Q[:, :rank].T @ V), 2) < 1e-6
    assert np.linalg.norm(V.T @ V - np.eye(rank)) < 1e-12


def test_refuses_a_rank_that_is_not_small(rng):
    G, _ = with_spectrum(rng, np.linspace(1, 0.1, ORDER))
    assert leading_eigh(G, lambda largest: 0.5 * largest, BLUR) is None


def test_refuses_a_value_within_the_blur_of_the_threshold(rng):
    values = np.arange(1, ORDER + 1.0) ** -4
    G, _ = with_spectrum(rng, values)
    assert leading_eigh(G, lambda largest: values[9] * (1 - 1e-16), BLUR) is None
    assert leading_eigh(G, lambda largest: values[9] * (1 + 1e-16), BLUR) is None


def test_refuses_to_miss_a_hidden_direction(rng, monkeypatch):
    """A start that is blind to one leading eigenvector: Ritz values alone would pass, the proof does not."""
    values = np.arange(1, ORDER + 1.0) ** -4
    G = np.diag(values)  # the blind start stays blind: coordinate 5 never mixes in

    class Blind:
        def normal(self, size):
            Y = rng.normal(size=size)
            Y[5] = 0.0
            return Y

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Blind())
    limit = 0.5 * (values[9] + values[10])
    assert leading_eigh(G, lambda largest: limit * largest, BLUR) is None


@pytest.mark.parametrize("cutoff", [("relative", 1e-3), ("spacing", 1e4), ("rank", 10), ("rank", 30)])
def test_the_library_route_is_the_same_with_it_and_without(cutoff, rng, monkeypatch):
    G, _ = with_spectrum(rng, np.arange(1, ORDER + 1.0) ** -4)
    bounds = resolution(4 * ORDER, ORDER, np.float32)
    assert cutoff != ("rank", 10) or library.few_pairs(G, cutoff, 24, bounds)
    few = library.truncated_eigh(G, cutoff, 24, bounds)
    monkeypatch.setattr(library, "LEAST_ORDER", ORDER + 1)
    full = library.truncated_eigh(G, cutoff, 24, bounds)
    assert few[0] == full[0] and few[3] == full[3] and few[5] == full[5]
    np.testing.assert_allclose(few[1], full[1], rtol=1e-8)
    np.testing.assert_allclose(few[4], full[4], rtol=1e-7 if cutoff[0] == "rank" else 1e-12)
    np.testing.assert_allclose(few[2] @ few[2].T, full[2] @ full[2].T, atol=1e-6)
