"""Averages of an optimizer's iterates: what is nearly free, and what a Koopman phase has to beat.

The mean of the last iterates is stochastic weight averaging (Izmailov et al. 2018, UAI; Polyak & Juditsky 1992), the
exponential moving average forgets them by a factor an iteration.
"""

from __future__ import annotations

import time

import torch
from torch import nn

Weights = dict[str, torch.Tensor]  # by parameter name
DECAY = 0.998  # of the moving average: it remembers about 500 iterations, half an epoch of MNIST


def weights_of(model: nn.Module) -> Weights:
    """A copy of the parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def assign(model: nn.Module, weights: Weights) -> None:
    """Set the parameters."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


class Mean:
    """The plain mean of what was added, in float64; `seconds` is what adding took."""

    def __init__(self):
        self._sum: Weights = {}
        self.count, self.seconds = 0, 0.0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """One more iterate."""
        began = time.perf_counter()
        for name, parameter in model.named_parameters():
            if name in self._sum:
                self._sum[name] += parameter
            else:
                self._sum[name] = parameter.detach().to(torch.float64, copy=True)  # never the parameter itself
        self.count += 1
        self.seconds += time.perf_counter() - began

    @property
    def weights(self) -> Weights:
        """The mean, in float32 as a model takes it."""
        return {name: (total / self.count).float() for name, total in self._sum.items()}


class Line:
    """The least-squares line through every weight's iterates: the null model of whatever extrapolates a trend."""

    def __init__(self):
        self._sum: Weights = {}
        self._moment: Weights = {}  # of iteration numbers
        self.count, self.seconds = 0, 0.0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """One more iterate."""
        began = time.perf_counter()
        for name, parameter in model.named_parameters():
            if name not in self._sum:
                zero = torch.zeros_like(parameter, dtype=torch.float64)
                self._sum[name], self._moment[name] = zero, zero.clone()
            self._sum[name] += parameter
            self._moment[name].add_(parameter, alpha=self.count)
        self.count += 1
        self.seconds += time.perf_counter() - began

    def ahead(self, iterations: int = 0) -> Weights:
        """The line so many iterations past the newest, in float32 as a model takes it."""
        middle, spread = (self.count - 1) / 2, max(1, self.count * (self.count**2 - 1)) / 12
        far = middle + iterations
        return {
            name: (total / self.count + (self._moment[name] - middle * total) / spread * far).float()
            for name, total in self._sum.items()
        }


class Moving:
    """The exponential moving average, corrected for its start (Kingma & Ba 2015, section 3)."""

    def __init__(self, decay: float = DECAY):
        self._decay, self._sum = decay, {}
        self.count, self.seconds = 0, 0.0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """One more iterate."""
        began = time.perf_counter()
        for name, parameter in model.named_parameters():
            own = self._sum.setdefault(name, torch.zeros_like(parameter, dtype=torch.float64))
            own.lerp_(parameter.double(), 1.0 - self._decay)
        self.count += 1
        self.seconds += time.perf_counter() - began

    @property
    def weights(self) -> Weights:
        """The average, in float32 as a model takes it."""
        known = 1.0 - self._decay**self.count
        return {name: (total / known).float() for name, total in self._sum.items()}


def apart(a: Weights, b: Weights) -> float:
    """The distance between two networks' weights."""
    return float(sum((a[name].double() - b[name].double()).square().sum() for name in a).sqrt())
