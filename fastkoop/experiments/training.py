"""The trainer of the comparison: the report's network, optimizers by name, mini-batches, a model in training."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

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
    report's framework, JAX; with PyTorch's defaults about as many first-layer units die.
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


def named_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """What an optimizer is called in results: its class, or "momentum" for SGD that has some."""
    if type(optimizer) is torch.optim.SGD and optimizer.param_groups[0].get("momentum"):
        return "momentum"
    return type(optimizer).__name__.lower()


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `optimizer.step` evaluates the loss itself, as L-BFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class Batches:
    """Shuffled mini-batches of a data set, the last one of an epoch smaller; a seed fixes them all.

    Args:
        data: with `train_images` (N, features) and `train_labels` (N,), arrays or tensors.
        batch_size: images in a batch.
        seed: of the order.
    """

    def __init__(self, data, batch_size: int, seed: int):
        self.images, self.labels = torch.as_tensor(data.train_images), torch.as_tensor(data.train_labels)
        self.batch_size = batch_size
        self._random = np.random.default_rng(seed)

    @property
    def per_epoch(self) -> int:
        """Iterations in an epoch."""
        return -(-len(self.images) // self.batch_size)

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.epoch()

    def epoch(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass over the training set in a new order."""
        order = torch.from_numpy(self._random.permutation(len(self.images)))
        for chosen in order.to(self.images.device).split(self.batch_size):
            yield self.images[chosen], self.labels[chosen]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images, labels) -> None:
    """One optimizer iteration on a batch; cross-entropy of the logits."""
    optimizer.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


class Training:
    """A model in training: its optimizer and scheduler, and the batches it has yet to see.

    Args:
        problem: a `CheckedProblem`.
        seed: of the initial weights and the batches.
        optimizer, lr: the optimizer's name, None for the problem's, and its learning rate, None for the usual one.
    """

    def __init__(self, problem, seed: int, optimizer: str | None, lr: float | None):
        self.problem, self.model = problem, problem.make_model(seed)
        self._choice = optimizer, lr
        self.optimizer, self.scheduler = problem.make_optimizer(self.model, optimizer, lr)
        self.batches = problem.batches(seed)
        self.stream = self.batches.forever()

    def step(self, batch) -> torch.Tensor | None:
        """One iteration; the loss before it."""
        loss = self.problem.train_step(self.model, self.optimizer, batch)
        if self.scheduler is not None:
            self.problem.guarded("make_optimizer's scheduler", self.scheduler.step)
        return loss

    def run(self, iterations: int, after: Callable[[int, int, torch.Tensor | None], None]) -> None:
        """So many iterations; after(done, of, loss) follows each."""
        for done, batch in enumerate(itertools.islice(self.stream, iterations), 1):
            after(done, iterations, self.step(batch))

    def twin(self) -> Training:
        """A copy that trains on by itself, on the same stream of batches."""
        twin = copy.copy(self)
        copies = type(self.optimizer).__module__.startswith("torch.") and not needs_closure(self.optimizer)
        if self._choice[0] is not None or copies:  # L-BFGS leaves half of itself behind
            twin.model, twin.optimizer, twin.scheduler = copy.deepcopy((self.model, self.optimizer, self.scheduler))
            return twin
        twin.model = copy.deepcopy(self.model)  # an optimizer of the user's may keep more than copying takes along
        twin.optimizer, twin.scheduler = self.problem.make_optimizer(twin.model, *self._choice)
        twin.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        if self.scheduler is not None:
            twin.scheduler.load_state_dict(copy.deepcopy(self.scheduler.state_dict()))
        return twin


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
