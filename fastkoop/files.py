"""Files of results: a folder known to be writable, and files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import pathlib
import threading
from collections.abc import Callable
from typing import BinaryIO

from .checks import InputError


def prepare_out(out: str) -> pathlib.Path:
    """The folder `out`, made if need be and known to be writable.

    Raises:
        ValueError: naming `out`, why it cannot be written into, and the cure.
    """
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f".fastkoop-{os.getpid()}", b"").unlink()
    except OSError as error:
        raise InputError(
            f"out: cannot write into {str(folder)!r} ({error.strerror}); name another folder with --out"
        ) from None
    return folder


def write(path: pathlib.Path, contents: bytes) -> pathlib.Path:
    """`write_with` for contents that are at hand. Returns the path."""
    return write_with(path, lambda file: file.write(contents))


def write_with(
    path: pathlib.Path, fill: Callable[[BinaryIO], object], check: Callable[[pathlib.Path], object] | None = None
) -> pathlib.Path:
    """Write beside the target, then rename: an interrupted run leaves the old file or none. Returns the path.

    check: raises if what was written is not to be kept.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with open(partial, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_json(path: pathlib.Path, value: dict) -> pathlib.Path:
    """`write` a value as JSON, as `plain` has it. Returns the path."""
    return write(path, (json.dumps(plain(value), allow_nan=False) + "\n").encode())


def plain(value):
    """What JSON can say of a value: 7 digits, lists, and None for numbers that are not finite.

    >>> plain({"a": (1 / 3, float("inf"))})
    {'a': [0.3333333, None]}
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
