"""The leading eigenpairs of a large Gram matrix: right, proved, or refused."""

import numpy as np
import pytest

from fastkoop.kernels.contract import DIGITS
from fastkoop.kernels.cpu import library
from fastkoop.kernels.cpu.streamed import Streamed
from fastkoop.kernels.cpu.subspace import Formed, leading_eigh
from fastkoop.kernels.plan import EIGEN, NON_FINITE, SVD, iterates, resolution

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
    found, V = leading_eigh(Formed(G), lambda largest: limit * largest, BLUR, 1e-7)
    assert V.shape == (ORDER, rank) and len(found) == rank + 1
    np.testing.assert_allclose(found[:rank], values[:rank], rtol=1e-9)
    assert np.linalg.norm(V - Q[:, :rank] @ (Q[:, :rank].T @ V), 2) < 1e-6
    assert np.linalg.norm(V.T @ V - np.eye(rank)) < 1e-12


def test_refuses_a_rank_that_is_not_small(rng):
    G, _ = with_spectrum(rng, np.linspace(1, 0.1, ORDER))
    assert leading_eigh(Formed(G), lambda largest: 0.5 * largest, BLUR, 1e-7) is None


def test_refuses_a_value_within_the_blur_of_the_threshold(rng):
    values = np.arange(1, ORDER + 1.0) ** -4
    G, _ = with_spectrum(rng, values)
    assert leading_eigh(Formed(G), lambda largest: values[9] * (1 - 1e-16), BLUR, 1e-7) is None
    assert leading_eigh(Formed(G), lambda largest: values[9] * (1 + 1e-16), BLUR, 1e-7) is None


class Blind(Formed):
    """A matrix whose products miss one leading direction: only its trace, or the matrix itself, knows of it."""

    def __init__(self, G, hidden, whole):
        super().__init__(G)
        self._seen = np.delete(np.eye(len(G)), hidden, axis=0)
        self.sample, self.whole = Formed(self._seen.T @ (self._seen @ G @ self._seen.T) @ self._seen), whole

    def times(self, Q):
        return self.sample.times(Q)


@pytest.mark.parametrize("power", [4, 8])
@pytest.mark.parametrize("formed", [True, False])
def test_refuses_to_miss_a_hidden_direction(power, formed):
    values = np.arange(1, ORDER + 1.0) ** -power
    G, limit = np.diag(values), 0.5 * (values[9] + values[10])
    seen = Blind(G, ORDER - 1, G if formed else None)
    assert leading_eigh(seen, lambda largest: limit * largest, BLUR, 1e-7)[1].shape == (ORDER, 10)
    blind = Blind(G, 5, G if formed else None)
    assert leading_eigh(blind, lambda largest: limit * largest, BLUR, 1e-7) is None


@pytest.mark.parametrize("power", [2, 3, 4, 8])
@pytest.mark.parametrize("wide", [False, True])
def test_of_a_matrix_that_is_never_formed(power, wide, rng):
    """The pairs that the formed matrix has."""
    order, length = 1100, 1500
    Q, P = (np.linalg.qr(rng.normal(size=(size, order)))[0] for size in (order, length))
    lines = ((P * np.arange(1, order + 1.0) ** (-power / 2)) @ Q.T).astype(np.float32)
    G = lines.T.astype(np.float64) @ lines
    limit = 0.5 * (5.0**-power + 6.0**-power)
    exact = np.linalg.eigh(G)
    streamed = Streamed(lines, False) if wide else Streamed(np.ascontiguousarray(lines.T), True)
    found, V = leading_eigh(streamed, lambda largest: limit * largest, BLUR, 1e-7)
    np.testing.assert_allclose(found, exact[0][: -len(found) - 1 : -1], rtol=1e-6)
    kept = exact[1][:, -5:]
    assert np.linalg.norm(V - kept @ (kept.T @ V), 2) < 2e-7
    np.testing.assert_allclose(streamed.trace, np.trace(G), rtol=1e-12)


def test_a_matrix_that_is_never_formed_is_left_soon_where_much_is_kept(rng):
    lines = rng.normal(size=(1100, 1500)).astype(np.float32)
    streamed = Streamed(lines, True)
    assert leading_eigh(streamed, lambda largest: 0.1 * largest, BLUR, 1e-7) is None
    assert np.isnan(streamed.trace)  # no product was made but a sample's


@pytest.mark.parametrize("cutoff", [("relative", 1e-3), ("spacing", 1e4), ("rank", 10), ("rank", 30)])
def test_the_library_route_is_the_same_with_it_and_without(cutoff, rng, monkeypatch):
    G, _ = with_spectrum(rng, np.arange(1, ORDER + 1.0) ** -4)
    bounds = resolution(4 * ORDER, ORDER, np.float32)
    assert cutoff != ("rank", 10) or library.few_pairs(Formed(G), cutoff, 24, bounds)
    few = library.truncated_eigh(G, cutoff, 24, bounds)
    monkeypatch.setitem(iterates.__globals__, "ITERATIVE_ORDER", ORDER + 1)
    full = library.truncated_eigh(G, cutoff, 24, bounds)
    assert few[0] == full[0] and few[3] == full[3] and few[5] == full[5]
    np.testing.assert_allclose(few[1], full[1], rtol=1e-8)
    np.testing.assert_allclose(few[4], full[4], rtol=1e-7 if cutoff[0] == "rank" else 1e-12)
    np.testing.assert_allclose(few[2] @ few[2].T, full[2] @ full[2].T, atol=1e-6)


class TestBlocks:
    """What the library says of a block, with and without the matrix that is never formed."""

    @pytest.fixture(params=["tall", "wide"])
    def block(self, request, rng, dtype):
        n, m = (700, 340) if request.param == "tall" else (340, 700)
        modes, courses = (np.linalg.qr(rng.normal(size=(size, 340)))[0] for size in (n, m + 1))
        X = ((courses * 0.35 ** np.arange(340.0)) @ modes.T).astype(dtype)
        return np.repeat(X, 2, axis=1)[:, ::2]  # strided

    @pytest.fixture
    def both(self, monkeypatch):
        def both(function):
            results = []
            for least in (100, 10_000):
                monkeypatch.setitem(iterates.__globals__, "ITERATIVE_ORDER", least)
                monkeypatch.setattr(library, "upper_gram", gram if least == 10_000 else None)  # not called
                results.append(function())
            return results

        gram = library.upper_gram
        return both

    @pytest.mark.parametrize("cutoff", [("relative", 0.025), ("rank", 4)])
    def test_the_same(self, block, both, cutoff):
        columns, n = block.shape
        m, wide, digits = columns - 1, n < columns, DIGITS[block.dtype]
        rest, close = (wide, cutoff, digits, resolution(n, m, block.dtype)), 1e-6 if digits == 24 else 1e-9

        def step():
            out = np.empty(n)
            assert library.step_block(block, *rest, out) == EIGEN
            return out

        def inverse():
            out = np.empty((m, n))
            assert library.pinv_gram(block[:-1], *rest, out) == EIGEN
            return out

        for function in (step, inverse):
            few, formed = both(function)
            np.testing.assert_allclose(few, formed, rtol=0, atol=close * np.abs(formed).max())
        few, formed = both(lambda: library.reduce_block(block, *rest))
        assert (few.rank, few.edge, few.route) == (formed.rank, formed.edge, EIGEN) == (4, False, EIGEN)
        np.testing.assert_allclose(few[5:8], formed[5:8], rtol=1e-7)
        F, Fp = (block[:-1].T, block[1:].T) if not wide else (np.eye(n),) * 2
        K = [Fp @ part.readout @ (F @ part.basis).T for part in (few, formed)]
        np.testing.assert_allclose(*K, rtol=0, atol=close * np.abs(K[1]).max())
        w = [Fp @ part.readout @ part.start for part in (few, formed)]
        np.testing.assert_allclose(*w, rtol=0, atol=close * np.abs(w[1]).max())
        np.testing.assert_allclose((F @ few.basis).T @ (F @ few.basis), np.eye(4), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("place", "value"), [((3, 5), np.nan), ((-1, 5), np.nan), ((0, 0), np.inf)])
    def test_non_finite(self, block, monkeypatch, place, value):
        monkeypatch.setitem(iterates.__globals__, "ITERATIVE_ORDER", 100)
        block = block.copy()
        block[place] = value
        n, m, out = block.shape[1], len(block) - 1, np.zeros(block.shape[1])
        rest = n <= m, ("relative", 1e-3), DIGITS[block.dtype], resolution(n, m, block.dtype)
        assert library.step_block(block, *rest, out) == NON_FINITE and np.isnan(out).all()
        assert library.reduce_block(block, *rest).route == NON_FINITE

    def test_the_same_bits_for_any_number_of_threads(self, block, threads, monkeypatch):
        monkeypatch.setitem(iterates.__globals__, "ITERATIVE_ORDER", 100)
        n, m = block.shape[1], len(block) - 1
        rest = n <= m, ("relative", 0.025), DIGITS[block.dtype], resolution(n, m, block.dtype)
        found = []
        for number in (1, 2, 3):
            threads(number)
            found.append(np.empty(n))
            library.step_block(block, *rest, found[-1])
        assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()

    @pytest.mark.parametrize("wide", [False, True])
    def test_what_float64_products_cannot_resolve_goes_to_the_svd(self, wide, rng, monkeypatch):
        n, m = (340, 700) if wide else (700, 340)
        modes, courses = (np.linalg.qr(rng.normal(size=(size, 340)))[0] for size in (n, m + 1))
        block = (courses * 0.05 ** np.arange(340.0)) @ modes.T
        rest = wide, ("rank", 3), 53, resolution(n, m, np.float64)
        monkeypatch.setitem(iterates.__globals__, "ITERATIVE_ORDER", 100)
        monkeypatch.setattr(library, "upper_gram", None)  # not called
        assert library.step_block(block, *rest, np.empty(n)) == SVD
        assert library.pinv_gram(block[:-1], *rest, np.empty((m, n))) == SVD
        reduced = library.reduce_block(block, *rest)
        assert (reduced.route, reduced.rank) == (SVD, 0)
