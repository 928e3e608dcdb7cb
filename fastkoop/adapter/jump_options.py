"""JumpOptions: what a jump is asked for besides its steps, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .. import checks
from . import candidates as ends
from .limits import Limits
from .optimizer_state import PREDICT, can_be_stepped, settled


class JumpOptions(NamedTuple):
    """See `KoopmanPhase.jump`."""

    guard: Callable[[], float] | None
    horizon: str | tuple[float, ...] | None
    candidates: tuple[str, ...]
    gate: str | None
    limits: Limits | None
    optimizer_state: str | float
    schedulers: list
    update_bn: Any

    @classmethod
    def of(
        cls,
        guard=None,
        horizon=None,
        candidates=(ends.KOOPMAN,),
        gate=None,
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
        horizon, candidates = _horizon(horizon), ends.checked(candidates)
        if horizon is not None and guard is None:
            raise checks.InputError("horizon: keeps what a guard likes best; pass guard=")
        if candidates != (ends.KOOPMAN,) and guard is None:
            raise checks.InputError("candidates: a guard chooses among them; pass guard=, or leave candidates out")
        if gate is not None:
            checks.choice("gate", gate, ("forecast",))
        if not isinstance(limits, (Limits, type(None))):
            raise TypeError(f"limits: expected Limits(...), got {type(limits).__name__}")
        optimizer_state = settled(optimizer_state)
        if isinstance(update_bn, Iterator):
            raise checks.InputError(
                f"update_bn: expected batches that can be gone through again, got {type(update_bn).__name__}; pass a "
                "list or a DataLoader"
            )
        schedulers = can_be_stepped(schedulers)
        return cls(guard, horizon, candidates, gate, limits, optimizer_state, schedulers, update_bn)

    @property
    def keeps_buffers(self) -> bool:
        """Whether the model's buffers may change and have to be put back, too."""
        return self.guard is not None or self.update_bn is not None

    @property
    def predicts(self) -> bool:
        """Whether velocities move with the weights."""
        return self.optimizer_state == PREDICT

    def reaches(self, steps: float, whole_steps: Callable[[float, str], float]) -> None:
        """Raise if the jump may go where it cannot; whole_steps: checks a number of steps of the horizon's."""
        distances = [steps]
        if isinstance(self.horizon, tuple):
            distances = [whole_steps(distance, "horizon") for distance in self.horizon]
        if self.schedulers and any(map(math.isinf, distances)):
            raise checks.InputError(
                "schedulers: the limit stands for no number of iterations; leave schedulers out, or jump over a number"
            )


def _horizon(horizon) -> str | tuple[float, ...] | None:
    if horizon is None or (isinstance(horizon, str) and horizon == "auto"):
        return horizon
    if isinstance(horizon, Sequence) and not isinstance(horizon, str) and len(horizon):
        return tuple(horizon)
    raise checks.InputError(f'horizon: expected None, "auto" or a list of steps to try, got {horizon!r}')
