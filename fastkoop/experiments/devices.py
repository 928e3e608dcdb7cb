"""Where a comparison runs: batches brought to the device, and times taken there."""

from __future__ import annotations

import collections
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


class Account:
    """Seconds of several stretches together: `with account:` for each; on a device none of them is waited for.

    Args:
        device: where the stretches run.
        cuda: `torch.cuda`, or a stand-in with `Event`.

    >>> account = Account(torch.device("cpu"))
    >>> with account:
    ...     _ = sum(range(1000))
    >>> account.seconds > 0
    True
    """

    def __init__(self, device: torch.device, cuda=torch.cuda):
        self._cuda = cuda if device.type == "cuda" else None
        self._done, self._began = 0.0, 0.0
        self._open: collections.deque[tuple[Any, Any]] = collections.deque()  # stretches between two events

    def __enter__(self) -> Account:
        if self._cuda is None:
            self._began = time.perf_counter()
            return self
        first, last = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._open.append((first, last))
        first.record()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda is None:
            self._done += time.perf_counter() - self._began
            return
        self._open[-1][1].record()
        while self._open and self._open[0][1].query():  # over by now: added up without a wait
            self._add()

    @property
    def seconds(self) -> float:
        """So far; on a device this waits for the last stretch."""
        if self._open:
            self._open[-1][1].synchronize()
        while self._open:
            self._add()
        return self._done

    def _add(self) -> None:
        first, last = self._open.popleft()
        self._done += first.elapsed_time(last) * 1e-3
