"""JumpOptions: what a jump is asked for besides its steps, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .. import checks
from .limits import Limits
from .optimizer_state import can_be_stepped, settled


class JumpOptions(NamedTuple):
    """See `KoopmanPhase.jump`."""

    guard: Callable[[], float] | None = None
    horizon: str | None = None
    limits: Limits | None = None
    optimizer_state: str | float = "keep"
    schedulers: list = []  # noqa: RUF012 - never changed
    update_bn: Any = None

    @classmethod
    def of(
        cls,
        guard=None,
        horizon=None,
        limits=None,
        optimizer_state="keep",
        schedulers: Iterable = (),
        update_bn=None,
    ) -> JumpOptions:
        """From the arguments of `KoopmanPhase.jump`.

        Raises:
            ValueError, TypeError: naming the argument.
        """
        if guard is not None and not callable(guard):
            raise TypeError(f"guard: expected a function that returns a number, got {type(guard).__name__}")
        if horizon not in (None, "auto"):
            raise checks.InputError(f'horizon: expected None or "auto", got {horizon!r}')
        if horizon is not None and guard is None:
            raise checks.InputError('horizon: "auto" keeps what a guard likes best; pass guard=')
        if not isinstance(limits, (Limits, type(None))):
            raise TypeError(f"limits: expected Limits(...), got {type(limits).__name__}")
        optimizer_state = settled(optimizer_state)
        if isinstance(update_bn, Iterator):
            raise checks.InputError(
                f"update_bn: expected batches that can be gone through again, got {type(update_bn).__name__}; pass a "
                "list or a DataLoader"
            )
        return cls(guard, horizon, limits, optimizer_state, can_be_stepped(schedulers), update_bn)

    @property
    def keeps_buffers(self) -> bool:
        """Whether the model's buffers may change and have to be put back, too."""
        return self.guard is not None or self.update_bn is not None
