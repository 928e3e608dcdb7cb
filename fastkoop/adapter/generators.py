"""Random generators of PyTorch, NumPy and Python: their states in plain values, checked before they are set."""

from __future__ import annotations

import random

import numpy as np
import torch

from ..checks import InputError

DAMAGE = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


def states() -> dict:
    """States of the random generators, in tensors, numbers and words."""
    version, words, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": _tensors(np.random.get_state(legacy=False)),  # noqa: NPY002
        "python": [version, list(words), following],
    }


def check(saved) -> None:
    """Raise unless every generator would take its state; none is touched.

    Raises:
        ValueError: naming the generator.
    """
    trials = {
        "torch": lambda state: torch.Generator().set_state(state),
        "cuda": lambda state: [torch.Generator(f"cuda:{i}").set_state(s) for i, s in _cuda(state)],
        "numpy": lambda state: np.random.RandomState().set_state(_arrays(state)),
        "python": lambda state: random.Random().setstate(_python(state)),
    }
    for name, trial in trials.items():
        try:
            trial(saved[name])
        except DAMAGE as error:
            raise InputError(
                f"generators: the state of {name}'s random generator is damaged ({error}); take an earlier checkpoint"
            ) from None


def restore(saved: dict) -> None:
    """Set the generators; on a machine with fewer CUDA devices those that are there."""
    torch.set_rng_state(saved["torch"])
    for index, state in _cuda(saved["cuda"]):
        torch.cuda.set_rng_state(state, index)
    np.random.set_state(_arrays(saved["numpy"]))  # noqa: NPY002
    random.setstate(_python(saved["python"]))


def _cuda(saved: list) -> list[tuple[int, torch.Tensor]]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return list(enumerate(saved))[:count]


def _python(saved: list) -> tuple:
    version, words, following = saved
    return version, tuple(words), following


def _tensors(value):
    """The state of a NumPy generator with tensors in place of arrays of unsigned integers."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [str(value.dtype), torch.from_numpy(value.view(np.uint8).copy())]
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value):
    """The inverse of `_tensors`."""
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return value[1].numpy().view(value[0]) if isinstance(value, list) else value
