"""Running statistics of batch normalisation, for weights that no forward pass has seen.

A jump and an average set weights; the statistics beside them are still those of other weights. Before such weights are
judged, the statistics are taken anew from a few training batches, as `torch.optim.swa_utils.update_bn` does.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import torch
from torch import nn

from .problems.checked import CheckedProblem, undisturbed

BATCHES = 16


class Statistics:
    """Statistics of a problem's models, taken from the same first batches of seed 0 every time."""

    def __init__(self, problem: CheckedProblem):
        self._problem, self._batches = problem, None

    @contextlib.contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """The model with the statistics of its present weights, and afterwards with those it had."""
        layers = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]
        if not layers:
            yield
            return
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        momenta = [layer.momentum for layer in layers]
        try:
            self._take(model, layers)
            yield
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
            with torch.no_grad():
                for name, value in model.named_buffers():
                    value.copy_(buffers[name])

    def _take(self, model: nn.Module, layers: list) -> None:
        if self._batches is None:
            batches = self._problem.batches(0)
            count = min(BATCHES, batches.per_epoch or BATCHES)
            self._batches = list(itertools.islice(batches.forever(), count))
        with undisturbed(model):
            model.train()
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over batches
            for batch in self._batches:
                self._problem.call("loss", model, batch)
