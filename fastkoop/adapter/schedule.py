"""KoopmanSchedule: burn in, record, jump, and again, in anybody's training loop."""

from __future__ import annotations

import torch

from .. import checks
from .checkpoint import VERSION, sealed, unsealed
from .report import JumpReport

STAGES = ("burn in", "record", "rest")


class KoopmanSchedule:
    """Says after every optimizer step whether to record it, and when to jump.

    Burn in for `burn_in` steps; record `record` of them; jump over `jump`, guarded if there is a guard; train on for
    `rest` steps; record again, and so on, `repeats` times or for ever. Steps that a GradScaler skipped do not count.

    Args:
        phase: the KoopmanPhase, which this attaches to the optimizer; it must not be attached before.
        optimizer: of the model's parameters.
        burn_in, rest: >= 0 optimizer steps.
        record: optimizer steps of a recording, enough for two snapshots.
        jump: optimizer steps that a jump stands for, a multiple of the phase's `every`.
        repeats: jumps to make; None for no end.
        options: what else `KoopmanPhase.jump` takes: guard, horizon, limits, optimizer_state, schedulers, update_bn.

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
        optimizer: torch.optim.Optimizer,
        *,
        burn_in: int,
        record: int,
        jump: int,
        rest: int = 0,
        repeats: int | None = None,
        **options,
    ):
        self.burn_in = checks.integer("burn_in", burn_in, least=0)
        self.record = checks.integer("record", record, least=2 * phase.every, cure="two snapshots make an operator")
        self.jump = phase.whole_steps(checks.integer("jump", jump, least=1), "jump")
        self.rest = checks.integer("rest", rest, least=0)
        self.repeats = None if repeats is None else checks.integer("repeats", repeats, least=1)
        if self.record % phase.every:
            raise checks.InputError(
                f"record: expected a multiple of every={phase.every}, got {self.record}; the last iterate is then the "
                "newest snapshot"
            )
        self.phase, self._options = phase, options
        self.jumps, self.steps = 0, 0  # made, and optimizer steps seen
        self._left = self.burn_in or self.record
        self._stage = STAGES[0] if self.burn_in else STAGES[1]
        self._fresh = 0  # optimizer steps since the last `step`
        phase.attach(optimizer, self._seen)
        try:
            phase.jump_options(**options)
        except Exception:
            phase.detach()
            raise

    def _seen(self) -> bool:
        """An optimizer step was made; whether it is to be recorded."""
        self._fresh += 1
        return self.stage == "record"

    @property
    def stage(self) -> str:
        """What the next optimizer step is for: "burn in", "record", "rest" or, after the last jump, "done"."""
        return "done" if self.jumps == self.repeats else self._stage

    def step(self) -> JumpReport | None:
        """Call after every `optimizer.step()`; jumps where it is time, and then returns its report."""
        fresh, self._fresh = self._fresh, 0
        self.steps += fresh
        if not fresh or self.stage == "done":
            return None
        self._left -= fresh
        if fresh > 1:
            raise checks.InputError(f"step: the optimizer made {fresh} steps since the last call; call it after each")
        if self._left > 0:
            return None
        ended, self._stage = self._stage, "rest" if self._stage == "record" and self.rest else "record"
        self._left = self.rest if self._stage == "rest" else self.record
        if ended != "record":
            return None
        try:  # a jump that fails ends its recording, too
            return self.phase.jump(self.jump, **self._options)
        finally:
            self.phase.clear()
            self.jumps += 1

    def close(self) -> None:
        """Take no more note of the optimizer's steps."""
        self.phase.detach()

    def state_dict(self) -> dict:
        """Where the schedule stands; the phase has a state of its own."""
        counts = {"jumps": self.jumps, "steps": self.steps, "left": self._left, "stage": self._stage}
        return sealed({"kind": "KoopmanSchedule", "version": VERSION, "plan": self._plan(), **counts})

    def _plan(self) -> list:
        return [self.burn_in, self.record, self.jump, self.rest, self.repeats]

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it is damaged, or of another schedule.
        """
        found = unsealed(state, "state", "KoopmanSchedule")
        if found["plan"] != self._plan():
            raise checks.InputError(
                f"state: expected burn_in, record, jump, rest, repeats = {self._plan()}, got another schedule's, "
                f"{found['plan']}"
            )
        self.jumps, self.steps, self._left, self._stage = (found[name] for name in ("jumps", "steps", "left", "stage"))
        self._fresh = 0
