"""Compare training runs by the eigenvalues of their Koopman operators.

The distance between two spectra is that of W. T. Redman, J. M. Bello-Rivas, M. Fonoberova, R. Mohr, I. G. Kevrekidis
and I. Mezić, "Identifying Equivalent Training Dynamics", NeurIPS 2024 (arXiv 2302.09160). A distance says nothing
without the distances between runs of the same kind: `permutation_test` compares with those.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks
from .checks import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PermutationTest", "distance", "draw", "permutation_test", "rates"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito's


def distance(a, b) -> np.ndarray:
    """Mean distance between the eigenvalues of two spectra, matched one to one as cheaply as possible.

    The Wasserstein-1 distance of two sets of k points: the mean of ``|a_i - b_s(i)|`` over the assignment s with the
    smallest sum (SciPy's `linear_sum_assignment`).

    Args:
        a, b: (..., k) complex or real, finite, of the same k; the axes before the last broadcast.

    Returns:
        float64 of the broadcast shape, a number for two single spectra: (25, k) and (25, k) give (25,), spectrum i
        against spectrum i; ``a[:, None]`` and ``b[None]`` give all pairs.

    Raises:
        ValueError: the sets differ in size, hold a NaN or an infinity, are empty, or do not broadcast.
        TypeError: they do not hold numbers.

    >>> import numpy as np
    >>> bool(np.isclose(distance([1.0, 0.5], [0.5, 0.9]), 0.05))  # 1 goes with 0.9, 0.5 with 0.5
    True
    """
    a, b = _spectrum("a", a), _spectrum("b", b)
    if a.shape[-1] != b.shape[-1]:
        raise InputError(
            f"b: expected {a.shape[-1]} eigenvalues a set, as a has, got {b.shape[-1]}; fit both with the same "
            "Rank(k), or keep the k largest of each"
        )
    try:
        batch = np.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    except ValueError:
        raise InputError(f"b: expected a batch that broadcasts with a's {a.shape[:-1]}, got {b.shape[:-1]}") from None
    k = a.shape[-1]
    pairs = (np.broadcast_to(side, (*batch, k)).reshape(math.prod(batch), k) for side in (a, b))
    return np.array([_assigned(one, other) for one, other in zip(*pairs, strict=True)]).reshape(batch)[()]


def _assigned(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.optimize import linear_sum_assignment  # here, because it is slow to import

    costs = np.abs(a[:, None] - b[None, :])
    return float(costs[linear_sum_assignment(costs)].mean())


def _spectrum(name: str, values) -> np.ndarray:
    """Sets of eigenvalues on the host, complex128 (..., k)."""
    if hasattr(values, "detach"):  # a tensor of PyTorch
        values = values.detach().cpu()
    elif type(values).__module__.partition(".")[0] == "cupy":
        values = values.get()
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{name}: expected sets of one size (..., k), got sets of different sizes") from None
    if array.dtype.kind not in "fciu":
        raise TypeError(f"{name}: expected complex or real numbers, got {array.dtype}")
    if array.ndim == 0 or array.shape[-1] == 0:
        raise InputError(f"{name}: expected sets of at least 1 eigenvalue (..., k), got shape {array.shape}")
    array = array.astype(np.complex128)
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0][:-1])
        place = f"set {where}" if where else "the set"
        raise InputError(
            f"{name}: expected finite eigenvalues, got a NaN or an infinity in {place}; leave that run out"
        )
    return array


def rates(eigenvalues, dt: float = 1.0) -> np.ndarray:
    """Continuous-time rates ``log(eigenvalue) / dt``: the real part decays or grows, the imaginary part turns.

    Args:
        eigenvalues: complex or real, any shape; finite.
        dt: time between two snapshots, > 0: iterations, epochs or learning-rate units.

    Returns:
        complex128 of the same shape; -inf for an eigenvalue 0, which is gone in one step. Imaginary parts lie within
        +-pi / dt: faster turns cannot be told from slower ones.

    Raises:
        ValueError, TypeError: naming the argument.

    >>> float(rates([0.5], dt=2.0)[0].real).__round__(4)  # log(0.5) / 2
    -0.3466
    """
    dt = checks.number("dt", dt, "a time > 0")
    if not (math.isfinite(dt) and dt > 0):
        raise InputError(f"dt: expected a time > 0, got {dt}")
    values = _spectrum("eigenvalues", eigenvalues)
    out = np.empty(values.shape, np.complex128)
    with np.errstate(divide="ignore"):
        out.real, out.imag = np.log(np.abs(values)) / dt, np.angle(values) / dt
    return out


@dataclass(frozen=True)
class PermutationTest:
    """Whether groups of spectra differ by more than spectra within a group.

    Attributes:
        p: share of relabellings, the given one included, with a difference `between` - `within` at least as large.
        between: mean distance between spectra of different groups.
        within: the same inside groups: the null.
        nearest: share of spectra whose nearest other spectrum is of their group (1-NN, leave one out; ties count in
            part). Chance is about 1 / groups for groups of one size.
        exceeded: relabellings with a difference at least as large, of `permutations` that were drawn.
        permutations: how many were drawn.
        distances: (s, s) distances between all spectra, in the order of the groups.
    """

    p: float
    between: float
    within: float
    nearest: float
    exceeded: int
    permutations: int
    distances: np.ndarray


def permutation_test(groups, *, permutations: int = 999, seed: int = 0) -> PermutationTest:
    """Test whether classes of training runs have different spectra, against the spread inside classes.

    Distances between all spectra are computed once; group labels are then shuffled over them. The p-value counts the
    given labels too, so that it is never 0 (B. Phipson and G. K. Smyth, 2010).

    Args:
        groups: two or more arrays (seeds, k), of at least two seeds each and of one k; or a mapping of names to them.
        permutations: relabellings to draw, >= 1.
        seed: of the relabellings.

    Raises:
        ValueError, TypeError: naming the argument; as `distance`.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> near, far = (at + 0.01 * rng.normal(size=(10, 4)) for at in (0.5, 0.9))
    >>> test = permutation_test([near, far])
    >>> test.p < 0.01, test.nearest, bool(test.between > test.within)
    (True, 1.0, True)
    """
    permutations = checks.integer("permutations", permutations, least=1)
    seed = checks.integer("seed", seed, least=0)
    _, spectra = _groups(groups)
    if len(spectra) < 2:
        raise InputError(f"groups: expected at least 2, got {len(spectra)}; one group has nothing to differ from")
    for index, group in enumerate(spectra):
        if len(group) < 2:
            raise InputError(
                f"groups: expected at least 2 seeds in each, got {len(group)} in group {index}; without a second seed "
                "nothing says how far runs of one kind lie apart"
            )
    distances = _pairwise(np.concatenate(spectra))
    labels = np.repeat(np.arange(len(spectra)), [len(group) for group in spectra])
    rng = np.random.default_rng(seed)
    shuffled = np.stack([labels, *(rng.permutation(labels) for _ in range(permutations))])
    within, between = _means(distances, shuffled)
    difference = between - within
    rounding = 1e-12 * max(float(distances.max()), np.finfo(float).tiny)
    exceeded = int((difference[1:] >= difference[0] - rounding).sum())
    return PermutationTest(
        p=(1 + exceeded) / (1 + permutations), between=float(between[0]), within=float(within[0]),
        nearest=_nearest(distances, labels), exceeded=exceeded, permutations=permutations, distances=distances,
    )  # fmt: skip


def _groups(groups) -> tuple[list[str], list[np.ndarray]]:
    """Names and arrays (seeds, k) of groups, checked against each other."""
    if not isinstance(groups, (Mapping, Sequence, np.ndarray)) or isinstance(groups, str):
        raise TypeError(f"groups: expected a sequence of arrays (seeds, k), or a mapping, got {type(groups).__name__}")
    named = groups.items() if isinstance(groups, Mapping) else ((str(i), group) for i, group in enumerate(groups))
    names: list[str] = []
    spectra: list[np.ndarray] = []
    for name, group in named:
        array = _spectrum(f"groups[{name}]", group)
        if array.ndim != 2 or len(array) == 0:
            raise InputError(f"groups[{name}]: expected shape (seeds, k), got {array.shape}")
        if spectra and array.shape[1] != spectra[0].shape[1]:
            raise InputError(
                f"groups[{name}]: expected {spectra[0].shape[1]} eigenvalues a set, as the first group has, got "
                f"{array.shape[1]}; fit all with the same Rank(k)"
            )
        names.append(str(name))
        spectra.append(array)
    if not spectra:
        raise InputError("groups: expected at least 1 array (seeds, k), got none")
    return names, spectra


def _pairwise(spectra: np.ndarray) -> np.ndarray:
    """Distances (s, s) between all of (s, k)."""
    rows, columns = np.triu_indices(len(spectra), 1)
    out = np.zeros((len(spectra), len(spectra)))
    out[rows, columns] = out[columns, rows] = distance(spectra[rows], spectra[columns])
    return out


def _means(distances: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance within and between groups, for each of (p, s) labellings of the same group sizes."""
    sizes = np.bincount(labels[0])
    members = [(labels == group).astype(float) for group in range(len(sizes))]
    inside = sum(((member @ distances) * member).sum(axis=1) for member in members)
    pairs = float((sizes * (sizes - 1)).sum())
    total, every = distances.sum(), float(labels.shape[1] * (labels.shape[1] - 1))
    return inside / pairs, (total - inside) / (every - pairs)


def _nearest(distances: np.ndarray, labels: np.ndarray) -> float:
    others = distances + np.diag(np.full(len(labels), np.inf))
    closest = others == others.min(axis=1, keepdims=True)
    return float(((closest & (labels[:, None] == labels)).sum(axis=1) / closest.sum(axis=1)).mean())


def draw(groups, out=None) -> Figure:
    """Draw groups of spectra: clouds on the whole unit circle and near their bulk, distances, and a map of the runs.

    The map is classical multidimensional scaling of the distance matrix (W. S. Torgerson, 1952): runs that lie close
    together have similar spectra.

    Args:
        groups: as `permutation_test`; names are shown where they have some, and one seed is enough.
        out: a file to write, in any format that Matplotlib knows by its suffix; None writes nothing.

    Returns:
        matplotlib.figure.Figure.

    Raises:
        ValueError, TypeError: as `permutation_test`.
        ModuleNotFoundError: Matplotlib is not installed.

    >>> figure = draw({"sgd": [[0.9, 0.8]], "adam": [[0.9, 0.7]]})
    >>> len(figure.axes)  # circle, bulk, distances with their scale, map
    5
    """
    names, spectra = _groups(groups)
    names = [name if len(name) <= 20 else f"…{name[-19:]}" for name in names]  # long ones leave no room for the axes
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'draw: needs {error.name}; pip install "fastkoop[mnist]"', name=error.name) from None
    figure = Figure(figsize=(9.0, 8.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    (circle, bulk), (matrix, plane) = figure.subplots(2, 2)
    every = np.concatenate([group.ravel() for group in spectra])
    reach = 1.08 * max(1.0, float(np.abs(every).max()))
    _clouds(circle, names, spectra, (-reach, reach), (-reach, reach), "eigenvalues and the unit circle")
    _clouds(bulk, names, spectra, _around(every.real), _around(every.imag), "the same, closer")
    circle.legend(fontsize=8, loc="lower left")
    distances = _pairwise(np.concatenate(spectra))
    edges = np.cumsum([0, *(len(group) for group in spectra)])
    figure.colorbar(matrix.imshow(distances, cmap="viridis"), ax=matrix, shrink=0.8)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    matrix.set_xticks(middles, names)
    matrix.set_yticks(middles, names)
    matrix.set_title("distance between runs", fontsize=10)
    points = _scaled(distances)
    for index, name in enumerate(names):
        x, y = points[edges[index] : edges[index + 1]].T
        plane.plot(x, y, ".", color=_COLOURS[index % len(_COLOURS)], label=name)
    plane.set_title("map of the distances", fontsize=10)
    plane.set_aspect("equal", adjustable="datalim")
    plane.locator_params(nbins=5)
    if out is not None:
        figure.savefig(pathlib.Path(out))
    return figure


def _clouds(axes: Any, names, spectra, across, up, title: str) -> None:
    """Eigenvalues of all groups over the unit circle."""
    turn = np.linspace(0, 2 * np.pi, 2000)
    axes.plot(np.cos(turn), np.sin(turn), color="#6A6A6A", lw=0.8)
    for index, (name, group) in enumerate(zip(names, spectra, strict=True)):
        values = group.ravel()
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(values.real, values.imag, ".", ms=3, alpha=0.6, color=colour, label=name)
    axes.set(xlim=across, ylim=up, xlabel="real", ylabel="imaginary")
    axes.set_title(title, fontsize=10)
    if title.endswith("circle"):
        axes.set_aspect("equal")


def _around(values: np.ndarray) -> tuple[float, float]:
    """Limits that hold all values, with a margin."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.08 * (high - low), 1e-3)
    return low - pad, high + pad


def _scaled(distances: np.ndarray) -> np.ndarray:
    """Points (s, 2) whose distances are as close to the given ones as two principal axes allow."""
    centred = distances**2
    centred = -0.5 * (centred - centred.mean(axis=0) - centred.mean(axis=1, keepdims=True) + centred.mean())
    values, vectors = np.linalg.eigh(centred)
    points = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    return points if points.shape[1] == 2 else np.hstack([points, np.zeros_like(points)])
