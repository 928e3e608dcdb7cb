"""Averages of an optimizer's iterates, and the line through them: what is nearly free.

The mean of the last iterates is stochastic weight averaging (Izmailov et al. 2018, UAI; Polyak & Juditsky 1992), the
exponential moving average forgets them by a factor an iteration. PyTorch's `AveragedModel` is not used: it copies its
count to the device at every update, which waits there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .devices import Account

Weights = dict[str, torch.Tensor]  # by parameter name
DECAY = 0.998  # of the moving average: it remembers about 500 iterations, half an epoch of MNIST


def weights_of(model: nn.Module) -> Weights:
    """A copy of the parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def assign(model: nn.Module, weights: Weights) -> None:
    """Set the parameters that are among the weights; frozen ones are in no recording."""
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])


def apart(a: Weights, b: Weights) -> float:
    """The distance between two networks' weights, over those that both have."""
    return float(sum((a[name].double() - b[name].double()).square().sum() for name in a if name in b).sqrt())


class Running:
    """What takes in a model's iterates one by one, on the model's device; `seconds` is what that took there."""

    def __init__(self) -> None:
        self.count = 0
        self._account: Account | None = None

    @property
    def seconds(self) -> float:
        """Of all that was added."""
        return 0.0 if self._account is None else self._account.seconds

    def add(self, model: nn.Module) -> None:
        """One more iterate."""
        if self._account is None:
            self._account = Account(next(model.parameters()).device)
        with self._account, torch.no_grad():
            self._take(model)
        self.count += 1

    def _take(self, model: nn.Module) -> None:
        raise NotImplementedError


class Average(Running):
    """A running average of a model's iterates, in the parameters' dtype.

    Args:
        share: what the newest of n iterates counts for, as a function of n. A float: float64 weights would notice one
            of float32.
    """

    def __init__(self, share: Callable[[int], float]):
        super().__init__()
        self._share = share
        self._average: Weights = {}

    def _take(self, model: nn.Module) -> None:
        if not self._average:
            self._average = weights_of(model)
        values = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(list(self._average.values()), values, self._share(self.count + 1))

    @property
    def weights(self) -> Weights:
        """The average, as a model takes it."""
        return {name: value.clone() for name, value in self._average.items()}


class Mean(Average):
    """The plain mean of what was added."""

    def __init__(self):
        super().__init__(lambda count: 1 / count)


class Moving(Average):
    """The exponential moving average, corrected for its start (Kingma & Ba 2015, section 3)."""

    def __init__(self, decay: float = DECAY):
        super().__init__(lambda count: (1 - decay) / (1 - decay**count))


class Line(Running):
    """The least-squares line through every weight's iterates: the null model of whatever extrapolates a trend."""

    def __init__(self):
        super().__init__()
        self._sum: Weights = {}
        self._moment: Weights = {}  # of iteration numbers
        self._dtypes: dict[str, torch.dtype] = {}

    def _take(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name not in self._sum:
                zero = torch.zeros_like(parameter, dtype=torch.float64)
                self._sum[name], self._moment[name] = zero, zero.clone()
                self._dtypes[name] = parameter.dtype
            self._sum[name] += parameter
            self._moment[name].add_(parameter, alpha=self.count)

    def ahead(self, iterations: int = 0) -> Weights:
        """The line so many iterations past the newest, as a model takes it."""
        middle, spread = (self.count - 1) / 2, max(1, self.count * (self.count**2 - 1)) / 12
        far = middle + iterations
        return {
            name: (total / self.count + (self._moment[name] - middle * total) / spread * far).to(self._dtypes[name])
            for name, total in self._sum.items()
        }
