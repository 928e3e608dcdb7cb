"""Seals of states: a phase's or a schedule's own state with a checksum over all that it holds."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch

from ..checks import InputError

VERSION = 1  # of a state


def sealed(state: dict) -> dict:
    """The state with a checksum over all that it holds."""
    return {**state, "checksum": checksum(state)}


def unsealed(state, name: str, kind: str) -> dict:
    """The state without its checksum.

    Raises:
        ValueError: it is of another kind, or not what was sealed.
    """
    if not isinstance(state, Mapping) or state.get("kind") != kind:
        got = state.get("kind", "none of FastKoop's") if isinstance(state, Mapping) else type(state).__name__
        raise InputError(f"{name}: expected the state of a {kind}, got {got}")
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
