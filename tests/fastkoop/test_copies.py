"""Operators and walks are copied, pickled and sent to other processes, and go on with the same bits."""

import concurrent.futures
import copy
import io
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from cases import orbit, strided_views, time_major

import fastkoop as fk

SIZES = ((9, 4), (4, 9), (120, 100))
OPTIONS = (
    {}, {"stabilize": "clip"}, {"stabilize": "project", "observables": fk.Affine()}, {"out_of_span": "carry"},
    {"observables": (fk.Delay(2), fk.Affine()), "check_finite": False}, {"refine": True},
)  # fmt: skip
REPORTS = ("rank", "threshold", "residual", "holdout", "edge", "spectral_radius", "eigenvalues", "route")


def by_joblib(op):
    joblib = pytest.importorskip("joblib")
    file = io.BytesIO()
    joblib.dump(op, file)
    file.seek(0)
    return joblib.load(file)


def by_torch(op):
    file = io.BytesIO()
    torch.save(op, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda op: pickle.loads(pickle.dumps(op)), "copy": copy.copy, "deepcopy": copy.deepcopy,
    "joblib": by_joblib, "torch": by_torch,
}  # fmt: skip


def assert_same(other, op):
    assert other is not op
    for steps in (0, 1, [7, 0, 50]):
        expected, got = op.predict(steps, check_finite=False), other.predict(steps, check_finite=False)
        assert type(got) is type(expected)
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(other.matrix(), op.matrix())
    for name in REPORTS:
        assert type(getattr(other, name)) is type(getattr(op, name))
        np.testing.assert_array_equal(getattr(other, name), getattr(op, name), err_msg=name)
    assert other.summary() == op.summary() and repr(other) == repr(op) and other.options == op.options


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_operators(way, options, make, dtype, rng):
    for n, m in SIZES if way == "pickle" else SIZES[:1]:
        op = fk.fit(make(orbit(rng, n, m, dtype, batch=(2,), decay=1.01)), cutoff=1e-3, **options)
        if n < 100:
            _ = op.eigenvalues  # what is cached is copied along
        assert_same(WAYS[way](op), op)


@pytest.mark.parametrize("name", ["weights first", "padded", "spaced", "all backwards"])
def test_any_strides(name, dtype, rng):
    X = strided_views(time_major(orbit(rng, 70, 66, dtype, batch=(3,))))[name]
    op = fk.fit(X, time_axis=0)
    assert_same(pickle.loads(pickle.dumps(op)), op)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_walks_go_on(way, dtype, rng):
    for options in ({}, {"observables": fk.Affine(), "out_of_span": "carry"}):
        walk = fk.fit(orbit(rng, 9, 4, dtype, batch=(2,)), **options).walk()
        assert WAYS[way](walk).step() is not None
        walk.step(3), walk.step(1, ahead=4)
        other = WAYS[way](walk)
        assert other.steps == walk.steps
        for count in (1, 1, 5):
            np.testing.assert_array_equal(other.step(count), walk.step(count))
        other.restart(), walk.restart()
        np.testing.assert_array_equal(other.step(2), walk.step(2))


def test_a_copy_owns_its_snapshots(rng):
    X = orbit(rng, 9, 4, batch=(2,))
    op = fk.fit(X)
    expected, other = op.predict(3), copy.deepcopy(op)
    X[...] = np.nan
    np.testing.assert_array_equal(other.predict(3), expected)


def test_jax_and_half_precision(rng):
    jax = pytest.importorskip("jax")
    for X in (jax.numpy.asarray(orbit(rng, 9, 4, np.float32)), torch.from_numpy(orbit(rng, 9, 4)).half()):
        op = fk.fit(X)
        assert_same(pickle.loads(pickle.dumps(op)), op)


def fitted(seed):
    return fk.fit(orbit(np.random.default_rng(seed), 9, 4))


def test_a_process_pool_returns_operators():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        op = pool.submit(fk.fit, orbit(np.random.default_rng(1), 9, 4)).result()
    np.testing.assert_array_equal(op.predict(5), fitted(1).predict(5))


def test_operators_spread_over_ranks_are_refused():
    op = fitted(0)
    op._spread = object()
    with pytest.raises(TypeError, match=r"KoopmanOperator: expected whole blocks.*state_dict\(\)"):
        pickle.dumps(op)
