"""Averages of iterates, the line through them, and paired tests over seeds."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fastkoop.experiments.averages import Line, Mean, Moving, apart, assign, weights_of
from fastkoop.experiments.baselines import BASELINES, combined, shares
from fastkoop.experiments.paired import paired


def walked(*averages, steps=7, dtype=torch.float64):
    """A model that moves at random; its iterates (steps, weights)."""
    torch.manual_seed(0)
    model, trail = nn.Linear(3, 2, dtype=dtype), []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        for average in averages:
            average.add(model)
        trail.append(flat(weights_of(model)))
    return model, np.array(trail)


def flat(weights):
    return torch.cat([value.double().flatten() for value in weights.values()]).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean(dtype):
    mean = Mean()
    _, trail = walked(mean, dtype=dtype)
    bound = 7 * torch.finfo(dtype).eps * np.abs(trail).max()  # accumulated in the parameters' dtype
    np.testing.assert_allclose(flat(mean.weights), trail.mean(axis=0), rtol=0, atol=bound)
    assert mean.count == 7 and mean.seconds > 0
    assert all(value.dtype == dtype for value in mean.weights.values())


def test_moving_average_forgets_and_is_corrected_for_its_start():
    moving = Moving(decay=0.7)
    _, trail = walked(moving)
    shares = 0.7 ** np.arange(7)[::-1]
    np.testing.assert_allclose(flat(moving.weights), shares @ trail / shares.sum(), rtol=1e-6)
    once = Moving()
    _, trail = walked(once, steps=1)
    np.testing.assert_allclose(flat(once.weights), trail[0], rtol=1e-6)


@pytest.mark.parametrize("average", [Mean, Moving, Line])
def test_float64_weights_are_not_summed_in_place(average):
    model = torch.nn.Linear(3, 2, dtype=torch.float64)
    before, running = weights_of(model), average()
    for _ in range(3):
        running.add(model)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_line_is_the_least_squares_one(steps):
    line = Line()
    _, trail = walked(line, steps=steps)
    for ahead in (0, 3):
        at = steps - 1 + ahead
        expected = trail[-1] if steps == 1 else np.polyval(np.polyfit(np.arange(steps), trail, 1), at)
        np.testing.assert_allclose(flat(line.ahead(ahead)), expected, rtol=1e-5, atol=1e-6)


def test_assign_and_apart():
    model, _ = walked()
    before = weights_of(model)
    other = {name: value + 1.0 for name, value in before.items()}
    assign(model, other)
    assert all(torch.equal(value, other[name]) for name, value in weights_of(model).items())
    assert apart(before, other) == pytest.approx(math.sqrt(8))


def test_paired_is_the_t_test():
    a, b = [1.0, 1.3, 0.9, 1.1], [1.2, 1.25, 1.1, 1.3]
    found = paired(a, b)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b)) and found.wins == 3
    assert found.share == pytest.approx(found.mean / np.mean(b))
    assert str(found).endswith("3 of 4 seeds, p = 0.12)")


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [([1.0], [2.0], "50.00% below (below on 1 of 1 seeds)"),
     ([1.0, 1.0], [1.0, 1.0], "0.00% above (below on 0 of 2 seeds)"),
     ([math.inf, 1.0], [2.0, 2.0], "diverged (below on 1 of 2 seeds)"),
     ([0.1, 0.2], [math.inf, 0.3], "below what diverged (below on 2 of 2 seeds)"),
     ([math.inf, 0.2], [math.nan, 0.3], "both diverged (below on 1 of 2 seeds)"),
     ([1e6, 1e6], [1.0, 1.0], "1e+06 times as high (below on 0 of 2 seeds)")],
)  # fmt: skip
def test_paired_of_few_equal_or_diverged(a, b, words):
    found = paired(a, b)
    assert math.isnan(found.p) and str(found) == words


class TestExtrapolations:
    """Of a linear map's iterates w -> A w + b: a few of them determine its fixed point."""

    A = np.diag([0.9, 0.7, 0.3])
    fixed = np.array([1.0, -2.0, 0.5])

    def iterates(self, count=7):
        state, trail = np.array([3.0, 1.0, -1.0]), []
        for _ in range(count):
            trail.append({"w": torch.from_numpy(state.copy())})
            state = self.A @ (state - self.fixed) + self.fixed
        return trail

    def test_undamped_anderson_mixing_finds_the_fixed_point(self):
        trail = self.iterates()
        by = shares(trail, 0.0)
        assert float(by.sum()) == pytest.approx(1.0)
        np.testing.assert_allclose(combined(trail[1:], by)["w"], self.fixed, atol=1e-6)

    def test_a_ridge_stays_nearer_to_the_iterates(self):
        trail = self.iterates()
        sizes = [float(shares(trail, ridge).norm()) for ridge in (0.0, 1e-8, 1e-2)]
        assert sizes == sorted(sizes, reverse=True)

    def test_shares_minimise_the_combined_difference(self):
        """The residual is orthogonal to every change of shares that keeps their sum."""
        random = np.random.default_rng(0)
        trail = [{"w": torch.from_numpy(random.normal(size=20))} for _ in range(5)]
        by = shares(trail, 0.0).numpy()
        differences = np.diff(np.stack([weights["w"].numpy() for weights in trail]), axis=0)
        gradient = differences @ (by @ differences)
        np.testing.assert_allclose(gradient, gradient[0], rtol=1e-8)


def test_the_registry_is_what_tables_show():
    assert list(BASELINES)[:4] == ["start", "mean", "moving", "line"]
    assert {"secant", "rna", "anderson", "nesterov", "l-bfgs", "rank one", "equal time"} <= set(BASELINES)
    assert all(key == kind.key and kind.label for key, kind in BASELINES.items())
