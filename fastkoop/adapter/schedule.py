"""KoopmanSchedule: burn in, record, jump, and again, in anybody's training loop."""

from __future__ import annotations

from typing import Any

from .. import checks
from .attachment import Watch
from .report import JumpReport
from .seal import VERSION, sealed, unsealed

STAGES = ("burn in", "record", "rest")
BY_DEFAULT: Any = object()  # a gate where there is no guard


class KoopmanSchedule:
    """Records iterations and jumps when it is time; call `step` at the end of every iteration.

    Burn in for `burn_in` iterations; record `record` of them; jump over `jump`; train on for `rest`; record again, and
    so on, `repeats` times or for ever. What is recorded are the parameters as the loop has left them when `step` is
    called: clamped, projected, or moved by several optimizers. An iteration is a call of `step` before which the
    optimizer made at least one step; those that a GradScaler skipped, and batches whose gradients only accumulate, do
    not count. Of an optimizer that calls no hooks, or whose own `step` is not called (SAM's two half steps), an
    iteration is a call before which the parameters changed.

    Snapshots, times, `phase.average()` and `phase.rollback()` of a jump are there until the next recording begins;
    `phase.release()` gives their memory back.

    Args:
        phase: the KoopmanPhase, which this attaches to the optimizer; it must not be attached before.
        optimizer: of the model's parameters.
        burn_in, rest: >= 0 iterations.
        record: iterations of a recording, enough for two snapshots.
        jump: iterations that a jump stands for, a multiple of the phase's `every`; math.inf for the operators' limit.
        repeats: jumps to make; None for no end.
        guard: as `KoopmanPhase.jump`.
        gate: as `KoopmanPhase.jump`; by default "forecast" without a guard, and None with one. None without a guard is
            the method as published, which can destroy a model, and warns.
        options: what else `KoopmanPhase.jump` takes.

    Warns:
        RuntimeWarning: neither a guard nor a gate.

    >>> import torch
    >>> from fastkoop.torch_adapter import KoopmanPhase
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> schedule = KoopmanSchedule(KoopmanPhase(model, cutoff="jax"), optimizer, burn_in=5, record=10, jump=10, rest=5)
    >>> reports = []
    >>> for _ in range(60):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(3, 4)).square().mean().backward()
    ...     optimizer.step()
    ...     if (report := schedule.step()) is not None:   # a JumpReport where it jumped
    ...         reports.append(report)
    >>> len(reports), schedule.stage
    (4, 'rest')
    """

    def __init__(
        self,
        phase,
        optimizer,
        *,
        burn_in: int,
        record: int,
        jump: float,
        rest: int = 0,
        repeats: int | None = None,
        guard=None,
        gate: str | None = BY_DEFAULT,
        **options,
    ):
        self.burn_in = checks.integer("burn_in", burn_in, least=0)
        self.record = checks.integer("record", record, least=2 * phase.every, cure="two snapshots make an operator")
        self.jump = phase.whole_steps(jump, "jump")
        if self.jump < 1:
            raise checks.InputError(f"jump: expected an integer >= 1, or math.inf, got {self.jump}")
        self.rest = checks.integer("rest", rest, least=0)
        self.repeats = None if repeats is None else checks.integer("repeats", repeats, least=1)
        if self.record % phase.every:
            raise checks.InputError(
                f"record: expected a multiple of every={phase.every}, got {self.record}; the last iterate is then the "
                "newest snapshot"
            )
        unsafe = guard is None and gate is None
        if gate is BY_DEFAULT:
            gate = "forecast" if guard is None else None
        self.phase, self._options = phase, {**options, "guard": guard, "gate": gate}
        self.jumps, self.steps = 0, 0  # made, and iterations seen
        self._left = self.burn_in or self.record
        self._stage = STAGES[0] if self.burn_in else STAGES[1]
        self._fresh = 0  # optimizer steps since the last `step`
        self._fresh_recording = True  # the next snapshot begins one
        phase.attach(optimizer, self._stepped)
        try:
            phase.jump_options(steps=self.jump, **self._options)
        except BaseException:
            phase.detach()
            raise
        self._watch: Watch | None = Watch(phase.parts.parameters)  # until a hook tells of a step
        if unsafe:
            checks.warn(
                "gate: None without a guard jumps wherever the operators lead, which can destroy a model; pass guard=, "
                'or leave gate at its default, "forecast"'
            )

    def _stepped(self) -> None:
        """The optimizer made a step."""
        self._fresh += 1
        self._watch = None

    @property
    def stage(self) -> str:
        """What the next iteration is for: "burn in", "record", "rest" or, after the last jump, "done"."""
        return "done" if self.jumps == self.repeats else self._stage

    def step(self) -> JumpReport | None:
        """Call at the end of every iteration; jumps where it is time, and then returns its report."""
        if not self._iterated():
            return None
        self.steps += 1
        if self.stage == "done":
            return None
        if self._stage == "record":
            self._record()
        self._left -= 1
        if self._left > 0:
            return None
        ended, self._stage = self._stage, "rest" if self._stage == "record" and self.rest else "record"
        self._left = self.rest if self._stage == "rest" else self.record
        return self._jump() if ended == "record" else None

    def _iterated(self) -> bool:
        """Whether there was an optimizer step since the last call."""
        fresh, self._fresh = self._fresh, 0
        return fresh > 0 or (self._watch is not None and self._watch.changed())

    def _record(self) -> None:
        if self._fresh_recording:
            self.phase.clear()
            self._fresh_recording = False
        self.phase.record()

    def _jump(self) -> JumpReport:
        self._fresh_recording = True
        self.jumps += 1
        try:
            report = self.phase.jump(self.jump, **self._options)
        except BaseException:  # a jump that fails ends its recording, too
            self.phase.clear()
            raise
        if self._watch is not None:
            self._watch.changed()  # the jump is no step
        return report

    def close(self) -> None:
        """Take no more note of the optimizer's steps."""
        self.phase.detach()
        self._watch = None

    def state_dict(self) -> dict:
        """Where the schedule stands; the phase has a state of its own."""
        fresh = int(self._watch.differs()) if self._watch is not None else self._fresh
        counts = {
            "jumps": self.jumps, "steps": self.steps, "left": self._left, "stage": self._stage, "fresh": fresh,
            "hooked": self._watch is None, "fresh_recording": self._fresh_recording,
        }  # fmt: skip
        return sealed({"kind": "KoopmanSchedule", "version": VERSION, "plan": self._plan(), **counts})

    def _plan(self) -> list:
        return [self.burn_in, self.record, self.jump, self.rest, self.repeats]

    def check_state_dict(self, state: dict) -> dict:
        """Raise what `load_state_dict` would; nothing changes. Returns what it would take."""
        contents = unsealed(state, "state", "KoopmanSchedule")
        if contents["plan"] != self._plan():
            raise checks.InputError(
                f"state: expected burn_in, record, jump, rest, repeats = {self._plan()}, got another schedule's, "
                f"{contents['plan']}"
            )
        return contents

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`, also from between an optimizer's step and `step`.

        Raises:
            ValueError: it is damaged, or of another schedule.
        """
        contents = self.check_state_dict(state)
        self.jumps, self.steps, self._left = contents["jumps"], contents["steps"], contents["left"]
        self._stage = contents["stage"]
        self._fresh = contents.get("fresh", 0)
        self._fresh_recording = contents.get("fresh_recording", self._stage != "record" or self._left == self.record)
        self._watch = None if contents.get("hooked", True) else Watch(self.phase.parts.parameters)
