"""What a pooled fit and distances between spectra take, beside the published way, in one run.

The published way, written from its description: stack the delayed snapshots of ten trajectories into one matrix, take
its whole SVD, keep ten modes; distances pair by pair, with SciPy's `cdist` and `linear_sum_assignment`. Both are CPU
seconds of the same process, in turn. Run by `python -m bench spectra run cost`.
"""

from __future__ import annotations

import json
import pathlib
import time
from statistics import median

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from bench.common import pages
from bench.evidence import retraining
from fastkoop import spectra

WIDTH, RANK, ROUNDS = 10, 10, 2
SPECTRA = 75  # three classes of 25 seeds


def stacked(trajectories: np.ndarray, delays: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (pairs, delays n) of all trajectories (count, n, columns), a row a moment."""
    before, after = [], []
    for X in trajectories:
        rows = np.concatenate([X[:, k : X.shape[1] - delays + 1 + k] for k in range(delays)]).T
        before.append(rows[:-1])
        after.append(rows[1:])
    return np.concatenate(before), np.concatenate(after)


def by_svd(trajectories: np.ndarray, delays: int) -> np.ndarray:
    """The published fit: eigenvalues by the SVD of all stacked pairs, in float64 as its weights are stored."""
    F, Fp = stacked(trajectories.astype(np.float64), delays)
    U, s, Vt = np.linalg.svd(F, full_matrices=False)
    U, s, Vt = U[:, :RANK], s[:RANK], Vt[:RANK]
    return np.linalg.eigvals((U.T @ Fp @ Vt.T) / s)


def pair_by_pair(sets: np.ndarray) -> np.ndarray:
    """Distances between all of (s, k) complex."""
    out = np.zeros((len(sets), len(sets)))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            apart = cdist(np.stack([a.real, a.imag], axis=1), np.stack([b.real, b.imag], axis=1))
            out[i, j] = out[j, i] = apart[linear_sum_assignment(apart)].mean()
    return out


def at_once(sets: np.ndarray) -> np.ndarray:
    """The same by `spectra.distance`."""
    rows, columns = np.triu_indices(len(sets), 1)
    out = np.zeros((len(sets), len(sets)))
    out[rows, columns] = out[columns, rows] = spectra.distance(sets[rows], sets[columns])
    return out


def timed(function, *arguments) -> tuple[float, np.ndarray]:
    """CPU seconds of a call, and its answer."""
    began = time.process_time()
    answer = function(*arguments)
    return time.process_time() - began, answer


def measure() -> dict:
    """Both ways in turn, and how far their answers are apart."""
    trajectories, _ = retraining.train(WIDTH, 0.1, 0, retraining.images())
    rng = np.random.default_rng(0)
    sets = rng.normal(size=(SPECTRA, RANK)) + 1j * rng.normal(size=(SPECTRA, RANK))
    delays = retraining.DELAYS[WIDTH]
    parts = {
        "fit": {"published": (by_svd, trajectories, delays), "here": (retraining.spectrum, trajectories, WIDTH)},
        "distances": {"published": (pair_by_pair, sets), "here": (at_once, sets)},
    }
    retraining.spectrum(trajectories[:2, :, :60], WIDTH)  # compiles
    out = {"width": WIDTH, "delays": delays, "shape": list(trajectories.shape), "spectra": SPECTRA}
    for part, ways in parts.items():
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        answers = {}
        for _ in range(ROUNDS):
            for way, call in ways.items():
                spent, answers[way] = timed(*call)
                seconds[way].append(spent)
        apart = spectra.distance(*answers.values()) if part == "fit" else np.abs(answers["published"] - answers["here"])
        out[part] = {"seconds": seconds, "apart": float(np.max(apart))}
    return out


def table_of(file: pathlib.Path) -> str:
    """The table, in Markdown."""
    found = json.loads(file.read_text())
    heads = ("", "published way", "here", "CPU seconds: published / here", "answers apart")
    count, n, columns = found["shape"]
    rows, pairs = found["delays"] * n, count * (columns - found["delays"])
    words = {
        "fit": (f"pooled fit: {count} trajectories, {pairs} pairs of {rows} numbers", "SVD of all pairs", "`fit`"),
        "distances": (f"distances between {found['spectra']} spectra", "`cdist`, pair by pair", "`spectra.distance`"),
    }
    lines = []
    for part, names in words.items():
        seconds = found[part]["seconds"]
        ratio = median(a / b for a, b in zip(seconds["published"], seconds["here"], strict=True))
        lines.append((*names, f"{ratio:.2g}", f"{found[part]['apart']:.0e}"))
    return pages.markdown(heads, lines)
