"""Validation: a guard from a loss and a fixed set of batches, which leaves the run as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..checks import InputError
from .guard import modes_put_back
from .randomness import generators_put_back

MISSING = "validate: expected loss(model, batch) to return a number, got None on every batch; return the loss"


class Validation:
    """The mean of `loss(model, batch)` over batches, in evaluation mode and without gradients.

    Every call sees the same batches, which are read once; those whose loss is None do not count. Modes and random
    generators are put back.

    Raises:
        ValueError, TypeError: no batches, or no function.

    >>> model = nn.Linear(2, 1)
    >>> validation = Validation(model, lambda model, x: model(x).square().mean(), [torch.ones(3, 2)])
    >>> validation() == validation() and model.training
    True
    """

    def __init__(self, model: nn.Module, loss: Callable, batches: Iterable, missing: str = MISSING):
        if not callable(loss):
            raise TypeError(f"validate: expected (loss, batches) with a function loss(model, batch), got {loss!r}")
        self._model, self._loss, self._missing = model, loss, missing
        with generators_put_back():  # a DataLoader draws from them
            self._batches = list(batches)
        if not self._batches:
            raise InputError("validate: expected at least one batch, got none")

    def __call__(self) -> float:
        with generators_put_back(), modes_put_back(self._model), torch.no_grad():
            self._model.eval()
            answers = [self._loss(self._model, batch) for batch in self._batches]
            losses = [float(loss) for loss in answers if loss is not None]
        if not losses:
            raise InputError(self._missing)
        return sum(losses) / len(losses)
