"""What the forecast's rule was chosen on: 55 settings that are not among the ten it is judged on, seeds 100 to 102.

    python -m bench calibration run      # about three minutes on a core; MNIST in FASTKOOP_DATA_DIR
    python -m bench calibration table

Quadratics, softmax regression on other data and at other rates, kernel ridge regression, networks of other widths,
momentum recorded as weights alone, Adam, mini-batches. Recordings and what pays are as in `python -m bench forecast`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from sklearn import datasets
from torch.func import functional_call

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.mnist_files import DATA_DIR
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.forecast import RULE
from fastkoop.profile.devices import Host

from . import problems, rule
from .problems import Problem

FILE = RESULTS / "smooth" / "calibration.json"
SEEDS = (100, 101, 102)
BOUNDS = (np.inf, 0.5, 0.35, RULE.apart, 0.15, 0.1)  # on `apart`
LOADERS = {name: getattr(datasets, f"load_{name}") for name in ("breast_cancer", "diabetes", "iris", "wine")}


class Data(NamedTuple):
    """Rows and targets; count: images, of digits and MNIST, or none of a table of which a share is drawn."""

    name: str
    count: int = 0
    share: float = 0.7

    def drawn(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """By the seed; a table's columns have mean 0 and variance 1."""
        if self.count:
            X, y = problems.images(self.name, self.count, seed)
            return X.astype(np.float64), y
        X, y = LOADERS[self.name](return_X_y=True)
        chosen = np.random.default_rng(seed).permutation(len(X))[: int(self.share * len(X))]
        X = X[chosen].astype(np.float64)
        return (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-12), y[chosen]


def quadratic(seed: int, d: int = 200, low: int = -4, scale: float = 1.0, cubic: float = 0.0, momentum=0.0) -> Problem:
    """Curvatures from 10^low to 1, and a quartic term."""
    h = np.logspace(low, 0, d)

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        return 0.5 * float(h @ w**2) + 0.25 * cubic * float(h @ w**4), h * w + cubic * h * w**3

    start = np.random.default_rng(seed).normal(size=d)
    return Problem(value_and_gradient, start, scale / (1 + 12 * cubic), momentum=momentum)


def regression(seed: int, data: Data, l2: float, scale: float = 1.0, momentum: float = 0.0) -> Problem:
    """Softmax regression at `scale` times the step 1 / L."""
    X, y = data.drawn(seed)
    X, classes = problems.with_bias(X), int(y.max()) + 1
    function = problems.softmax(X, y, l2, classes)
    start = np.random.default_rng(seed).normal(scale=0.01, size=X.shape[1] * classes)
    step = scale / problems.curvature(X, l2)
    return Problem(function, start, step, problems.least(function, start), momentum=momentum)


def ridge(seed: int, data: Data, width: float, ridge: float, momentum: float = 0.0) -> Problem:
    """The dual of kernel ridge regression on up to 300 rows."""
    X, y = data.drawn(seed)
    X, y = problems.with_bias(X)[:300], (y[:300] - y.mean()) / y.std()
    squares = (X * X).sum(axis=1)
    K = np.exp(-(squares[:, None] + squares - 2 * X @ X.T) / width)
    A = (K + ridge * np.eye(len(K))) / len(K)
    best = np.linalg.solve(A, y / len(K))

    def value_and_gradient(a: np.ndarray) -> tuple[float, np.ndarray]:
        pull = A @ (a - best)
        return 0.5 * float((a - best) @ pull), pull

    return Problem(value_and_gradient, np.zeros(len(y)), 1 / float(np.linalg.eigvalsh(A)[-1]), momentum=momentum)


def features(seed: int, count: int = 100, images: int = 800, l2: float = 1e-4) -> Problem:
    """Softmax regression on random ReLU features of MNIST images."""
    X, y = Data("mnist", images).drawn(seed)
    maps = np.random.default_rng(seed).normal(size=(785, count)) / 28
    found = np.maximum(problems.with_bias(X) @ maps, 0.0)
    X = problems.with_bias(found / found.std())
    function, start = problems.softmax(X, y, l2), np.zeros((count + 1) * 10)
    return Problem(function, start, 1 / problems.curvature(X, l2), problems.least(function, start))


def network(seed: int, data, sizes: tuple[int, ...], lr: float, activation=torch.nn.ReLU, momentum=0.0) -> Problem:
    """A network that classifies data, or fits a function of one number at 48 points of [-2, 2]."""
    torch.manual_seed(seed)
    model = problems.layers(*sizes, activation=activation)
    if isinstance(data, Data):
        x, y = map(torch.from_numpy, data.drawn(seed))
        if data.name == "diabetes":
            y = ((y - y.mean()) / y.std(correction=0))[:, None]
    else:
        x = torch.linspace(-2, 2, 48, dtype=torch.float64)[:, None]
        y = data(x)
    miss = torch.nn.functional.mse_loss if y.is_floating_point() else torch.nn.functional.cross_entropy
    function, start = problems.flat(model, lambda weights: miss(functional_call(model, weights, x), y))
    return Problem(function, start, lr, momentum=momentum)


def adam(make: Callable, lr: float, seed: int):
    """The same by Adam."""
    problem = make(seed)
    first, second, t = np.zeros_like(problem.start), np.zeros_like(problem.start), 0

    def step(w: np.ndarray) -> np.ndarray:
        nonlocal first, second, t
        gradient, t = problem.value_and_gradient(w)[1], t + 1
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        return w - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)

    return problem, step, 1


def batches(data: Data, batch: int, l2: float, window: int, seed: int):
    """Softmax regression by mini-batches, a permutation of the rows at a time."""
    problem, (X, y) = regression(seed, data, l2), data.drawn(seed)
    X, classes = problems.with_bias(X), int(y.max()) + 1
    rng, order = np.random.default_rng(seed), []

    def step(w: np.ndarray) -> np.ndarray:
        if not order:
            order.extend(np.array_split(rng.permutation(len(X)), max(1, len(X) // batch)))
        chosen = order.pop()
        return w - problem.lr * problems.softmax(X[chosen], y[chosen], l2, classes)(w)[1]

    return problem, step, window


def network_batches(data: Data, sizes: tuple[int, ...], lr: float, batch: int, seed: int):
    """A network by mini-batches."""
    problem, (X, y) = network(seed, data, sizes, lr), data.drawn(seed)
    x, y, rng = torch.from_numpy(X), torch.from_numpy(y), np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = problems.layers(*sizes)

    def step(w: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(rng.choice(len(x), batch, replace=False))
        entropy = torch.nn.functional.cross_entropy
        loss = problems.flat(model, lambda parts: entropy(functional_call(model, parts, x[chosen]), y[chosen]))[0]
        return w - lr * loss(w)[1]

    return problem, step, 1


def smooth(make: Callable, *values, **options) -> Callable:
    """A setting of full batches; values: positional arguments behind the seed."""
    return functools.partial(rule.smooth, lambda seed: make(seed, *values, **options))


def oscillator(seed: int, lr: float) -> Problem:
    """The paper's network at another rate."""
    return replace(problems.oscillator(seed), lr=lr)


def digits(count: int) -> Data:
    """So many of them."""
    return Data("digits", count)


CANCER, DIABETES, IRIS, WINE = (Data(name) for name in ("breast_cancer", "diabetes", "iris", "wine"))
HALF, TANH = Data("diabetes", share=0.5), torch.nn.Tanh


def waves(factor: float) -> Callable:
    """cos(factor x)."""
    return lambda x: torch.cos(factor * x)


KINDS: dict[str, dict[str, Callable]] = {
    "smooth descent": {
        "quadratic, 1e-4": smooth(quadratic), "quadratic, 1e-3, lr 1.5": smooth(quadratic, 100, -3, 1.5),
        "quartic": smooth(quadratic, low=-3, cubic=0.3),
        "400 digits, l2 1e-3": smooth(regression, digits(400), 1e-3),
        "300 digits, l2 1e-5": smooth(regression, digits(300), 1e-5),
        "700 digits, lr 0.5": smooth(regression, digits(700), 1e-4, 0.5),
        "500 digits, lr 1.8": smooth(regression, digits(500), 1e-4, 1.8),
        "breast cancer": smooth(regression, CANCER, 1e-4), "wine": smooth(regression, WINE, 1e-4),
        "iris": smooth(regression, IRIS, 1e-4), "500 MNIST images": smooth(regression, Data("mnist", 500), 1e-3),
        "ridge, diabetes": smooth(ridge, HALF, 20, 0.01),
        "ridge, breast cancer": smooth(ridge, Data("breast_cancer", share=0.5), 60, 0.05),
        "100 ReLU features": smooth(features),
        "64 wide, cos 2x": smooth(network, waves(2), (1, 64, 1), 1e-2, TANH),
        "256 wide, |x|": smooth(network, torch.abs, (1, 256, 1), 3e-3, TANH),
        "128 wide, sin 4x, lr 0.02": smooth(network, lambda x: torch.sin(4 * x), (1, 128, 1), 2e-2, TANH),
        "diabetes, 30 wide": smooth(network, DIABETES, (10, 30, 1), 0.05, TANH),
        "oscillator, lr 3e-4": smooth(oscillator, 3e-4), "oscillator, lr 3e-3": smooth(oscillator, 3e-3),
    },
    "momentum and Adam, weights alone": {
        "quadratic, 0.9": smooth(quadratic, momentum=0.9),
        "400 digits, 0.5": smooth(regression, digits(400), 1e-4, momentum=0.5),
        "500 digits, 0.8": smooth(regression, digits(500), 1e-4, momentum=0.8),
        "400 digits, 0.95": smooth(regression, digits(400), 1e-4, momentum=0.95),
        "breast cancer, 0.9": smooth(regression, CANCER, 1e-4, momentum=0.9),
        "wine, 0.9": smooth(regression, WINE, 1e-3, momentum=0.9),
        "400 MNIST images, 0.7": smooth(regression, Data("mnist", 400), 1e-3, momentum=0.7),
        "ridge, diabetes, 0.9": smooth(ridge, HALF, 20, 0.01, momentum=0.9),
        "64 wide, 0.9": smooth(network, waves(2), (1, 64, 1), 1e-3, TANH, momentum=0.9),
        "digits MLP, 0.9": smooth(network, digits(600), (64, 20, 10), 0.05, momentum=0.9),
        "Adam, 400 digits": functools.partial(adam, lambda seed: regression(seed, digits(400), 1e-4), 1e-2),
        "Adam, 64 wide": functools.partial(adam, lambda seed: network(seed, waves(2), (1, 64, 1), 0.0, TANH), 1e-3),
        **{
            f"Adam, digits MLP, {lr}": functools.partial(
                adam, lambda seed, sizes=sizes: network(seed, digits(600), sizes, 0.0), lr
            )
            for sizes, lr in (((64, 32, 10), 1e-3), ((64, 20, 20, 10), 3e-3))
        },
    },
    "classifying networks": {
        **{f"32 wide, lr {lr}": smooth(network, digits(600), (64, 32, 10), lr) for lr in (0.05, 0.3, 1.0)},
        **{f"16-16, lr {lr}": smooth(network, digits(600), (64, 16, 16, 10), lr) for lr in (0.1, 0.5)},
        "24 wide, tanh, lr 0.3": smooth(network, digits(600), (64, 24, 10), 0.3, TANH),
        "16-16, tanh, lr 1": smooth(network, digits(600), (64, 16, 16, 10), 1.0, TANH),
        "breast cancer, lr 0.2": smooth(network, CANCER, (30, 16, 2), 0.2),
        "wine, lr 0.3": smooth(network, WINE, (13, 10, 3), 0.3),
        "MNIST 16-16, lr 0.2": smooth(network, Data("mnist", 400), (784, 16, 16, 10), 0.2),
        "MNIST 30, lr 0.05": smooth(network, Data("mnist", 400), (784, 30, 10), 0.05),
        "MNIST 16-16-16, lr 0.05": smooth(network, Data("mnist", 400), (784, 16, 16, 16, 10), 0.05),
    },
    "mini-batches": {
        **{
            f"{data.count or data.name}, batch {batch}, means of {window}":
                functools.partial(batches, data, batch, l2, window)
            for data, batch, l2, window in (
                (digits(500), 250, 1e-4, 1), (digits(800), 400, 1e-3, 1), (digits(1000), 100, 1e-4, 1),
                (digits(600), 20, 1e-4, 1), (CANCER, 64, 1e-4, 1), (digits(1000), 500, 1e-4, 4),
                (digits(800), 100, 1e-4, 8),
            )
        },
        **{
            f"digits MLP, batch {batch}": functools.partial(network_batches, digits(600), (64, 32, 10), 0.1, batch)
            for batch in (300, 30)
        },
    },
}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    found: dict[str, dict] = {}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for kind, settings in KINDS.items():
            found[kind] = {}
            for words, setting in settings.items():
                recordings = [one for seed in SEEDS for one in rule.along(setting, seed)]
                columns = ("error", "baseline", "apart", "pays")
                found[kind][words] = {name: [one[name] for one in recordings] for name in columns}
                print(f"{kind}, {words}: {rule.shares(recordings)}", flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, {"environment": origin.environment(Host()), "seeds": SEEDS, "kinds": found})


def judged(columns: dict, bound: float) -> list[dict]:
    """A setting's recordings, as the rule with this bound on `apart` judges them."""
    values = {name: np.array([np.nan if x is None else x for x in columns[name]]) for name in columns}
    with np.errstate(invalid="ignore"):
        says = replace(RULE, apart=bound)(values["error"], values["baseline"], values["apart"])
    return [{"says": bool(a), "pays": bool(b)} for a, b in zip(says, columns["pays"], strict=True)]


def shares(results: dict, bound: float, kinds=None) -> dict:
    """Of all recordings of these kinds, all if none is named."""
    chosen = [results["kinds"][kind] for kind in kinds or results["kinds"]]
    return rule.shares([one for settings in chosen for columns in settings.values() for one in judged(columns, bound)])


def table_of(results: dict) -> str:
    """Bounds, and the chosen one by kind, in Markdown."""
    cells = ("accuracy", "pays given yes", "pays given no")
    rows = []
    for bound in BOUNDS:
        found = shares(results, bound)
        words = "none" if np.isinf(bound) else f"**{bound}**" if bound == RULE.apart else bound
        rows.append((words, found["yes"] + found["no"], *(rule.percent(found[name]) for name in cells)))
    for kind in results["kinds"]:
        before, found = shares(results, np.inf, [kind]), shares(results, RULE.apart, [kind])
        both = (f"{rule.percent(before[name])} -> {rule.percent(found[name])}" for name in cells)
        rows.append((f"none -> {RULE.apart}: {kind}", found["yes"] + found["no"], *both))
    heads = ("bound on `apart`", "recordings", "right", "pay when it says yes", "pay when it says no")
    return pages.markdown(heads, rows)


def table(options: argparse.Namespace) -> None:
    """Write the page's part."""
    pages.update("forecast", table_of(json.loads(FILE.read_text())), "calibration")
