"""A Koopman step against an optimizer step, for anybody's model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number
from statistics import median

import torch
from torch import nn

from ..checks import InputError, integer
from .phase import KoopmanPhase
from .randomness import generators_put_back
from .wrappers import raw_optimizer

WARM_UP = 3  # optimizer steps before the clock runs
OPTIMIZER_STEPS, KOOPMAN_STEPS = 10, 20  # in a round

COSTS = {
    "optimizer_step": "optimizer step, closure included",
    "record": "record, per iteration",
    "fit": "fit",
    "first_step": "first step after a fit",
    "step": "step, one at a time",
    "ahead_step": "step, {ahead} at a time",
    "jump": "jump over {jump_steps} iterations",
}


@dataclass(frozen=True)
class StepCost:
    """Medians in seconds of what a Koopman phase does, beside one step of the optimizer.

    A step and a jump's every step move `every` optimizer iterations on.
    """

    optimizer_step: float
    record: float
    fit: float
    first_step: float
    step: float
    ahead_step: float
    jump: float
    partition: str
    parameters: int
    snapshots: int
    every: int
    ahead: int
    jump_steps: int
    rounds: int

    def in_optimizer_steps(self, name: str) -> float:
        """A cost in units of one optimizer step."""
        return getattr(self, name) / self.optimizer_step

    @property
    def pays_after(self) -> float:
        """Optimizer iterations from which one jump in their place is cheaper, recording and fit included."""
        recording = self.record * self.snapshots * self.every
        return (recording + self.fit + self.jump) / self.optimizer_step

    def as_dict(self) -> dict:
        """Seconds, optimizer steps and the setting, ready for JSON."""
        setting = ("partition", "parameters", "snapshots", "every", "ahead", "jump_steps", "rounds")
        return {
            "seconds": {name: getattr(self, name) for name in COSTS},
            "optimizer_steps": {name: self.in_optimizer_steps(name) for name in COSTS},
            "pays_after": self.pays_after,
            **{name: getattr(self, name) for name in setting},
        }

    def __str__(self) -> str:
        lines = [
            f"{self.parameters} parameters, partition {self.partition}, {self.snapshots} snapshots, "
            f"every={self.every}; medians over {self.rounds} rounds",
            f"{'':36}{'seconds':>10}  optimizer steps",
        ]
        for name, words in COSTS.items():
            words = words.format(ahead=self.ahead, jump_steps=self.jump_steps)
            lines.append(f"{words:36}{getattr(self, name):>10.3g}  {self.in_optimizer_steps(name):.3g}")
        lines.append(f"one jump pays from {self.pays_after:.3g} iterations on, recording and fit included")
        return "\n".join(lines)


def step_cost(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    closure: Callable,
    partition="node",
    *,
    snapshots: int = 50,
    rounds: int = 9,
    ahead: int = 32,
    jump_steps: int | None = None,
    **options,
) -> StepCost:
    """What a Koopman phase costs beside a step of this optimizer on this model.

    Trains for a few iterations more than a recording of `snapshots` needs, then times everything in turn,
    round by round. The model's parameters, buffers and gradients, the optimizer's state and the random
    generators (torch, NumPy, Python) are put back bit by bit, also after an exception; what else the
    closure changes, such as where its data loader stands, is not.

    Args:
        model, partition, options: as `KoopmanPhase`, all but capacity.
        optimizer: of the model's parameters; hooks on it run as in training. Of a wrapper, as accelerate's, the one
            that it holds is measured.
        closure: as for torch.optim: calls zero_grad() and backward() and returns the loss.
        snapshots: >= 2, that an operator is fitted to.
        rounds: of which the median is reported.
        ahead: states that a look-ahead computes in one pass, see `KoopmanPhase.step`.
        jump_steps: optimizer iterations to jump over; by default those of the recording.

    Raises:
        ValueError, TypeError: naming the argument, what was expected, what was found and the cure.

    >>> import torch
    >>> model = torch.nn.Linear(8, 4)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> x = torch.ones(16, 8)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = model(x).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> cost = step_cost(model, optimizer, closure, snapshots=5, rounds=1)
    >>> cost.step > 0 and cost.in_optimizer_steps("optimizer_step") == 1.0
    True
    """
    if "capacity" in options:
        raise InputError("capacity: step_cost holds as many snapshots as it records; pass snapshots=")
    optimizer = raw_optimizer(optimizer)
    snapshots = integer("snapshots", snapshots, least=2)
    rounds, ahead = integer("rounds", rounds, least=1), integer("ahead", ahead, least=1)
    phase = KoopmanPhase(model, partition, capacity=snapshots, **options)
    if jump_steps is None:
        jump_steps = snapshots * phase.every
    jump_steps = phase.whole_steps(jump_steps, "jump_steps")
    return _measure(
        phase, model, optimizer, closure, partition=partition, rounds=rounds, ahead=ahead, jump_steps=jump_steps
    )


def _measure(phase, model: nn.Module, optimizer, closure, *, partition, rounds: int, ahead: int, jump_steps: int):
    """`step_cost` with a fresh phase whose capacity is full after that many recordings."""
    _check(model, optimizer, closure)
    with _put_back(model, optimizer):
        _first_step(model, optimizer, closure)
        for _ in range(WARM_UP):
            optimizer.step(closure)
        for _ in range(phase.capacity * phase.every):
            optimizer.step(closure)
            phase.record()
        _round(phase, optimizer, closure, ahead, jump_steps)  # compiles what is not compiled yet
        seconds = [_round(phase, optimizer, closure, ahead, jump_steps) for _ in range(rounds)]
        medians = {name: median(costs[name] for costs in seconds) for name in COSTS}
    parameters = sum(group.rows * group.n for group in phase.groups)
    return StepCost(
        **medians, partition=partition if isinstance(partition, str) else "by pattern", parameters=parameters,
        snapshots=phase.capacity, every=phase.every, ahead=ahead, jump_steps=jump_steps, rounds=rounds,
    )  # fmt: skip


def _check(model, optimizer, closure) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not callable(closure):
        raise TypeError(f"closure: expected a function that returns the loss, got {type(closure).__name__}")
    moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in moved for parameter in model.parameters()):
        raise InputError("optimizer: it holds none of the model's parameters; make it with model.parameters()")


def _first_step(model, optimizer, closure) -> None:
    """One optimizer step that must return a loss and leave gradients."""
    loss = optimizer.step(closure)
    if not (isinstance(loss, Number) or (isinstance(loss, torch.Tensor) and loss.numel() == 1)):
        raise InputError(
            f"closure: expected it to return the loss, one number, got {_kind(loss)}; as for torch.optim, it calls "
            "zero_grad() and backward() and returns the loss"
        )
    if all(parameter.grad is None for parameter in model.parameters()):
        raise InputError("closure: no parameter of the model has a gradient after it; call loss.backward() in it")


def _kind(loss) -> str:
    return f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)


def _round(phase, optimizer, closure, ahead: int, jump_steps: int) -> dict[str, float]:
    """Seconds of everything once, one after the other; the parameters end where the optimizer left them."""
    seconds = Clock({recording.device for recording in phase.parts.recordings}).seconds
    trained, recorded = [], []
    for _ in range(OPTIMIZER_STEPS):
        trained.append(seconds(lambda: optimizer.step(closure)))
        recorded.append(sum(seconds(phase.record) for _ in range(phase.every)) / phase.every)
    costs = {"optimizer_step": median(trained), "record": median(recorded)}
    costs["fit"] = seconds(phase.fit)
    costs["first_step"] = seconds(phase.step)
    costs["step"] = median(seconds(phase.step) for _ in range(KOOPMAN_STEPS))
    phase.rollback()
    costs["ahead_step"] = seconds(lambda: [phase.step(ahead=ahead) for _ in range(ahead)]) / ahead
    phase.rollback()
    costs["jump"] = seconds(lambda: phase.jump(jump_steps))
    phase.rollback()
    return costs


class Clock:
    """Seconds of a call with all that it asked of GPUs, none of which works on what came before."""

    def __init__(self, devices: Iterable[torch.device]):
        self._gpus = [device for device in devices if device.type == "cuda"]

    def seconds(self, work: Callable) -> float:
        """Of one call."""
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        for device in self._gpus:
            torch.cuda.synchronize(device)


@contextmanager
def _put_back(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Everything that training changes comes back bit by bit, also after an exception."""
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    state = {parameter: copy.deepcopy(entries) for parameter, entries in optimizer.state.items()}
    groups = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        with generators_put_back():
            yield
    finally:
        with torch.no_grad():
            for module, entries in buffers:
                module._buffers.clear()
                module._buffers.update(entries)
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
            for parameter, gradient, value in gradients:
                parameter.grad = gradient if value is None else gradient.copy_(value)
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, entries in zip(optimizer.param_groups, groups, strict=True):
            members = group["params"]
            group.clear()
            group.update({"params": members, **entries})
