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
from fastkoop.kernels.plan import ROUTES, resolution

import fastkoop as fk
from fastkoop import cutoff as rules
from fastkoop.experiments.problems.datasets import load
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

    def far(self, rank, steps):
        """K^steps x_last, and how far each state on the way there lies from x_last, all summed.

        By squaring the `rank` x `rank` operator in 60 digits; the distances by 60-digit eigenvalues in float64.
        """
        with mpmath.workdps(60):
            order = len(self.squares)
            keep = range(order - 1, order - rank - 1, -1)
            V = mpmath.matrix([[self.V[i, k] for k in keep] for i in range(order)])
            roots = [mpmath.sqrt(self.squares[k]) for k in keep]
            scaled = V * mpmath.diag([1 / root for root in roots])
            U = self.F * scaled if self.tall else V
            lift = self.Fp * (scaled if self.tall else self.F.T * (scaled * mpmath.diag([1 / root for root in roots])))
            operator, start = U.T * lift, U.T * self.columns[-1]
            y, power, left = start, operator, steps - 1
            while left:
                y = power * y if left & 1 else y
                power, left = power * power, left >> 1
            last, state = (np.array([float(value) for value in x]) for x in (self.columns[-1], lift * y))
            lift, operator, y = (np.array(x.tolist(), np.float64) for x in (lift, operator, start))
            moved = 0.0
            for _ in range(steps):
                moved += np.linalg.norm((lift @ y)[:, 0] - last)
                y = operator @ y
            return state, moved


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


@pytest.mark.parametrize("rule", ["array_api", "jax", 3e-2, fk.Rank(3)], ids=str)
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_many_steps(rule, n, m, dtype):
    """400 steps: by repeated squaring where that is less work, a step at a time where not."""
    X, oracle = trajectory(n, m, 0, dtype.name), exact(n, m, 0, dtype.name)
    op = fk.fit(X, cutoff=rule)
    assert not op.edge
    expected, moved = oracle.far(int(op.rank), 400)
    assert 0.0 < moved < 1e30
    for got in (fk.predict(X, 400, cutoff=rule), op.predict(400), op.walk().step(400)):
        allowance = TOLERANCE[dtype.name] * moved + np.finfo(dtype).eps * np.linalg.norm(expected)
        assert np.linalg.norm(got.astype(np.float64) - expected) <= allowance


@pytest.mark.parametrize("rule", ["array_api", "jax", 3e-2, fk.Rank(3), fk.Energy(0.9999)], ids=str)
@pytest.mark.parametrize(("n", "m"), SHAPES)
def test_blas_and_lapack_keep_the_contract_too(rule, n, m, dtype, monkeypatch):
    """The routes of blocks too large for 60 digits, on these."""
    for module in (sys.modules["fastkoop.kernels.plan"], cpu):
        monkeypatch.setattr(module, "KERNEL_ORDER", 0)
    whole = TestEveryRule()
    whole.test_rank(rule, n, m, 0, dtype)
    for steps in (1, 25):
        whole.test_states(rule, n, m, 0, dtype, steps)
    if rule in COMPARING:
        test_edge_is_raised_where_it_should_be(rule, n, m, 0, dtype)


@pytest.mark.parametrize(("n", "m"), [(60, 6), (6, 60), (785, 32), (130, 110)])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_gram_matrix_answers_where_its_resolution_suffices(n, m, dropped, dtype, rng):
    """Down to the documented conditioning, and no further; what is dropped counts by the threshold instead."""
    least, p = resolution(n, m, dtype).least ** 0.5, min(n, m)
    for factor, gram in ((1.5, True), (0.6, False)):
        low = factor * least
        values = np.r_[np.geomspace(1, 1.2 * low, p - 1), 1e-2 * low if dropped else 1.2 * low]
        F = with_singular_values(rng, n, m, values).astype(dtype)
        X = np.c_[F, F[:, :1] + F[:, 1:2]]
        cutoff = low if dropped else low / 3
        op = fk.fit(X, cutoff=cutoff)
        assert op.rank == p - dropped
        assert op.route == ("eigen" if gram else "svd")
        route = ROUTES[fk.kernels.predict(X.T, 1, ("relative", cutoff))[1][0]]
        assert route in (("cholesky", "eigen") if gram else ("qr", "svd"))
        assert (route == "cholesky") <= (not dropped)


@pytest.mark.parametrize(("n", "m", "rank"), [(60, 8, 8), (60, 8, 4), (8, 60, 8), (8, 60, 4)])
def test_refining_buys_digits(n, m, rank):
    """Where a Gram matrix just suffices its error is the square of the conditioning; the SVD's is the conditioning.

    A step of refinement with residuals of the data would buy as much where all counts, but nothing where the cutoff
    drops some: there it is the kept vectors that are turned.
    """
    low, errors = 1.5 * resolution(n, m, np.float64).least ** 0.5, []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = np.r_[np.geomspace(1, low, rank), np.geomspace(low / 20, low / 1000, min(n, m) - rank)]
        F = with_singular_values(rng, n, m, values)
        X = np.c_[F, F @ rng.normal(size=m) / np.sqrt(m)]
        expected = Exact(X).states(rank, 1)[0]
        ops = [fk.fit(X, cutoff=low / 1.4, refine=refine) for refine in (False, True)]
        assert [str(op.route) for op in ops] == ["eigen", "svd"] and ops[0].rank == ops[1].rank == rank
        errors.append([np.linalg.norm(op.predict(1) - expected) / np.linalg.norm(expected - X[:, -1]) for op in ops])
    plain, refined = np.median(errors, axis=0)
    assert refined <= 8 * 2.0**-52 / low
    assert refined <= plain / 10


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


@pytest.mark.parametrize(("n", "m"), [(60, 6), (6, 60)])
@pytest.mark.parametrize(("at", "apart"), [(0.1, 1e-6), (0.01, 1e-5)])
def test_pinv_at_a_narrow_gap(n, m, at, apart, rng):
    """Singular values on both sides of the cutoff, too close for a Gram matrix: the inverse of the right ones alone."""
    F = with_singular_values(rng, n, m, np.array([1, 0.7, 0.5, at * (1 + apart), at * (1 - apart), at / 10]))
    oracle = Exact(np.c_[F, F[:, :1]])
    with mpmath.workdps(60):
        V = mpmath.matrix([[oracle.V[i, k] for k in range(5, 1, -1)] for i in range(6)])
        inverse = V * mpmath.diag([1 / oracle.squares[k] for k in range(5, 1, -1)]) * V.T
        exactly = np.array((inverse * oracle.F.T if oracle.tall else oracle.F.T * inverse).tolist(), np.float64)
    error = np.linalg.norm(fk.pinv(F, cutoff=at) - exactly) / np.linalg.norm(exactly)
    assert error <= resolution(n, m, np.float64).svd / (2 * at * apart)
    assert error < 1e-3
