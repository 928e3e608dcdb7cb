"""Koopman: a phase and its schedule in three lines, for any training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from .. import checks
from ..options import Options
from .checkpoint import compact
from .jump_log import JumpLog
from .phase import KoopmanPhase
from .presets import preset_options
from .report import JumpReport
from .schedule import KoopmanSchedule
from .seal import VERSION, sealed, unsealed
from .validation import Validation

BURN_IN, RECORD = 0.25, 0.05  # of a run whose length is known
LEAST, STEPS = 24, 50  # iterations of a recording then, and of either where the length is not known
PLAN = ("burn_in", "record", "jump", "rest")
JUMP_OPTIONS = ("limits", "optimizer_state", "schedulers", "update_bn", "horizon", "candidates", "gate", "repeats")


class Koopman:
    """Records, jumps and trains on, again and again: a KoopmanPhase, its schedule, a guard and a log in one object.

    Args:
        model: any module, as for `KoopmanPhase`.
        optimizer: of its parameters, wrapped or not.
        preset: "noisy" for mini-batches, "smooth" for full batches, "published" for the paper's operators.
        validate: (loss, batches): a jump is kept only if the mean of `loss(model, batch)` over these batches is not
            larger afterwards, and of several candidates (Koopman steps, the recording's mean, a line) the best is
            taken. Without it, the recording's own forecast decides.
        monitor: a function without arguments instead, which returns a number, smaller is better.
        log: `log(name, value, step)`, called for every jump, such as TensorBoard's `writer.add_scalar`.
        total_steps: optimizer steps of the whole run; needed where the next four are fractions of it.
        burn_in: optimizer steps before the first recording; by default a quarter of the run, or 50.
        record: optimizer steps of a recording; by default a twentieth of the run, at least 24, or 50.
        jump: optimizer steps that a jump stands for; by default as many as were recorded.
        rest: optimizer steps between a jump and the next recording; by default as many as are recorded.
        options: what else `KoopmanPhase` and its `jump` take, such as partition, include or optimizer_state.

    Integers are iterations; floats in (0, 1) are fractions of `total_steps`. `record` and `jump` are rounded down to a
    multiple of the phase's `every`.

    Raises:
        ValueError, TypeError: naming the argument.

    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> def loss(model, batch):
    ...     return (model(batch) - batch[:, :1]).square().mean()
    >>> koopman = Koopman(model, optimizer, validate=(loss, [x]), burn_in=5, record=12, jump=12, rest=5)
    >>> for _ in range(40):
    ...     optimizer.zero_grad()
    ...     loss(model, x).backward()
    ...     optimizer.step()
    ...     report = koopman.step()
    >>> koopman.jumps
    2
    >>> koopman.close()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        preset: str | None = "noisy",
        validate: tuple[Callable, Iterable] | None = None,
        monitor: Callable[[], float] | None = None,
        log: Callable[[str, float, int], object] | None = None,
        total_steps: int | None = None,
        burn_in: int | float | None = None,
        record: int | float | None = None,
        jump: int | float | None = None,
        rest: int | float | None = None,
        **options,
    ):
        self._log = JumpLog(log)
        total = None if total_steps is None else checks.integer("total_steps", total_steps, least=1)
        if burn_in is None:
            burn_in = STEPS if total is None else math.floor(BURN_IN * total)
        if record is None:
            record = STEPS if total is None else max(LEAST, math.floor(RECORD * total))
        burn_in = _iterations("burn_in", burn_in, total, least=0)
        record = _iterations("record", record, total, least=2)
        jump_options = {name: options.pop(name) for name in JUMP_OPTIONS if name in options}
        spacing = {} if {"window", "every"} & set(options) else preset_options(preset, record)
        options = {name: spacing[name] for name in ("window", "every") if name in spacing} | options
        every = Options(window=options.get("window", 1), every=options.get("every", 1)).every
        record = max(record // every, 2) * every
        jump = record if jump is None else _iterations("jump", jump, total, least=1)
        rest = record if rest is None else _iterations("rest", rest, total, least=0)
        self.phase = KoopmanPhase(model, preset=preset, **{"capacity": record // every, **options})
        guard = _guard(model, validate, monitor)
        if guard is not None:
            jump_options = {"horizon": "auto", "candidates": ("koopman", "mean", "line"), **jump_options}
        self.schedule = KoopmanSchedule(
            self.phase, optimizer, burn_in=burn_in, record=record, rest=rest, guard=guard, **jump_options,
            jump=jump if jump == math.inf else max(jump // every, 1) * every,
        )  # fmt: skip

    def step(self) -> JumpReport | None:
        """Call after every `optimizer.step()`; a JumpReport where this jumped."""
        report = self.schedule.step()
        if report is not None:
            self._log(report, self.phase.forecast().overall, self.schedule.steps)
        return report

    @property
    def jumps(self) -> int:
        """Jumps that were tried so far."""
        return self.schedule.jumps

    @property
    def gradients_saved(self) -> int:
        """Optimizer steps that the jumps so far stand for."""
        return self._log.saved

    def average(self) -> dict[str, torch.Tensor]:
        """The mean of the recorded iterates by parameter name, see `KoopmanPhase.average`."""
        return self.phase.average()

    def state_dict(self) -> dict:
        """All that a resumed run needs beside the model's and the optimizer's state; it shares no memory with it."""
        return compact(sealed({
            "kind": "Koopman", "version": VERSION, "phase": self.phase.state_dict(),
            "schedule": self.schedule.state_dict(), "saved": self._log.saved, "plan": self.plan,
        }), copy=True)  # fmt: skip

    @property
    def plan(self) -> dict[str, float]:
        """Iterations to burn in, record, jump and rest, as they were settled."""
        return {name: getattr(self.schedule, name) for name in PLAN}

    def check_state_dict(self, state: dict) -> None:
        """Raise what `load_state_dict` would; nothing changes."""
        contents = unsealed(state, "state", "Koopman")
        self.phase.check_state_dict(contents["phase"])
        self.schedule.check_state_dict(contents["schedule"])

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it is damaged, or of another setting; nothing has changed then.
        """
        self.check_state_dict(state)
        self.phase.load_state_dict(state["phase"])
        self.schedule.load_state_dict(state["schedule"])
        self._log.saved = state["saved"]

    def close(self) -> None:
        """Record no more, and give the recording's memory back."""
        self.schedule.close()
        self.phase.release()


def resumed(options: dict, state: dict | None) -> dict:
    """Options with a saved run's iterations where they would be fractions: of a run that may end elsewhere now."""
    if not state:
        return options
    settled = {name: state["plan"][name] for name in PLAN if not isinstance(options.get(name), int)}
    return {**options, **settled}


def _iterations(name: str, value, total: int | None, *, least: int) -> int | float:
    """Iterations from a number of them, or from a fraction of the run."""
    if name == "jump" and value == math.inf:
        return value
    if isinstance(value, float) and not value.is_integer():
        if not 0.0 < value < 1.0:
            raise checks.InputError(f"{name}: expected iterations or a fraction in (0, 1), got {value}")
        if total is None:
            raise checks.InputError(f"{name}: the fraction {value} needs total_steps=, the optimizer steps of the run")
        return max(least, math.floor(value * total))
    return checks.integer(name, value, least=least)


def _guard(model: nn.Module, validate, monitor) -> Callable[[], float] | None:
    if validate is None:
        return monitor
    if monitor is not None:
        raise checks.InputError("validate: expected either validate= or monitor=, got both")
    if not (isinstance(validate, (tuple, list)) and len(validate) == 2):
        raise TypeError(f"validate: expected (loss, batches), got {type(validate).__name__}")
    return Validation(model, *validate)
