"""Spectra of recorded runs, from files to a distance matrix, a test and a figure: `fastkoop spectra`."""

from __future__ import annotations

import itertools
import json
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from .. import spectra
from ..checks import InputError, integer
from ..cutoff import Rank
from ..files import prepare_out, write_json, write_with
from ..observables import Affine
from ..operator import fit

HOLDS = "an .npz file with `eigenvalues` (seeds, k), or `snapshots` (seeds, n, m+1) or (n, m+1)"
FILE = "spectra.npz"  # what `fastkoop compare --save-spectra` writes


def spectrum_of(path: str, rank: int = 10) -> np.ndarray:
    """The eigenvalues (seeds, k) of one kind of run.

    Args:
        path: an .npz file with `eigenvalues` (seeds, k); or `snapshots` (seeds, n, m+1) or (n, m+1), columns oldest
            first, to whose seeds affine operators of this rank are fitted. Or the folder of a comparison.
        rank: k, where snapshots are fitted or a comparison is read.

    Raises:
        ValueError: naming the file and what it holds.
    """
    if pathlib.Path(path).is_dir():
        return of_comparison(path, rank)
    arrays = _loaded(path)
    if "eigenvalues" in arrays:
        values = np.atleast_2d(arrays["eigenvalues"])
    elif "snapshots" in arrays:
        values = _fitted(path, arrays["snapshots"], rank)
    else:
        raise InputError(f"{path}: expected {HOLDS}, got {', '.join(arrays) or 'nothing'}")
    if values.ndim != 2:
        raise InputError(f"{path}: expected eigenvalues (seeds, k), got shape {values.shape}")
    return values


def of_comparison(folder: str, rank: int = 10) -> np.ndarray:
    """The `rank` largest eigenvalues of every seed of a comparison, all layers together: (seeds, rank).

    Raises:
        ValueError: there is no results.json, or a seed has fewer.
    """
    file = pathlib.Path(folder) / "results.json"
    try:
        runs = json.loads(file.read_text())["runs"]
        layers = [run["koopman"]["eigenvalues"].values() for run in runs]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); run fastkoop compare --out {folder}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{file}: expected the results of fastkoop compare with eigenvalues, got other contents"
        ) from None
    rank = integer("rank", rank, least=1)
    seeds = [np.array([complex(*pair) for layer in run for pair in layer]) for run in layers]
    least = min((len(values) for values in seeds), default=0)
    if rank > least:
        raise InputError(f"rank: expected at most {least}, which every seed of {folder} has, got {rank}")
    return np.stack([values[np.argsort(-np.abs(values), kind="stable")][:rank] for values in seeds])


def save_spectra(folder: str, rank: int = 10) -> pathlib.Path:
    """Write the eigenvalues of a comparison beside its results.json, for `fastkoop spectra`. Returns the path."""
    path = pathlib.Path(folder) / FILE
    values = of_comparison(folder, rank)
    return write_with(path, lambda file: np.savez(file, eigenvalues=values))


def lines(rows: Sequence[dict]) -> list[str]:
    """Rows of `compare_files` as a table of at most 80 columns."""
    heads = ("run", "and run", "between", "within", "p", "1-NN")
    cells = [heads]
    for row in rows:
        numbers = [f"{row[key]:.4g}" if key in row else "-" for key in ("between", "within", "p", "nearest")]
        cells.append((*(name if len(name) <= 20 else f"..{name[-18:]}" for name in (row["a"], row["b"])), *numbers))
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _loaded(path: str) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InputError(f"{path}: expected {HOLDS}, got a single array; np.savez names its arrays")
        with file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: expected {HOLDS}, got a damaged file or one of another kind") from None


def _fitted(path: str, X: np.ndarray, rank: int) -> np.ndarray:
    X = X[None] if X.ndim == 2 else X
    if X.ndim != 3:
        raise InputError(f"{path}: expected snapshots (seeds, n, m+1) or (n, m+1), got shape {X.shape}")
    rank = integer("rank", rank, least=1)
    pairs = min(X.shape[1], X.shape[2] - 2)  # centring takes one
    if rank > pairs:
        raise InputError(f"rank: expected at most {max(pairs, 0)} for {path} with snapshots {X.shape}, got {rank}")
    try:
        op = fit(X, observables=Affine(), cutoff=Rank(rank))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    values = np.asarray(op.eigenvalues)
    constant = np.abs(values - 1).argmin(axis=1)  # the constant's, which is 1 exactly in all of them
    return values[np.arange(values.shape[1]) != constant[:, None]].reshape(len(values), -1)


def compare_files(paths: Sequence[str], out: str, rank: int = 10, permutations: int = 999) -> list[dict]:
    """Compare runs by their files: a row for every pair; spectra.json and spectra.png into `out`.

    Returns:
        Rows with `a`, `b`, `between`, `within`, `p`, `nearest`; p and within only where both have two seeds or more.

    Raises:
        ValueError: naming the file.
    """
    if len(paths) < 2:
        raise InputError(f"files: expected at least 2 to compare, got {len(paths)}")
    names = [pathlib.Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    groups = {name: spectrum_of(path, rank) for name, path in zip(names, paths, strict=True)}
    folder = prepare_out(out)
    spectra.draw(groups, folder / "spectra.png")
    rows = [_row(a, b, groups[a], groups[b], permutations) for a, b in itertools.combinations(names, 2)]
    matrix = {a: {b: _between(groups[a], groups[b]) for b in names} for a in names}
    write_json(folder / "spectra.json", {"files": dict(zip(names, map(str, paths), strict=True)), "pairs": rows,
                                         "between": matrix})  # fmt: skip
    return rows


def _between(a: np.ndarray, b: np.ndarray) -> float:
    return float(spectra.distance(a[:, None], b[None]).mean())


def _row(name_a: str, name_b: str, a: np.ndarray, b: np.ndarray, permutations: int) -> dict:
    row = {"a": name_a, "b": name_b, "between": _between(a, b)}
    if min(len(a), len(b)) >= 2:
        test = spectra.permutation_test([a, b], permutations=permutations)
        row |= {"within": test.within, "p": test.p, "nearest": test.nearest}
    return row
