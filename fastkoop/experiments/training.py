"""The trainer of the comparison: the report's network, its optimizers, the same batches for everybody."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .problems.datasets import Dataset

HIDDEN = (20, 20, 20)  # A. Rao's and the paper's network: 784-20-20-20-10, ReLU

# name -> (class, learning rate, further arguments); AdaDelta's are the report's
OPTIMIZERS = {
    "adadelta": (torch.optim.Adadelta, 1.0, {"rho": 0.9, "eps": 1e-6}),
    "adam": (torch.optim.Adam, 1e-3, {}),
    "adagrad": (torch.optim.Adagrad, 1e-2, {}),
    "sgd": (torch.optim.SGD, 0.1, {}),
    "momentum": (torch.optim.SGD, 0.01, {"momentum": 0.9}),
}


def make_model(features: int, classes: int, seed: int) -> nn.Sequential:
    """The network for this seed; its outputs are logits.

    Weights start as Glorot & Bengio (2010) normal and biases as N(0, 0.01^2), the usual choice in the
    report's framework, JAX; with PyTorch's own about as many first-layer units die.
    """
    torch.manual_seed(seed)
    sizes = (features, *HIDDEN, classes)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        nn.init.xavier_normal_(layers[-2].weight)
        nn.init.normal_(layers[-2].bias, std=1e-2)
    return nn.Sequential(*layers[:-1])


def make_optimizer(name: str, model: nn.Module, lr: float | None) -> torch.optim.Optimizer:
    """An optimizer by name; lr None takes its usual learning rate."""
    kind, usual, options = OPTIMIZERS[name]
    return kind(model.parameters(), lr=usual if lr is None else lr, **options)


class Batches:
    """Shuffled mini-batches of the training set, the last one of an epoch smaller; a seed fixes them all."""

    def __init__(self, data: Dataset, batch_size: int, seed: int):
        self.images, self.labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
        self.batch_size = batch_size
        self._random = np.random.default_rng(seed)

    @property
    def per_epoch(self) -> int:
        """Iterations in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def epoch(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass over the training set in a new order."""
        order = torch.from_numpy(self._random.permutation(len(self.images)))
        for chosen in order.split(self.batch_size):
            yield self.images[chosen], self.labels[chosen]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images, labels) -> None:
    """One optimizer iteration on a batch; cross-entropy of the logits."""
    optimizer.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


class Evaluation:
    """Loss and accuracy over the whole test set, or the images that were taken out of the training set to choose by."""

    def __init__(self, data: Dataset):
        parts = {"test": (data.test_images, data.test_labels)}
        if data.validation_images is not None:
            parts["validation"] = data.validation_images, data.validation_labels
        self.parts = {name: tuple(map(torch.from_numpy, part)) for name, part in parts.items()}

    @torch.no_grad()
    def __call__(self, model: nn.Module, part: str = "test") -> tuple[float, float]:
        """Mean cross-entropy and share of right answers."""
        images, labels = self.parts[part]
        logits = model(images)
        accuracy = (logits.argmax(dim=1) == labels).double().mean()
        return float(functional.cross_entropy(logits, labels)), float(accuracy)


class Classification:
    """The report's problem: its network learns the labels of a data set. The oscillator has the same methods."""

    threads: int | None = None  # PyTorch's own
    train_step = staticmethod(train_step)

    def __init__(self, data: Dataset, batch_size: int):
        self._data, self._batch_size = data, batch_size
        self.evaluate = Evaluation(data)
        self.validates = data.validation_images is not None

    def make_model(self, seed: int) -> nn.Sequential:
        """The network for this seed."""
        return make_model(self._data.features, self._data.classes, seed)

    def batches(self, seed: int) -> Batches:
        """The mini-batches for this seed."""
        return Batches(self._data, self._batch_size, seed)

    def measures(self, *_, **__) -> dict:
        """Nothing beside the curves."""
        return {}


@contextlib.contextmanager
def torch_threads(count: int | None):
    """PyTorch held to `count` threads; None leaves it alone."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
