"""Where a comparison runs: batches brought to the device, and times taken there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import checks


def check_device(device: str) -> str:
    """`device` if a comparison can run there.

    Raises:
        ValueError: it is no such name, or the device is not there.
    """
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        raise checks.InputError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise checks.InputError(
                f"device: {device} is not there, PyTorch sees {count} CUDA devices; pass --device cpu"
            )
    return device


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on the device; tensors that are there already are not copied."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


class Stopwatch:
    """Seconds of a call: by the CPU's clock, or between two events in the device's stream, waited for afterwards.

    Args:
        device: where the calls run.
        cuda: `torch.cuda`, or a stand-in with `Event`.
    """

    def __init__(self, device: torch.device, cuda=torch.cuda):
        self._cuda = cuda if device.type == "cuda" else None

    def time(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """(what the call returned, its seconds)."""
        if self._cuda is None:
            began = time.perf_counter()
            answer = call()
            return answer, time.perf_counter() - began
        first, last = (self._cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        answer = call()
        last.record()
        last.synchronize()
        return answer, first.elapsed_time(last) * 1e-3
