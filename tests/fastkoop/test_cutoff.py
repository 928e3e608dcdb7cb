"""The public cutoff rules: what they resolve to, and what is refused."""

import numpy as np
import pytest

import fastkoop as fk
from fastkoop import cutoff


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("array_api", lambda size, eps: ("relative", size * eps)),
        ("jax", lambda size, eps: ("relative", 10 * size * eps)),
        ("numpy", lambda size, eps: ("relative", 1e-15)),
        ("matlab", lambda size, eps: ("spacing", float(size))),
        (0.01, lambda size, eps: ("relative", 0.01)),
        (0, lambda size, eps: ("relative", 0.0)),
        (np.float32(0.5), lambda size, eps: ("relative", 0.5)),
        (fk.Rank(7), lambda size, eps: ("rank", 7.0)),
        (fk.Energy(0.9), lambda size, eps: ("energy", 0.9)),
    ],
)
@pytest.mark.parametrize(("n", "m"), [(785, 32), (32, 785), (1, 1)])
def test_resolve(rule, expected, n, m, dtype):
    assert cutoff.resolve(rule, n, m, dtype) == expected(max(n, m), float(np.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("aspect", "omega"),
    # Gavish and Donoho (2014), table IV
    [(0.05, 1.5194), (0.1, 1.6089), (0.25, 1.8371), (0.5, 2.1711), (0.75, 2.5011), (1.0, 2.8582)],
)
def test_the_optimal_hard_threshold(aspect, omega):
    assert cutoff.hard_threshold(aspect) == pytest.approx(omega, abs=1e-3)
    kind, value = cutoff.resolve("svht", int(1000 * aspect), 1000, np.float32)
    assert kind == "median"
    assert value == pytest.approx(omega, abs=1e-3)


@pytest.mark.parametrize("aspect", [1e-8, 1e-6, 1 / 16750, 1e-3, 0.999999])
def test_the_hard_threshold_of_any_aspect(aspect):
    assert 1.41 < cutoff.hard_threshold(aspect) < 2.86


def test_svht_separates_signal_from_noise(rng):
    signal = 40 * np.outer(*np.linalg.qr(rng.normal(size=(100, 2)))[0].T[:, :100])
    X = signal[:, :81] + rng.normal(size=(100, 81)) * 0.5
    assert fk.fit(X, cutoff="svht").rank == 1


def test_rank_and_energy_hold_their_number():
    assert fk.Rank(3).k == 3
    assert fk.Rank(np.int64(3)) == fk.Rank(3)
    assert fk.Energy(1).share == 1
    assert cutoff.describe("jax") == "jax"
    assert cutoff.describe(fk.Rank(2)) == "Rank(k=2)"
    with pytest.raises(AttributeError, match="k"):
        fk.Rank(3).k = 4


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_rank_refuses(k, error):
    with pytest.raises(error, match=r"Rank\(k\): expected an integer"):
        fk.Rank(k)


@pytest.mark.parametrize(
    ("share", "error"),
    [(0, ValueError), (1.01, ValueError), (-1, ValueError), (np.nan, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_energy_refuses(share, error):
    with pytest.raises(error, match=r"Energy\(share\): expected"):
        fk.Energy(share)


def test_refused_rules_name_the_choices():
    with pytest.raises(ValueError, match=r"'array_api', 'matlab', 'numpy', 'jax', 'svht'.* got 'scipy'"):
        cutoff.resolve("scipy", 3, 4, np.float32)
