"""Where compiled kernels are kept, and that only sound and current ones are run: decided here alone.

The first of these folders that can be written, in a folder of its own that is named by a digest of all kernel sources
and of the compiler's versions, so that an edit or an upgrade never runs an old kernel, wherever the cache lies:

1. $NUMBA_CACHE_DIR;
2. __pycache__ beside the kernels, where the installation can be written;
3. the user's cache folder;
4. the temporary folder, if the one there is the user's alone;
5. none: kernels are compiled again in every process.

Kernels in folders further up that can only be read, such as an image's, are used too. Files end in a checksum: what a
power loss or a full disk left is compiled again. Files are named by what they hold: two processes that compile
different signatures of a kernel at once do not take each other's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import pathlib
import stat
import sys
import tempfile

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile
from numba.core.runtime import rtsys
from numba.misc.appdirs import AppDirs

from .pipelines import rebuilt

KERNELS = pathlib.Path(__file__).parents[1]
CHECKSUM = hashlib.sha256().digest_size
KEPT = 8  # folders of other sources and versions in the same place; the newest stay

log = logging.getLogger("fastkoop")


def _digest() -> str | None:
    """Of every kernel source and the compiler's versions; None where there are no files, as in a zip archive."""
    text = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    try:
        for path in _sources(str(KERNELS)):
            with open(path, "rb") as source:
                text.update(b"\0" + os.path.relpath(path, KERNELS).encode() + b"\0" + source.read())
    except OSError:
        return None
    return text.hexdigest()[:16]


def _sources(folder: str):
    """Every Python file in a folder and those below, in order, without a look at what is cached there."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry.path)
        elif entry.name.endswith(".py"):
            yield entry.path


DIGEST = _digest()  # now: of the text that is being imported, whatever becomes of the files


def bases():
    """The folders above, in order."""
    if numba.config.CACHE_DIR:
        yield pathlib.Path(numba.config.CACHE_DIR)
    yield KERNELS / "__pycache__"
    yield pathlib.Path(AppDirs("fastkoop", appauthor=False).user_cache_dir)
    if (folder := _temporary()) is not None:
        yield folder


def _temporary() -> pathlib.Path | None:
    """A folder under the temporary one that nobody else can put kernels into, if there is one."""
    with contextlib.suppress(OSError):
        folder = pathlib.Path(tempfile.gettempdir()) / f"fastkoop-numba-{getattr(os, 'getuid', lambda: 'any')()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
        others = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if os.name == "nt" or (stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not others):
            return folder
    return None


@functools.cache
def places() -> tuple[pathlib.Path | None, tuple[pathlib.Path, ...]]:
    """The folder that kernels are written to, or None, and those that they are read from."""
    if DIGEST is None:
        return None, ()
    name, seen = f"fastkoop-{DIGEST}", []
    for base in bases():
        if _writable(base / name):
            _forget_old(base, name)
            return base / name, (base / name, *seen)
        if (base / name).is_dir():
            seen.append(base / name)
    return None, tuple(seen)


def cache_place() -> str | None:
    """The folder that compiled kernels are kept in; None where there is none, and every process compiles again."""
    place = places()[0]
    return None if place is None else str(place)


def _writable(folder: pathlib.Path) -> bool:
    """Whether files can be made in the folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _forget_old(base: pathlib.Path, name: str) -> None:
    """Delete the kernels of other sources and versions, but for the newest."""
    with contextlib.suppress(OSError):  # somebody else does so, too
        old = sorted(base.glob("fastkoop-????????????????"), key=lambda path: path.stat().st_mtime)
        for folder in [path for path in old if path.name != name][:-KEPT]:
            for path in folder.glob("*.nb[ic]"):
                path.unlink()
            folder.rmdir()


class _Sealed(IndexDataCacheFile):
    """Numba's index and data files of one kernel, ending in a checksum."""

    @contextlib.contextmanager
    def _open_for_write(self, filepath):
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def _load_index(self):
        return super()._load_index() if _sound(self._index_path) else {}

    def _load_data(self, name):
        if not _sound(self._data_path(name)):
            raise FileNotFoundError(name)  # which Numba takes as a signature that was never compiled
        return super()._load_data(name)

    def save(self, key, data):
        overloads, name = self._load_index(), self._data_name(_number(key))
        self._save_data(name, data)
        if overloads.get(key) != name:
            self._save_index({**overloads, key: name})


def _number(key) -> int:
    """A number for a signature and a processor."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "big")


def _sound(path: str) -> bool:
    """Whether a file is there and holds what was written."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-CHECKSUM]).digest() == content[-CHECKSUM:]


class _Results(CompileResultCacheImpl):
    """How a compiled kernel is written, and the name of its files."""

    def __init__(self, function, purpose: str):
        code = function.__code__
        name = f"{pathlib.Path(code.co_filename).stem}.{function.__qualname__}".replace("<", "").replace(">", "")
        version = f"{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"
        self._filename_base = f"{name}-{code.co_firstlineno}{purpose}.py{version}"

    def rebuild(self, target_context, payload):
        return rebuilt(target_context, payload)

    def check_cachable(self, cres):
        return not cres.lifted and not cres.library.has_dynamic_globals


class KernelCache(FunctionCache):
    """The compiled signatures of one kernel on disk, for Numba to ask; never raises for what it finds there."""

    def __init__(self, function, purpose: str = "", announced: bool = False):
        """purpose: tells apart what one function is compiled for; announced: log when it is not there yet."""
        self._announced = announced
        self._name, self._py_func, self._impl = repr(function), function, _Results(function, purpose)
        self.enable()

    @property
    def cache_path(self):
        return cache_place()

    @functools.cached_property
    def _files(self) -> list[_Sealed]:
        source = pathlib.Path(self._py_func.__code__.co_filename)
        stamp = "" if KERNELS in source.parents else hashlib.sha256(source.read_bytes()).hexdigest()
        return [_Sealed(str(place), self._impl.filename_base, stamp) for place in places()[1]]

    def flush(self):
        if cache_place():
            self._files[0].flush()

    def load_overload(self, sig, target_context):
        rtsys.initialize(target_context)  # all that loading takes; `refresh` imports what compiling does, 0.1 seconds
        for file in self._files if self._enabled else ():
            data = file.load(self._index_key(sig, target_context.codegen()))
            if data is not None:
                return self._impl.rebuild(target_context, data)
        if self._announced:
            when = "once on this machine" if cache_place() else "in every process, for no folder can be written"
            log.info("compiling kernels, %s: %s", when, self._py_func.__name__)
        return None

    def save_overload(self, sig, data):
        if not (self._enabled and cache_place() and self._impl.check_cachable(data)):
            return
        try:
            pathlib.Path(cache_place()).mkdir(parents=True, exist_ok=True)
            self._files[0].save(self._index_key(sig, data.codegen), self._impl.reduce(data))
        except OSError as error:
            log.debug("%s is not kept: %s", self._impl.filename_base, error)
