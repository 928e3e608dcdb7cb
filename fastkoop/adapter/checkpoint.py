"""Checkpoints: states that are known to be whole, in files that appear whole or not at all."""

from __future__ import annotations

import collections
import os
import pathlib
import pickle
import random
import re
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
import torch

from ..checks import InputError
from ..files import write_with

FORMAT, VERSION = "fastkoop checkpoint", 1


def sealed(state: dict) -> dict:
    """The state with a checksum over all that it holds."""
    return {**state, "checksum": checksum(state)}


def unsealed(state, name: str, kind: str) -> dict:
    """The state without its checksum.

    Raises:
        ValueError: it is of another kind, or not what was sealed.
    """
    if not isinstance(state, Mapping) or state.get("kind") != kind:
        found = state.get("kind", "none of FastKoop's") if isinstance(state, Mapping) else type(state).__name__
        raise InputError(f"{name}: expected the state of a {kind}, got {found}")
    if state.get("version") != VERSION:
        raise InputError(
            f"{name}: expected version {VERSION} of a {kind}'s state, got {state.get('version')}; load it with the "
            "FastKoop that wrote it"
        )
    contents = {key: value for key, value in state.items() if key != "checksum"}
    if state.get("checksum") != checksum(contents):
        raise InputError(f"{name}: the state of the {kind} is damaged, its checksum does not fit; take an earlier one")
    return contents


def checksum(value) -> int:
    """CRC-32 of nested dicts, lists, tensors and numbers."""
    total = 0
    for part in _parts(value):
        total = zlib.crc32(part, total)
    return total


def _parts(value):
    if isinstance(value, Mapping):
        for key in value:
            yield repr(key).encode()
            yield from _parts(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"[{len(value)}".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield memoryview(flat.view(torch.uint8).numpy())
    else:
        yield repr(value).encode()


def save_checkpoint(path: str | os.PathLike, **parts) -> pathlib.Path:
    """Write states into one file, which appears whole or not at all, and return its path.

    Args:
        path: the file; its folder has to exist.
        parts: what has a `state_dict` (a KoopmanPhase, a KoopmanSchedule, a model, an optimizer, a scheduler), and
            plain values of tensors and numbers (an epoch, a position in the data). The random generators of PyTorch,
            NumPy and Python are saved, too.

    With several ranks each writes a file of its own.

    Raises:
        ValueError: a value that could not be read back, or a folder that cannot be written into; the old file stays.

    >>> import tempfile, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_checkpoint(f"{folder}/last.pt", model=model, epoch=3)
    ...     load_checkpoint(file, model=torch.nn.Linear(2, 1))["epoch"]
    3
    """
    states = {name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in parts.items()}
    whole = {"format": FORMAT, "version": VERSION, "parts": _numbers(states), "generators": _generators()}
    path = pathlib.Path(path)
    try:
        return write_with(path, lambda file: torch.save(whole, file), _can_be_read)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path}: cannot be written ({why}); name a file in a folder that exists") from None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: cannot hold all of {', '.join(parts)} ({error}); {_TAKEN}") from None


_TAKEN = "pass what has a state_dict, tensors, numbers, words, and lists and dicts of these"


def _can_be_read(path: pathlib.Path) -> None:
    """Raise unless `load_checkpoint` would take the file: better now than after a crash."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        kind = found[1] if found else "some kind"
        raise InputError(f"parts: a value of {kind} could not be read back; {_TAKEN}") from None


def _numbers(value):
    """The same with NumPy's scalars as Python's, which a file is trusted to hold."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, collections.OrderedDict):
        made = type(value)((key, _numbers(item)) for key, item in value.items())
        if isinstance(value, collections.OrderedDict):
            vars(made).update(vars(value))  # a module's versions
        return made
    if type(value) in (list, tuple):
        return type(value)(map(_numbers, value))
    return value


def load_checkpoint(path: str | os.PathLike, **parts) -> dict:
    """Read a checkpoint into the given parts, each by its `load_state_dict`, and return the values that are left.

    The random generators go on from where they were. The file is checked whole before anything is changed; a part
    that refuses its state leaves those after it untouched.

    Raises:
        ValueError: the file is missing, damaged or not a FastKoop checkpoint, or lacks a part; or a part refuses.
    """
    whole = _read(pathlib.Path(path))
    for name, part in parts.items():
        if not hasattr(part, "load_state_dict"):
            raise TypeError(f"{name}: expected something with load_state_dict, got {type(part).__name__}")
    if missing := [name for name in parts if name not in whole["parts"]]:
        raise InputError(
            f"{path}: holds {', '.join(map(repr, whole['parts'])) or 'nothing'}, not {', '.join(map(repr, missing))}"
        )
    for name, part in parts.items():
        part.load_state_dict(whole["parts"][name])
    _set_generators(whole["generators"])
    return {name: value for name, value in whole["parts"].items() if name not in parts}


def _read(path: pathlib.Path) -> dict:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load would not notice
        if damaged is not None:
            raise InputError(f"{path}: expected a whole checkpoint, but its {damaged} is damaged; take an earlier one")
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); name an existing checkpoint") from None
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: expected a FastKoop checkpoint, got none or a damaged one ({first})") from None
    if not (isinstance(whole, dict) and whole.get("format") == FORMAT):
        raise InputError(f"{path}: expected a FastKoop checkpoint, got something else that PyTorch saved")
    if whole.get("version") != VERSION:
        raise InputError(f"{path}: expected version {VERSION}, got {whole.get('version')}")
    return whole


def _generators() -> dict:
    """States of the random generators."""
    version, words, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": _tensors(np.random.get_state(legacy=False)),  # noqa: NPY002
        "python": [version, list(words), following],
    }


def _tensors(value):
    """The state of a NumPy generator with tensors in place of arrays of unsigned integers."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [str(value.dtype), torch.from_numpy(value.view(np.uint8).copy())]
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value):
    """The inverse of `_tensors`."""
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return value[1].numpy().view(value[0]) if isinstance(value, list) else value


def _set_generators(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(_arrays(state["numpy"]))  # noqa: NPY002
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))
