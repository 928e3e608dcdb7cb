"""IDX files, raw or gzip, of images and labels: read as far as their header says and no further."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...checks import InputError

IMAGES, LABELS = 0x00000803, 0x00000801  # magic numbers: 08 is "unsigned byte", the last byte counts dimensions
LARGEST = 1 << 31  # bytes of pixels; MNIST has 47 MB
CHUNK = 1 << 20


def read_idx(path: Path, magic: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, in the shape that its header tells.

    Raises:
        InputError: the file cannot be read, or is not what its header says; what follows is not read.
    """
    kind = "images" if magic == IMAGES else "labels"
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            return _read(stream, path, magic, kind)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"a readable {'gzip ' * packed}file of {kind}", reason(error)) from error


def _read(stream: BinaryIO, path: Path, magic: int, kind: str) -> np.ndarray:
    ndim = magic & 0xFF
    header = 4 + 4 * ndim
    head = _exactly(stream, header)
    number = int.from_bytes(head[:4], "big")
    if len(head) >= 4 and number != magic:
        raise damaged(path, f"the IDX magic number 0x{magic:08x} ({kind})", f"0x{number:08x}")
    if len(head) < header:
        raise damaged(path, f"a header of {header} bytes", f"a file truncated to {len(head)}")
    shape = np.frombuffer(head, ">u4", ndim, offset=4).tolist()
    size, count = " x ".join(map(str, shape)), math.prod(shape)
    if 0 in shape:
        raise damaged(path, f"at least one of the {kind}, none of them empty", size)
    expected = f"{header + count} bytes for {size} {kind}"
    data = _exactly(stream, min(count, LARGEST))
    if len(data) == LARGEST < count:
        raise damaged(path, f"at most {LARGEST} bytes of {kind}", f"a header that asks for {size}")
    if len(data) < count:
        raise damaged(path, expected, f"a file truncated to {header + len(data)}")
    if stream.read(1):
        raise damaged(path, expected, "a file with trailing bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """So many bytes, fewer where the file ends; piece by piece, so that a header cannot ask for memory in advance."""
    pieces, left = [], count
    while left and (piece := stream.read(min(left, CHUNK))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def reason(error: Exception) -> str:
    """The cause in a few words: requests' is a nest of class names, pooch's a paragraph."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code}"
    if type(error).__module__.startswith("requests"):
        return f"connection failed: {type(error).__name__}"
    if isinstance(error, ValueError):
        return "its SHA-256 checksum is not the published one"
    return getattr(error, "strerror", None) or str(error)


def damaged(path: Path, expected: str, got: object) -> InputError:
    """The error for a file that is not what it should be."""
    cure = f"replace it by an intact {path.name} (in the cache, delete it and it is downloaded again)"
    return InputError(f"{path}: expected {expected}, found {got}; {cure}")
