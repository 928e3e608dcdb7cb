"""A clock that stands still while kernels are compiled."""

from __future__ import annotations

import time

from numba.core import event


class Clock:
    """Seconds of work inside a `with` block, and apart from them those that Numba has spent compiling.

    >>> with Clock() as clock:
    ...     began = clock.now()
    >>> clock.compiled
    0.0
    """

    def __enter__(self) -> Clock:
        self._listener = event.TimingListener()  # kernels that others call count once
        event.register("numba:compile", self._listener)
        return self

    def __exit__(self, *_) -> None:
        event.unregister("numba:compile", self._listener)

    @property
    def compiled(self) -> float:
        """Seconds of compiling so far."""
        return self._listener.duration if self._listener.done else 0.0

    def now(self) -> float:
        """A time in seconds, of which only differences mean anything."""
        return time.perf_counter() - self.compiled
