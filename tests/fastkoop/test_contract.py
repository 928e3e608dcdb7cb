"""The accuracy contract, rule by rule, against 60 digits: the answer is the exactly truncated one at a cutoff within
c (1 -+ d) of the one asked for, and `edge` says where that band holds a singular value."""

import functools
import itertools
import sys

import mpmath
import numpy as np
import pytest
import torch
from cases import with_singular_values
from fastkoop.kernels import cpu
from fastkoop.kernels.plan import resolution

import fastkoop as fk
from fastkoop import cutoff as rules
from fastkoop.experiments.datasets import load
from fastkoop.experiments.training import Batches, make_model, make_optimizer, train_step

COMPARING = ("array_api", "matlab", "numpy", "jax", "svht", 3e-2, 1e-3)
RULES = (*COMPARING, fk.Rank(3), fk.Energy(0.9999))
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}  # of the displacement, a step
SHAPES = ((40, 7), (7, 40), (120, 9), (65, 8), (21, 30))
REAL = {(65, 8): 0, (21, 30): 1}  # nodes of the first and the second layer of a network that learns digits


@functools.cache
def recorded():
    """Snapshots (time, nodes, weights and bias) of both layers under AdaDelta, after 40 iterations; float32."""
    data = load("digits")
    model = make_model(data.train_images.shape[1], 10, seed=0)
    optimizer, batches = make_optimizer("adadelta", model, None), Batches(data, 64, seed=0)
    snapshots = []
    for images, labels in itertools.islice(itertools.chain.from_iterable(batches.epoch() for _ in range(4)), 80):
        train_step(model, optimizer, images, labels)
        layers = [torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy() for layer in (model[0], model[2])]
        snapshots.append([layer.copy() for layer in layers])
    return [np.stack(layer) for layer in zip(*snapshots[40:], strict=True)]


@functools.cache
def trajectory(n, m, seed, dtype):
    """Weights that settle at several rates, as under an optimizer: F's singular values decay through any cutoff.

    Or a node of a network that is being trained: one of those that move most.
    """
    if (n, m) in REAL:
        layer = recorded()[REAL[n, m]]
        moved = np.linalg.norm(layer[m] - layer[0], axis=1)
        return layer[: m + 1, np.argsort(-moved)[seed]].T.astype(dtype)
    rng = np.random.default_rng(seed)
    rates = np.array([1.0, 0.98, 0.9, 0.75, 0.5, 0.2])
    modes = rng.normal(size=(n, len(rates))) * np.array([1.0, 0.3, 0.1, 0.05, 0.02, 0.02])
    noise = 1e-3 * rng.normal(size=(n, m + 1)).cumsum(axis=1)
    return (modes @ rates[:, None] ** np.arange(m + 1) + noise).astype(dtype)


class Exact:
    """Singular values and truncated powers of one block in 60 digits."""

    def __init__(self, X):
        self.columns = [mpmath.matrix(x) for x in X.T.astype(np.float64).tolist()]
        with mpmath.workdps(60):
            self.F, self.Fp = (mpmath.matrix(part.astype(np.float64).tolist()) for part in (X[:, :-1], X[:, 1:]))
            self.tall = self.F.rows > self.F.cols
            squares, self.V = mpmath.eigsy(self.F.T * self.F if self.tall else self.F * self.F.T)
            self.squares = list(squares)
            self.values = np.array([float(mpmath.sqrt(abs(square))) for square in self.squares[::-1]])

    def states(self, rank, steps):
        """K x_last, K^2 x_last, ... with the `rank` largest singular values."""
        with mpmath.workdps(60):
            x, found, order = self.columns[-1], [], len(self.squares)
            for _ in range(steps):
                h, c = self.F.T * x if self.tall else x, mpmath.zeros(order, 1)
                for i in range(order - rank, order):
                    c += self.V[:, i] * ((self.V[:, i].T * h)[0] / self.squares[i])
                x = self.Fp * (c if self.tall else self.F.T * c)
                found.append(np.array([float(value) for value in x]))
            return found


@functools.cache
def exact(n, m, seed, dtype):
    return Exact(trajectory(n, m, seed, dtype))


def counted(s, rule, n, m, dtype):
    """(rank, relative cutoff or None where the rule counts) by the rule's own definition, from exact values."""
    if isinstance(rule, fk.Rank):
        return min(rule.k, len(s)), None
    if isinstance(rule, fk.Energy):
        return int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), rule.share)) + 1, None
    eps = float(np.finfo(dtype).eps)
    named = {
        "array_api": max(n, m) * eps, "jax": 10 * max(n, m) * eps, "numpy": 1e-15,
        "matlab": max(n, m) * float(np.spacing(np.dtype(dtype).type(s[0]))) / s[0],
    }  # fmt: skip
    if rule == "svht":
        c = rules.hard_threshold(min(n, m) / max(n, m)) * np.median(s) / s[0]
    else:
        c = named.get(rule, rule) if isinstance(rule, str) else rule
    return int((s > c * s[0]).sum()), c


def off(ratios, c, route, n, m, dtype):
    """How far singular values, relative to the largest, lie above the cutoff; 1 is the edge of the band.

    A Gram matrix blurs squares, so that the band of d = gram / (2 c^2) is that of squares c^2 -+ gram where it is wide.
    """
    bounds = resolution(n, m, dtype)
    return (ratios - c) / bounds.svd if route == "svd" else (ratios**2 - c * c) / bounds.gram


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
class TestEveryRule:
    def admissible(self, rule, n, m, seed, dtype):
        """Ranks that the contract allows, and the operator."""
        op, s = fk.fit(trajectory(n, m, seed, dtype.name), cutoff=rule), exact(n, m, seed, dtype.name).values
        rank, c = counted(s, rule, n, m, dtype)
        if c is None:
            return {rank}, op
        above = off(s / s[0], c, str(op.route), n, m, dtype)
        return set(range(int((above > 1).sum()), int((above > -1).sum()) + 1)), op

    def test_rank(self, rule, n, m, seed, dtype):
        allowed, op = self.admissible(rule, n, m, seed, dtype)
        assert int(op.rank) in allowed

    @pytest.mark.parametrize("steps", [1, 25])
    def test_states(self, rule, n, m, seed, dtype, steps):
        allowed, _ = self.admissible(rule, n, m, seed, dtype)
        X = trajectory(n, m, seed, dtype.name)
        got = fk.predict(X, steps, cutoff=rule).astype(np.float64)
        misses = []
        for rank in allowed:
            states = exact(n, m, seed, dtype.name).states(rank, steps)
            moved = sum(np.linalg.norm(state - X[:, -1]) for state in states)  # every step adds its own share
            allowance = TOLERANCE[dtype.name] * moved + np.finfo(dtype).eps * np.linalg.norm(states[-1])
            misses.append(np.linalg.norm(got - states[-1]) / allowance)
        assert min(misses) <= 1.0, misses


@pytest.mark.parametrize("rule", COMPARING, ids=str)
@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_edge_is_raised_where_it_should_be(rule, n, m, seed, dtype):
    s = exact(n, m, seed, dtype.name).values
    _, c = counted(s, rule, n, m, dtype)
    op = fk.fit(trajectory(n, m, seed, dtype.name), cutoff=rule)
    nearest = np.abs(off(s / s[0], c, str(op.route), n, m, dtype)).min()
    if nearest < 0.25:
        assert op.edge
    if nearest > 4.0 and rule not in ("svht", "matlab"):  # whose thresholds are uncertain themselves
        assert not op.edge


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_edge_follows_a_cutoff_across_every_singular_value(n, m, seed, dtype):
    """A real decay has a value near any cutoff: on it the flag is up, halfway to the next it is down."""
    X, s = trajectory(n, m, seed, dtype.name), exact(n, m, seed, dtype.name).values
    for k in range(1, min(n, m)):
        on, between = s[k] / s[0], np.sqrt(s[k] * s[k - 1]) / s[0]
        if on < 1e3 * np.finfo(np.float64).eps:
            break
        assert fk.fit(X, cutoff=on).edge
        op = fk.fit(X, cutoff=between)
        if np.abs(off(s / s[0], between, str(op.route), n, m, dtype)).min() > 4:
            assert not op.edge and op.rank == k


@pytest.mark.parametrize(("n", "m"), [(60, 8), (8, 60), (12, 12)])
@pytest.mark.parametrize("condition", [1e7, 1e9, 1e11])
@pytest.mark.parametrize("order", [96, 0], ids=["Numba", "LAPACK"])
def test_beyond_the_tolerance_the_condition_says_how_much(n, m, condition, order, monkeypatch):
    """No float64 algorithm does better: data that differ by rounding have answers as far apart."""
    for module in (sys.modules["fastkoop.kernels.plan"], cpu):
        monkeypatch.setattr(module, "KERNEL_ORDER", order)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        F = with_singular_values(rng, n, m, np.geomspace(1, 1 / condition, min(n, m)))
        X = np.c_[F, F @ rng.normal(size=m) / np.sqrt(m)]
        op, expected = fk.fit(X, cutoff=1e-14), Exact(X).states(min(n, m), 1)[0]
        assert op.route == "svd" and 0.5 < op.condition / condition < 2
        allowed = resolution(n, m, np.float64).svd * condition * np.linalg.norm(expected - X[:, -1])
        for got in (op.predict(1), fk.predict(X, 1, cutoff=1e-14)):
            assert np.linalg.norm(got - expected) <= allowed
