"""What the cases are made of: synthetic snapshots with given singular values, and a recorded MNIST run.

Arrays are time-major, (m+1, B, n) float32, as a recording buffer lies in memory.
"""

from __future__ import annotations

import functools
import os

import numpy as np

from bench import ROOT

from .cases import NODES, Case

CACHE = ROOT / "bench" / ".cache"
CHUNK = 1 << 23  # numbers made at a time
LAYERS = ((785, 20), (21, 20), (21, 20), (21, 10))  # the recording's columns: nodes layer by layer, bias last


class NoRecording(RuntimeError):
    """The MNIST files, and therefore the recording, are not there."""


def make(case: Case, blocks: int | None = None, pairs: int | None = None, seed: int = 0) -> list[np.ndarray]:
    """The case's batches, one (m+1, B, n) array for every block size.

    Args:
        case: of the table.
        blocks: fewer (or more) blocks than the case has, for a test; of real nodes the first so many of a size.
        pairs: the newest so many snapshot pairs only (real recordings).
        seed: of synthetic data.

    Raises:
        NoRecording: a real case without the MNIST files.
    """
    rng = np.random.default_rng([seed, case.m, case.n or 0])
    count = case.blocks if blocks is None else blocks
    if case.data == "graded":
        return [graded(rng, case.n, case.m, count, case.last)]
    if case.data == "modes":
        return [modes(rng, case.n, case.m, count, case.last)]
    if case.data == "windows":
        return windows(case.m, count)
    recorded = [nodes(n) for n, _ in NODES]
    if case.data == "first layer":  # layer-wise: the first layer's nodes one after another
        recorded = [recorded[0].reshape(len(recorded[0]), 1, -1)]
    elif case.data == "first layer, nodes":
        recorded = recorded[:1]
    recorded = [X if pairs is None else X[-pairs - 1 :] for X in recorded]
    return recorded if blocks is None else [np.ascontiguousarray(X[:, :blocks]) for X in recorded]


def _orthonormal(rng: np.random.Generator, blocks: int, rows: int, columns: int) -> np.ndarray:
    """Every block its own random orthonormal columns: (blocks, rows, columns)."""
    return np.linalg.qr(rng.standard_normal((blocks, rows, columns), np.float32).astype(np.float64))[0]


def _in_chunks(fill, blocks: int, n: int, m: int) -> np.ndarray:
    """(m+1, blocks, n) float32 from fill(count) -> (count, n, m+1), without all of it in float64 at once."""
    X = np.empty((m + 1, blocks, n), np.float32)
    step = max(1, CHUNK // (n * (m + 1)))
    for start in range(0, blocks, step):
        stop = min(start + step, blocks)
        X[:, start:stop] = fill(stop - start).transpose(2, 0, 1)
    return X


def graded(rng: np.random.Generator, n: int, m: int, blocks: int, last: float) -> np.ndarray:
    """F with singular values geometric between 1 and `last`, and an unrelated newest snapshot."""
    p = min(n, m)
    values = np.geomspace(1.0, last, p)

    def fill(count: int) -> np.ndarray:
        F = (_orthonormal(rng, count, n, p) * values) @ _orthonormal(rng, count, m, p).transpose(0, 2, 1)
        newest = rng.standard_normal((count, n, 1)) / np.sqrt(n)
        return np.concatenate([F, newest], axis=2)

    return _in_chunks(fill, blocks, n, m)


def modes(rng: np.random.Generator, n: int, m: int, blocks: int, last: float) -> np.ndarray:
    """Trajectories x <- K x of m decaying modes, singular values about geometric between 1 and `last`.

    Random data explode within a few steps, hence a linear system: m / 2 damped rotations of moduli in
    [0.995, 1) and angles spread over the half circle, like the frequencies of a Fourier transform of length m,
    so that the modes' time courses are nearly orthogonal. Mode i lies along its own random direction with
    amplitude a_i, geometric between 1 and `last`: these are the singular values up to a small factor, the cutoff
    drops the modes of small amplitude, and what it keeps is a rotation of spectral radius below or about 1.
    """
    half, t = m // 2, np.arange(m + 1)
    amplitudes = np.geomspace(1.0, last, 2 * half)

    def fill(count: int) -> np.ndarray:
        angles = np.pi * (np.arange(half) + 0.5 + rng.uniform(-0.1, 0.1, (count, half))) / half
        log_modulus = np.log(rng.uniform(0.995, 1.0, (count, half)))
        phases = np.exp(2j * np.pi * rng.uniform(size=(count, half)))
        courses = np.exp((log_modulus + 1j * angles)[..., None] * t) * phases[..., None] / np.sqrt(half)
        z = np.stack([courses.real, courses.imag], axis=2).reshape(count, 2 * half, m + 1)
        return (_orthonormal(rng, count, n, 2 * half) * amplitudes) @ z

    return _in_chunks(fill, blocks, n, m)


def windows(m: int, count: int) -> list[np.ndarray]:
    """All nodes over `count` windows of m + 1 consecutive snapshots, spread evenly over the recording."""
    batches = []
    for n, nodes_of_size in NODES:
        X = nodes(n)
        starts = np.linspace(0, len(X) - m - 1, count).astype(int)
        batch = np.empty((m + 1, count, nodes_of_size, n), np.float32)
        for w, start in enumerate(starts):
            batch[:, w] = X[start : start + m + 1]
        batches.append(batch.reshape(m + 1, -1, n))
    return batches


@functools.lru_cache(maxsize=2)
def nodes(n: int) -> np.ndarray:
    """The recorded nodes of n weights: (1876, nodes, n)."""
    snapshots, parts, start = recording(), [], 0
    for size, count in LAYERS:
        if size == n:
            parts.append(snapshots[:, start : start + size * count].reshape(len(snapshots), count, size))
        start += size * count
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def recording() -> np.ndarray:
    """All weights of the report's MNIST run after every iteration of epochs 4 and 5: (1876, 16750) float32.

    Trained once, then kept in bench/.cache/.
    """
    path = CACHE / "mnist-adadelta-seed0.npy"
    if not path.exists():
        snapshots = _train()
        CACHE.mkdir(exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.npy")
        np.save(partial, snapshots)
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def _train() -> np.ndarray:
    import torch

    from fastkoop.checks import InputError
    from fastkoop.experiments import training
    from fastkoop.experiments.problems import datasets, mnist_files

    if not os.environ.get(mnist_files.DATA_DIR):  # a benchmark downloads nothing unasked
        raise NoRecording(f"the real cases need MNIST: name the folder with its four files in {mnist_files.DATA_DIR}")
    try:
        data = datasets.load("mnist")
    except InputError as error:
        raise NoRecording(str(error)) from error
    model = training.make_model(data.features, data.classes, 0)
    optimizer = training.make_optimizer("adadelta", model, None)
    batches = training.Batches(data, 64, 0)
    layers = [module for module in model if isinstance(module, torch.nn.Linear)]
    snapshots = np.empty((2 * batches.per_epoch, sum(n * count for n, count in LAYERS)), np.float32)
    row = 0
    for epoch in range(5):
        for images, labels in batches.epoch():
            training.train_step(model, optimizer, images, labels)
            if epoch >= 3:
                snapshots[row] = torch.cat([_rows(layer) for layer in layers]).numpy()
                row += 1
    return snapshots


def _rows(layer):
    """A layer's nodes one after another, each with its bias last."""
    import torch

    return torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], dim=1).flatten()
