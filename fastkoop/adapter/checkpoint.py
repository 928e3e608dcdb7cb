"""Checkpoints: files that appear whole or not at all, and loads that change everything or nothing.

Format 2 is a file of `torch.save` with a manifest: SHA-256 of every part and of the random generators, over values and
structure as they are loaded. Damage anywhere in the file, its directory included, is refused, or changes no value.
Format 1 had a checksum of phases and schedules alone; it is read with a warning.
"""

from __future__ import annotations

import collections
import errno
import lzma
import os
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from typing import BinaryIO

import numpy as np
import torch

from .. import checks
from ..checks import InputError
from ..files import write_with
from . import generators
from .digest import digest
from .live import CheckedLive, Live, live_of

FORMAT, FILE_VERSION = "fastkoop checkpoint", 2
TAKEN = "pass what has a state_dict, tensors, numbers, words, and lists and dicts of these"
DAMAGE = (
    zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, IndexError, TypeError,
    AttributeError, AssertionError, OverflowError, MemoryError, ImportError, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip  # what a damaged file makes of zipfile and torch.load
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def save_checkpoint(path: str | os.PathLike, **parts) -> pathlib.Path:
    """Write states into one file, which appears whole or not at all, and return its path.

    Args:
        path: the file; its folder has to exist. A symbolic link is followed, an existing file's mode is kept.
        parts: what has a `state_dict` (a KoopmanPhase, a KoopmanSchedule, a model, an optimizer, a scheduler), and
            plain values of tensors and numbers (an epoch, a position in the data). The random generators of PyTorch,
            NumPy and Python are saved, too. Models and optimizers are saved without their wrappers: a compiled
            model's checkpoint fits the raw one.

    With several ranks each writes a file of its own.

    Raises:
        ValueError: a value that could not be read back, or a target that cannot be written; the old file stays.

    >>> import tempfile, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_checkpoint(f"{folder}/last.pt", model=model, epoch=3)
    ...     load_checkpoint(file, model=torch.nn.Linear(2, 1))["epoch"]
    3
    """
    path = _file(path)
    live = {name: live_of(name, part) for name, part in parts.items() if hasattr(part, "load_state_dict")}
    states = compact({name: live[name].state() if name in live else _state(part) for name, part in parts.items()})
    random = generators.states()
    manifest = {
        "parts": {name: digest(state) for name, state in states.items()}, "generators": digest(random),
        "kinds": {name: part.kind for name, part in live.items()},
    }  # fmt: skip
    whole = {
        "format": FORMAT, "version": FILE_VERSION, "parts": states, "generators": random,
        "manifest": {**manifest, "digest": digest(manifest)},
    }  # fmt: skip
    try:
        return write_with(path, lambda file: _write(whole, file), _can_be_read)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {_cure(error)}") from None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: cannot hold all of {', '.join(parts)} ({error}); {TAKEN}") from None


def _state(part):
    return part.state_dict() if hasattr(part, "state_dict") else part


def _file(path) -> pathlib.Path:
    """The path of a file.

    Raises:
        ValueError, TypeError: no name, or nothing that names a file.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"path: expected the name of a file, got {path!r}")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise InputError(f"path: expected the name of a file, got {text!r}")
    return pathlib.Path(text)


def _cure(error: OSError) -> str:
    if error.errno in FULL:
        return "make room there or name another folder; a file that was there is as it was"
    return "name a file in a folder that exists"


class _Sink:
    """An open file that remembers why it could not be written; PyTorch's own error does not say."""

    def __init__(self, file: BinaryIO):
        self._file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(whole: dict, file: BinaryIO) -> None:
    sink = _Sink(file)
    try:
        torch.save(whole, sink)
    except RuntimeError as error:
        raise sink.error or InputError(f"parts: cannot be saved ({_first_line(error)}); {TAKEN}") from None


def _can_be_read(path: pathlib.Path) -> None:
    """Raise unless `load_checkpoint` would take the file: better now than after a crash."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL (\S+)", str(error))
        raise InputError(
            f"parts: a value of {kind[1] if kind else 'some kind'} could not be read back; {TAKEN}"
        ) from None


def compact(value, copy: bool = False):
    """The same with NumPy's scalars as Python's, and tensors in separate memory where they are parts of larger ones.

    copy: in separate memory always.
    """
    return _compact(value, copy, {})


def _compact(value, copy: bool, copies: dict):
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, collections.OrderedDict):
        copied = type(value)((key, _compact(item, copy, copies)) for key, item in value.items())
        if isinstance(value, collections.OrderedDict):
            vars(copied).update(vars(value))  # a module's versions
        return copied
    if type(value) in (list, tuple):
        return type(value)(_compact(item, copy, copies) for item in value)
    if type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided:
        value = value.detach()
        if value.device.type != "meta" and (copy or value.untyped_storage().nbytes() > value.nbytes):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            return copies.setdefault(key, value.clone(memory_format=torch.contiguous_format))
    return value


def load_checkpoint(path: str | os.PathLike, **parts) -> dict:
    """Read a checkpoint into the given parts, each by its `load_state_dict`, and return the values that are left.

    The random generators go on from where they were. Everything is read, checked against its checksums and matched
    with the parts before anything is changed; if a part fails nevertheless, all parts and the random generators are
    put back, bit for bit (which takes a copy of the parts' values, in the CPU's memory).

    Raises:
        ValueError: the file is missing, damaged or not a FastKoop checkpoint, or lacks a part; or a part does not fit.
    """
    path = _file(path)
    whole = _read(path)
    live = {name: live_of(name, part) for name, part in parts.items()}
    states = whole["parts"]
    if missing := [name for name in parts if name not in states]:
        raise InputError(
            f"{path}: holds {', '.join(map(repr, states)) or 'nothing'}, not {', '.join(map(repr, missing))}"
        )
    try:
        generators.check(whole["generators"])
        kinds = whole.get("manifest", {}).get("kinds", {})
        for name, part in live.items():
            part.check(states[name], kinds.get(name))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    _assign(sorted(live.values(), key=lambda part: isinstance(part, CheckedLive)), whole)
    return {name: value for name, value in states.items() if name not in parts}


def _assign(live: list[Live], whole: dict) -> None:
    """All parts and the generators, or none: parts that cannot fail any more come last."""
    random = generators.states()
    for part in live:
        part.keep()
    done = []
    try:
        for part in live:
            done.append(part)
            part.assign(whole["parts"][part.name])
        generators.restore(whole["generators"])
    except BaseException:
        for part in reversed(done):
            part.put_back()
        generators.restore(random)
        raise


def _read(path: pathlib.Path) -> dict:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{path}: expected a whole checkpoint, but its {damaged} is damaged; take an earlier one")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a damaged pickle's protocol: it is refused below
            whole = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); name an existing checkpoint") from None
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: expected a FastKoop checkpoint, got none or a damaged one ({_first_line(error)})"
        ) from None
    if not (isinstance(whole, dict) and whole.get("format") == FORMAT):
        raise InputError(f"{path}: expected a FastKoop checkpoint, got something else that PyTorch saved")
    if not (isinstance(whole.get("parts"), dict) and isinstance(whole.get("generators"), dict)):
        raise InputError(f"{path}: expected parts and generators, got {', '.join(map(repr, whole))}")
    _verify(path, whole)
    return whole


def _verify(path: pathlib.Path, whole: dict) -> None:
    """Raise unless every part is what the manifest says."""
    version = whole.get("version")
    if version == 1 and "manifest" not in whole:
        checks.warn(
            f"{path}: a checkpoint of format 1 carries no checksum of models, optimizers and generators; save it again "
            "to get one"
        )
        return
    if version != FILE_VERSION:
        raise InputError(
            f"{path}: expected version {FILE_VERSION}, got {version}; load it with the FastKoop that wrote it"
        )
    manifest = whole.get("manifest")
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: expected a manifest, got none; the file is damaged, take an earlier one")
    damaged = []
    if manifest.get("digest") != digest({key: value for key, value in manifest.items() if key != "digest"}):
        damaged.append("manifest")
    if manifest.get("generators") != digest(whole["generators"]):
        damaged.append("generators")
    expected, states = manifest.get("parts", {}), whole["parts"]
    damaged += [
        name for name in {**expected, **states} if name not in states or expected.get(name) != digest(states[name])
    ]
    if damaged:
        raise InputError(
            f"{path}: expected a whole checkpoint, but its {damaged[0]} is damaged, as its SHA-256 tells; take an "
            "earlier one"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
