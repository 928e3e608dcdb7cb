"""Files of results: a folder known to be writable, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import secrets
import stat
from collections.abc import Callable
from typing import BinaryIO

from .checks import InputError

try:
    import fcntl
except ImportError:  # Windows: what a killed run leaves there stays
    fcntl = None  # type: ignore[assignment]


def prepare_out(out: str) -> pathlib.Path:
    """The folder `out`, made if need be and known to be writable.

    Raises:
        ValueError: naming `out`, why it cannot be written into, and the cure.
    """
    if not str(out).strip():
        raise InputError(f"out: expected a folder, got {str(out)!r}; name one with --out")
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_with(folder / f".fastkoop-{os.getpid()}", lambda file: file.write(b"{}")).unlink()
    except (OSError, ValueError) as error:  # a ValueError for a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"out: cannot write into {str(folder)!r} ({reason}); name another folder with --out") from None
    return folder


def write(path: pathlib.Path, contents: bytes) -> pathlib.Path:
    """`write_with` for contents that are at hand. Returns the path."""
    return write_with(path, lambda file: file.write(contents))


def write_result(path: pathlib.Path, contents: bytes) -> pathlib.Path:
    """`write`, for a file of results. Returns the path.

    Raises:
        ValueError: naming the path, and why it cannot be written.
    """
    try:
        return write(path, contents)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r} ({error.strerror or error}); make room, or name another folder with --out"
        ) from None


def write_with(
    path: pathlib.Path, fill: Callable[[BinaryIO], object], check: Callable[[pathlib.Path], object] | None = None
) -> pathlib.Path:
    """Write beside the target, then rename: an interrupted run leaves the old file or none. Returns the path.

    A symbolic link stays one: the file that it names is replaced. An existing file's mode is kept. What killed runs
    left of the same target is removed. File and folder are on the disk when this returns.

    Args:
        path: the target.
        fill: writes into the open file.
        check: raises if what was written is not to be kept.

    Raises:
        OSError: the folder, the disk or the target refuses; the old file stays.
    """
    target = pathlib.Path(os.path.realpath(path))  # a link's own target, so that the link stays
    mode = _mode_to_keep(target)
    _remove_stale(target)
    partial, file = _open_partial(target, mode)
    try:
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            if check is not None:
                check(partial)
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return path


def _mode_to_keep(target: pathlib.Path) -> int | None:
    """An existing file's mode; None where there is no file yet. Refuses what is not a file."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(target))
    return stat.S_IMODE(status.st_mode)


def _prefix(target: pathlib.Path) -> str:
    """What partial files of a target are called, however long its name is."""
    return f".fastkoop-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


def _open_partial(target: pathlib.Path, mode: int | None) -> tuple[pathlib.Path, BinaryIO]:
    """A new file beside the target that this process holds locked, and no planted link can redirect."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_BINARY", 0)
    while True:
        partial = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.partial")
        descriptor = os.open(partial, flags, 0o666 if mode is None else mode & 0o600)
        file = os.fdopen(descriptor, "w+b")
        try:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)
            if _lock(file) and os.fstat(file.fileno()).st_nlink:
                return partial, file
        except OSError:
            file.close()
            partial.unlink(missing_ok=True)
            raise
        file.close()  # another run took it for a stale one before it was locked


def _lock(file: BinaryIO) -> bool:
    """Whether this process now holds the file; the system lets go of it when the process ends, however it ends."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _remove_stale(target: pathlib.Path) -> None:
    """Remove partial files of the target that no process holds: what a killed run left."""
    if fcntl is None:
        return
    for partial in target.parent.glob(f"{_prefix(target)}*.partial"):
        try:
            descriptor = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # removed by another run meanwhile, or planted
        with os.fdopen(descriptor, "rb") as file, contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def _sync_folder(folder: pathlib.Path) -> None:
    """Make a rename in the folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # writable, not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot sync folders
            raise
    finally:
        os.close(descriptor)


def write_json(path: pathlib.Path, value: dict) -> pathlib.Path:
    """`write` a value as JSON, as `plain` has it. Returns the path."""
    return write_result(path, (json.dumps(plain(value), allow_nan=False) + "\n").encode())


def read_json(path: pathlib.Path):
    """The contents of a JSON file.

    Raises:
        ValueError: naming the file, and why it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r} ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{str(path)!r} is not JSON ({reason})") from None


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
