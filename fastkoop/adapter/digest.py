"""SHA-256 of nested values: tensors by their bytes, all else by its structure."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator, Mapping

import torch

from .buffers import local


def digest(value) -> str:
    """SHA-256, in hexadecimal, of nested dicts, lists, tuples, tensors, numbers and words.

    Equal values have equal digests on every machine; where a tensor lies and how it is strided does not count.

    >>> digest({"a": torch.ones(2)}) == digest({"a": torch.ones(4)[::2]}) != digest({"a": torch.ones(3)})
    True
    """
    total = hashlib.sha256()
    for part in _parts(value):
        total.update(part)
    return total.hexdigest()


def _parts(value) -> Iterator[bytes | memoryview]:
    if isinstance(value, torch.Tensor):
        yield from _tensor(value)
    elif isinstance(value, Mapping):
        yield b"{%d" % len(value)
        for key, item in value.items():
            yield from _parts(key)
            yield from _parts(item)
        if isinstance(value, collections.OrderedDict) and vars(value):  # a module's versions
            yield from _parts(vars(value))
    elif isinstance(value, (list, tuple)):
        yield (b"[%d" if isinstance(value, list) else b"(%d") % len(value)
        for item in value:
            yield from _parts(item)
    else:
        text = repr(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value).encode()
        yield b"%s %d:" % (type(value).__name__.encode(), len(text))
        yield text


def _tensor(value: torch.Tensor) -> Iterator[bytes | memoryview]:
    value = local(value)
    yield f"tensor {value.dtype} {tuple(value.shape)} {value.layout}".encode()
    if value.layout == torch.sparse_coo:
        yield from _parts([value._indices(), value._values()])
    elif value.layout != torch.strided:
        compressed = value.layout in (torch.sparse_csr, torch.sparse_bsr)
        names = ("crow_indices", "col_indices") if compressed else ("ccol_indices", "row_indices")
        yield from _parts([getattr(value, name)() for name in (*names, "values")])
    elif value.numel() and value.device.type != "meta":
        flat = value.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())
