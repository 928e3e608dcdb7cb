"""Live objects of a checkpoint: matched with their saved states, assigned, and put back if another fails."""

from __future__ import annotations

import collections
import copy
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..checks import InputError
from .buffers import local
from .wrappers import raw_model, raw_name, raw_optimizer, raw_paths, without_prefixes

PER_ENTRY = frozenset((
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "sum", "ax", "prev",
))  # fmt: skip  # state of PyTorch's optimizers with an entry for every entry of its parameter

OF_SCHEDULERS = frozenset((
    "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "param_names",
))  # fmt: skip  # what schedulers and names add to a group


def live_of(name: str, thing) -> Live:
    """How a live object is saved, matched and loaded.

    Raises:
        TypeError: it has no `load_state_dict`.
    """
    if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
        raise TypeError(f"{name}: expected something with load_state_dict, got {type(thing).__name__}")
    if hasattr(thing, "check_state_dict"):
        return CheckedLive(name, thing)
    if isinstance(thing, nn.Module):
        return LiveModel(name, thing)
    raw = raw_optimizer(thing)
    return LiveOptimizer(name, raw) if isinstance(raw, torch.optim.Optimizer) else Live(name, thing)


class Live:
    """A live object of which nothing is known but its `state_dict` and `load_state_dict`, such as a scheduler."""

    def __init__(self, name: str, thing):
        self.name, self.thing, self._kept = name, thing, None

    @property
    def kind(self) -> str | None:
        """The class that a state has to come from."""
        return type(self.thing).__name__

    def state(self):
        """What is saved."""
        return self.thing.state_dict()

    def check(self, state, kind: str | None) -> None:
        """Raise unless the live object can take the state; nothing is changed.

        Args:
            state: as saved.
            kind: the class that it was saved from; None where the file does not say.

        Raises:
            ValueError: naming the first difference.
        """
        if None not in (kind, self.kind) and kind != self.kind:
            raise self._refused(f"the state of a {self.kind}", f"that of a {kind}")
        if not isinstance(state, Mapping):
            raise self._refused("a state_dict", type(state).__name__)

    def _refused(self, expected: str, got: str) -> InputError:
        return InputError(
            f"{self.name}: expected {expected}, as the live one has, got {got}; make it as the one that was saved"
        )

    def keep(self) -> None:
        """Remember the live object's values."""
        self._kept = copy.deepcopy(self.thing.state_dict())

    def assign(self, state) -> None:
        """Load the state."""
        self.thing.load_state_dict(state)

    def put_back(self) -> None:
        """Back to what was kept."""
        self.thing.load_state_dict(self._kept)


class CheckedLive(Live):
    """A phase or a schedule: checks a state whole before it changes anything, and does not fail afterwards."""

    @property
    def kind(self) -> None:
        """Its states say so themselves."""

    def check(self, state, kind: str | None) -> None:
        try:
            self.thing.check_state_dict(state)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None

    def keep(self) -> None:
        """Nothing: its load is the last, and whole."""

    def put_back(self) -> None:
        """Nothing, likewise."""


class LiveModel(Live):
    """A module beneath its wrappers, by the names of the raw model."""

    def __init__(self, name: str, thing: nn.Module):
        super().__init__(name, raw_model(thing))

    @property
    def kind(self) -> None:
        """Its names and shapes tell."""

    def state(self):
        state, paths = self.thing.state_dict(), raw_paths(self.thing)
        renamed = collections.OrderedDict((raw_name(key, paths), value) for key, value in state.items())
        if hasattr(state, "_metadata"):
            metadata = ((paths.get(path, path), value) for path, value in state._metadata.items())
            renamed._metadata = collections.OrderedDict(metadata)
        return renamed

    def check(self, state, kind: str | None) -> None:
        super().check(state, kind)
        saved, live = self._by_raw_name(state), self.state()
        if absent := [key for key in live if key not in saved]:
            raise self._refused(f"{absent[0]!r}", f"a state without it, of {len(saved)} entries")
        if surplus := [key for key in saved if key not in live]:
            raise self._refused(f"{len(live)} entries", f"{surplus[0]!r} beside them")
        for key, value in live.items():
            if not isinstance(value, torch.Tensor) or nn.parameter.is_lazy(value):
                continue
            if _described(value) != _described(saved[key]):
                raise self._refused(f"{key} {_described(value)}", _described(saved[key]))

    def _by_raw_name(self, state: Mapping) -> dict:
        """The state with the raw model's names; files of format 1 may have wrappers' prefixes."""
        live = self.state()
        return {key if key in live else without_prefixes(key): value for key, value in state.items()}

    def keep(self) -> None:
        modules = list(self.thing.modules())
        self._kept = (
            [(module, dict(module._parameters), dict(module._buffers)) for module in modules],
            Values([*self.thing.parameters(), *self.thing.buffers()]),
            [(module, copy.deepcopy(module.get_extra_state())) for module in modules if _has_extra_state(module)],
        )

    def assign(self, state) -> None:
        paths = raw_paths(self.thing)
        live_keys = {raw_name(key, paths): key for key in self.thing.state_dict()}
        named = collections.OrderedDict((live_keys[key], value) for key, value in self._by_raw_name(state).items())
        if hasattr(state, "_metadata"):
            modules = {raw: path for path, raw in reversed(paths.items())}
            metadata = ((modules.get(without_prefixes(path), path), value) for path, value in state._metadata.items())
            named._metadata = collections.OrderedDict(metadata)
        self.thing.load_state_dict(named)

    def put_back(self) -> None:
        members, values, extras = self._kept
        for module, parameters, buffers in members:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        values.put_back()
        for module, extra in extras:
            module.set_extra_state(extra)


class LiveOptimizer(Live):
    """An optimizer beneath its wrappers."""

    def check(self, state, kind: str | None) -> None:
        super().check(state, kind)
        groups, saved = self.thing.param_groups, state.get("param_groups")
        if not isinstance(saved, list) or not isinstance(state.get("state"), Mapping):
            raise self._refused("an optimizer's state_dict", f"one of {', '.join(map(repr, state)) or 'nothing'}")
        if len(groups) != len(saved):
            raise self._refused(f"{len(groups)} groups of parameters", f"{len(saved)}")
        for number, (group, theirs) in enumerate(zip(groups, saved, strict=True)):
            if len(group["params"]) != len(theirs["params"]):
                raise self._refused(f"{len(group['params'])} parameters in group {number}", f"{len(theirs['params'])}")
            absent = set(self.thing.defaults) - set(theirs)
            surplus = set(theirs) - set(group) - OF_SCHEDULERS
            if absent and surplus:  # either alone may be another version's
                expected, got = ", ".join(sorted(absent)), ", ".join(sorted(surplus))
                raise self._refused(f"the options of a {self.kind} ({expected})", f"{got}, another optimizer's")
        self._check_entries(state["state"], saved)

    def _check_entries(self, states: Mapping, saved: list) -> None:
        """Shapes and dtypes of what PyTorch's optimizers keep beside every entry of a parameter."""
        if not type(self.thing).__module__.startswith("torch.optim"):
            return
        numbers = [number for group in saved for number in group["params"]]
        parameters = [parameter for group in self.thing.param_groups for parameter in group["params"]]
        by_number = dict(zip(numbers, parameters, strict=True))
        for number, entries in states.items():
            if number not in by_number:
                if isinstance(number, int):
                    raise self._refused(f"states of {len(parameters)} parameters", f"one of parameter {number}")
                continue
            for name, value in entries.items() if isinstance(entries, Mapping) else ():
                parameter = by_number[number]
                if name in PER_ENTRY and isinstance(value, torch.Tensor) and _described(value) != _described(parameter):
                    raise self._refused(f"{name} {_described(parameter)} of parameter {number}", _described(value))

    def keep(self) -> None:
        state, groups = self.thing.state, self.thing.param_groups
        tensors = [value for entries in state.values() if isinstance(entries, Mapping) for value in entries.values()]
        tensors += [value for group in groups for key, value in group.items() if key != "params"]
        self._kept = (
            state, dict(state), {key: dict(entries) for key, entries in state.items() if isinstance(entries, dict)},
            groups, [(group, dict(group)) for group in groups],
            Values(value for value in tensors if isinstance(value, torch.Tensor)),
        )  # fmt: skip

    def put_back(self) -> None:
        state, members, entries, groups, options, values = self._kept
        self.thing.state, self.thing.param_groups = state, groups
        state.clear()
        state.update(members)
        for key, value in entries.items():
            state[key].clear()
            state[key].update(value)
        for group, value in options:
            group.clear()
            group.update(value)
        values.put_back()


class Values:
    """Tensors and copies of their values, in the CPU's memory."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        self._tensors = [(tensor, _copied(tensor)) for tensor in tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        """Every tensor's values as they were."""
        for tensor, value in self._tensors:
            if value is not None:
                local(tensor).copy_(value)


def _copied(tensor: torch.Tensor) -> torch.Tensor | None:
    """None for a tensor without values."""
    if nn.parameter.is_lazy(tensor) or tensor.device.type == "meta":
        return None
    return local(tensor).to("cpu", copy=True)


def _described(value) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} in {str(value.dtype).removeprefix('torch.')}"


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state
