"""Weights that an optimizer keeps besides the model's: Lookahead's slow ones, float32 masters, averages.

An optimizer that writes weights of its own into the model undoes a jump. Copies that can be found move along with the
parameters; where a jump is undone nevertheless, its report says so.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .. import checks
from .buffers import local
from .wrappers import has_step_hooks

NOT_WEIGHTS = frozenset((
    "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta", "sum", "prev", "step_size", "mu_product", "eta",
))  # fmt: skip  # what PyTorch's optimizers keep: moments, scales and counters
NEAR = 0.7  # tensors this near their parameters, relative to the parameters, are copies of them
WATCHED = 12  # optimizer steps after a jump
UNDONE = 0.35  # share of a jump that one optimizer step takes back
ENTRIES = 64  # of every parameter, looked at to see whether a jump is undone


def copies(optimizers: Sequence, parameters: Sequence[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """Copies of the parameters that optimizers keep, each with its parameter's number."""
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    pairs: dict[int, tuple[int, torch.Tensor]] = {}
    for optimizer in optimizers:
        by_name: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for name, number, tensor in (*_in_state(optimizer, numbers), *_in_attributes(optimizer, numbers)):
            if id(tensor) not in numbers and tensor.shape == parameters[number].shape and tensor.is_floating_point():
                by_name.setdefault(name, []).append((number, tensor))
        for members in by_name.values():
            if _are_near(members, parameters):
                pairs |= {id(tensor): (number, tensor) for number, tensor in members}
    return list(pairs.values())


def _in_state(optimizer, numbers: dict[int, int]) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Tensors in a parameter's state that are no moments."""
    state = getattr(optimizer, "state", None)
    for parameter, entries in state.items() if isinstance(state, Mapping) else ():
        if id(parameter) in numbers and isinstance(entries, Mapping):
            for name, value in entries.items():
                if name not in NOT_WEIGHTS and isinstance(value, torch.Tensor):
                    yield name, numbers[id(parameter)], value


def _in_attributes(optimizer, numbers: dict[int, int]) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Tensors in lists beside the optimizer's parameters, one for each, and in mappings from them."""
    groups = getattr(optimizer, "param_groups", ())
    held = [parameter for group in groups for parameter in group["params"]]
    for name, value in vars(optimizer).items():
        if name in ("state", "param_groups", "defaults"):
            continue
        if isinstance(value, Mapping):
            yield from ((name, numbers[id(p)], c) for p, c in value.items() if id(p) in numbers and torch.is_tensor(c))
        elif isinstance(value, (list, tuple)):
            flat = [item for part in value for item in (part if isinstance(part, (list, tuple)) else [part])]
            if len(flat) == len(held) and all(isinstance(item, torch.Tensor) for item in flat):
                yield from ((name, numbers[id(p)], c) for p, c in zip(held, flat, strict=True) if id(p) in numbers)


def _are_near(members: list[tuple[int, torch.Tensor]], parameters: Sequence[torch.Tensor]) -> bool:
    """Whether tensors of one name, taken together, lie near their parameters."""
    apart = size = total = 0.0
    for number, tensor in members:
        weights, other = local(parameters[number]).double(), local(tensor).double()
        apart += float((other.to(weights.device) - weights).square().sum())
        size += float(weights.square().sum())
        total += float(other.square().sum())
    return total > 0 and apart <= NEAR**2 * size


class WeightCopies:
    """The copies of a phase's parameters in the optimizers that it is attached to, wrappers included."""

    def __init__(self, optimizers: Sequence, parameters: Sequence[torch.Tensor]):
        self.optimizers, self._parameters = list(optimizers), list(parameters)
        self._pairs: list[tuple[int, torch.Tensor]] = []
        self._watch: Watch | None = None

    def look(self) -> None:
        """Find them, before the parameters move; what they did before is watched no longer."""
        if self._watch is not None:
            self._watch.remove()
        self._pairs = copies(self.optimizers, self._parameters)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Those that `look` has found."""
        return [tensor for _, tensor in self._pairs]

    @torch.no_grad()
    def follow(self, before: Sequence[torch.Tensor]) -> None:
        """Move every copy as its parameter has moved since it was `before`."""
        for number, tensor in self._pairs:
            target = local(tensor)
            moved = local(self._parameters[number]).to(target.dtype) - before[number].to(target.dtype)
            target.add_(moved.to(target.device))

    def watch(self, before: Sequence[torch.Tensor], report: Any) -> None:
        """Set `report.undone` and warn if one of the next optimizer steps takes the jump back."""
        hooked = [optimizer for optimizer in self.optimizers if has_step_hooks(optimizer)]
        if hooked:
            self._watch = Watch(hooked[-1], self._parameters, before, report)


class Watch:
    """Looks after each of a few optimizer steps at some entries of the parameters."""

    def __init__(self, optimizer, parameters: Sequence[torch.Tensor], before: Sequence[torch.Tensor], report: Any):
        self._parameters, self._report = [weakref.ref(parameter) for parameter in parameters], weakref.ref(report)
        self._last = _entries(local(parameter) for parameter in parameters)
        self._jump = self._last - _entries(before)
        self._shares: list[float] = []
        self._over = False
        self._handle = optimizer.register_step_post_hook(torch.compiler.disable(self._after_step))

    def _after_step(self, *_) -> None:
        if self._over:
            return
        parameters, report = [reference() for reference in self._parameters], self._report()
        size = float(self._jump @ self._jump)
        if report is None or any(parameter is None for parameter in parameters) or not size > 0:
            self.end()
            return
        now = _entries(local(parameter) for parameter in parameters)
        self._shares.append(float((now - self._last) @ self._jump) / size)
        self._last = now
        back, others = min(self._shares), sorted(abs(share) for share in self._shares)
        usual = others[(len(others) - 1) // 2]
        if len(self._shares) >= 4 and back <= -UNDONE and usual < -back / 4:
            report.undone = True
            checks.warn(
                f"jump: the optimizer took back {min(-back, 1.0):.0%} of it in one step: it keeps weights of its own, "
                "which FastKoop does not know; jump with the optimizer beneath it"
            )
        if len(self._shares) == WATCHED or report.undone:
            self.end()

    def end(self) -> None:
        """Look no longer; the hook stays, for an optimizer's hooks must not change while it calls them."""
        self._over = True

    def remove(self) -> None:
        """The same, between the optimizer's steps: the hook goes."""
        self._over = True
        self._handle.remove()

    def __reduce__(self):
        """Copies and pickles of a phase watch nothing."""
        return type(None), ()


def _entries(tensors) -> torch.Tensor:
    """Some entries of every tensor, evenly spread, in float64 on the CPU."""
    parts = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        parts.append(flat[:: max(1, len(flat) // ENTRIES)].double().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
