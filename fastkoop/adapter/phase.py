"""KoopmanPhase: record a PyTorch model while it trains, then move its weights with Koopman operators."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from .. import checks
from .. import cutoff as rules
from ..operator import KoopmanOperator, fit
from ..options import Options
from ..partition import Group, Parameter, groups
from .buffers import HALVES, Recording
from .checkpoint import VERSION, sealed, unsealed
from .jump import JumpReport, LayerReport, Limits, better, horizon_steps
from .mover import Mover, Walks
from .optimizer_state import Rates, Velocities, can_be_stepped, parameters_of, settled, step_was_skipped
from .parameters import Parameters, Saved
from .ranks import exchange, fit_spread, localized, ranks_of, shard_of
from .recorder import Recorder
from .recording_plan import RecordingPlan
from .selection import unit_axis


class Moves(NamedTuple):
    """What became of a group's blocks: its operators, how many were kept or held, the prediction's seconds."""

    operators: list[KoopmanOperator]
    kept: int
    held: dict[str, int]
    seconds: float


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
        cutoff, observables, stabilize, out_of_span: as `fastkoop.fit`. `Momentum()` records the attached optimizer's
            velocities beside the weights: its buffers times the learning rate.
        every: record each `every`-th optimizer step; predictions then move in multiples of it.
        window: record the mean of the last `window` iterates; alone it implies every=window.
        capacity: snapshots to hold; when full the oldest give way. None grows as needed.
        include, exclude: name patterns (fnmatch) of parameters to take or to leave.
        storage_dtype: torch.float32 or torch.float64; torch.bfloat16 stores distances from the first snapshot, with an
            error of 2^-9 of each; None keeps the parameters' own.
        storage_device: None, the parameters' own; "cpu" copies the snapshots of a model on a GPU to pinned memory
            while training goes on.
        process_group: ranks that train this model together; None finds DistributedDataParallel's, where `model` is the
            wrapper, and FSDP2's.

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
        cutoff="array_api",
        observables="identity",
        stabilize=None,
        every: int = 1,
        window: int = 1,
        capacity: int | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        storage_dtype: torch.dtype | None = None,
        storage_device=None,
        out_of_span="drop",
        process_group=None,
    ):
        if storage_dtype not in (None, torch.float32, torch.float64, *HALVES):
            raise checks.InputError(
                f"storage_dtype: expected torch.float32, torch.float64 or torch.bfloat16, got {storage_dtype}"
            )
        self._setting = Options(cutoff, observables, stabilize, out_of_span)
        self._fit_options = {
            "cutoff": cutoff, "observables": observables, "stabilize": stabilize, "out_of_span": out_of_span,
        }  # fmt: skip
        self._parameters = Parameters(model, include, exclude)
        by_name = self._parameters.by_name
        self._optimizer: torch.optim.Optimizer | None = None
        self._handle = None
        self._ranks = ranks_of(model, self._parameters.all, process_group)
        self._velocities = Velocities() if self._setting.observables.momentum else None
        described = [Parameter(name, tuple(p.shape), unit_axis(model, name)) for name, p in by_name.items()]
        shards = {name: shard_of(name, p) for name, p in by_name.items()}
        home = _home(storage_device, self._parameters.device)
        recordings, self._spreads = [], []
        for group in groups(described, partition, q):
            own, spread = localized(group, shards)
            if own.rows:
                recordings.append(Recording(own, by_name, storage_dtype, home, self._velocities, spread))
                self._spreads.append(spread)
        self._recorder = Recorder(recordings, every, window, capacity)
        self.every, self.window, self.capacity = self._recorder.every, self._recorder.window, self._recorder.capacity
        self.clear()

    def clear(self) -> None:
        """Forget every snapshot, operator and time; buffers are kept for the next recording."""
        self._recorder.clear()
        self.fit_seconds = 0.0
        self._forget()

    def _forget(self) -> None:
        """What was fitted, and where the parameters were moved to and from."""
        self._forget_operators()
        self._departure: Saved | None = None  # the parameters before the first move since the newest snapshot
        self.position = 0  # iterations past the newest snapshot

    def _forget_operators(self) -> None:
        self._operators: list[list[KoopmanOperator]] | None = None
        self._mover: Mover | Walks | None = None
        self._walked = 0
        self._coordinates: list | None = None  # of the walk that a state came from

    @property
    def groups(self) -> list[Group]:
        """The recording groups on this rank, in the model's order."""
        return [recording.group for recording in self._recordings]

    @property
    def _recordings(self) -> list[Recording]:
        return self._recorder.recordings

    @property
    def snapshots(self) -> int:
        """Snapshots that are held."""
        return self._recorder.snapshots

    @property
    def iterations(self) -> int:
        """Optimizer steps of this recording."""
        return self._recorder.iterations

    @property
    def record_seconds(self) -> float:
        """What recording has taken."""
        return self._recorder.seconds

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has put into exchanges with others."""
        spread = (spread.ranks.sent for spread in self._spreads if spread is not None)
        return self._ranks.sent + sum(spread) if self._ranks else 0

    def plan(self) -> RecordingPlan:
        """Bytes that recording takes, and what ranks will exchange; `str` of it is a table."""
        exchanges = []
        for recording, spread in zip(self._recordings, self._spreads, strict=True):
            if spread is None:
                exchanges.append(("none", 0))
            else:
                blocks, count = recording.group.rows, self.capacity or max(self.snapshots, 2)
                how, size = exchange(blocks, spread, count, self._setting, recording.dtype.itemsize)
                exchanges.append((how, size if self.capacity else None))
        return self._recorder.plan(exchanges)

    def attach(self, optimizer: torch.optim.Optimizer, wanted: Callable[[], bool] | None = None):
        """Record after each `optimizer.step()`; returns the hook's handle, and `detach` removes it.

        Steps that a GradScaler skipped are not recorded. wanted: asked after each step whether to record it.

        Raises:
            ValueError: attached already; or a given capacity does not fit the memory that is free.
        """
        if self.attached:
            raise checks.InputError("attach: this phase is attached already; call detach() first")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in held for parameter in self._parameters.all):
            raise checks.InputError(
                "optimizer: it holds none of the parameters that this phase records; make it with the model's"
            )
        if self.capacity and not self._recorder.allocated:
            self._recorder.refuse_what_does_not_fit(self.capacity)
        known = parameters_of(optimizer)
        if self._velocities is not None:
            self._velocities.follow(optimizer, self._parameters.by_name)

        def after_step(*_) -> None:
            if step_was_skipped(optimizer):
                return
            if parameters_of(optimizer) != known:
                self._parameters.check()
            if wanted is None or wanted():
                self.record()

        self._optimizer = optimizer
        self._handle = optimizer.register_step_post_hook(after_step)
        return self._handle

    @property
    def attached(self) -> bool:
        """Whether this phase records after an optimizer's steps; not once the hook's handle has removed it."""
        if self._handle is None:
            return False
        hooks = self._handle.hooks_dict_ref()
        return hooks is None or self._handle.id in hooks

    def detach(self) -> None:
        """Stop recording after optimizer steps."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def record(self) -> None:
        """Take note of the parameters after an optimizer step; operators fitted before are dropped.

        After a `step` or `jump` the recording begins anew: a pair across the move is no optimizer step.

        Raises:
            ValueError: the buffers do not fit the memory that is free, with the numbers.
        """
        self._parameters.check_dtypes()
        if self._departure is not None:
            self._recorder.begin_anew()
        if self._operators is not None or self._departure is not None:
            self._forget()
        self._recorder.record()

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
        self._take_options(options)
        observables = self._setting.observables
        if self.snapshots < 2:
            raise checks.InputError(
                f"fit: expected at least 2 snapshots, got {self.snapshots}; train with attach(optimizer), or call "
                "record() after each optimizer step"
            )
        observables.check(self.snapshots)
        self._parameters.check()
        began = time.perf_counter()
        self._forget_operators()
        self._agree("fit")
        self._recorder.put_in_order()
        operators, refused = [], ""
        for recording, spread in zip(self._recordings, self._spreads, strict=True):
            try:
                operators.append(self._fitted(recording, spread))
            except checks.InputError as error:
                said = f"layer {recording.group.name}: {error}"
                refused = refused or f"{said} (if training diverged, lower its learning rate, or leave the layer out)"
                if self._ranks is None:
                    break
        if self._ranks is not None:  # whatever happens here: others wait for this rank in its spread layers
            refused = self._ranks.first("fit", refused)
        if refused:
            raise checks.InputError(refused)
        self._operators = operators
        self.fit_seconds = time.perf_counter() - began

    def _take_options(self, options: dict) -> None:
        """Use these from now on."""
        if unknown := set(options) - set(self._fit_options):
            raise TypeError(f"fit: expected {', '.join(self._fit_options)}, got {', '.join(sorted(unknown))}")
        options = {**self._fit_options, **options}
        setting = Options(*options.values())
        if setting.observables.momentum != self._setting.observables.momentum:
            raise checks.InputError(
                "observables: Momentum() is decided when a phase is made, for what it records; make another phase"
            )
        self._fit_options, self._setting = options, setting

    def _fitted(self, recording: Recording, spread) -> list[KoopmanOperator]:
        """A group's operators; of snapshots that had to be brought back they keep none."""
        views = recording.blocks(self.snapshots)
        if spread is not None:
            found = [fit_spread(view, recording.group.n, spread, self._setting) for view in views]
            _ = [op.residual for op in found]  # now, while ranks are at it: a jump then needs no exchange of its own
        else:
            found = [fit(view, time_axis=0, **self._fit_options) for view in views]
        return found if recording.direct else [op.released() for op in found]

    def _bound(self, recording: Recording, operators: list[KoopmanOperator]) -> list[KoopmanOperator]:
        """The operators with snapshots to read weights out of."""
        if recording.direct:
            return operators
        return [op.on(view) for op, view in zip(operators, recording.blocks(self.snapshots), strict=True)]

    def _agree(self, what: str, **values) -> None:
        """Raise on all ranks unless all are at the same point."""
        if self._ranks is not None:
            setting = f"{self._setting}, every {self.every}, window {self.window}, capacity {self.capacity}"
            self._ranks.agree(
                what, snapshots=self.snapshots, iterations=self.iterations, position=self.position, setting=setting,
                **values,
            )  # fmt: skip

    def _ready(self) -> list[list[KoopmanOperator]]:
        if self._operators is None:
            walked, coordinates = self._walked, self._coordinates
            self.fit()
            self._walked, self._coordinates = walked, coordinates
        return self._operators

    def average(self) -> dict[str, torch.Tensor]:
        """The mean of the snapshots by parameter name, in the parameters' shapes and dtypes.

        Stochastic weight averaging (Izmailov et al. 2018): the baseline that a jump has to beat.

        Raises:
            ValueError: no snapshots.
        """
        if not self.snapshots:
            raise checks.InputError("average: nothing has been recorded; see attach() and record()")
        return self._recorder.average()

    def operators(self) -> dict[str, list[KoopmanOperator]]:
        """The fitted operators by layer: one, or two where quasi-nodes leave a remainder.

        Of a layer that is spread over ranks, `holdout` and `summary` are exchanges that every rank has to call.
        """
        pairs = zip(self._recordings, self._ready(), strict=True)
        return {recording.group.name: self._bound(recording, ops) for recording, ops in pairs}

    def step(self, ahead: int = 1) -> None:
        """Move the parameters `every` optimizer iterations on, in place; fits first if that has not been done.

        Args:
            ahead: states to compute in one pass, this one and those of the next `ahead` - 1 calls, where
                looking ahead is allowed: the same bits in less time, for `ahead` times the parameters' memory.
        """
        ahead = checks.integer("ahead", ahead, least=1)
        operators = self._ready()
        self._parameters.reshard()
        if self._mover is None:
            self._mover = self._walker(operators)
            if self._coordinates is None:
                self._walked = 0
            else:  # as a state that was loaded had it
                self._mover.resume(self._walked // self.every, self._coordinates)
        if self.position != self._walked:
            self._mover.restart()
            self._walked = 0
        if self._departure is None:
            self._departure = self._parameters.save(buffers=False)
        self._mover.step((self.position - self._walked) // self.every + 1, ahead)
        self.position += self.every
        self._walked = self.position

    def _walker(self, operators: list[list[KoopmanOperator]]) -> Mover | Walks:
        plain = all(recording.direct and recording.device.type == "cpu" for recording in self._recordings)
        if plain and not any(self._spreads):
            return Mover(self._recordings, operators)
        bound = (self._bound(recording, ops) for recording, ops in zip(self._recordings, operators, strict=True))
        return Walks(self._recordings, bound)

    def whole_steps(self, steps: int, name: str = "steps") -> int:
        """`steps` if it is a number of optimizer iterations that this phase can move over."""
        steps = checks.integer(name, steps, least=0)
        if steps % self.every:
            below = steps // self.every * self.every
            raise checks.InputError(
                f"{name}: expected a multiple of every={self.every}, got {steps}; the nearest are {below} "
                f"and {below + self.every}"
            )
        return steps

    def jump(
        self,
        steps: int,
        guard: Callable[[], float] | None = None,
        horizon: str | None = None,
        *,
        limits: Limits | None = None,
        optimizer_state: str | float = "keep",
        schedulers: Iterable = (),
        update_bn=None,
    ) -> JumpReport:
        """Move the parameters `steps` optimizer iterations on at once, in place.

        Args:
            steps: >= 0, a multiple of `every`.
            guard: returns a number, smaller is better; called before and after. If it got worse, or is not
                finite, parameters and buffers are put back exactly as they were. Ranks take their mean.
            horizon: "auto" tries 0, 1, 2, 4, ... recorded intervals and `steps`, all from one fit, and keeps the one
                that the guard likes best, if better than now. 0 is the newest snapshot.
            limits: blocks beyond them keep their weights, see `Limits`.
            optimizer_state: "keep", "reset" or a factor for the attached optimizer's velocities, see
                `fastkoop.adapter.optimizer_state`.
            schedulers: learning-rate schedulers to step once for every iteration that the jump stands for; without
                them they know nothing of it.
            update_bn: batches, a list or a DataLoader, to recalibrate BatchNorm's statistics with after each move,
                before the guard (`torch.optim.swa_utils.update_bn`); else they stay those of the weights before.

        Returns:
            JumpReport. Blocks with a prediction that is not finite keep their value and are counted.

        Raises:
            ValueError, TypeError: naming the argument; or ranks disagree.
            RankError: another rank did not answer; the parameters are as they were.
        """
        steps = self.whole_steps(steps)
        choice, schedulers = self.check_jump(guard, horizon, limits, optimizer_state, schedulers, update_bn)
        operators = self._ready()
        self._agree("jump", steps=steps, guard=guard is not None, horizon=horizon, limits=limits,
                    optimizer_state=optimizer_state)  # fmt: skip
        self._parameters.reshard()
        saved, came_from = self._parameters.save(guard is not None or update_bn is not None), self.position
        departed, rates = self._departure, Rates(self._optimizer, schedulers)
        report = JumpReport(0, 0.0, [], None if guard is None else self._judged(guard))
        report.rolled_back = True  # until it is done: also where the guard fails, or is interrupted
        moves: list[Moves] = []

        def to(target: int, judge: bool) -> float | None:
            nonlocal moves
            began = time.perf_counter()
            if moves:  # blocks that stay keep what they had before the first
                self._parameters.restore(saved._replace(buffers=None))
            moves = self._moved(operators, came_from + target, limits)
            self.position = came_from + target
            report.seconds += time.perf_counter() - began  # what the reports and the guard cost is not the jump's
            if update_bn is not None:
                self._parameters.recalibrate(update_bn)
            return self._judged(guard) if judge else None

        try:
            if departed is None:
                self._departure = saved
            if horizon is None:
                report.after = to(steps, guard is not None)
                report.rolled_back = guard is not None and not better(report.after, report.before)
                report.steps = 0 if report.rolled_back else steps
            else:
                self._try_all(report, horizon_steps(steps, self.every), to)
            if self._ranks is not None and not self._parameters.sharded:
                self._ranks.same_bits("jump", [parameter.detach() for parameter in self._parameters.all])
            if not report.rolled_back:
                rates.settle(self._parameters.all, choice, report.steps)
        except BaseException:
            report.rolled_back = True
            rates.restore()
            raise
        finally:
            if report.rolled_back:
                self._parameters.restore(saved)
                self.position, self._departure = came_from, departed
        pairs = zip(self._recordings, moves, strict=True)
        report.layers = [
            LayerReport.of(recording.group, made.operators, made.kept, made.held, made.seconds)
            for recording, made in pairs
        ]
        return report

    def check_jump(
        self, guard=None, horizon=None, limits=None, optimizer_state="keep", schedulers=(), update_bn=None
    ) -> tuple:
        """What `jump` makes of its options, whose errors this raises."""
        if guard is not None and not callable(guard):
            raise TypeError(f"guard: expected a function that returns a number, got {type(guard).__name__}")
        if horizon not in (None, "auto"):
            raise checks.InputError(f'horizon: expected None or "auto", got {horizon!r}')
        if horizon is not None and guard is None:
            raise checks.InputError('horizon: "auto" keeps what a guard likes best; pass guard=')
        if not isinstance(limits, (Limits, type(None))):
            raise TypeError(f"limits: expected Limits(...), got {type(limits).__name__}")
        choice = settled(optimizer_state)
        if choice != "keep" and self._optimizer is None:
            raise checks.InputError(
                f"optimizer_state: {optimizer_state!r} needs the optimizer; call attach(optimizer) first"
            )
        if isinstance(update_bn, Iterator):
            raise checks.InputError(
                f"update_bn: expected batches that can be gone through again, got {type(update_bn).__name__}; pass a "
                "list or a DataLoader"
            )
        return choice, can_be_stepped(schedulers)

    @staticmethod
    def _try_all(report: JumpReport, candidates: list[int], to: Callable[[int, bool], float]) -> None:
        """Move to each of the candidates and then to the one that the guard liked best, if better than now."""
        best = None
        for target in candidates:
            value = to(target, True)
            report.tried.append((target, value))
            if better(value, report.before) and value < (report.before if best is None else best[1]):
                best = target, value
        report.steps, report.after = best or (0, report.before)
        report.rolled_back = best is None
        if best is not None and best[0] != candidates[-1]:
            to(best[0], False)

    def _judged(self, guard: Callable[[], float]) -> float:
        """The guard's value, the mean over ranks; what it gathered of a sharded model is let go."""
        if self._ranks is None:
            return float(guard())
        try:
            value = float(guard())
        except BaseException as error:
            self._ranks.mean("guard", math.nan, f"{type(error).__name__}: {error}")
            raise
        self._parameters.reshard()
        return self._ranks.mean("guard", value)

    def _moved(self, operators: list[list[KoopmanOperator]], target: int, limits: Limits | None) -> list[Moves]:
        """Set the parameters to the states `target` iterations past the newest snapshot, save those held back."""
        predicted = []
        for recording, ops in zip(self._recordings, operators, strict=True):
            began = time.perf_counter()
            bound = self._bound(recording, ops)
            states = [op.predict(target // self.every, check_finite=False) for op in bound]
            seconds = time.perf_counter() - began
            beyond = [{} if limits is None else limits.beyond(op) for op in bound]
            masks = [torch.stack(list(each.values())).any(dim=0) if each else None for each in beyond]
            rows, kept = recording.checked(states, masks)
            held = {name: sum(int(each[name].sum()) for each in beyond) for name in beyond[0]} if beyond else {}
            if not recording.direct:  # the report's values, before the snapshots are let go
                _ = [op.residual for op in bound]
                bound = [op.released() for op in bound]
            moved = Moves(bound, kept, {name: count for name, count in held.items() if count}, seconds)
            predicted.append((rows, moved))
        for recording, (rows, _) in zip(self._recordings, predicted, strict=True):
            recording.apply(rows)  # nothing has moved before; from here on only copies follow
        return [moved for _, moved in predicted]

    def rollback(self) -> None:
        """Put the parameters back, bit for bit, as they were before the first `step` or `jump` since the recording.

        Buffers too, if that move had a guard or `update_bn`; what became of the optimizer's state stays.
        """
        if self._departure is None:
            raise checks.InputError("rollback: there was no step or jump since the last snapshot")
        self._parameters.restore(self._departure)
        self._departure, self.position, self._coordinates = None, 0, None

    def state_dict(self) -> dict:
        """Everything that a run needs to go on bit by bit: the snapshots, the window's sum, the walk, the way back.

        Tensors share memory with the phase, as a model's do: save it before training goes on. Operators are not in it;
        they are fitted again from the same snapshots, to the same bits with the same number of threads. With ranks,
        each saves its own.
        """
        coordinates = self._coordinates if self._mover is None else self._mover.coordinates
        if self._walked == 0:
            coordinates = None
        departure = self._departure
        return sealed({
            "kind": "KoopmanPhase", "version": VERSION, "setting": self._described(),
            "recording": self._recorder.state(), "fit_seconds": self.fit_seconds, "position": self.position,
            "walked": self._walked,
            "coordinates": None if coordinates is None else [torch.as_tensor(y) for y in coordinates],
            "departure": None if departure is None else list(departure),
        })  # fmt: skip

    def _described(self) -> dict:
        """The setting that a state belongs to, in words."""
        setting = self._setting
        groups = [
            (recording.group.name, recording.group.granularity, recording.group.rows, recording.group.n,
             recording.group.q or 0, str(recording.dtype), str(recording.stored))
            for recording in self._recordings
        ]  # fmt: skip
        return {
            "parameters": {name: str(tuple(p.shape)) for name, p in self._parameters.by_name.items()},
            "groups": [list(group) for group in groups], "every": self.every, "window": self.window,
            "capacity": self.capacity or 0, "cutoff": rules.describe(setting.cutoff),
            "observables": str(setting.observables), "stabilize": str(setting.stabilize),
            "out_of_span": "carry" if setting.carry else "drop",
            "rank": f"{self._ranks.rank} of {self._ranks.size}" if self._ranks else "0 of 1",
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`; the model's parameters are not in it.

        Raises:
            ValueError: it is damaged, or of a phase with another setting, which is named; nothing has changed then.
        """
        found = unsealed(state, "state", "KoopmanPhase")
        own = self._described()
        for name, value in own.items():
            if found["setting"].get(name) != value:
                raise checks.InputError(
                    f"state: expected {name} {value}, as this phase has, got {found['setting'].get(name)}; make the "
                    "phase as the one that was saved"
                )
        self._recorder.restore(found["recording"])  # refuses, if at all, before it changes anything
        self.fit_seconds = 0.0
        self._forget()
        self.fit_seconds, self.position, self._walked = found["fit_seconds"], found["position"], found["walked"]
        if found["coordinates"] is not None:
            self._coordinates = [y.numpy() for y in found["coordinates"]]
        if found["departure"] is not None:
            parameters, buffers = found["departure"]
            self._departure = Saved([p.clone() for p in parameters], buffers and [b.clone() for b in buffers])

    def __getstate__(self) -> dict:
        """For copies and pickles: attached to nothing."""
        return {**self.__dict__, "_handle": None}


def _home(storage_device, own: torch.device) -> torch.device | None:
    """Where snapshots are kept; None is where the parameters are."""
    if storage_device is None:
        return None
    try:
        home = torch.device(storage_device)
    except (RuntimeError, TypeError):
        home = None
    if home is None or home.type not in ("cpu", own.type):
        raise checks.InputError(
            f'storage_device: expected None, the parameters\' own device {own}, or "cpu", got {storage_device!r}'
        )
    return own if home.type == own.type else home
