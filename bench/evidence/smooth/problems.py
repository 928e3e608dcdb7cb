"""Deterministic training problems as functions of one flat float64 vector, and the iterations that train them.

Each is made for a seed, which draws data or initial weights. `lr` is the step of gradient descent; 1 / L, with L the
largest curvature, where the problem is convex.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve
from scipy.optimize import minimize
from torch.func import functional_call

from fastkoop.checks import InputError
from fastkoop.experiments.problems import datasets, mnist_files
from fastkoop.experiments.problems.oscillator import Oscillator


@dataclass(frozen=True)
class Problem:
    """A loss with its gradient, where training starts and how it steps.

    value_and_gradient: w (d,) -> (loss, gradient (d,)).
    loss: w -> the same loss, for less than the gradient takes; None takes it from there.
    optimum: the least loss that is known; 0 for networks.
    momentum: of the iteration; velocities are then part of the state, which `step` moves.
    """

    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]]
    start: np.ndarray
    lr: float
    optimum: float = 0.0
    momentum: float = 0.0
    budget: int = 800
    loss: Callable[[np.ndarray], float] | None = None

    def value(self, w: np.ndarray) -> float:
        """The loss."""
        return self.value_and_gradient(w)[0] if self.loss is None else self.loss(w)


def softmax(X: np.ndarray, labels: np.ndarray, l2: float, classes: int = 10) -> Callable:
    """Mean cross-entropy of a linear classifier X (N, features), with l2 / 2 |w|^2; w is (features, classes), flat.

    The function (loss, gradient) that it returns has the loss alone as its attribute.
    """
    rows = np.arange(len(X))

    def forward(w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        scores = X @ w.reshape(-1, classes)
        scores -= scores.max(axis=1, keepdims=True)
        chosen = scores[rows, labels].mean()
        np.exp(scores, out=scores)
        sums = scores.sum(axis=1, keepdims=True)
        return float(np.log(sums).mean() - chosen + 0.5 * l2 * w @ w), scores, sums

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, scores, sums = forward(w)
        scores /= sums
        scores[rows, labels] -= 1.0
        return value, (X.T @ scores).ravel() / len(X) + l2 * w

    value_and_gradient.loss = lambda w: forward(w)[0]
    return value_and_gradient


def least(value_and_gradient: Callable, start: np.ndarray, iterations: int = 3000) -> float:
    """The least loss that L-BFGS reaches from `start`, with restarts until it gains nothing."""
    best, w = np.inf, start
    for _ in range(5):
        found = minimize(
            value_and_gradient, w, jac=True, method="L-BFGS-B",
            options={"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 0.0, "gtol": 1e-14, "maxcor": 50},
        )  # fmt: skip
        if found.fun >= best:
            break
        best, w = float(found.fun), found.x
    return best


def curvature(X: np.ndarray, l2: float) -> float:
    """A bound on the curvature of `softmax`: half the largest eigenvalue of X^T X / N, plus l2 (Boehning 1992)."""
    return 0.5 * float(np.linalg.eigvalsh(X.T @ X / len(X))[-1]) + l2


def with_bias(images: np.ndarray) -> np.ndarray:
    """Images as float64 rows with a 1 at their end."""
    return np.concatenate([images.astype(np.float64), np.ones((len(images), 1))], axis=1)


@functools.cache
def images(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` training images of a data set and their labels, drawn by the seed; pixels in [0, 1]."""
    if name == "mnist" and not os.environ.get(mnist_files.DATA_DIR):  # a benchmark downloads nothing unasked
        raise InputError(
            f"mnist: expected its four files in a folder; name it with --data-dir or {mnist_files.DATA_DIR}"
        )
    data = datasets.load(name)
    chosen = np.random.default_rng(seed).permutation(len(data.train_images))[:count]
    return (data.train_images[chosen] + 1) / 2, data.train_labels[chosen]


def kernel_ridge(seed: int) -> Problem:
    """The dual of kernel ridge regression: 1/2 a (K + l I) a - y a over N, Gaussian kernel, l = 0.05, 300 digits."""
    X, labels = images("digits", 300, seed)
    squares = (X * X).sum(axis=1)
    K = np.exp(-(squares[:, None] + squares - 2 * X @ X.T) / 8)
    A, y = (K + 0.05 * np.eye(len(K))) / len(K), np.where(labels < 5, 1.0, -1.0) / len(K)
    best = solve(A, y, assume_a="pos")

    def value_and_gradient(a: np.ndarray) -> tuple[float, np.ndarray]:
        """With the optimum taken off, so that gaps far below its rounding show."""
        away = a - best
        pull = A @ away
        return 0.5 * float(away @ pull), pull

    return Problem(value_and_gradient, np.zeros(len(y)), 1 / float(np.linalg.eigvalsh(A)[-1]))


def digits(seed: int, momentum: float = 0.0) -> Problem:
    """Softmax regression on 1200 digits, l2 = 1e-4."""
    X, labels = images("digits", 1200, seed)
    X = with_bias(X)
    function, lr = softmax(X, labels, 1e-4), 1 / curvature(X, 1e-4)
    start = np.random.default_rng(seed).normal(scale=0.01, size=X.shape[1] * 10)
    return Problem(function, start, lr, least(function, start), momentum, loss=function.loss)


def probe(seed: int) -> Problem:
    """Softmax regression on 200 random ReLU features of 2000 MNIST images, l2 = 1e-3."""
    X, labels = images("mnist", 2000, seed)
    rng = np.random.default_rng(seed)
    features = np.maximum(with_bias(X) @ rng.normal(size=(785, 200)) / np.sqrt(785), 0.0)
    X = with_bias(features / features.std())
    function = softmax(X, labels, 1e-3)
    start = np.zeros(X.shape[1] * 10)
    return Problem(function, start, 1 / curvature(X, 1e-3), least(function, start), loss=function.loss)


def mnist(seed: int) -> Problem:
    """Softmax regression on 2000 MNIST images, l2 = 1e-4."""
    X, labels = images("mnist", 2000, seed)
    X = with_bias(X)
    function, start = softmax(X, labels, 1e-4), np.zeros(7850)
    return Problem(function, start, 1 / curvature(X, 1e-4), least(function, start), budget=500, loss=function.loss)


def flat(model: torch.nn.Module, loss: Callable) -> tuple[Callable, np.ndarray]:
    """A network's loss and gradient as a function of its flat weights, as `softmax` returns it, and these weights."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def forward(whole: torch.Tensor) -> torch.Tensor:
        parts = zip(whole.split(sizes), shapes.items(), strict=True)
        return loss({name: part.view(shape) for part, (name, shape) in parts})

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        whole = torch.from_numpy(np.ascontiguousarray(w)).requires_grad_()
        value = forward(whole)
        [gradient] = torch.autograd.grad(value, whole)
        return float(value.detach()), gradient.numpy()

    @torch.no_grad()
    def value_alone(w: np.ndarray) -> float:
        return float(forward(torch.from_numpy(np.ascontiguousarray(w))))

    value_and_gradient.loss = value_alone
    return value_and_gradient, np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def layers(*sizes: int, activation=torch.nn.ReLU) -> torch.nn.Sequential:
    """A float64 network with PyTorch's initial weights."""
    parts = []
    for a, b in itertools.pairwise(sizes):
        parts += [torch.nn.Linear(a, b, dtype=torch.float64), activation()]
    return torch.nn.Sequential(*parts[:-1])


def wide_net(seed: int) -> Problem:
    """A tanh network 1-512-1 that learns sin(3 x) + x / 2 at 64 points of [-2, 2]; lr 0.003."""
    torch.manual_seed(seed)
    model = layers(1, 512, 1, activation=torch.nn.Tanh)
    x = torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    y = torch.sin(3 * x) + x / 2
    function, start = flat(model, lambda weights: (functional_call(model, weights, x) - y).square().mean())
    return Problem(function, start, 3e-3, loss=function.loss)


def oscillator(seed: int) -> Problem:
    """The paper's network for the nonlinear oscillator, float64, lr 1e-3."""
    problem = Oscillator(dtype=torch.float64)
    function, start = flat(problem.make_model(seed), lambda weights: residual(problem, tuple(weights.values())))
    return Problem(function, start, 1e-3, loss=function.loss)


def residual(problem: Oscillator, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean squared residual of Hamilton's equations."""
    (x, p), (dx, dp) = (part.unbind(-2) for part in problem.solution(weights))
    return ((dx - p).square() + (dp + x * (1 + x * x)).square()).mean()


def mnist_mlp(seed: int) -> Problem:
    """The report's 784-20-20-20-10 on 1000 MNIST images, lr 0.1: at the edge of stability, a trap for operators."""
    X, labels = images("mnist", 1000, seed)
    torch.manual_seed(seed)
    model = layers(784, 20, 20, 20, 10)
    x, y = torch.from_numpy(X.astype(np.float64)), torch.from_numpy(labels)
    entropy = torch.nn.functional.cross_entropy
    function, start = flat(model, lambda weights: entropy(functional_call(model, weights, x), y))
    return Problem(function, start, 0.1, budget=500, loss=function.loss)


PROBLEMS: dict[str, tuple[Callable[[int], Problem], str]] = {
    "kernel-ridge": (kernel_ridge, "kernel ridge, dual, GD"),
    "digits": (digits, "digits softmax regression, GD"),
    "probe": (probe, "MNIST linear probe (random ReLU features), GD"),
    "mnist": (mnist, "MNIST softmax regression, GD"),
    "wide-net": (wide_net, "wide net (h = 512), 1-D regression, GD"),
    "oscillator": (oscillator, "oscillator float64, GD lr 1e-3"),
    "momentum": (functools.partial(digits, momentum=0.9), "digits, momentum 0.9"),
    "mnist-mlp": (mnist_mlp, "MNIST MLP, GD lr 0.1"),
}
