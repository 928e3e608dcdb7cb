"""Small models and their data, as people train them, for runs of seconds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bench.evidence.smooth import problems

MNIST = 2000  # images; runs are kept short, so that many of them can be shown
SYMBOLS, CONTEXT, SEQUENCES = 12, 24, 256


@dataclass(frozen=True)
class Task:
    """A model, its training data and its optimizer.

    make: without arguments, after the seed was set. data: seed -> inputs and targets. batch: 0 is all of them.
    """

    words: str
    make: Callable[[], nn.Module]
    data: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    optimizer: Callable
    batch: int = 64
    steps: int = 300

    def model(self, seed: int) -> nn.Module:
        """With the seed's initial weights."""
        torch.manual_seed(seed)
        return self.make()

    def batches(self, seed: int, inputs: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple]:
        """Batches without end, drawn by the seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(inputs), (self.batch,), generator=generator) if self.batch else slice(None)
            yield inputs[chosen], targets[chosen]


def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


@torch.no_grad()
def final(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The loss on all data, without dropout; infinite where it is no number."""
    model.eval()
    value = float(loss(model, inputs, targets))
    return value if np.isfinite(value) else np.inf


def mlp(*sizes: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU, and dropout if there is any, between them."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts[: -2 if dropout else -1])


def images(name: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a data set and their labels, drawn by the seed."""
    pixels, labels = problems.images(name, count, seed)
    return torch.from_numpy(pixels), torch.from_numpy(labels)


class Transformer(nn.Module):
    """A causal transformer of one layer on short sequences of a few symbols."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.symbols, self.places = nn.Embedding(SYMBOLS, width), nn.Embedding(CONTEXT, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, SYMBOLS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores (batch, context, symbols) of the next symbols."""
        there = self.symbols(tokens) + self.places.weight
        return self.head(self.layer(there, src_mask=self.mask, is_causal=True))


def sequences(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of a Markov chain of the second order, and the same one symbol on."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(SYMBOLS, 0.2), size=(SYMBOLS, SYMBOLS)).cumsum(axis=-1)
    drawn = np.zeros((SEQUENCES, CONTEXT + 1), np.int64)
    drawn[:, :2] = rng.integers(SYMBOLS, size=(SEQUENCES, 2))
    for t in range(2, CONTEXT + 1):
        chance = chances[drawn[:, t - 2], drawn[:, t - 1]]
        drawn[:, t] = np.minimum((rng.random((SEQUENCES, 1)) > chance).sum(axis=1), SYMBOLS - 1)
    whole = torch.from_numpy(drawn)
    return whole[:, :-1], whole[:, 1:]


SMALL = functools.partial(images, "digits", 1200)
LARGE = functools.partial(images, "mnist", MNIST)
REPORT = functools.partial(mlp, 784, 20, 20, 20, 10)
OPTIMIZERS = {
    "AdaDelta": functools.partial(torch.optim.Adadelta, lr=1.0),
    "Adam": functools.partial(torch.optim.Adam, lr=1e-3),
    "SGD": functools.partial(torch.optim.SGD, lr=0.1),
}
TASKS = {
    "dropout": Task("dropout MLP, digits, Adam", functools.partial(mlp, 64, 32, 32, 10, dropout=0.3), SMALL,
                    OPTIMIZERS["Adam"], 32),
    **{
        f"mnist-{name.lower()}": Task(f"MNIST MLP, {name}", REPORT, LARGE, optimizer)
        for name, optimizer in OPTIMIZERS.items()
    },
    "transformer": Task("causal transformer, Adam", Transformer, sequences, OPTIMIZERS["Adam"], 16),
    "full-adam": Task("MLP, digits, full batches, Adam", functools.partial(mlp, 64, 32, 32, 10), SMALL,
                      OPTIMIZERS["Adam"], 0, 600),
    "full-gd": Task("MLP, digits, full batches, gradient descent at 0.5", functools.partial(mlp, 64, 32, 10), SMALL,
                    functools.partial(torch.optim.SGD, lr=0.5), 0),
}  # fmt: skip
