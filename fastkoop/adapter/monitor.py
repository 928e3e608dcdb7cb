"""SpectrumMonitor: the spectrum of training, layer by layer, while it goes on.

Eigenvalues gather at 1 as training comes to rest, and leave the unit disc where it goes wrong: I. Manojlović,
M. Fonoberova, R. Mohr, A. Andrejčuk, Z. Drmač, Y. Kevrekidis and I. Mezić, "Applications of Koopman Mode Analysis to
Neural Networks" (2020, arXiv 2006.11765).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .. import checks
from ..checks import InputError
from ..cutoff import Energy
from ..observables import Affine
from ..operator import fit
from .phase import KoopmanPhase
from .window import Window

Log = Callable[[str, float, int], object]


@dataclass(frozen=True)
class LayerSpectrum:
    """What a window says of a layer; medians over blocks where it has several.

    Attributes:
        eigenvalues: (blocks, r) complex128 of the affine operators, zeros past a block's rank.
        rank: how many count.
        from_one: mean ``|eigenvalue - 1|``, the distance from a spectrum at rest; 0 where nothing moves.
        spectral_radius: largest modulus; above 1 something grows.
        residual: one-step error on the window over its movement.
        forecast: error at the window's end of an operator fitted to its first two thirds, over the movement since; nan
            where nothing moved.
    """

    eigenvalues: np.ndarray
    rank: float
    from_one: float
    spectral_radius: float
    residual: float
    forecast: float

    def numbers(self) -> dict[str, float]:
        """The finite ones, by name."""
        names = ("rank", "from_one", "spectral_radius", "residual", "forecast")
        return {name: getattr(self, name) for name in names if math.isfinite(getattr(self, name))}


@dataclass(frozen=True)
class SpectrumReport:
    """A look at a window.

    Attributes:
        step: optimizer steps since the monitor was made.
        layers: by name; "observed" is what `observe` returned.
        at_one: whether the spectrum of every layer lies within the threshold of 1.
    """

    step: int
    layers: dict[str, LayerSpectrum]
    at_one: bool


class SpectrumMonitor:
    """Watches the spectrum of training: records a window of snapshots, and looks at it now and then.

    Recording is lazy: only snapshots that the next look will see are taken. A look computes the rows of the window's
    Gram matrix that are new, (window + 1) n multiply-adds a snapshot and one read of the ring for all of them, and fits
    affine operators to the matrix's square root, so that the algebra is the window's size, not the layer's.

    Args:
        model: as `KoopmanPhase`. The parameters are only read.
        optimizer: whose steps are counted.
        window: pairs of snapshots that a look sees.
        every: optimizer steps between snapshots.
        report: optimizer steps between looks, the first as soon as the window is full; None is thirty windows.
        partition: "layer", "network", "node", ..., as `KoopmanPhase`.
        cutoff: which directions count. `Energy(0.99)`, the default, keeps those with 99% of the movement: few where
            training is smooth. A fixed rank would fill up with rounding and noise there.
        observe: returns a small vector, of one length, to watch as well: losses of a few samples, quantiles, logits.
        log: called as ``log(name, value, step)`` with finite floats; names begin with "koopman/".
        threshold: for the stop signal, see `stop`; None is 1 / window: over a window such an eigenvalue changes its
            share by less than a factor e, so that within it training rests.
        patience: looks in a row that have to agree on it.
        include, exclude: name patterns of parameters.

    Raises:
        ValueError, TypeError: naming the argument; or blocks are spread over ranks.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    >>> names = set()
    >>> monitor = SpectrumMonitor(model, optimizer, window=8, log=lambda name, value, step: names.add(name))
    >>> for _ in range(9):
    ...     optimizer.zero_grad()
    ...     model(torch.eye(3)).square().sum().backward()
    ...     optimizer.step()
    >>> monitor.latest.step, sorted(monitor.latest.layers), "koopman/0/spectral_radius" in names
    (9, ['0'], True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer,
        *,
        window: int = 32,
        every: int = 1,
        report: int | None = None,
        partition="layer",
        cutoff=None,
        observe: Callable[[], Iterable[float]] | None = None,
        log: Log | None = None,
        threshold: float | None = None,
        patience: int = 3,
        **choice,
    ):
        self.window = checks.integer("window", window, least=3)
        every = checks.integer("every", every, least=1)
        self._burst = (self.window + 1) * every
        self.report = 30 * self.window * every if report is None else checks.integer("report", report, least=1)
        self.patience = checks.integer("patience", patience, least=1)
        self.threshold = 1 / self.window if threshold is None else checks.number("threshold", threshold, "a distance")
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise InputError(f"threshold: expected a distance from 1, > 0, got {threshold}")
        for name, function in (("observe", observe), ("log", log)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}: expected a function, got {type(function).__name__}")
        self._observe, self._log, self._cutoff = observe, log, Energy(0.99) if cutoff is None else cutoff
        self._phase = KoopmanPhase(
            model, partition, observables=Affine(), cutoff=self._cutoff, every=every, capacity=self.window + 1, **choice
        )
        if any(self._phase.parts.spreads):
            raise InputError(
                f'partition: expected blocks that lie whole on one rank, got {partition!r} of a sharded model; "node" '
                "blocks do"
            )
        self._windows = [Window(recording) for recording in self._phase.parts.recordings]
        self._observed: list[np.ndarray] = []
        self.steps = 0
        self._next = self._burst
        self._resting = 0
        self.latest: SpectrumReport | None = None
        self._phase.attach(optimizer, after=self._after_step)

    @property
    def stop(self) -> bool:
        """Whether the spectrum of every layer lay within `threshold` of 1 in the last `patience` looks.

        Within a window, slow and finished look alike: with a smaller `every` than the slowest mode that matters, this
        stops too soon. Noise of a constant size keeps eigenvalues away from 1, so that it then never stops.
        """
        return self._resting >= self.patience

    def close(self) -> None:
        """Stop watching, and give the memory back."""
        self._phase.detach()
        self._windows = []

    def _after_step(self) -> None:
        """Record what the next look will see, and look when it is time."""
        self.steps += 1
        if self.steps > self._next - self._burst:
            before = self._phase.parts.recorder.taken
            self._phase.record()
            if self._observe is not None and self._phase.parts.recorder.taken > before:
                self._observed.append(_vector(self._observe(), self._observed))
                del self._observed[: -self.window - 1]
        if self.steps == self._next:
            self._next += self.report
            self._look()

    def _look(self) -> None:
        """Report on the window as it is."""
        recorder = self._phase.parts.recorder
        roots = [window.roots(recorder.taken, recorder.allocated) for window in self._windows]
        names = [recording.group.name for recording in recorder.recordings]
        ends = np.cumsum([len(root) for root in roots])[:-1]
        layers = dict(zip(names, spectra(np.concatenate(roots), ends, self._cutoff), strict=True))
        if self._observe is not None:
            [layers["observed"]] = spectra(np.stack(self._observed, axis=-1)[None], [], self._cutoff)
        at_one = all(layer.from_one <= self.threshold for layer in layers.values())
        self._resting = self._resting + 1 if at_one else 0
        self.latest = SpectrumReport(self.steps, layers, at_one)
        if self._log is not None:
            for name, layer in layers.items():
                for what, value in layer.numbers().items():
                    self._log(f"koopman/{name}/{what}", value, self.steps)
            furthest = max(layer.from_one for layer in layers.values())
            if math.isfinite(furthest):
                self._log("koopman/from_one", furthest, self.steps)
            self._log("koopman/stop", float(self.stop), self.steps)


def _vector(values, before: list[np.ndarray]) -> np.ndarray:
    """What `observe` returned, as float64 of the length that it had before."""
    values = values.detach().cpu() if isinstance(values, torch.Tensor) else values
    vector = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if vector.ndim != 1 or (before and vector.shape != before[0].shape):
        expected = f"{len(before[0])} numbers, as before" if before else "a vector"
        raise InputError(f"observe: expected {expected}, got shape {vector.shape}")
    return vector


def spectra(X: np.ndarray, ends, cutoff) -> list[LayerSpectrum]:
    """What affine operators say of snapshots X (blocks, n, m+1), or of any with the same Gram matrices, by layer.

    ends: where the blocks of a layer end, for all layers but the last.
    """
    with np.errstate(invalid="ignore"):
        op = fit(X, observables=Affine(), cutoff=cutoff, check_finite=False)
        values, ranks = _without_constant(np.asarray(op.eigenvalues)), np.asarray(op.rank)
        counts = np.arange(values.shape[1]) < ranks[:, None]
        from_one = np.where(counts, np.abs(values - 1), 0.0).sum(axis=1) / np.maximum(ranks, 1)
        radius = np.where(counts, np.abs(values), 0.0).max(axis=1, initial=0.0)
        residual, forecast = np.asarray(op.residual), _forecast(X, cutoff)
    bad = ~np.isfinite(X).all(axis=(1, 2))
    numbers = np.stack([np.where(bad, np.nan, each) for each in (ranks, from_one, radius, residual, forecast)])
    return [
        LayerSpectrum(part, *(float(middle) for middle in np.median(layer, axis=1)))
        for part, layer in zip(np.split(values, ends), np.split(numbers, ends, axis=1), strict=True)
    ]


def _without_constant(values: np.ndarray) -> np.ndarray:
    """Eigenvalues (B, r) without the constant's, which is 1 exactly."""
    constant = np.abs(values - 1).argmin(axis=1)
    kept = np.arange(values.shape[1]) != constant[:, None]
    return values[kept].reshape(len(values), values.shape[1] - 1)


def _forecast(X: np.ndarray, cutoff) -> np.ndarray:
    """Error at the last snapshot of operators fitted to the first two thirds, over the movement since: (B,)."""
    last = X.shape[-1] - 1
    split = max(2, 2 * last // 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        op = fit(X[..., : split + 1], observables=Affine(), cutoff=cutoff, check_finite=False)
        error = np.linalg.norm(op.predict(last - split) - X[..., -1], axis=-1)
        return error / np.linalg.norm(X[..., -1] - X[..., split], axis=-1)
