"""Spectra of training runs: the published comparisons again, from published eigenvalues and from training of our own.

    python -m bench spectra run published    # needs FASTKOOP_REDMAN_DIR or --redman-dir: the authors' *_eigs.npy files
    python -m bench spectra run retrained --seeds 25    # FASTKOOP_DATA_DIR; goes on where it stopped
    python -m bench spectra run cost         # a pooled fit and distances against the published way; an idle machine
    python -m bench spectra table

W. T. Redman et al., "Identifying Equivalent Training Dynamics", NeurIPS 2024, arXiv 2302.09160.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib

import numpy as np
from threadpoolctl import threadpool_limits

from bench import PAGES, RESULTS
from bench.common import origin, pages
from bench.evidence import pooled_cost, retraining
from fastkoop import spectra
from fastkoop.checks import InputError
from fastkoop.experiments.problems.mnist_files import DATA_DIR
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

FOLDER = RESULTS / "spectra"
WIDTHS = (5, 10, 40)
METHODS = ("mirror_descent", "gradient_descent", "bisection_method")
PERMUTATIONS = 500
# what the paper prints: mean distance over seeds, and its spread
PRINTED = {"5-10": (0.0065, 0.0017), "5-40": (0.0070, 0.0017), "10-40": (0.0047, 0.0012)}
PRINTED_METHODS = {"mirror_descent-gradient_descent": 0.0081, "mirror_descent-bisection_method": 0.746}


def folder(option: str | None) -> pathlib.Path:
    """The folder of the published eigenvalues, from the option or FASTKOOP_REDMAN_DIR."""
    there = pathlib.Path(option or os.environ.get("FASTKOOP_REDMAN_DIR") or ".")
    name = "gradient_descent_eigs.npy"
    if not (there / name).exists():
        raise InputError(
            f"redman-dir: expected a folder with {name}, got {str(there)!r}; the files are in the authors' repository, "
            "william-redman/Identifying_Equivalent_Training_Dynamics"
        )
    return there


def networks(there: pathlib.Path) -> dict[str, dict]:
    """Distances between widths, seed against seed, and the permutation test of all 25 against 25."""
    sets = {width: np.load(there / f"Koopman_eigenvalues_FCN_MNIST_h={width}.npy") for width in WIDTHS}
    rows = {}
    for a, b in ((5, 10), (5, 40), (10, 40)):
        apart = spectra.distance(sets[a], sets[b])
        test = spectra.permutation_test([sets[a], sets[b]], permutations=PERMUTATIONS)
        rows[f"{a}-{b}"] = {
            "mean": float(apart.mean()), "deviation": float(apart.std()), "between": test.between,
            "within": test.within, "nearest": test.nearest, "exceeded": test.exceeded, "p": test.p,
        }  # fmt: skip
    spectra.draw({f"h = {width}": values for width, values in sets.items()}, PAGES / "spectra.png")
    return rows


def repeated(there: pathlib.Path) -> dict[str, list[list[int]]]:
    """Pairs of seeds whose published spectra are the same number for number, by width."""
    found = {}
    for width in WIDTHS:
        values = np.sort(np.load(there / f"Koopman_eigenvalues_FCN_MNIST_h={width}.npy"), axis=1)
        same = (values[:, None] == values[None]).all(axis=2)
        found[str(width)] = np.argwhere(np.triu(same, 1)).tolist()
    return found


def methods(there: pathlib.Path) -> dict[str, float]:
    """Distances between three methods on one problem."""
    sets = {name: np.load(there / f"{name}_eigs.npy") for name in METHODS}
    pairs = [(METHODS[i], METHODS[j]) for i in range(3) for j in range(i + 1, 3)]
    return {f"{a}-{b}": float(spectra.distance(sets[a], sets[b])) for a, b in pairs}


def published(options: argparse.Namespace) -> None:
    """Compute from the published eigenvalues, write the JSON and draw the picture."""
    there = folder(options.redman_dir)
    results = {
        "environment": origin.environment(Host()), "permutations": PERMUTATIONS, "networks": networks(there),
        "methods": methods(there), "repeated": repeated(there),
    }  # fmt: skip
    write_json(FOLDER / "published.json", results)


def retrained(options: argparse.Namespace) -> None:
    """Train the published networks again, in the same widths and at other learning rates."""
    with threadpool_limits(1):
        retraining.measure(
            FOLDER / "retrained.json", retraining.CLASSES | retraining.RATES, options.seeds or retraining.SEEDS
        )


def cost(options: argparse.Namespace) -> None:
    """Time a pooled fit and distances."""
    write_json(FOLDER / "cost.json", {"environment": origin.environment(Host()), **pooled_cost.measure()})


PARTS = {"published": published, "retrained": retrained, "cost": cost}


def run(options: argparse.Namespace) -> None:
    """Run parts."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in pages.select(options.names, PARTS, "part"):
        PARTS[name](options)


def table_of() -> str:
    """Both tables of the published eigenvalues, in Markdown."""
    results = json.loads((FOLDER / "published.json").read_text())
    heads = (
        "hidden units", "the paper: mean over seeds", "here", "all pairs between", "within", "1-NN",
        f"of {results['permutations']} relabellings as far apart",
    )  # fmt: skip
    rows = []
    for name, row in results["networks"].items():
        mean, deviation = PRINTED[name]
        rows.append((
            name.replace("-", " and "), f"{mean:.4f} ± {deviation:.4f}", f"{row['mean']:.4f} ± {row['deviation']:.4f}",
            f"{row['between']:.4f}", f"{row['within']:.4f}", f"{row['nearest']:.2f}", row["exceeded"],
        ))  # fmt: skip
    others = [
        (name.replace("-", " and ").replace("_", " "), PRINTED_METHODS.get(name, ""), f"{value:.2g}" if value < 0.1
         else f"{value:.3f}")
        for name, value in results["methods"].items()
    ]  # fmt: skip
    second = pages.markdown(("methods", "the paper", "here"), others)
    return f"{pages.markdown(heads, rows)}\n\n{second}"


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("spectra", table_of())
    pages.update("spectra", retraining.table_of(FOLDER / "retrained.json", PRINTED), "retrained")
    pages.update("spectra", pooled_cost.table_of(FOLDER / "cost.json"), "cost")
