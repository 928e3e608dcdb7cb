"""The data sets of the comparison: scikit-learn's bundled digits, and MNIST from its four IDX files."""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...checks import InputError, choice

NAMES = ("digits", "mnist")
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
IMAGES, LABELS = 0x00000803, 0x00000801  # IDX magic: 08 is "unsigned byte", the last byte counts dimensions

_BRING = f"put {', '.join(SHA256)} (each raw or with .gz) into one folder and name it with --data-dir or {DATA_DIR}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, one flat row each, split into a training and a test part.

    Args:
        name: one of `NAMES`.
        train_images: (N, features) float32, pixels in [-1, 1]: -1 is background, 1 is full ink.
        train_labels: (N,) int64, in 0 .. classes - 1.
        test_images: (M, features) float32, scaled like `train_images`.
        test_labels: (M,) int64.
        validation_images, validation_labels: likewise, taken out of the training part; None if there are none.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    @property
    def features(self) -> int:
        """Pixels per image."""
        return self.train_images.shape[1]

    @property
    def classes(self) -> int:
        """One more than the largest label of either part: the outputs a classifier needs."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1


def load(name: str, data_dir: str | os.PathLike | None = None, *, progress: bool = False) -> Dataset:
    """Load a data set by name, the same arrays every time.

    "digits" comes with scikit-learn: 1797 images of 8 x 8 (Alpaydin & Kaynak 1998). In label order (ties in
    file order) the images 0, 5, 10, ... are the test part: 360 of them, every class within one image of its
    share; the other 1437 train, and both parts stay in file order. No seed takes part. As in a random
    split, one writer's images fall on both sides.

    "mnist" is 60000 + 10000 images of 28 x 28 (LeCun et al. 1998), split as published. Its four IDX files,
    raw or .gz (raw wins where both lie), are read from the first of: `data_dir`, the folder named by the
    environment variable FASTKOOP_DATA_DIR (if not empty), the user's cache. Only the cache is ever filled by
    a download. Other sets in the same format and under the same names (Fashion-MNIST) load as well.

    Args:
        name: "digits" or "mnist".
        data_dir: folder with the MNIST files, all four; "digits" needs none and ignores it.
        progress: draw a bar on stderr while downloading.

    Returns:
        A `Dataset` of float32 images in [-1, 1] and int64 labels.

    Raises:
        InputError: unknown name; missing, unreadable or damaged files; a failed download; a package of the
            extra "mnist" that is not installed.

    Example:
        >>> digits = load("digits")
        >>> digits.train_images.shape, digits.test_images.shape, digits.classes
        ((1437, 64), (360, 64), 10)
    """
    choice("dataset", name, NAMES)
    return _digits() if name == "digits" else _mnist(data_dir, progress)


def with_validation(data: Dataset, count: int) -> Dataset:
    """The data set with `count` training images taken out to choose by, the same for every seed; 0 takes none.

    Raises:
        InputError: fewer than one image would be left to train on.

    >>> split = with_validation(load("digits"), 400)
    >>> len(split.train_images), len(split.validation_images)
    (1037, 400)
    """
    if not count:
        return data
    if count >= len(data.train_images):
        raise InputError(
            f"validation: expected fewer than the {len(data.train_images)} training images of {data.name}, got {count}"
        )
    out = np.zeros(len(data.train_images), dtype=bool)
    out[np.random.default_rng(0).permutation(len(out))[:count]] = True
    images, labels = data.train_images, data.train_labels
    return replace(
        data, train_images=images[~out], train_labels=labels[~out], validation_images=images[out],
        validation_labels=labels[out],
    )  # fmt: skip


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _lacks("scikit-learn", error) from None
    pixels, labels = load_digits(return_X_y=True)
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    images, labels = _scale(pixels, 16), labels.astype(np.int64)
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test])


def _mnist(data_dir: str | os.PathLike | None, progress: bool) -> Dataset:
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
        raise _damaged(path, f"images of {wanted} like {paths['train-images-idx3-ubyte']}", got)
    return Dataset("mnist", _scale(train, 255), train_labels, _scale(test, 255), test_labels)


def _scale(pixels: np.ndarray, top: int) -> np.ndarray:
    # In place: 60000 images are one float32 array of 188 MB, without a temporary beside it.
    images = pixels.reshape(len(pixels), -1).astype(np.float32)
    images /= top / 2
    images -= 1
    return images


def _given(source: str, data_dir: str | os.PathLike) -> dict[str, Path]:
    """The four files of a folder that the user named; never another folder's."""
    folder = Path(data_dir).expanduser()
    try:
        os.listdir(folder)
    except OSError as error:
        wrong = f"{source}: expected a folder with the MNIST files, got {folder} ({_why(error)})"
        raise InputError(f"{wrong}; {_BRING}") from error
    paths, missing = _find(folder)
    if missing:
        raise InputError(f"{source}: {folder} lacks the MNIST files {', '.join(missing)}; {_BRING}")
    return paths


def _cached(progress: bool) -> dict[str, Path]:
    """The four files in the user's cache, after downloading those that are not there."""
    try:
        import pooch
    except ImportError as error:
        raise _lacks("pooch", error) from None
    folder = Path(pooch.os_cache("fastkoop")) / "mnist"
    paths, missing = _find(folder)
    if missing:
        _download(missing, folder, progress)
    return paths | {stem: folder / f"{stem}.gz" for stem in missing}


def _find(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files that `folder` has, raw before .gz, and the names that it lacks."""
    paths = {}
    for stem in SHA256:
        for path in (folder / f"{stem}.gz", folder / stem):
            if os.path.lexists(path):  # not exists: a dangling link is unreadable where it lies, not absent
                paths[stem] = path
    return paths, [stem for stem in SHA256 if stem not in paths]


def _download(stems: list[str], folder: Path, progress: bool) -> None:
    import pooch

    def quiet(record):  # its lines would break the bars, and be noise without them
        return record.levelno > logging.INFO

    with _display() if progress else nullcontext() as display:
        try:
            # A filter, not a level: pooch's logger is outside logging's tree, where cached levels go stale.
            pooch.get_logger().addFilter(quiet)
            for stem in stems:
                bar = _Bar(display, f"{stem}.gz") if progress else False
                fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16)
                # pooch writes under another name and renames once the checksum holds.
                pooch.retrieve(f"{MIRROR}{stem}.gz", SHA256[stem], f"{stem}.gz", folder, downloader=fetch)
        except (OSError, ValueError) as error:  # requests raises OSErrors, a wrong checksum is a ValueError
            failed = f"cannot download {MIRROR}{stem}.gz into {folder} ({_why(error)})"
            raise InputError(f"{failed}; without a network, {_BRING}") from error
        finally:
            pooch.get_logger().removeFilter(quiet)


def _display():
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
    except ImportError as error:
        raise _lacks("rich", error) from None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    return Progress(*columns, console=Console(stderr=True))


class _Bar:
    """What pooch asks of a progress bar, drawn by rich: pooch's own needs tqdm, which no extra brings."""

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
    pixels, labels = _read_idx(image_path, IMAGES), _read_idx(label_path, LABELS)
    if len(pixels) != len(labels):
        raise _damaged(label_path, f"{len(pixels)} labels, one per image of {image_path}", len(labels))
    bad = np.flatnonzero(labels > 9)
    if bad.size:
        raise _damaged(label_path, "labels 0 to 9", f"{labels[bad[0]]} at index {bad[0]}")
    return pixels, labels.astype(np.int64)


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, in the shape its header tells."""
    kind = "images" if magic == IMAGES else "labels"
    ndim = magic & 0xFF
    header = 4 + 4 * ndim
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            data = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"a readable {'gzip ' * packed}file of {kind}", _why(error)) from error
    found = int.from_bytes(data[:4], "big")
    if len(data) >= 4 and found != magic:
        raise _damaged(path, f"the IDX magic number 0x{magic:08x} ({kind})", f"0x{found:08x}")
    if len(data) < header:
        raise _damaged(path, f"a header of {header} bytes", f"a file truncated to {len(data)}")
    shape = np.frombuffer(data, ">u4", ndim, offset=4).tolist()
    size = " x ".join(map(str, shape))
    if 0 in shape:
        raise _damaged(path, f"at least one of the {kind}, none of them empty", size)
    expected = header + math.prod(shape)
    if len(data) != expected:
        fault = "truncated to" if len(data) < expected else "with trailing bytes, in all"
        raise _damaged(path, f"{expected} bytes for {size} {kind}", f"a file {fault} {len(data)}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _why(error: Exception) -> str:
    """The cause in a few words: requests' own is a nest of class names, pooch's a paragraph."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code}"
    if type(error).__module__.startswith("requests"):
        return f"connection failed: {type(error).__name__}"
    if isinstance(error, ValueError):
        return "its SHA-256 checksum is not the published one"
    return getattr(error, "strerror", None) or str(error)


def _lacks(package: str, error: ImportError) -> InputError:
    return InputError(f'this data set needs {package} ({error}): pip install "fastkoop[mnist]"')


def _damaged(path: Path, expected: str, found: object) -> InputError:
    cure = f"replace it by an intact {path.name} (in the cache, delete it and it is downloaded again)"
    return InputError(f"{path}: expected {expected}, found {found}; {cure}")
