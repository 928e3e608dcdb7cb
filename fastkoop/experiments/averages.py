"""Averages of an optimizer's iterates, and the line through them: what is nearly free.

The mean of the last iterates is stochastic weight averaging (Izmailov et al. 2018, UAI; Polyak & Juditsky 1992), the
exponential moving average forgets them by a factor an iteration. PyTorch's `AveragedModel` accumulates both.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

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


def apart(a: Weights, b: Weights) -> float:
    """The distance between two networks' weights."""
    return float(sum((a[name].double() - b[name].double()).square().sum() for name in a).sqrt())


class Average:
    """A running average of a model's iterates, in the parameters' dtype; `seconds` is what adding took.

    Args:
        share: what the newest of n iterates counts for, as a function of n. A float, because PyTorch's averaging
            functions compute it in float32, which float64 weights notice.
    """

    def __init__(self, share: Callable[[int], float]):
        @torch.no_grad()
        def update(averages, iterates, count) -> None:
            torch._foreach_lerp_(averages, iterates, share(int(count) + 1))

        self._update, self._averaged = update, None
        self.count, self.seconds = 0, 0.0

    def add(self, model: nn.Module) -> None:
        """One more iterate."""
        began = time.perf_counter()
        if self._averaged is None:
            self._averaged = AveragedModel(model, multi_avg_fn=self._update)
        self._averaged.update_parameters(model)
        self.count += 1
        self.seconds += time.perf_counter() - began

    @property
    def weights(self) -> Weights:
        """The average, as a model takes it."""
        return weights_of(self._averaged.module)


class Mean(Average):
    """The plain mean of what was added."""

    def __init__(self):
        super().__init__(lambda count: 1 / count)


class Moving(Average):
    """The exponential moving average, corrected for its start (Kingma & Ba 2015, section 3)."""

    def __init__(self, decay: float = DECAY):
        super().__init__(lambda count: (1 - decay) / (1 - decay**count))


class Line:
    """The least-squares line through every weight's iterates: the null model of whatever extrapolates a trend."""

    def __init__(self):
        self._sum: Weights = {}
        self._moment: Weights = {}  # of iteration numbers
        self._dtypes: dict[str, torch.dtype] = {}
        self.count, self.seconds = 0, 0.0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """One more iterate."""
        began = time.perf_counter()
        for name, parameter in model.named_parameters():
            if name not in self._sum:
                zero = torch.zeros_like(parameter, dtype=torch.float64)
                self._sum[name], self._moment[name] = zero, zero.clone()
                self._dtypes[name] = parameter.dtype
            self._sum[name] += parameter
            self._moment[name].add_(parameter, alpha=self.count)
        self.count += 1
        self.seconds += time.perf_counter() - began

    def ahead(self, iterations: int = 0) -> Weights:
        """The line so many iterations past the newest, as a model takes it."""
        middle, spread = (self.count - 1) / 2, max(1, self.count * (self.count**2 - 1)) / 12
        far = middle + iterations
        return {
            name: (total / self.count + (self._moment[name] - middle * total) / spread * far).to(self._dtypes[name])
            for name, total in self._sum.items()
        }
