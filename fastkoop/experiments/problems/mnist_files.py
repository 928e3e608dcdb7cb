"""MNIST's four files: where they are looked for, how the cache is filled, and what is checked about them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ...checks import InputError
from .datasets import lacks, scaled
from .idx import IMAGES, LABELS, damaged, read_idx, reason

DATA_DIR = "FASTKOOP_DATA_DIR"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# SHA-256 of the .gz files as first published, which the mirror serves unchanged. Files that the user brings
# are not held to it: they may be raw or compressed anew, and the reader checks what is inside.
SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
PARTIAL = ".download-"  # and a process id: the folder that a download goes into first

_BRING = f"put {', '.join(SHA256)} (each raw or with .gz) into one folder and name it with --data-dir or {DATA_DIR}"


def read_mnist(data_dir: str | os.PathLike | None, progress: bool) -> tuple[np.ndarray, ...]:
    """Training images and labels, test images and labels, scaled and checked against each other."""
    if data_dir is not None:
        paths = _given("data_dir (--data-dir)", data_dir)
    elif os.environ.get(DATA_DIR):
        paths = _given(DATA_DIR, os.environ[DATA_DIR])
    else:
        paths = _cached(progress)
    (train, train_labels), (test, test_labels) = (_read_split(paths, part) for part in ("train", "t10k"))
    if train.shape[1:] != test.shape[1:]:
        wanted, got = (" x ".join(map(str, pixels.shape[1:])) for pixels in (train, test))
        path = paths["t10k-images-idx3-ubyte"]
        raise damaged(path, f"images of {wanted} like {paths['train-images-idx3-ubyte']}", got)
    return scaled(train, 255), train_labels, scaled(test, 255), test_labels


def _given(source: str, data_dir: str | os.PathLike) -> dict[str, Path]:
    """The four files of a folder that the user named; never another folder's."""
    folder = Path(data_dir).expanduser()
    try:
        os.listdir(folder)
    except (OSError, ValueError) as error:
        wrong = f"{source}: expected a folder with the MNIST files, got {folder} ({_os_reason(error)})"
        raise InputError(f"{wrong}; {_BRING}") from error
    paths, missing = _find(folder)
    if missing:
        raise InputError(f"{source}: {folder} lacks the MNIST files {', '.join(missing)}; {_BRING}")
    return paths


def _os_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _cached(progress: bool) -> dict[str, Path]:
    """The four files in the user's cache, after downloading those that are not there or not as published."""
    try:
        import pooch
    except ImportError as error:
        raise lacks("pooch", error) from None
    folder = Path(pooch.os_cache("fastkoop")) / "mnist"
    _remove_partials(folder)
    paths, missing = _find(folder)
    damaged_ones = [stem for stem, path in paths.items() if path.suffix == ".gz" and not _published(path, stem)]
    if missing or damaged_ones:
        _download([*missing, *damaged_ones], folder, progress)
    return paths | {stem: folder / f"{stem}.gz" for stem in missing}


def _published(path: Path, stem: str) -> bool:
    """Whether a cached .gz is still the published file; one that cannot be read is left to the reader's error."""
    import pooch

    try:
        return pooch.file_hash(str(path)) == SHA256[stem]
    except OSError:
        return True


def _find(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files that `folder` has, raw before .gz, and the names that it lacks."""
    paths = {}
    for stem in SHA256:
        for path in (folder / f"{stem}.gz", folder / stem):
            if os.path.lexists(path):  # not exists: a dangling link is unreadable where it lies, not absent
                paths[stem] = path
    return paths, [stem for stem in SHA256 if stem not in paths]


def _download(stems: list[str], folder: Path, progress: bool) -> None:
    """Fetch files into a folder of this process's, and move each into the cache once its checksum holds."""
    import pooch

    with _display() if progress else nullcontext() as display, _quiet(pooch.get_logger()):
        partial = folder / f"{PARTIAL}{os.getpid()}"
        registry = {f"{stem}.gz": SHA256[stem] for stem in stems}
        fetcher = pooch.create(path=partial, base_url=MIRROR, registry=registry)
        try:
            for name in registry:
                bar = _Bar(display, name) if progress else False
                fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)
                os.replace(fetcher.fetch(name, downloader=fetch), folder / name)
        except (OSError, ValueError) as error:  # requests raises OSErrors, a wrong checksum is a ValueError
            failed = f"cannot download {MIRROR}{name} into {folder} ({reason(error)})"
            raise InputError(f"{failed}; without a network, {_BRING}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # nothing was fetched into a cache that was not there before


def _remove_partials(folder: Path) -> None:
    """Remove what downloads of processes that were killed have left."""
    for path in folder.glob(f"{PARTIAL}*"):
        number = path.name.removeprefix(PARTIAL)
        if number.isdecimal() and not _alive(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """pooch's lines would break the bars, and be noise without them."""

    def loud(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    logger.addFilter(
        loud
    )  # a filter, not a level: pooch's logger is outside logging's tree, where cached levels go stale
    try:
        yield
    finally:
        logger.removeFilter(loud)


def _display():
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    except ImportError as error:
        raise lacks("rich", error) from None
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    return Progress(*columns, console=Console(stderr=True))


class _Bar:
    """What pooch asks of a progress bar, drawn by rich: pooch's needs tqdm, which no extra brings."""

    total = 0  # pooch sets it, and leaves it at 0 where the server does not tell

    def __init__(self, display, name: str):
        self.display, self.task = display, display.add_task(name, total=None)

    def update(self, count: int) -> None:
        self.display.update(self.task, total=self.total or None, advance=count)

    def reset(self) -> None:
        self.display.update(self.task, completed=0)

    def close(self) -> None:
        self.display.stop_task(self.task)


def _read_split(paths: dict[str, Path], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, rows, columns) uint8 and labels (N,) int64 of one part, checked against each other."""
    image_path, label_path = paths[f"{part}-images-idx3-ubyte"], paths[f"{part}-labels-idx1-ubyte"]
    pixels, labels = read_idx(image_path, IMAGES), read_idx(label_path, LABELS)
    if len(pixels) != len(labels):
        raise damaged(label_path, f"{len(pixels)} labels, one per image of {image_path}", len(labels))
    bad = np.flatnonzero(labels > 9)
    if bad.size:
        raise damaged(label_path, "labels 0 to 9", f"{labels[bad[0]]} at index {bad[0]}")
    return pixels, labels.astype(np.int64)
