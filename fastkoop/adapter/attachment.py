"""Attachment: an optimizer that is followed, each of its steps noticed once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import torch

from ..checks import InputError, warn
from .optimizer_state import parameters_of, step_was_skipped
from .parameters import Parameters
from .weight_copies import WeightCopies
from .wrappers import has_step_hooks, raw_optimizer, wrapped_optimizers

WRAPPED_IN = torch.optim.Optimizer.profile_hook_step.__code__.co_filename


class Attachment:
    """A hook that runs after an optimizer's steps.

    A step counts once however often `step` is wrapped or calls its parent's, and one that a GradScaler skipped not at
    all. Wrappers without hooks of their own (accelerate's, and so the Trainer's) are followed inside.

    Args:
        optimizer: holds at least one of the parameters; `copies` are what it and its wrappers keep of them.
        parameters: those that a phase records.
        after: called after each step.
        required: whether to refuse optimizers that call no hooks.

    Raises:
        TypeError: no optimizer, or none that calls hooks after its steps.
        ValueError: an optimizer of other parameters.
    """

    def __init__(self, optimizer, parameters: Parameters, after: Callable[[], None], *, required: bool = True):
        self.optimizer = raw_optimizer(optimizer)
        if not (isinstance(self.optimizer, torch.optim.Optimizer) or _looks_like_one(self.optimizer)):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.copies = WeightCopies([*wrapped_optimizers(optimizer)], parameters.all)
        self._parameters, self._after = parameters, after
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        self.missing = [name for name, member in parameters.by_name.items() if id(member) not in held]
        if len(self.missing) == len(parameters.by_name):
            raise InputError(
                "optimizer: it holds none of the parameters that this phase records; make it with the model's"
            )
        self._known = parameters_of(self.optimizer)
        self.handle = None
        if has_step_hooks(self.optimizer):
            self.handle = self.optimizer.register_step_post_hook(self._stepped)
        elif required:
            raise TypeError(
                f"optimizer: {type(optimizer).__name__} calls no hooks after its steps; call record() after each, or "
                "let a KoopmanSchedule do so"
            )

    @property
    def active(self) -> bool:
        """Whether the hook is there; not once its handle has removed it."""
        if self.handle is None:
            return False
        hooks = self.handle.hooks_dict_ref()
        return hooks is None or self.handle.id in hooks

    def remove(self) -> None:
        """Take the hook away."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    def warn_of_others(self) -> None:
        """Say that other optimizers' parameters are recorded as they are when this one has stepped."""
        if self.missing:
            warn(
                f"attach: the optimizer holds {len(self._parameters.by_name) - len(self.missing)} of the "
                f"{len(self._parameters.by_name)} parameters that this phase records, and not {self.missing[0]}; what "
                "other optimizers train is recorded as it is after this one's step. Call record() when all have "
                "stepped, let a KoopmanSchedule do so, or leave them out with exclude="
            )

    def _stepped(self, *_) -> None:
        if step_was_skipped(self.optimizer) or _inside_a_step(self.optimizer):
            return
        if parameters_of(self.optimizer) != self._known:
            self._parameters.check()
        self._after()

    _stepped._torchdynamo_disable = True  # type: ignore[attr-defined]  # a compiled step breaks its graph here

    def __getstate__(self) -> dict:
        """For copies and pickles: the optimizer without the hook."""
        return {**self.__dict__, "handle": None, "_after": None}


def _looks_like_one(optimizer) -> bool:
    return callable(getattr(optimizer, "step", None)) and isinstance(getattr(optimizer, "param_groups", None), list)


def _inside_a_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step that just ended was called by a step of the same optimizer, as a subclass's calls its parent's.

    PyTorch wraps `step` in every class of which there has been an instance, and each wrapper runs the hooks. A count
    of steps that began would be wrong after one that raised, so this looks at who is being called.
    """
    frame: FrameType | None = sys._getframe(2)  # the wrapper that called the hook
    steps = 0
    while frame is not None:
        code = frame.f_code
        if code.co_name == "wrapper" and code.co_filename == WRAPPED_IN and frame.f_locals.get("self") is optimizer:
            steps += 1
        frame = frame.f_back
    return steps > 1


class Watch:
    """Whether parameters changed since it last looked: for optimizers whose steps no hook tells of."""

    def __init__(self, parameters: Parameters):
        self._parameters = parameters
        self._last = parameters.save(buffers=False).parameters

    def differs(self) -> bool:
        """Whether any is another than when `changed` was last asked."""
        now = self._parameters.save(buffers=False).parameters
        return any(not torch.equal(a, b) for a, b in zip(now, self._last, strict=True))

    def changed(self) -> bool:
        """Whether any is another than when this was last asked."""
        differs = self.differs()
        if differs:
            self._last = self._parameters.save(buffers=False).parameters
        return differs
