"""Three small models that the phase has to survive, and their data: an MLP and a convolutional net with BatchNorm on
MNIST, a causal transformer with tied embeddings on text made here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fastkoop.experiments.problems import datasets

CONTEXT, WIDTH, HEADS, BLOCKS = 32, 64, 4, 2


class Convolutional(nn.Module):
    """28 x 28 -> 8 -> 16 channels, a norm after each convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 6 * 6, 10)

    def forward(self, x):
        x = functional.relu(self.norm1(self.first(x.view(-1, 1, 28, 28))))
        x = functional.relu(self.norm2(self.second(x)))
        return self.head(x.flatten(1))


class Block(nn.Module):
    """Pre-norm causal attention and an MLP."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.mix(self.norm1(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).unbind(-3)
        q, k, v = (part.transpose(-2, -3) for part in (q, k, v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(-2, -3).flatten(-2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Characters in, characters out, through one embedding."""

    def __init__(self, characters: int):
        super().__init__()
        self.embedding, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, x):
        x = self.embedding(x) + self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def text(sentences: int, seed: int = 0) -> str:
    """Sentences of a small grammar: agreement in number, colours, and counts that come true."""
    random = np.random.default_rng(seed)
    nouns, verbs, colours = "cat dog owl fox hen".split(), "sees likes follows hears".split(), "red blue green".split()
    said = []
    for _ in range(sentences):
        one, other = random.choice(nouns), random.choice(nouns)
        many = bool(random.integers(2))
        subject = f"the {random.choice(colours)} {one}{'s' * many}"
        verb = str(random.choice(verbs)).removesuffix("s") if many else random.choice(verbs)
        a, b = random.integers(10, size=2)
        said.append(f"{subject} {verb} the {other}. " + f"{a} and {b} is {a + b}. ")
    return "".join(said)


@dataclass(frozen=True)
class Task:
    """A model, its batches by iteration, its loss, and what is held out."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]]
    held_out: tuple[torch.Tensor, torch.Tensor]
    partition: object
    recalibrate: bool = False  # BatchNorm's statistics after a jump

    def loss(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(model(x).flatten(0, -2), y.flatten())


def images(data_dir: str | None, batch: int, make, partition, recalibrate: bool) -> Task:
    """A classifier of MNIST's images."""
    data = datasets.with_validation(datasets.load("mnist", data_dir), 2000)
    x, y = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)

    def take(iteration: int):
        chosen = torch.from_numpy(np.random.default_rng(iteration).integers(len(x), size=batch))
        return x[chosen], y[chosen]

    held_out = torch.from_numpy(data.validation_images), torch.from_numpy(data.validation_labels)
    return Task(make, take, held_out, partition, recalibrate)


def language(batch: int) -> Task:
    """A language model of `text`."""
    said = text(20_000)
    characters = sorted(set(said))
    index = {c: i for i, c in enumerate(characters)}
    whole = torch.tensor([index[c] for c in said])
    train, rest = whole[: -len(whole) // 20], whole[-len(whole) // 20 :]

    def windows(of: torch.Tensor, starts) -> tuple[torch.Tensor, torch.Tensor]:
        cut = torch.stack([of[at : at + CONTEXT + 1] for at in starts])
        return cut[:, :-1], cut[:, 1:]

    def take(iteration: int):
        return windows(train, np.random.default_rng(iteration).integers(len(train) - CONTEXT - 1, size=batch))

    held_out = windows(rest, range(0, len(rest) - CONTEXT - 1, CONTEXT))
    return Task(lambda: Transformer(len(characters)), take, held_out, {"embedding.*": "layer", "*": "node"})


def mlp() -> nn.Sequential:
    """The report's network."""
    sizes = (784, 20, 20, 20, 10)
    layers = itertools.chain.from_iterable((nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes))
    return nn.Sequential(*list(layers)[:-1])


def task(name: str, data_dir: str | None, batch: int = 64) -> Task:
    """ "mlp", "conv" or "transformer"."""
    if name == "transformer":
        return language(batch)
    make = mlp if name == "mlp" else Convolutional
    return images(data_dir, batch, make, "node", recalibrate=name == "conv")


NAMES = ("mlp", "conv", "transformer")
