"""The contract of a problem: what `fastkoop compare` needs to know about a model and its training.

A problem is any object with four methods. The optional attributes are `name`, `epochs` = (t1, t2, T),
`validate(model)` (a loss on held-out data, which guards jumps), `make_optimizer(model)` (an optimizer, or a pair of
an optimizer and a scheduler), `loss_name` (what its losses are called) and `threads` (for PyTorch). A complete problem:

>>> import torch
>>> class Line:
...     name = "line"
...     epochs = (20, 60, 40)  # t1, t2, T
...
...     def make_model(self, seed):
...         torch.manual_seed(seed)
...         return torch.nn.Linear(1, 1)
...
...     def batches(self, seed):
...         x = torch.linspace(-1, 1, 8)[:, None]
...         return [(x, 3 * x + 1)]
...
...     def loss(self, model, batch):
...         return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
...
...     def evaluate(self, model):
...         return self.loss(model, self.batches(0)[0])
>>> import fastkoop
>>> results = fastkoop.compare(Line(), optimizer="sgd", preset="smooth")
>>> results["config"]["dataset"], len(results["runs"])
('line', 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

OPTIONAL = ("name", "epochs", "validate", "make_optimizer", "loss_name", "threads")
REQUIRED = ("make_model", "batches", "loss", "evaluate")


@runtime_checkable
class Problem(Protocol):
    """What is trained. Seeds fix everything random: the same seed gives the same model and the same batches."""

    def make_model(self, seed: int) -> nn.Module:
        """A new model with this seed's initial weights."""

    def batches(self, seed: int) -> Iterable[Any]:
        """The training batches: one epoch each time it is gone through, with a length if that is known."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The scalar training loss on a batch, differentiable."""

    def evaluate(self, model: nn.Module) -> float | Mapping[str, float]:
        """The test loss, smaller is better; or a mapping with "loss" first and, say, "accuracy" after it."""
