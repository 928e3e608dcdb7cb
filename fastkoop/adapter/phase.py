"""KoopmanPhase: record a PyTorch model while it trains, then move its weights with Koopman operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Unpack

import torch
from torch import nn

from .. import checks
from ..operator import KoopmanOperator
from ..options import Options
from ..partition import Group
from . import pruning
from . import state as states
from .attachment import Attachment
from .buffers import HALVES, GroupBuffer
from .fits import Fits
from .forecast import Forecasts, forecasts
from .jump import Jump
from .jump_options import JumpOptions
from .layout import groups_of, home_of, local_groups, refuse_frozen, setup_of
from .limits import Limits
from .optimizer_state import Rates, Velocities
from .parameters import Parameters
from .parts import Parts
from .presets import OptionValues, preset_candidates, preset_options
from .ranks import exchange, ranks_of
from .recorder import Recorder
from .recording_plan import RecordingPlan
from .report import JumpReport
from .walker import Walker


class KoopmanPhase:
    """Records a model's parameters after optimizer steps, fits operators, and moves the parameters with them.

    After each `every`-th optimizer step the parameters go into a time-major buffer per layer (one buffer
    for the weight, quasi-node and node granularities). `fit` builds K = Fp pinv(F) per block, as published
    (Dogra & Redman 2020); `step` moves the parameters one recorded interval at a time and `jump` straight
    to the end. Both start at the newest snapshot. `steps` counts optimizer iterations.

    A model that several ranks train (DistributedDataParallel, FSDP2's `fully_shard`) has a phase on each, and every
    rank records, fits and moves after the same iterations: see `fastkoop.adapter.ranks` for what they exchange.

    Args:
        model: any module with float parameters on one device; frozen ones are left alone, tied ones taken once.
            float16 and bfloat16 parameters are recorded in float32. `torch.compile`d ones too.
        partition: "weight", "quasi-node", "node", "layer", "network", or a mapping from name patterns to
            these, see `fastkoop.partition`.
        q: weights in a quasi-node.
        preset: "published", "noisy" or "smooth", see `fastkoop.adapter.presets`; what is given besides wins.
        capacity: snapshots to hold; when full the oldest give way. None grows as needed.
        include, exclude: name patterns (fnmatch) of parameters to take or to leave.
        storage_dtype: torch.float32 or torch.float64; torch.bfloat16 stores distances from the first snapshot, with an
            error of 2^-9 of each; None keeps the parameters' own.
        storage_device: None, the parameters' own; "cpu" copies the snapshots of a model on a GPU to pinned memory
            while training goes on.
        process_group: ranks that train this model together; None finds DistributedDataParallel's, where `model` is the
            wrapper, and FSDP2's.
        options: cutoff, observables, stabilize, out_of_span: as `fastkoop.fit`. `Momentum()` records the attached
            optimizer's velocities beside the weights: its buffers times the learning rate. every=k records each k-th
            optimizer step; predictions then move in multiples of k. window=k records the mean of the last k iterates;
            alone it implies every=k.

    Raises:
        ValueError, TypeError: naming the argument, what was expected, what was found and the cure.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> phase = KoopmanPhase(model, partition="node")
    >>> handle = phase.attach(optimizer)
    >>> for _ in range(5):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(1, 3)).square().sum().backward()
    ...     optimizer.step()
    >>> phase.snapshots
    5
    >>> phase.jump(10).steps
    10
    """

    def __init__(
        self,
        model: nn.Module,
        partition="node",
        q: int | None = None,
        *,
        preset: str | None = None,
        capacity: int | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        storage_dtype: torch.dtype | None = None,
        storage_device=None,
        process_group=None,
        **options: Unpack[OptionValues],
    ):
        if storage_dtype not in (None, torch.float32, torch.float64, *HALVES):
            raise checks.InputError(
                f"storage_dtype: expected torch.float32, torch.float64 or torch.bfloat16, got {storage_dtype}"
            )
        settled = Options(**{**preset_options(preset), **options})
        self._candidates = preset_candidates(preset)
        refuse_frozen(model)
        chosen = Parameters(model, include, exclude)
        self._attachment: Attachment | None = None
        velocities = Velocities() if settled.observables.momentum else None
        home = home_of(storage_device, chosen.device)
        recordings, spreads = [], []
        whole = groups_of(model, chosen, partition, q)
        for group, spread in local_groups(whole, chosen):
            recordings.append(GroupBuffer(group, chosen.by_name, storage_dtype, home, velocities, spread))
            spreads.append(spread)
        recorder = Recorder(recordings, settled.every, settled.window, capacity)
        self.every, self.window, self.capacity = recorder.every, recorder.window, recorder.capacity
        ranks, setup = ranks_of(model, chosen.all, process_group), setup_of(whole, chosen, storage_dtype)
        self.parts = Parts(chosen, recorder, spreads, ranks, setup, velocities)
        self.fits = Fits(self.parts, settled)
        self._walker = Walker(self.parts, self.fits)

    def clear(self) -> None:
        """Forget every snapshot, operator and time; buffers are kept for the next recording."""
        self.parts.recorder.clear()
        self.fits.seconds = self.fits.compile_seconds = 0.0
        self._forget()

    def _forget(self) -> None:
        """There is a new snapshot, or none."""
        self.fits.forget()
        self._walker.forget()

    @property
    def groups(self) -> list[Group]:
        """The recording groups on this rank, in the model's order."""
        return [recording.group for recording in self.parts.recordings]

    @property
    def snapshots(self) -> int:
        """Snapshots that are held."""
        return self.parts.recorder.snapshots

    @property
    def iterations(self) -> int:
        """Optimizer steps of this recording."""
        return self.parts.recorder.iterations

    @property
    def position(self) -> float:
        """Iterations past the newest snapshot that the parameters have been moved; infinite at the limit."""
        return self._walker.position

    @property
    def record_seconds(self) -> float:
        """What recording has taken."""
        return self.parts.recorder.seconds

    @property
    def fit_seconds(self) -> float:
        """What the last fit took."""
        return self.fits.seconds

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has put into exchanges with others."""
        ranks = self.parts.ranks
        spread = (spread.ranks.sent for spread in self.parts.spreads if spread is not None)
        return ranks.sent + sum(spread) if ranks else 0

    def plan(self) -> RecordingPlan:
        """Bytes that recording takes, and what ranks will exchange; `str` of it is a table."""
        exchanges = []
        for recording, spread in zip(self.parts.recordings, self.parts.spreads, strict=True):
            if spread is None:
                exchanges.append(("none", 0))
            else:
                blocks, count = recording.group.rows, self.capacity or max(self.snapshots, 2)
                how, size = exchange(blocks, spread, count, self.fits.options, recording.dtype.itemsize)
                exchanges.append((how, size if self.capacity else None))
        return self.parts.recorder.plan(exchanges)

    def attach(self, optimizer: torch.optim.Optimizer, after: Callable[[], None] | None = None):
        """Record after each `optimizer.step()`; returns the hook's handle, and `detach` removes it.

        A step is recorded once however `step` is wrapped, and not at all if a GradScaler skipped it; an optimizer that
        a wrapper holds, as accelerate's does, is attached to beneath it. What is recorded
        are the parameters at the end of the step: where the loop changes them afterwards, call `record` when it is
        done, or let a `KoopmanSchedule` do so.

        Args:
            optimizer: of the model's parameters.
            after: called after each step instead of `record`.

        Raises:
            ValueError: attached already; an optimizer of other parameters, or, for `Momentum()`, one without
                velocities or with a learning rate of zero; a given capacity does not fit the memory that is free.
            TypeError: no optimizer, or one that calls no hooks.

        Warns:
            RuntimeWarning: other optimizers train some of the parameters.
        """
        if self.attached:
            raise checks.InputError("attach: this phase is attached already; call detach() first")
        attachment = Attachment(optimizer, self.parts.parameters, after or self.record, required=after is None)
        try:
            if self.capacity and not self.parts.recorder.allocated:
                self.parts.recorder.refuse_what_does_not_fit(self.capacity)
            if self.parts.velocities is not None:
                self.parts.velocities.follow(attachment.optimizer, self.parts.parameters.by_name)
            if after is None:
                attachment.warn_of_others()
        except BaseException:
            attachment.remove()
            raise
        self._attachment = attachment
        return attachment.handle

    @property
    def attached(self) -> bool:
        """Whether something is called after an optimizer's steps; not once the hook's handle has removed it."""
        return self._attachment is not None and self._attachment.active

    def detach(self) -> None:
        """Stop recording after optimizer steps."""
        if self._attachment is not None:
            self._attachment.remove()

    def record(self) -> None:
        """Take note of the parameters after an optimizer step; operators fitted before are dropped.

        After a `step` or `jump` the recording begins anew: a pair across the move is no optimizer step.

        Raises:
            ValueError: the buffers do not fit the memory that is free, with the numbers.
        """
        self.parts.parameters.check_dtypes()
        departed = self._walker.departure is not None
        if departed:
            self.parts.recorder.begin_anew()
        if departed or self.fits.operators is not None:
            self._forget()
        self.parts.recorder.record()

    def fit(self, **options) -> None:
        """Fit an operator to every block's snapshots.

        Args:
            options: cutoff, observables, stabilize or out_of_span, to take from now on instead of the phase's own, so
                that one recording can be fitted in several ways. Not whether velocities are observed: they are in the
                recording or are not.

        Raises:
            ValueError: fewer than two snapshots, or a snapshot that is not finite; or ranks disagree.
            RankError: another rank did not answer.
        """
        self.fits.take(options)
        self._walker.begin_anew()
        self.fits.fit(self.position)

    def average(self) -> dict[str, torch.Tensor]:
        """The mean of the snapshots by parameter name, in the parameters' shapes and dtypes.

        Stochastic weight averaging (Izmailov et al. 2018): the baseline that a jump has to beat.

        Raises:
            ValueError: no snapshots.
        """
        if not self.snapshots:
            raise checks.InputError("average: nothing has been recorded; see attach() and record()")
        return self.parts.recorder.average()

    def operators(self) -> dict[str, list[KoopmanOperator]]:
        """The fitted operators by layer: one, or two where quasi-nodes leave a remainder.

        Of a layer that is spread over ranks, `holdout` and `summary` are exchanges that every rank has to call.
        """
        operators = self.fits.ready(self.position)
        return {recording.group.name: bound for recording, bound in self.parts.with_operators(operators)}

    def modes(self, near: complex = 1.0) -> dict[str, torch.Tensor]:
        """What the eigenvalue nearest to `near` contributes to the newest snapshot, by parameter name.

        Of every block the eigenvalue nearest to that point, a conjugate pair counting as one. At 1 stands what does not
        change any more; `pruning_masks` prunes by its size (Redman et al., ICLR 2022, arXiv 2110.14856).

        Args:
            near: a finite real or complex number.

        Returns:
            Tensors in the parameters' shapes, dtypes and device. Zero in a block of rank 0.

        Raises:
            ValueError, TypeError: naming the argument; fewer than two snapshots.
        """
        return pruning.modes(self, near)

    def step(self, ahead: int = 1) -> None:
        """Move the parameters `every` optimizer iterations on, in place; fits first if that has not been done.

        Args:
            ahead: states to compute in one pass, this one and those of the next `ahead` - 1 calls, where
                looking ahead is allowed: the same bits in less time, for `ahead` times the parameters' memory.
        """
        ahead = checks.integer("ahead", ahead, least=1)
        self._walker.step(ahead)

    def whole_steps(self, steps: float, name: str = "steps") -> float:
        """`steps` if it is a number of optimizer iterations that this phase can move over, or infinite."""
        if isinstance(steps, float) and steps == math.inf:
            return steps
        steps = checks.integer(name, steps, least=0)
        if steps % self.every:
            below = steps // self.every * self.every
            raise checks.InputError(
                f"{name}: expected a multiple of every={self.every}, got {steps}; the nearest are {below} "
                f"and {below + self.every}"
            )
        return steps

    def forecast(self) -> Forecasts:
        """Whether the operators can be expected to pay, told from the recording alone.

        Operators are fitted to the first two thirds of the snapshots and predict the last one; their error, in units of
        what moved meanwhile, is compared with the errors of staying, of the mean, of a line and of a secant. It pays
        below half of the best of these and below 0.3, if these operators and those of the whole recording agree four
        recordings ahead (`fastkoop.forecast.Rule`). Recordings too short to split do not pay.

        Returns:
            A mapping of layer -> Forecast with the arrays `error`, `baseline`, `pays` and `apart`, one entry a block,
            and `overall`, the first three as plain numbers, of the layer's blocks together; its own `overall` is of
            all.
        """
        return forecasts(self.parts, self.fits, self.position)

    def jump(
        self,
        steps: float,
        guard: Callable[[], float] | None = None,
        horizon: str | Sequence[float] | None = None,
        *,
        candidates: Sequence[str] | None = None,
        gate: str | None = None,
        limits: Limits | None = None,
        optimizer_state: str | float = "keep",
        schedulers: Iterable = (),
        update_bn=None,
    ) -> JumpReport:
        """Move the parameters `steps` optimizer iterations on at once, in place.

        A jump begins at the newest snapshot; where the parameters were changed after they had been recorded, at their
        own state, and the report says so. Frozen parameters, blocks of rank 0 that are not zero, and blocks without a
        finite prediction stay as they are and are counted.

        Args:
            steps: >= 0, a multiple of `every`; math.inf for the operators' limit, after which `step` needs a new
                recording. Blocks that diverge or drift have none and stay.
            guard: returns a number, smaller is better; called before and after. If it got worse, or is not
                finite, parameters and buffers are put back exactly as they were. Ranks take their mean. Modules' modes
                and the random generators are put back after every call.
            horizon: what to try, all from one fit, keeping what the guard likes best, if better than now. "auto" tries
                0, 1, 2, 4, ... recorded intervals and `steps`, and before the limit no more than 1024; a list is tried
                as given. 0 is the newest snapshot.
            candidates: where else a guarded jump may end: "koopman", "mean", the recording's mean, and "line", its
                least-squares line; ("koopman",) by default, all three with a horizon and `preset="noisy"`.
            gate: "forecast" moves only blocks whose end the operators would have predicted, see `forecast`, and none
                if that does not hold of all together.
            limits: blocks beyond them keep their weights, see `Limits`.
            optimizer_state: "keep", "reset", "predict" or a factor for the attached optimizer's velocities, see
                `fastkoop.adapter.optimizer_state`.
            schedulers: learning-rate schedulers to step once for every iteration that the jump stands for; without
                them they know nothing of it. Not with the limit.
            update_bn: batches, a list or a DataLoader, to recalibrate BatchNorm's statistics with after each move,
                before the guard (`torch.optim.swa_utils.update_bn`); else they stay those of the weights before.

        Returns:
            JumpReport, which says what won and what was held.

        Raises:
            ValueError, TypeError: naming the argument; or ranks disagree.
            RankError: another rank did not answer; the parameters are as they were.
        """
        if candidates is None:
            candidates = self._candidates if horizon is not None else ("koopman",)
        with self.fits.heard_by_all("jump"):
            steps = self.whole_steps(steps)
            options = self.jump_options(
                guard=guard, horizon=horizon, candidates=candidates, gate=gate, limits=limits,
                optimizer_state=optimizer_state, schedulers=schedulers, update_bn=update_bn, steps=steps,
            )  # fmt: skip
            self._walker.check("jump")
        copies = None if self._attachment is None else self._attachment.copies
        rates = Rates(self._optimizer, options.schedulers, copies)
        return Jump(self.parts, self.fits, self._walker, rates, options).run(steps)

    def jump_options(self, *, steps: float = 0, **options) -> JumpOptions:
        """The options of `jump`, checked; raises what `jump` would."""
        checked = JumpOptions.of(**options)
        checked.reaches(steps, self.whole_steps)
        if checked.predicts and self.parts.velocities is None:
            raise checks.InputError(
                'optimizer_state: "predict" moves the velocities that Momentum() records; make the phase with '
                "observables=Momentum()"
            )
        if checked.optimizer_state != "keep" and self._optimizer is None:
            raise checks.InputError(
                f"optimizer_state: {checked.optimizer_state!r} needs the optimizer; call attach(optimizer) first"
            )
        if checked.predicts:
            self.parts.velocities.check_rates()
        return checked

    @property
    def _optimizer(self) -> torch.optim.Optimizer | None:
        """That was attached last, attached still or not."""
        return None if self._attachment is None else self._attachment.optimizer

    def release(self) -> None:
        """Give the recording's memory back: snapshots, operators and the way back are forgotten."""
        self.parts.recorder.release()
        self._forget()

    def rollback(self) -> None:
        """Put the parameters back, bit for bit, as they were before the first `step` or `jump` since the recording.

        Buffers too, if that move had a guard or `update_bn`, and velocities, if a jump moved them along; what else
        became of the optimizer's state stays.
        """
        copies = None if self._attachment is None else self._attachment.copies
        if copies is None:
            self._walker.back()
            return
        before = self.parts.parameters.save(buffers=False).parameters
        copies.look()
        self._walker.back()
        copies.follow(before)

    def state_dict(self) -> dict:
        """Everything that a run needs to go on bit by bit: the snapshots, the window's sum, the walk, the way back.

        Tensors share memory with the phase, as a model's do: save it before training goes on. Operators are not in it;
        they are fitted again from the same snapshots, to the same bits with the same number of threads. With ranks,
        each saves its own.
        """
        return states.state_of(self.parts, self.fits, self._walker)

    def check_state_dict(self, state: dict) -> None:
        """Raise what `load_state_dict` would; nothing changes."""
        states.check(state, self.parts, self.fits)

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`; the model's parameters are not in it.

        Raises:
            ValueError: it is damaged, or of a phase with another setting, which is named; nothing has changed then.
        """
        states.restore(state, self.parts, self.fits, self._walker)
