"""Extrapolations find the fixed point of a linear iteration as far as their theory says, and failures stay failures."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bench.evidence.smooth import methods, problems, train  # noqa: E402


def iterates(rates, pairs, seed=0):
    """States of w -> Q diag(rates) Q^T (w - 1) + 1, and the fixed point."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(40, len(rates))))[0]
    start = Q @ rng.normal(size=len(rates))
    steps = np.arange(pairs + 1)[:, None]
    return 1.0 + (Q.T @ start * np.asarray(rates) ** steps) @ Q.T, np.ones(40)


def distance(candidates, target):
    return np.linalg.norm(candidates - target, axis=1).min() / np.sqrt(len(target))


def test_every_extrapolation_has_ten_candidates():
    states, _ = iterates((0.99, 0.9, 0.5), 12)
    for method in {**methods.EXTRAPOLATIONS, **methods.CHEAP}.values():
        assert method(states).shape == (methods.CANDIDATES, 40)


def test_one_rate_is_a_secant_s_and_more_are_an_operator_s():
    single, target = iterates((0.995,), 12)
    assert distance(methods.secant(single), target) < 1e-6 < distance(methods.line(single), target)
    several, target = iterates((0.999, 0.99, 0.95, 0.9), 12)
    for method in (methods.koopman, methods.anderson):
        assert distance(method(several), target) < 1e-6
    assert distance(methods.rna(several), target) < distance(methods.secant(several), target)


def test_what_does_not_move_proposes_what_it_is():
    states = np.ones((9, 40))
    for name, method in {**methods.EXTRAPOLATIONS, **methods.CHEAP}.items():
        assert np.allclose(method(states), 1.0), name


@pytest.fixture(scope="module")
def quadratic():
    """Curvatures between 1e-3 and 1 around the origin."""
    values = np.geomspace(1e-3, 1, 8)
    return problems.Problem(lambda w: (0.5 * float(w @ (values * w)), values * w), np.ones(8), 1.0, budget=200)


def test_the_budget_is_kept_and_guards_are_charged(quadratic):
    pace = train.Pace(pairs=8, rest=2)
    done = train.run(quadratic, "Koopman", pace)
    cost = 10 + 11 / 3
    assert done.jumps == int(200 // cost) and 199 <= done.gradients <= 200 and done.gap < 1e-12
    assert train.run(quadratic, "none", pace).gap > 5e-4 > 1e-6 > train.run(quadratic, "Nesterov", pace).gap
    assert train.run(quadratic, "L-BFGS", pace).gap < 1e-12


def test_velocities_moved_along_go_further_than_weights_alone(quadratic):
    from dataclasses import replace

    heavy = replace(quadratic, momentum=0.9, lr=0.1)
    keep, predict = (
        train.run(heavy, "Koopman", train.Pace(pairs=20, velocity=velocity)).gap for velocity in ("keep", "predict")
    )
    assert predict < 0.2 * keep


def test_what_diverges_is_infinite():
    steep = problems.Problem(lambda w: (float(w @ w), 2 * w), np.ones(3), 2.0, budget=2000)
    with np.errstate(over="ignore", invalid="ignore"):
        assert train.run(steep, "none", train.Pace()).gap == np.inf


@pytest.mark.parametrize("name", ["digits", "kernel-ridge", "oscillator", "wide-net"])
def test_gradients_are_those_of_the_loss(name):
    problem = problems.PROBLEMS[name][0](1)
    rng = np.random.default_rng(0)
    direction = rng.normal(size=problem.start.shape)
    step, at = 1e-6, problem.start + 0.01 * rng.normal(size=problem.start.shape)
    slope = (problem.value(at + step * direction) - problem.value(at - step * direction)) / (2 * step)
    assert slope == pytest.approx(problem.value_and_gradient(at)[1] @ direction, rel=1e-5)
    assert problem.value(problem.start) > problem.optimum
