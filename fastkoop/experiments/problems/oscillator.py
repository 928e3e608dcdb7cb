"""The paper's first experiment: small networks that solve a nonlinear oscillator, as a problem for the comparison.

A. S. Dogra and W. T. Redman (NeurIPS 33, 2020, arXiv 2006.02361) take the Hamiltonian networks of M. Mattheakis et al.
(arXiv 2001.11107): H = p^2/2 + x^2/2 + x^4/4, and z(t) = z0 + (1 - e^-t) N(t) for z = (x, p), which starts at z0
whatever the network N says. The loss is the mean over points in time of |z' - (p, -x - x^3)|^2. All points are one
batch, so that an epoch is one iteration.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import nn

from ...checks import InputError
from . import register
from .movement import Weights, compared, costs, drift

NAME = "oscillator"
ENDS = ("start", "optimizer", "koopman", "average")


class Sine(nn.Module):
    """The networks' activation."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value.sin()


@dataclass
class Oscillator:
    """The problem; the defaults are the paper's.

    Args:
        hidden: units of the hidden layers.
        points: equidistant times in [0, end], both ends included.
        end: the last of them.
        start: x and p at time 0.
        dtype: of weights, times and arithmetic; float32 is PyTorch's and that of the networks' published code.
            `python -m bench oscillator` measures float64 beside it.
    """

    hidden: tuple[int, ...] = (10, 10)
    points: int = 200
    end: float = 4 * math.pi
    start: tuple[float, float] = (1.3, 1.0)
    dtype: torch.dtype = torch.float32

    name = NAME
    epochs = (35_000, 45_000, 2_500)  # the paper's
    epoch_name, loss_name = "iteration", "residual loss"
    threads = 1  # a second one made a step of these sizes 20 times slower on two busy cores

    def make_model(self, seed: int) -> nn.Sequential:
        """The network N for this seed: one input, two outputs, PyTorch's own initial weights."""
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((1, *self.hidden, 2)):
            layers += [nn.Linear(inputs, outputs, dtype=self.dtype), Sine()]
        return nn.Sequential(*layers[:-1])

    def batches(self, seed: int) -> list[None]:
        """One batch without contents: the times are always the same."""
        return [None]

    @functools.cached_property
    def times(self) -> torch.Tensor:
        """The points in time, (1, points) float64."""
        return torch.linspace(0, self.end, self.points, dtype=torch.float64)[None]

    @functools.cached_property
    def _constants(self) -> tuple[torch.Tensor, ...]:
        """The times, 1 - e^-t and its derivative, the initial values."""
        decay = torch.exp(-self.times)
        initial = torch.tensor(self.start, dtype=torch.float64)[:, None]
        return tuple(value.to(self.dtype) for value in (self.times, 1 - decay, decay, initial))

    def solution(self, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """z and its exact time derivative, which is carried along with the values.

        Args:
            weights: of a model's layers in its order, a matrix (..., out, in) and a bias (..., out) each; leading axes
                are networks side by side.

        Returns:
            z and z', (..., 2, points) each.
        """
        value, factor, slope, initial = self._constants
        rate = torch.ones_like(value)
        for i in range(0, len(weights), 2):
            if i:
                value, rate = value.sin(), value.cos() * rate
            value, rate = weights[i] @ value + weights[i + 1][..., None], weights[i] @ rate
        return initial + factor * value, slope * value + factor * rate

    def loss(self, model: nn.Module, batch: None = None) -> torch.Tensor:
        """The residual of a model."""
        return self.residual(tuple(model.parameters()))

    def residual(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean squared residual of Hamilton's equations, (...)."""
        z, rate = self.solution(weights)
        (x, p), (dx, dp) = z.unbind(-2), rate.unbind(-2)
        return ((dx - p).square() + (dp + x * (1 + x * x)).square()).mean(-1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        """The residual; no accuracy, for nothing is classified."""
        return float(self.loss(model))

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """x and p by an ODE solver to 12 digits, (2, points)."""
        times = self.times[0].numpy()
        solved = solve_ivp(
            lambda _, z: (z[1], -z[0] - z[0] ** 3), (0.0, self.end), self.start, "DOP853", times, rtol=1e-12, atol=1e-12
        )
        return solved.y

    def measures(self, run: dict, states: dict[str, Weights], *, recorded: int, back: int, ahead: int) -> dict:
        """The run's entry "oscillator": losses, solutions and weights at the ends of the phase, and what each cost.

        Args:
            run: the run so far.
            states: weights "before", `back` iterations before the phase; at its "start"; `ahead` iterations later by
                the "optimizer" and by "koopman"; the "average" of the recorded.
            recorded: iterations that recording followed.
        """
        ends = {end: {name: states[end][name] for name in states["start"]} for end in ENDS}
        ends["drift"] = drift(states["before"], states["start"], back, ahead)
        entry = {
            "loss": {name: self._loss(weights) for name, weights in ends.items()},
            "solution_error": {name: self.solution_error(weights) for name, weights in ends.items()},
            **compared(ends),
            **costs(run, recorded),
        }
        return {NAME: entry}

    @torch.no_grad()
    def _loss(self, weights: Weights) -> float:
        return float(self.residual(tuple(weights.values())))

    @torch.no_grad()
    def solution_error(self, weights: Weights) -> float:
        """Root of the mean squared distance from the exact (x, p)."""
        z, _ = self.solution(tuple(weights.values()))
        return float(np.sqrt(np.square(z.double().numpy() - self.exact).sum(axis=0).mean()))


@register(NAME)
def oscillator(config) -> Oscillator:
    """The paper's setting."""
    if config.batch_size is not None:
        raise InputError(
            f"batch_size: the oscillator's points are one batch, got {config.batch_size}; leave --batch-size out"
        )
    if config.validation:
        raise InputError("validation: the oscillator has no images to take out; leave --validation out")
    if config.device != "cpu":
        raise InputError(f"device: the oscillator trains on the CPU, got {config.device}; leave --device out")
    return Oscillator()
