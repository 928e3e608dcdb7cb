"""How far predicted weights are from true ones, in units of how far the true ones moved; and what the prediction cost.

A prediction that is no better than not moving has an error of 1. Beside it stand the mean of the recorded iterates and
the drift: the weights go on as they last went.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import torch

Weights = Mapping[str, torch.Tensor]  # by parameter name
BEST = 11  # of 25 networks, those with the smallest mean error: what the authors' script pools


def drift(before: Weights, start: Weights, back: int, ahead: int) -> dict[str, torch.Tensor]:
    """Where `ahead` more iterations lead that go as the last `back` went, from `before` to `start`."""
    share = ahead / max(back, 1)
    return {name: value + (value - before[name]) * share for name, value in start.items()}


def layers(weights: Weights) -> dict[str, np.ndarray]:
    """The weights of every layer as one float64 vector."""
    vectors: dict[str, list[np.ndarray]] = {}
    for name, value in weights.items():
        vectors.setdefault(name.rpartition(".")[0], []).append(value.double().numpy().ravel())
    return {layer: np.concatenate(parts) for layer, parts in vectors.items()}


def compared(ends: Mapping[str, Weights]) -> dict:
    """Every end but the optimizer's, beside the optimizer's.

    Args:
        ends: weights at the phase's "start", and at its end by the "optimizer", by "koopman" and by any others.

    Returns:
        "movement": the norm of what the optimizer moved by layer and in "all"; "error": by end, the norm of its
        distance from the optimizer's over that, not a number where nothing moved; "weights": by layer every weight's
        movement and Koopman error, signed.
    """
    vectors = {name: layers(weights) for name, weights in ends.items()}
    true, start = vectors.pop("optimizer"), vectors.pop("start")
    moved = {layer: true[layer] - start[layer] for layer in true}
    missed = {name: {layer: end[layer] - true[layer] for layer in true} for name, end in vectors.items()}
    size = _norms(moved)
    return {
        "movement": size,
        "error": {
            name: {layer: norm / size[layer] if size[layer] else math.nan for layer, norm in _norms(by_layer).items()}
            for name, by_layer in missed.items()
        },
        "weights": {
            layer: {"movement": moved[layer].tolist(), "error": missed["koopman"][layer].tolist()} for layer in true
        },
    }


def _norms(vectors: Mapping[str, np.ndarray]) -> dict[str, float]:
    norms = {layer: float(np.linalg.norm(vector)) for layer, vector in vectors.items()}
    return {"all": math.hypot(*norms.values()), **norms}


def authors_measure(entries: Sequence[dict], best: int | None = None) -> float:
    """The median modulus of a weight's error over that of its movement, all networks' weights together.

    As the authors' script HNN_master_example.m has it, which looks at the `best` networks only: those whose mean
    modulus of the error, averaged over layers, is smallest. A median sees neither a bad layer of few weights nor how
    far the worst weights are off.
    """

    def moduli(entry: dict, what: str) -> list[np.ndarray]:
        return [np.abs(layer[what]) for layer in entry["weights"].values()]

    order = sorted(entries, key=lambda entry: np.mean([layer.mean() for layer in moduli(entry, "error")]))
    error, movement = (
        np.median(np.concatenate([layer for entry in order[:best] for layer in moduli(entry, what)]))
        for what in ("error", "movement")
    )
    return float(error / movement) if movement else math.nan


def words(entries: Sequence[dict], name: str) -> list[str]:
    """How far Koopman's weights ended from the optimizer's, as a line, if there is anything to say.

    Args:
        entries: what `compared` and `costs` say of every run.
        name: the optimizer's.
    """
    if not entries or not entries[0]["replaced"]:
        return []
    koopman, going_on, average = (
        median(entry["error"][end]["all"] for entry in entries) for end in ("koopman", "drift", "average")
    )
    return [
        f"Weights: Koopman ends {koopman:.3g} times as far from {name}'s as {name} moved (not moving: 1; going on as "
        f"before: {going_on:.3g}; mean of the recorded: {average:.3g}); by the authors' medians over single weights "
        f"{authors_measure(entries):.3g}."
    ]


def costs(run: dict, recorded: int) -> dict:
    """What a run's phase cost, in "seconds" and in "optimizer_steps" of the same run.

    A step (the median) and recording are per iteration; "walked" and "jumped" are the whole phase with recording and
    fit, to be set beside the "optimizer_phase", the optimizer steps that it "replaced".
    """
    optimizer, koopman = run["optimizer"]["step_seconds"], run["koopman"]["step_seconds"]
    before = run["koopman"]["record_seconds"] + run["koopman"]["fit_seconds"]
    seconds = {
        "optimizer_step": median(optimizer) if optimizer else math.nan,
        "optimizer_phase": sum(optimizer),
        "koopman_step": median(koopman) if koopman else math.nan,
        "record": run["koopman"]["record_seconds"] / recorded,
        "fit": run["koopman"]["fit_seconds"],
        "walk": sum(koopman),
        "jump": run["koopman"]["jump_seconds"],
    }
    seconds |= {"walked": before + seconds["walk"], "jumped": before + seconds["jump"]}
    steps = {name: value / seconds["optimizer_step"] for name, value in seconds.items()}
    return {"seconds": seconds, "optimizer_steps": steps, "replaced": len(optimizer)}
