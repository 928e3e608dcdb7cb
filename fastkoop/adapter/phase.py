"""KoopmanPhase: record a PyTorch model while it trains, then move its weights with Koopman operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from .. import checks
from ..operator import KoopmanOperator
from ..options import Options
from ..partition import Group, Parameter, groups
from . import pruning
from . import state as states
from .buffers import HALVES, Recording
from .fits import Fits
from .jump import Jump
from .jump_options import JumpOptions
from .limits import Limits
from .optimizer_state import Rates, Velocities, parameters_of, step_was_skipped
from .parameters import Parameters
from .parts import Parts
from .ranks import Spread, exchange, localized, ranks_of, shard_of
from .recorder import Recorder
from .recording_plan import RecordingPlan
from .report import JumpReport
from .selection import unit_axis
from .walker import Walker
from .weight_copies import WeightCopies
from .wrappers import raw_optimizer, without_prefixes, wrapped_optimizers


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
        options = Options(cutoff, observables, stabilize, out_of_span, window, every)
        chosen = Parameters(model, include, exclude)
        self._optimizer: torch.optim.Optimizer | None = None
        self._copies: WeightCopies | None = None  # of the parameters, in the optimizer
        self._handle = None
        self._velocities = Velocities() if options.observables.momentum else None
        home = _home(storage_device, chosen.device)
        recordings, spreads = [], []
        whole = _groups(model, chosen, partition, q)
        for group, spread in _local(whole, chosen):
            recordings.append(Recording(group, chosen.by_name, storage_dtype, home, self._velocities, spread))
            spreads.append(spread)
        recorder = Recorder(recordings, options.every, options.window, capacity)
        self.every, self.window, self.capacity = recorder.every, recorder.window, recorder.capacity
        setup = _setup(whole, chosen, storage_dtype)
        self.parts = Parts(chosen, recorder, spreads, ranks_of(model, chosen.all, process_group), setup)
        self.fits = Fits(self.parts, options)
        self._walker = Walker(self.parts, self.fits)

    def clear(self) -> None:
        """Forget every snapshot, operator and time; buffers are kept for the next recording."""
        self.parts.recorder.clear()
        self.fits.seconds = 0.0
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
    def position(self) -> int:
        """Iterations past the newest snapshot that the parameters have been moved."""
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

    def attach(self, optimizer: torch.optim.Optimizer, wanted: Callable[[], bool] | None = None):
        """Record after each `optimizer.step()`; returns the hook's handle, and `detach` removes it.

        Steps that a GradScaler skipped are not recorded. An optimizer that a wrapper holds, as accelerate's does, is
        attached to beneath it. wanted: asked after each step whether to record it.

        Raises:
            ValueError: attached already; or a given capacity does not fit the memory that is free.
        """
        if self.attached:
            raise checks.InputError("attach: this phase is attached already; call detach() first")
        holders = [*wrapped_optimizers(optimizer)]
        optimizer = raw_optimizer(optimizer)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in held for parameter in self.parts.parameters.all):
            raise checks.InputError(
                "optimizer: it holds none of the parameters that this phase records; make it with the model's"
            )
        if self.capacity and not self.parts.recorder.allocated:
            self.parts.recorder.refuse_what_does_not_fit(self.capacity)
        known = parameters_of(optimizer)
        if self._velocities is not None:
            self._velocities.follow(optimizer, self.parts.parameters.by_name)

        @torch.compiler.disable  # recording is no part of a step that is compiled
        def after_step(*_) -> None:
            if step_was_skipped(optimizer):
                return
            if parameters_of(optimizer) != known:
                self.parts.parameters.check()
            if wanted is None or wanted():
                self.record()

        self._optimizer, self._copies = optimizer, WeightCopies(holders, self.parts.parameters.all)
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
        with self.fits.heard_by_all("jump"):
            steps = self.whole_steps(steps)
            options = self.jump_options(guard, horizon, limits, optimizer_state, schedulers, update_bn)
        rates = Rates(self._optimizer, options.schedulers, self._copies)
        return Jump(self.parts, self.fits, self._walker, rates, options).run(steps)

    def jump_options(self, *arguments, **options) -> JumpOptions:
        """The options of `jump`, checked; raises what `jump` would."""
        checked = JumpOptions.of(*arguments, **options)
        if checked.optimizer_state != "keep" and self._optimizer is None:
            raise checks.InputError(
                f"optimizer_state: {checked.optimizer_state!r} needs the optimizer; call attach(optimizer) first"
            )
        return checked

    def rollback(self) -> None:
        """Put the parameters back, bit for bit, as they were before the first `step` or `jump` since the recording.

        Buffers too, if that move had a guard or `update_bn`; what became of the optimizer's state stays.
        """
        before = self.parts.parameters.save(buffers=False).parameters if self._copies is not None else []
        if self._copies is not None:
            self._copies.look()
        self._walker.back()
        if self._copies is not None:
            self._copies.follow(before)

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

    def __getstate__(self) -> dict:
        """For copies and pickles: attached to nothing."""
        return {**self.__dict__, "_handle": None}


def _groups(model: nn.Module, chosen: Parameters, partition, q: int | None) -> list[Group]:
    """The groups of the whole model."""
    described = [Parameter(name, tuple(p.shape), unit_axis(model, name)) for name, p in chosen.by_name.items()]
    if isinstance(partition, Mapping):
        partition = {without_prefixes(pattern): granularity for pattern, granularity in partition.items()}
    return groups(described, partition, q)


def _setup(whole: list[Group], chosen: Parameters, storage_dtype: torch.dtype | None) -> dict[str, str]:
    """What has to be alike on all ranks, in words."""
    setup = {f"parameter {name}": f"{tuple(p.shape)} in {p.dtype}" for name, p in chosen.by_name.items()}
    setup |= {f"partition of {group.name}": f"{group.granularity} q={group.q}" for group in whole}
    return setup | {"storage_dtype": str(storage_dtype)}


def _local(whole: list[Group], chosen: Parameters) -> Iterator[tuple[Group, Spread | None]]:
    """The groups of which this rank has a part, and how their blocks are spread over ranks."""
    shards = {name: shard_of(name, p) for name, p in chosen.by_name.items()}
    for group in whole:
        local, spread = localized(group, shards)
        if local.rows:
            yield local, spread


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
