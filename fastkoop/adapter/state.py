"""The state of a phase: what a resumed run needs, as a dict of tensors and numbers, and back."""

from __future__ import annotations

import itertools

import torch

from .. import checks
from .. import cutoff as rules
from .fits import Fits
from .parameters import Saved
from .parts import Parts
from .seal import VERSION, sealed, unsealed
from .walker import Walker

KIND = "KoopmanPhase"


def state_of(parts: Parts, fits: Fits, walker: Walker) -> dict:
    """See `KoopmanPhase.state_dict`."""
    walk = walker.state()
    coordinates, departure = walk["coordinates"], walk["departure"]
    return sealed({
        "kind": KIND, "version": VERSION, "setting": described(parts, fits),
        "recording": parts.recorder.state(), "fit_seconds": fits.seconds, **walk,
        "coordinates": None if coordinates is None else [torch.as_tensor(y) for y in coordinates],
        "departure": None if departure is None else list(departure),
    })  # fmt: skip


def described(parts: Parts, fits: Fits) -> dict:
    """The setting that a state belongs to, in words."""
    options, recorder, ranks = fits.options, parts.recorder, parts.ranks
    groups = [
        [recording.group.name, recording.group.granularity, recording.group.rows, recording.group.n,
         recording.group.q or 0, str(recording.dtype), str(recording.stored)]
        for recording in parts.recordings
    ]  # fmt: skip
    return {
        "parameters": {name: str(tuple(p.shape)) for name, p in parts.parameters.by_name.items()},
        "groups": groups, "every": recorder.every, "window": recorder.window, "capacity": recorder.capacity or 0,
        "cutoff": rules.describe(options.cutoff), "observables": str(options.observables),
        "stabilize": str(options.stabilize), "out_of_span": "carry" if options.carry else "drop",
        "rank": f"{ranks.rank} of {ranks.size}" if ranks else "0 of 1",
    }  # fmt: skip


def check(state: dict, parts: Parts, fits: Fits) -> dict:
    """The state's contents, which fit this phase and the memory that is free; nothing is changed.

    Raises:
        ValueError: as `KoopmanPhase.load_state_dict`.
    """
    contents = unsealed(state, "state", KIND)
    for name, value in described(parts, fits).items():
        other = contents["setting"].get(name)
        if other != value:
            expected, got = first_difference(value, other)
            raise checks.InputError(
                f"state: expected {name} {expected}, as this phase has, got {got}; make the phase as the one that was "
                "saved"
            )
    if contents["recording"]["allocated"] > parts.recorder.allocated:
        parts.recorder.refuse_what_does_not_fit(contents["recording"]["allocated"])
    return contents


def first_difference(expected, got) -> tuple:
    """Where two lists or dicts differ first; the values themselves where they are neither.

    >>> first_difference({"a": 1, "b": 2}, {"a": 1, "b": 3}), first_difference([1], [1, 2])
    (('b 2', 'b 3'), ('nothing more', 2))
    """
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in {**expected, **got}:
            if expected.get(key) != got.get(key):
                return tuple(f"{key} {side[key]}" if key in side else f"no {key}" for side in (expected, got))
    if isinstance(expected, list) and isinstance(got, list):
        for pair in itertools.zip_longest(expected, got, fillvalue="nothing more"):
            if pair[0] != pair[1]:
                return pair
    return expected, got


def restore(state: dict, parts: Parts, fits: Fits, walker: Walker) -> None:
    """See `KoopmanPhase.load_state_dict`."""
    contents = check(state, parts, fits)
    parts.recorder.restore(contents["recording"])  # refuses, if at all, before it changes anything
    fits.forget()
    fits.seconds = contents["fit_seconds"]
    coordinates, departure = contents["coordinates"], contents["departure"]
    if coordinates is not None:
        coordinates = [y.numpy() for y in coordinates]
    if departure is not None:
        parameters, buffers = departure
        departure = Saved([p.clone() for p in parameters], buffers and [b.clone() for b in buffers])
    velocities = contents.get("velocities")
    velocities = velocities and {name: values.clone() for name, values in velocities.items()}
    walker.restore({**contents, "coordinates": coordinates, "departure": departure, "velocities": velocities})
