"""What an optimizer knows besides the weights: its velocities, and what becomes of its state when weights jump.

After a jump the optimizer's state is that of the iterate where the jump began. What that means:

================== ================================ ======================= =======================================
optimizer          velocity                         scale of past gradients what a jump leaves wrong under "keep"
================== ================================ ======================= =======================================
SGD, Muon          momentum_buffer                  -                       an old direction for 1 / (1 - momentum)
RMSprop            momentum_buffer, if it has any   square_avg              old direction; old scale
Adam, AdamW, NAdam exp_avg                          exp_avg_sq              old direction; old scale for 1 / (1 - b2)
Adagrad            -                                sum                     the scale of all gradients so far
Adadelta           -                                square_avg, acc_delta   old scale of steps for 1 / (1 - rho)
LBFGS              d, t, old_dirs, old_stps         -                       curvature of another place: reset it
================== ================================ ======================= =======================================

"keep" is the method as published. "predict" moves velocities with the weights, where they are recorded beside them
(`Momentum()`): training goes on as if it had been there. "reset" forgets the state of the parameters that a phase
records, counters such as Adam's `step` with it, so that its bias correction begins anew and Adagrad takes large steps
again. A number in (0, 1) multiplies velocities and keeps the rest: a fresh direction at the old scale. No choice counts
a jump's iterations as gradients: Adam's `step` says how many gradients it has seen. A learning-rate scheduler counts
what its owner tells it: `KoopmanPhase.jump(schedulers=...)` steps it once for every iteration that the jump stands for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..checks import InputError
from .buffers import GroupBuffer, into, local, rows_of
from .weight_copies import WeightCopies

VELOCITIES = ("momentum_buffer", "exp_avg")
PREDICT = "predict"


def settled(choice) -> str | float:
    """What is to become of an optimizer's state after a jump: "keep", "reset", "predict" or a factor in (0, 1).

    Raises:
        ValueError, TypeError: anything else.
    """
    if isinstance(choice, str) and choice in ("keep", "reset", PREDICT):
        return choice
    if isinstance(choice, bool) or not isinstance(choice, (int, float)):
        raise InputError(f'optimizer_state: expected "keep", "reset", "predict" or a factor in (0, 1), got {choice!r}')
    if not (math.isfinite(choice) and 0.0 < choice < 1.0):
        raise InputError(
            f'optimizer_state: expected a factor in (0, 1), got {choice}; "keep" is 1, and "reset" forgets all'
        )
    return float(choice)


def can_be_stepped(schedulers: Iterable) -> list:
    """Learning-rate schedulers that a jump can step.

    Raises:
        TypeError: something else, or one that wants a metric.
    """
    schedulers = list(schedulers)
    for scheduler in schedulers:
        if not (hasattr(scheduler, "step") and hasattr(scheduler, "state_dict")):
            raise TypeError(f"schedulers: expected learning-rate schedulers, got {type(scheduler).__name__}")
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise TypeError("schedulers: ReduceLROnPlateau steps by a metric, not by iterations; leave it out")
    return schedulers


class Rates:
    """An optimizer's state and learning rates across a jump: settled if it is kept, put back if it fails."""

    def __init__(self, optimizer: torch.optim.Optimizer | None, schedulers: list, copies: WeightCopies | None = None):
        self._optimizer, self._schedulers = optimizer, schedulers
        self.copies = copies or WeightCopies([], [])
        self._groups = [dict(group) for group in optimizer.param_groups] if optimizer else []
        self._states = [copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers]

    def settle(self, moved: Iterable[torch.Tensor], choice: str | float, steps: int) -> None:
        """Step the schedulers, and then keep, reset or decay the state of the parameters that moved."""
        moved = list(moved)
        velocities = [] if self._optimizer is None else _velocities(self._optimizer, moved)
        if isinstance(choice, float) and not velocities and self._optimizer.state:
            raise InputError(
                f'optimizer_state: {type(self._optimizer).__name__} keeps no velocity to decay; pass "keep" or "reset"'
            )
        for scheduler in self._schedulers:
            for _ in range(steps):
                scheduler.step()
        if choice == "reset":
            self._forget(moved)
        elif isinstance(choice, float):
            with torch.no_grad():
                for velocity in velocities:
                    velocity.mul_(choice)

    def _forget(self, moved: list[torch.Tensor]) -> None:
        if isinstance(self._optimizer, torch.optim.LBFGS):  # whose state is of all parameters together
            self._optimizer.state.clear()
        kept = {id(tensor) for tensor in self.copies.tensors}
        states = [getattr(optimizer, "state", {}) for optimizer in self.copies.optimizers] or [self._optimizer.state]
        for state in states:
            for parameter in moved:
                entries = state.get(parameter)
                if isinstance(entries, dict) and any(id(value) in kept for value in entries.values()):
                    _zero(entries, kept)  # an optimizer that finds its weights expects the rest beside them
                else:
                    state.pop(parameter, None)

    @torch.no_grad()
    def stop(self, moved: Iterable[torch.Tensor]) -> None:
        """Set velocities to zero."""
        for velocity in _velocities(self._optimizer, moved):
            velocity.zero_()

    def restore(self) -> None:
        """Schedulers and learning rates as they were."""
        for scheduler, state in zip(self._schedulers, self._states, strict=True):
            scheduler.load_state_dict(state)
        for group, before in zip(self._optimizer.param_groups if self._optimizer else [], self._groups, strict=True):
            group.update(before)


@torch.no_grad()
def _zero(entries: dict, kept: set[int]) -> None:
    """Moments, scales and counters as before the first step."""
    for name, value in entries.items():
        if isinstance(value, torch.Tensor) and id(value) not in kept:
            value.zero_()
        elif name == "step" and isinstance(value, int):
            entries[name] = 0


def _velocities(optimizer: torch.optim.Optimizer, moved: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    states = (optimizer.state.get(parameter) for parameter in moved)
    return [state[name] for state in states if state for name in VELOCITIES if _has(state, name)]


def _has(state: dict, name: str) -> bool:
    return isinstance(state.get(name), torch.Tensor)


class Velocities:
    """The velocities of an optimizer's parameters, times their learning rates."""

    def __init__(self):
        self._optimizer: torch.optim.Optimizer | None = None
        self._known: dict[int, tuple[str, dict]] = {}  # name and parameter group

    def follow(self, optimizer: torch.optim.Optimizer, by_name: dict[str, torch.Tensor]) -> None:
        """Take them from this optimizer.

        Raises:
            ValueError: it keeps none, or its learning rate is zero, so that velocities say nothing.
        """
        names = {id(parameter): name for name, parameter in by_name.items()}
        known = {
            id(parameter): (names[id(parameter)], group)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) in names
        }
        for name, group in known.values():
            _check_velocities(optimizer, name, group)
        self._optimizer, self._known = optimizer, known

    def check_rates(self) -> None:
        """Raise if a learning rate is zero by now: a velocity cannot be told from its part of a step then."""
        for name, group in self._known.values():
            if float(group["lr"]) == 0.0:
                raise InputError(
                    f'optimizer_state: "predict" divides by the learning rate, which is 0 for {name}; pass "keep" or '
                    "jump while it is not"
                )

    def __call__(self, parameter: torch.Tensor) -> torch.Tensor:
        """A parameter's velocity times its learning rate.

        Raises:
            ValueError: no optimizer, or one that keeps none for it.
        """
        buffer, rate = self._buffer(parameter)
        return buffer * rate

    def _buffer(self, parameter: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """A parameter's velocity as the optimizer keeps it, and its learning rate."""
        if self._optimizer is None:
            raise InputError("observables: Momentum() reads the optimizer's velocities; call attach(optimizer) first")
        if id(parameter) not in self._known:
            raise InputError(
                "observables: Momentum() meets a parameter that the attached optimizer does not hold; leave it out "
                "with exclude="
            )
        name, group = self._known[id(parameter)]
        state = self._optimizer.state.get(parameter, {})
        for buffer in VELOCITIES:
            if _has(state, buffer):
                return state[buffer], group["lr"]
        raise InputError(f"observables: {_no_velocity(self._optimizer, name)}")

    def saved(self) -> dict[str, torch.Tensor]:
        """Copies of them, on this rank, by their parameters' names."""
        return {name: local(buffer).clone() for name, buffer in self._buffers()}

    @torch.no_grad()
    def put_back(self, saved: dict[str, torch.Tensor]) -> None:
        """Bit for bit what was `saved`, where the optimizer still keeps it."""
        for name, buffer in self._buffers():
            if name in saved:
                local(buffer).copy_(saved[name])

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        state = {} if self._optimizer is None else self._optimizer.state
        for parameter, entries in state.items():
            kept = [entries[buffer] for buffer in VELOCITIES if _has(entries, buffer)]
            if kept and id(parameter) in self._known:
                yield self._known[id(parameter)][0], kept[0]

    @torch.no_grad()
    def set(self, recording: GroupBuffer, rows: torch.Tensor, stayed: torch.Tensor) -> None:
        """Set the optimizer's velocities to a group's rows (rows, n); bool (rows, n): entries that stay as they are."""
        for piece, member in recording.members:
            if not member.requires_grad:
                continue
            buffer, rate = self._buffer(member)
            place = (slice(piece.first, piece.first + piece.rows), slice(piece.start, piece.start + piece.width))
            values = (rows / rate).to(buffer.dtype)
            values[place] = torch.where(stayed[place], rows_of(buffer, piece), values[place])
            into(local(buffer), piece, values)


def _check_velocities(optimizer: torch.optim.Optimizer, name: str, group: dict) -> None:
    """Raise unless this optimizer will keep a velocity of the parameter, as far as can be told before its step."""
    if float(group["lr"]) == 0.0:
        raise InputError(
            f"optimizer: the learning rate of {name} is 0, and Momentum() records velocities times it; attach when it "
            "is not"
        )
    state = next((optimizer.state[p] for p in group["params"] if optimizer.state.get(p)), None)
    keeps = any(_has(state, buffer) for buffer in VELOCITIES) if state else "betas" in group or group.get("momentum")
    if not keeps:
        raise InputError(f"optimizer: {_no_velocity(optimizer, name)}")


def _no_velocity(optimizer: torch.optim.Optimizer, name: str) -> str:
    return (
        f"Momentum() finds no velocity of {name} in {type(optimizer).__name__}; SGD and RMSprop with momentum, Adam "
        "and its kin keep one of every parameter with a gradient; leave others out with exclude="
    )


def step_was_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step that just ended changed nothing because its gradients had overflowed.

    A fused optimizer under `torch.amp.GradScaler` skips inside its step, and tells by `found_inf`; others are not
    called at all.
    """
    overflowed = getattr(optimizer, "found_inf", None)
    return overflowed is not None and bool(overflowed)


def parameters_of(optimizer: torch.optim.Optimizer) -> int:
    """How many parameters it holds."""
    return sum(len(group["params"]) for group in optimizer.param_groups)
