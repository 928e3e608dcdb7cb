"""Small calls: prepared once, the bits of any other call, and none of it where a call is not small."""

import numpy as np
import pytest

from fastkoop.kernels import cpu
from fastkoop.kernels.cpu.prepared import MOST_BLOCKS, prepared
from fastkoop.kernels.plan import CHOLESKY, CONSTANT, NON_FINITE, QR, SVD

CUTOFF = ("relative", 1e-5)


def call(X, steps=1, cutoff=CUTOFF):
    return prepared(X.shape, X.strides, X.dtype, steps, cutoff)


def layouts(X):
    """The same snapshots (m+1, B, n) in other orders of memory."""
    for axes in ((0, 1, 2), (1, 2, 0), (1, 0, 2), (2, 1, 0)):
        back = np.argsort(axes)
        yield np.ascontiguousarray(X.transpose(axes)).transpose(back)


@pytest.mark.parametrize(("n", "m"), [(20, 8), (8, 20), (60, 16)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_same_bits_as_any_call(n, m, dtype, steps, rng):
    X = rng.normal(size=(m + 1, 3, n)).cumsum(axis=0).astype(dtype)
    X[:, 1] = X[0, 1]
    for like in layouts(X):
        assert call(like, steps) is not None
        states, routes = cpu.predict(like, steps, CUTOFF)
        expected, ways = cpu._predict(like, steps, CUTOFF)
        assert np.array_equal(states, expected) and np.array_equal(routes, ways)
        assert states.ctypes.data % 64 == 0 and routes[1] == CONSTANT


def test_one_signature_is_prepared_once(rng):
    X, Y = rng.normal(size=(2, 9, 1, 20)).cumsum(axis=1)
    assert call(X) is call(Y)
    assert call(X) is not call(X, 2) and call(X) is not call(X.astype(np.float32))


def test_what_a_call_leaves_pending_is_answered_in_full(rng):
    """Truncated blocks before their part is compiled, cutoffs beyond a Gram matrix, NaN."""
    X = rng.normal(size=(9, 2, 20)).cumsum(axis=0)
    X[:, 0, 1:] = X[:, 0, :1]
    X[2, 1, 3] = np.nan
    for cutoff in (CUTOFF, ("relative", 1e-15), ("energy", 0.9), ("rank", 2.0)):
        states, routes = cpu.predict(X, 1, cutoff)
        expected, ways = cpu._predict(X, 1, cutoff)
        assert np.array_equal(states, expected, equal_nan=True) and np.array_equal(routes, ways)
        assert routes[1] == NON_FINITE and np.isfinite(states[0]).all()


def test_blocks_beyond_a_gram_matrix_are_not_begun_again(rng, monkeypatch):
    X = (rng.normal(size=(33, 2, 21)) * np.geomspace(1.0, 1e-7, 21)).astype(np.float32)
    X[:, 1] = rng.normal(size=(33, 21))
    expected, ways = cpu._predict(X, 1, ("relative", 1e-9))
    monkeypatch.setattr(cpu, "_predict", None)
    states, routes = cpu.predict(X, 1, ("relative", 1e-9))
    assert np.array_equal(states, expected) and routes.tolist() == ways.tolist()
    assert routes[0] in (QR, SVD) and routes[1] == CHOLESKY


def test_what_is_not_small():
    def of(shape, dtype=np.float32, steps=1):
        return call(np.broadcast_to(np.zeros((), dtype), shape).copy(), steps)

    assert of((9, 1, 20)) and of((9, 20)) and of((9, MOST_BLOCKS, 20))
    assert not of((9, MOST_BLOCKS + 1, 20)) and not of((9, 0, 20)) and not of((9, 2, 2, 20))
    assert not of((9, 1, 20), steps=0) and not of((9, 1, 20), steps=10**6)
    assert not of((9, 1, 1)) and not of((201, 1, 300)) and not of((33, 40, 785))
    every_second = np.zeros((9, 1, 40), np.float32)[..., ::2]
    assert not call(every_second) and not call(np.broadcast_to(every_second[:1], (9, 1, 20)))
