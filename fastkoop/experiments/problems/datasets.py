"""Labelled images, split into a training and a test part, and the loading of those that are known by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from ...checks import InputError, choice

NAMES = ("digits", "mnist")


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

    def on(self, device, dtype=None) -> Dataset:
        """The same with tensors on a PyTorch device, sharing memory on a CPU; `dtype` is the images'."""
        import torch

        tensors = {
            name: torch.from_numpy(value).to(device, dtype if name.endswith("images") else None)
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray)
        }
        return replace(self, **tensors)


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
    if name == "digits":
        return _digits()
    from .mnist_files import read_mnist

    return Dataset("mnist", *read_mnist(data_dir, progress))


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
        raise lacks("scikit-learn", error) from None
    pixels, labels = load_digits(return_X_y=True)
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    images, labels = scaled(pixels, 16), labels.astype(np.int64)
    return Dataset("digits", images[~test], labels[~test], images[test], labels[test])


def scaled(pixels: np.ndarray, top: int) -> np.ndarray:
    """Flat rows of pixels 0 .. top as float32 in [-1, 1]."""
    # In place: 60000 images are one float32 array of 188 MB, without a temporary beside it.
    images = pixels.reshape(len(pixels), -1).astype(np.float32)
    images /= top / 2
    images -= 1
    return images


def lacks(package: str, error: ImportError) -> InputError:
    """The error for a package of an extra that is not installed."""
    return InputError(f'this data set needs {package} ({error}): pip install "fastkoop[mnist]"')
