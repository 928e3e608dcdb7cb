"""The published comparison of training runs, from the training on: networks of 5, 10 and 40 hidden units on MNIST.

MNIST 784-h-10 without biases, ReLU, SGD, batches of 60, one epoch of 1000 steps; the output weights after every step.
25 seeds draw initial weights and the order of images; ten networks a seed start within 0.1% of each other, see the same
batches, and are pooled into one operator on 65, 33 or 9 snapshots at a time, of rank 10 (Redman et al. 2024, section
4.2). The ten networks of a seed train as one batched program.

Run by `python -m bench spectra run retrained`, a part of `bench.evidence.spectra`; spectra are kept seed by seed.
"""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

import fastkoop
from bench.common import origin, pages
from fastkoop import spectra
from fastkoop.checks import InputError
from fastkoop.experiments.problems import datasets
from fastkoop.experiments.problems.mnist_files import DATA_DIR
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

INITIAL, STEPS, BATCH = 10, 1000, 60
PERTURBED = 1e-3  # relative, of initial weights
DELAYS = {5: 65, 10: 33, 40: 9}  # snapshots of h hidden units that are stacked
MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels, as published
CLASSES = {"5": (5, 0.1), "10": (10, 0.1), "40": (40, 0.1)}
RATES = {"10, lr 0.05": (10, 0.05), "10, lr 0.2": (10, 0.2)}  # the hard case: one network, other steps
RATE_SEEDS = 10
PERMUTATIONS = 500


def images() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's training images, standardised as published, float32, and labels."""
    if not os.environ.get(DATA_DIR):  # a benchmark downloads nothing unasked
        raise InputError(f"mnist: expected its four files in a folder; name it with --data-dir or {DATA_DIR}")
    data = datasets.load("mnist")
    pixels = (data.train_images + 1) / 2
    return ((pixels - MEAN) / DEVIATION).astype(np.float32), data.train_labels


def initial(h: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (784, INITIAL, h) and (INITIAL, h, 10): PyTorch's uniform draw, then copies moved by up to 0.1%."""
    rng = np.random.default_rng([seed, h])
    first, second = (rng.uniform(-1, 1, size) / np.sqrt(size[0]) for size in ((784, h), (h, 10)))
    moves = [rng.uniform(-PERTURBED, PERTURBED, (INITIAL, *part.shape)) for part in (first, second)]
    for move in moves:
        move[0] = 0.0
    first, second = (part * (1 + move) for part, move in zip((first, second), moves, strict=True))
    return np.ascontiguousarray(first.transpose(1, 0, 2), np.float32), second.astype(np.float32)


def train(h: int, lr: float, seed: int, data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, float]:
    """Output weights (INITIAL, 10 h, STEPS) float32 of a seed's networks, and the mean loss of the last 100 steps."""
    pixels, labels = data
    order = np.random.default_rng(seed).permutation(len(labels))[: STEPS * BATCH].reshape(STEPS, BATCH)
    first, second = initial(h, seed)
    recorded, losses = np.empty((STEPS, INITIAL, 10 * h), np.float32), np.zeros(STEPS)
    rows = np.arange(BATCH)
    for step, chosen in enumerate(order):
        x, y = pixels[chosen], labels[chosen]
        hidden = np.maximum((x @ first.reshape(784, -1)).reshape(BATCH, INITIAL, h).transpose(1, 0, 2), 0)
        scores = hidden @ second
        scores -= scores.max(axis=2, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=2, keepdims=True)
        losses[step] = -np.log(scores[:, rows, y]).mean()
        scores[:, rows, y] -= 1
        back = scores @ second.transpose(0, 2, 1) * (hidden > 0)
        second -= lr / BATCH * (hidden.transpose(0, 2, 1) @ scores)
        first -= lr / BATCH * (x.T @ back.transpose(1, 0, 2).reshape(BATCH, -1)).reshape(first.shape)
        recorded[step] = second.reshape(INITIAL, -1)
    return np.ascontiguousarray(recorded.transpose(1, 2, 0)), float(losses[-100:].mean())


def spectrum(trajectories: np.ndarray, h: int) -> np.ndarray:
    """The ten eigenvalues of one operator of all trajectories (INITIAL, 10 h, STEPS)."""
    op = fastkoop.fit(list(trajectories), cutoff=fastkoop.Rank(10), observables=fastkoop.Delay(DELAYS[h]))
    return np.asarray(op.eigenvalues).ravel()


def measure(file: pathlib.Path, classes: dict[str, tuple[int, float]], seeds: int, say=print) -> dict:
    """Spectra of all classes and seeds, written after every one; those that are there are not made again."""
    done = json.loads(file.read_text()) if file.exists() else {}
    done["environment"] = origin.environment(Host())
    found, data = done.setdefault("classes", {}), images()
    for seed in range(seeds):
        for name, (h, lr) in classes.items():
            runs = found.setdefault(name, {"h": h, "lr": lr, "loss": [], "spectra": []})
            if len(runs["spectra"]) > seed or (name in RATES and seed >= RATE_SEEDS):
                continue
            trajectories, loss = train(h, lr, seed, data)
            values = spectrum(trajectories, h)
            runs["loss"].append(loss)
            runs["spectra"].append([[float(value.real), float(value.imag)] for value in values])
            write_json(file, done)
        say(f"seed {seed}: " + ", ".join(f"{name} {found[name]['loss'][-1]:.3f}" for name in classes), flush=True)
    return done


def spectra_of(found: dict, name: str) -> np.ndarray:
    """(seeds, 10) complex of a class."""
    pairs = np.array(found["classes"][name]["spectra"])
    return pairs[..., 0] + 1j * pairs[..., 1]


COMPARED = (("5", "10"), ("5", "40"), ("10", "40"), ("10, lr 0.05", "10"), ("10", "10, lr 0.2"),
            ("10, lr 0.05", "10, lr 0.2"))  # fmt: skip


def compared(found: dict) -> dict[str, dict]:
    """Distances of classes seed against seed, and all against all, as from the published eigenvalues."""
    rows = {}
    for a, b in COMPARED:
        left, right = spectra_of(found, a), spectra_of(found, b)
        both = min(len(left), len(right))
        apart = spectra.distance(left[:both], right[:both])
        test = spectra.permutation_test([left, right], permutations=PERMUTATIONS)
        rows[f"{a}-{b}"] = {
            "mean": float(apart.mean()), "deviation": float(apart.std()), "between": test.between,
            "within": test.within, "nearest": test.nearest, "exceeded": test.exceeded,
        }  # fmt: skip
    return rows


def table_of(file: pathlib.Path, printed: dict[str, tuple[float, float]]) -> str:
    """The table, in Markdown."""
    found = json.loads(file.read_text())
    heads = (
        "hidden units", "the paper: mean over seeds", "trained here", "all pairs between", "within", "1-NN",
        f"of {PERMUTATIONS} relabellings as far apart",
    )  # fmt: skip
    rows = []
    for name, row in compared(found).items():
        paper = "{:.4f} ± {:.4f}".format(*printed[name]) if name in printed else ""
        rows.append((
            name.replace("-", " and "), paper, f"{row['mean']:.4f} ± {row['deviation']:.4f}", f"{row['between']:.4f}",
            f"{row['within']:.4f}", f"{row['nearest']:.2f}", row["exceeded"],
        ))  # fmt: skip
    counts = [len(found["classes"][name]["spectra"]) for name in found["classes"]]
    losses = ", ".join(f"{name}: {np.mean(runs['loss']):.2f}" for name, runs in found["classes"].items())
    return pages.markdown(heads, rows) + (
        f"\n\nOf {max(counts)} seeds, {min(counts)} at the other learning rates. Training loss at the end, by hidden "
        f"units: {losses}."
    )
