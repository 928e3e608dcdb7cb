"""Triangles that stand in for tall blocks, against the blocks themselves."""

import numpy as np
import pytest
from cases import EPS64, dying, strided_views, time_major, with_singular_values

from fastkoop import kernels
from fastkoop.kernels import triangles
from fastkoop.kernels.triangles import Kept, stand_ins

COLUMNS = 9
SIZES = (4 * COLUMNS, 785, 9000)  # of the last, several strips


def batch(rng, n, dtype):
    """Blocks (columns, 5, n): noise, graded, far from zero, all but constant, with columns of any norm."""
    noise = rng.normal(size=(n, COLUMNS))
    blocks = (noise, noise @ with_singular_values(rng, COLUMNS, COLUMNS, np.geomspace(1.0, 1e-12, COLUMNS)),
              1e3 + noise, dying(rng, n, COLUMNS - 1), noise * np.geomspace(1.0, 1e-20, COLUMNS))  # fmt: skip
    return time_major(np.array([block.astype(dtype) for block in blocks])).copy()


def taken_off(X, centre):
    """What triangles are of: float64, less a snapshot."""
    X = X.astype(np.float64)
    return X if centre is None else X - X[centre]


@pytest.mark.parametrize("centre", [None, COLUMNS // 2])
@pytest.mark.parametrize("n", SIZES)
def test_products_are_those_of_the_block(n, centre, dtype, rng):
    """Column by column, whatever the others' norms (Higham 2002, theorem 19.4): nothing is squared on the way."""
    X = batch(rng, n, dtype)
    rows, unit = stand_ins(X, np.arange(5), centre)
    assert rows.shape == (5, COLUMNS, COLUMNS) and not np.triu(rows, 1).any()
    for b in range(5):
        D, L = taken_off(X[:, b], centre), rows[b] * unit[b]
        sizes = np.linalg.norm(D, axis=1)
        assert (np.abs(L @ L.T - D @ D.T) <= 200 * EPS64 * np.outer(sizes, sizes)).all(), b
        s, exact = (np.linalg.svd(part, compute_uv=False) for part in (L, D))
        np.testing.assert_allclose(s, exact, rtol=0, atol=50 * EPS64 * exact[0])
        if centre is not None:
            assert not L[centre].any()


def test_a_corner_is_the_triangle_of_the_first_snapshots(rng):
    X = batch(rng, 785, np.float64)
    whole, first = stand_ins(X, np.arange(5), 2), stand_ins(X[:5], np.arange(5), 2)
    for b in range(5):
        corner, L = (part.rows[b, :5, :5] * part.unit[b] for part in (whole, first))
        sizes = np.linalg.norm(L, axis=1)
        assert (np.abs(corner @ corner.T - L @ L.T) <= 200 * EPS64 * np.outer(sizes, sizes)).all()


@pytest.mark.parametrize("n", [15, 60, 785, 9000])
def test_bits_are_a_blocks_own(n, dtype, rng):
    X = batch(rng, n, dtype)
    expected = stand_ins(X, np.arange(5), 4)
    threads = kernels.get_num_threads()
    try:
        for count in (1, 3):
            kernels.set_num_threads(count)
            for name, view in strided_views(X).items():
                for chosen in (np.array([3]), np.array([4, 1]), np.arange(5)):
                    for got, whole in zip(stand_ins(view, chosen, 4), expected, strict=True):
                        np.testing.assert_array_equal(got, whole[chosen], err_msg=name)
    finally:
        kernels.set_num_threads(threads)


@pytest.mark.parametrize("n", [2 * COLUMNS, 2 * COLUMNS + 1])
def test_few_weights_stand_for_themselves(n, rng):
    X = batch(rng, n, np.float32)
    rows, unit = stand_ins(X, np.arange(5), 4)
    assert rows.shape[2] == (n if n == 2 * COLUMNS else COLUMNS) and (unit == 1.0).all()
    if n == 2 * COLUMNS:
        np.testing.assert_array_equal(rows[0], taken_off(X[:, 0], 4))


@pytest.mark.parametrize("n", [60, 9000])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_no_scale_is_too_large_or_too_small(scale, n, rng):
    X = batch(rng, n, np.float64)[:, :1]
    rows, unit = stand_ins(X, np.arange(1), 4)
    scaled, units = stand_ins(scale * X, np.arange(1), 4)
    assert np.isfinite(scaled).all() and 0.1 < np.abs(scaled).max() < 100 * n
    np.testing.assert_allclose(
        scaled * (units / scale), rows * unit, rtol=0, atol=100 * EPS64 * np.abs(rows * unit).max()
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_block(bad, dtype, rng):
    X = batch(rng, 9000, dtype)
    expected = stand_ins(X, np.arange(5), 4).rows
    X[3, 1, 8000] = bad
    rows = stand_ins(X, np.arange(5), 4).rows
    assert not np.isfinite(rows[1]).all()
    np.testing.assert_array_equal(rows[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


def test_strips_are_small(monkeypatch, rng):
    """Numbers that are worked on at a time, however large a block is."""
    sizes, lower = [], triangles.lower

    def watched(strips):
        def each():
            for strip in strips:
                sizes.append(strip.size)
                yield strip

        return lower(each())

    monkeypatch.setattr(triangles, "lower", watched)
    stand_ins(rng.normal(size=(13, 1, 50000)).astype(np.float32), np.arange(1), 6)
    assert sum(sizes) == 13 * 50000 and max(sizes) <= 1 << 15


def test_kept_triangles_are_made_once_and_never_less_a_later_snapshot(rng):
    X = batch(rng, 785, np.float32)
    kept = Kept(kernels.gram(X), True, 4)
    chosen = np.array([1, 3])
    made = kept.stand_ins(X, chosen)
    np.testing.assert_array_equal(made.rows, stand_ins(X, chosen, 4).rows)
    again = kept.stand_ins(np.full_like(X, np.nan), chosen)
    np.testing.assert_array_equal(again.rows, made.rows)
    assert kept.known.tolist() == [False, True, False, True, False]
    np.testing.assert_array_equal(kept.corner(6).stand_ins(X[:6], chosen).rows, made.rows[:, :6, :6])
    assert kept.corner(5).known.any() and not kept.corner(4).known.any()
    part = kept.of(slice(0, 2))
    part.stand_ins(X[:, :2], np.array([0]))
    assert kept.known.tolist() == [True, True, False, True, False]
