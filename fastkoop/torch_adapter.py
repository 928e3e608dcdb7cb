"""KoopmanPhase: record a PyTorch model while it trains, then move its weights with Koopman operators."""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from . import checks
from . import cutoff as rules
from .koopman import OBSERVABLES, KoopmanOperator, fit
from .partition import Group, Parameter, groups
from .recording import Mover, Recording, RecordingPlan, into
from .step_cost import StepCost, measure

FIRST_CAPACITY = 64  # snapshots; doubled whenever full unless the capacity is given


@dataclass
class LayerReport:
    """What a jump did to one group of parameters.

    kept counts blocks whose prediction was not finite and that therefore kept their value; rank is
    (smallest, median, largest) over blocks; residual is the median, see `KoopmanOperator.residual`; seconds
    is the prediction's time. The operators refer to the recording: use them before it goes on.
    """

    name: str
    granularity: str
    blocks: int
    weights: int
    rank: tuple[int, float, int]
    residual: float
    kept: int
    seconds: float
    operators: list[KoopmanOperator] = field(repr=False)

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of an eigenvalue over the blocks; computed when read."""
        return max((float(op.spectral_radius.max()) for op in self.operators), default=0.0)


@dataclass
class JumpReport:
    """What `KoopmanPhase.jump` did: per layer, and the guard's values if there was one."""

    steps: int
    seconds: float
    layers: list[LayerReport]
    before: float | None = None
    after: float | None = None
    rolled_back: bool = False

    def __str__(self) -> str:
        lines = [f"jump over {self.steps} steps in {self.seconds:.3g} s"]
        if self.before is not None:
            verdict = "worse: rolled back" if self.rolled_back else "kept"
            lines.append(f"guard {self.before:.6g} -> {self.after:.6g}, {verdict}")
        for layer in self.layers:
            low, middle, high = layer.rank
            lines.append(
                f"{layer.name}: {layer.blocks} {layer.granularity} blocks, rank {low}/{middle:g}/{high}, "
                f"spectral radius {layer.spectral_radius:.4g}, residual {layer.residual:.2g}, kept {layer.kept}"
            )
        return "\n".join(lines)


class KoopmanPhase:
    """Records a model's parameters after optimizer steps, fits operators, and moves the parameters with them.

    After each `every`-th optimizer step the parameters go into a time-major buffer per layer (one buffer
    for the weight, quasi-node and node granularities). `fit` builds K = Fp pinv(F) per block, as published
    (Dogra & Redman 2020); `step` moves the parameters one recorded interval at a time and `jump` straight
    to the end. Both start at the newest snapshot. `steps` counts optimizer iterations.

    Args:
        model: any module on the CPU with float parameters; frozen ones are left alone, tied ones taken once.
            float16 and bfloat16 parameters are recorded in float32.
        partition: "weight", "quasi-node", "node", "layer", "network", or a mapping from name patterns to
            these, see `fastkoop.partition`.
        q: weights in a quasi-node.
        cutoff, observables, stabilize: as `fastkoop.fit`.
        every: record each `every`-th optimizer step; predictions then move in multiples of it.
        window: record the mean of the last `window` iterates; alone it implies every=window.
        capacity: snapshots to hold; when full the oldest give way. None grows as needed.
        include, exclude: name patterns (fnmatch) of parameters to take or to leave.
        storage_dtype: torch.float32 or torch.float64; None keeps the parameters' own.
        storage_device: None or "cpu".

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
    ):
        self.every, self.window = _interval(every, window)
        self.capacity = None if capacity is None else checks.integer("capacity", capacity, least=2)
        if storage_dtype not in (None, torch.float32, torch.float64):
            raise checks.InputError(f"storage_dtype: expected torch.float32 or torch.float64, got {storage_dtype}")
        if storage_device is not None and str(storage_device).partition(":")[0] != "cpu":
            raise checks.InputError(f'storage_device: this version records on the CPU, got "{storage_device}"')
        self._fit_options = {"cutoff": cutoff, "observables": observables, "stabilize": stabilize}
        checks.radius(stabilize)
        rules.resolve(cutoff, 1, 1, np.float32)
        checks.choice("observables", observables, OBSERVABLES)
        parameters = _select(model, include, exclude)
        described = [Parameter(name, tuple(p.shape), _unit_axis(model, name)) for name, p in parameters.items()]
        self._recordings = [
            Recording(group, parameters, storage_dtype) for group in groups(described, partition, q)
        ]
        self._model, self._parameters = model, list(parameters.values())
        self._names = list(parameters)
        self._allocated = 0
        self._handle = None
        self.clear()

    def clear(self) -> None:
        """Forget every snapshot, operator and time; buffers are kept for the next recording."""
        self.iterations = 0  # optimizer steps seen
        self.record_seconds = 0.0
        self.fit_seconds = 0.0
        self._taken = 0  # snapshots ever taken
        self._forget()

    def _forget(self) -> None:
        self._operators: list[list[KoopmanOperator]] | None = None
        self._mover: Mover | None = None
        self._departure: list[torch.Tensor] | None = None
        self.position = 0  # iterations past the newest snapshot

    @property
    def groups(self) -> list[Group]:
        """The recording groups, in the model's order."""
        return [recording.group for recording in self._recordings]

    @property
    def snapshots(self) -> int:
        """Snapshots that are held."""
        return self._taken if self.capacity is None else min(self._taken, self.capacity)

    def plan(self) -> RecordingPlan:
        """Bytes that recording takes."""
        each = sum(recording.bytes_per_snapshot for recording in self._recordings)
        held = None if self.capacity is None else self.capacity + (2 if self.window > 1 else 0)  # and a window's sum
        return RecordingPlan(each, self.capacity, None if held is None else each * held)

    def attach(self, optimizer: torch.optim.Optimizer):
        """Record after each `optimizer.step()`; returns the hook's handle, and `detach` removes it."""
        if self.attached:
            raise checks.InputError("attach: this phase is attached already; call detach() first")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self._handle = optimizer.register_step_post_hook(lambda *_: self.record())
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
        """
        if self.position:
            self.iterations = self._taken = 0
        if self._operators is not None:
            self._forget()
        phase = self.iterations % self.every
        self.iterations += 1
        if phase >= self.every - self.window:
            began = time.perf_counter()
            self._take(first=phase == self.every - self.window, done=phase == self.every - 1)
            self.record_seconds += time.perf_counter() - began

    @torch.no_grad()
    def _take(self, first: bool, done: bool) -> None:
        """The parameters into the newest snapshot, or into the sum of its window."""
        slot = self._slot() if done else None
        for recording in self._recordings:
            if self.window > 1:
                recording.accumulate(first)
                if done:
                    recording.finish(slot, self.window)
            else:
                recording.write(slot)
        self._taken += done

    def _slot(self) -> int:
        """Where the next snapshot goes; makes room."""
        capacity = self.capacity or max(FIRST_CAPACITY, self._allocated)
        if self.capacity is None and self._taken >= capacity:
            capacity *= 2
        if capacity != self._allocated:
            for recording in self._recordings:
                recording.allocate(capacity)
            self._allocated = capacity
        return self._taken % capacity

    def _put_in_order(self) -> None:
        """Turn a full ring in place, oldest snapshot first."""
        turned = self._taken % self._allocated if self._taken > self._allocated else 0
        if turned:
            for recording in self._recordings:
                recording.turn(turned)
        self._taken = min(self._taken, self._allocated)

    def fit(self) -> None:
        """Fit an operator to every block's snapshots.

        Raises:
            ValueError: fewer than two snapshots, or a snapshot that is not finite.
        """
        if self.snapshots < 2:
            raise checks.InputError(
                f"fit: expected at least 2 snapshots, got {self.snapshots}; train with attach(optimizer), or call "
                "record() after each optimizer step"
            )
        self._check_parameters()
        began = time.perf_counter()
        self._forget()
        self._put_in_order()
        operators = []
        for recording in self._recordings:
            views = recording.group.blocks(recording.buffer[: self._taken])
            try:
                operators.append([fit(view, time_axis=0, **self._fit_options) for view in views])
            except checks.InputError as error:
                raise checks.InputError(
                    f"layer {recording.group.name}: {error} (if training diverged, lower its learning "
                    "rate, or leave the layer out)"
                ) from None
        self._operators = operators
        self.fit_seconds = time.perf_counter() - began

    def _check_parameters(self) -> None:
        """Refuse to move tensors that the model no longer uses."""
        present = dict(self._model.named_parameters(remove_duplicate=False))
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if present.get(name) is not parameter:
                raise checks.InputError(f"model: {name} was replaced after this phase was made; make a new phase")

    def _ready(self) -> list[list[KoopmanOperator]]:
        if self._operators is None:
            self.fit()
        return self._operators

    def average(self) -> dict[str, torch.Tensor]:
        """The mean of the snapshots by parameter name, in the parameters' shapes and dtypes.

        Stochastic weight averaging (Izmailov et al. 2018): the baseline that a jump has to beat.

        Raises:
            ValueError: no snapshots.
        """
        if not self.snapshots:
            raise checks.InputError("average: nothing has been recorded; see attach() and record()")
        mean = {}
        for recording in self._recordings:
            rows = recording.buffer[: self.snapshots].mean(dim=0, dtype=torch.float64)
            for piece, member in recording.members:
                value = torch.empty_like(member)
                into(value, piece, rows)
                mean[piece.parameter.name] = value
        return mean

    def operators(self) -> dict[str, list[KoopmanOperator]]:
        """The fitted operators by layer: one, or two where quasi-nodes leave a remainder."""
        return {r.group.name: ops for r, ops in zip(self._recordings, self._ready(), strict=True)}

    def step(self, ahead: int = 1) -> None:
        """Move the parameters `every` optimizer iterations on, in place; fits first if that has not been done.

        Args:
            ahead: states to compute in one pass, this one and those of the next `ahead` - 1 calls, where
                looking ahead is allowed: the same bits in less time, for `ahead` times the parameters' memory.
        """
        ahead = checks.integer("ahead", ahead, least=1)
        operators = self._ready()
        if self._mover is None:
            self._mover, self._walked = Mover(self._recordings, operators), 0
        elif self.position != self._walked:
            self._mover.restart()
            self._walked = 0
        self._leave()
        self._mover.step((self.position - self._walked) // self.every + 1, ahead)
        self.position += self.every
        self._walked = self.position

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

    def jump(self, steps: int, guard: Callable[[], float] | None = None) -> JumpReport:
        """Move the parameters `steps` optimizer iterations on at once, in place.

        Args:
            steps: >= 0, a multiple of `every`.
            guard: returns a number, smaller is better; called before and after. If it got worse, or is not
                finite, the parameters are put back exactly as they were.

        Returns:
            JumpReport. Blocks with a prediction that is not finite keep their value and are counted.
        """
        steps = self.whole_steps(steps)
        operators = self._ready()
        before = float(guard()) if guard else None
        began = time.perf_counter()
        came_from, saved = self.position, self._save()
        self._leave()
        count = (self.position + steps) // self.every
        predicted = [_timed(lambda ops=ops: [op.predict(count, check_finite=False) for op in ops]) for ops in operators]
        # nothing has moved yet; from here on only copies follow
        kept = [recording.move(states) for recording, (states, _) in zip(self._recordings, predicted, strict=True)]
        self.position += steps
        seconds = time.perf_counter() - began  # what the reports cost is not the jump's
        spent = [each for _, each in predicted]
        layers = [self._report(*layer) for layer in zip(self._recordings, operators, kept, spent, strict=True)]
        report = JumpReport(steps, seconds, layers, before)
        if guard:
            report.rolled_back = True  # also where the guard fails, or is interrupted
            try:
                report.after = float(guard())
                report.rolled_back = not (math.isfinite(report.after) and report.after <= before)
            finally:
                if report.rolled_back:
                    self._restore(saved)
                    self.position = came_from
        return report

    @staticmethod
    def _report(recording: Recording, operators: list[KoopmanOperator], kept: int, seconds: float) -> LayerReport:
        ranks = torch.cat([op.rank.flatten() for op in operators])
        residuals = torch.cat([op.residual.flatten() for op in operators])
        return LayerReport(
            recording.group.name,
            recording.group.granularity,
            len(ranks),
            recording.group.rows * recording.group.n,
            (int(ranks.min()), float(np.median(ranks.numpy())), int(ranks.max())),
            float(residuals.nanmedian()),
            kept,
            seconds,
            operators,
        )

    def _save(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def _restore(self, saved: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, saved, strict=True):
            parameter.copy_(value)

    def _leave(self) -> None:
        """Remember the parameters as they were before the first move."""
        if self._departure is None:
            self._departure = self._save()

    def rollback(self) -> None:
        """Put the parameters back, bit for bit, as they were before the first `step` or `jump` since the fit."""
        if self._departure is None:
            raise checks.InputError("rollback: there was no step or jump since the last fit")
        self._restore(self._departure)
        self._departure, self.position = None, 0


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
        optimizer: of the model's parameters; hooks on it run as in training.
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
        raise checks.InputError("capacity: step_cost holds as many snapshots as it records; pass snapshots=")
    snapshots = checks.integer("snapshots", snapshots, least=2)
    rounds, ahead = checks.integer("rounds", rounds, least=1), checks.integer("ahead", ahead, least=1)
    phase = KoopmanPhase(model, partition, capacity=snapshots, **options)
    if jump_steps is None:
        jump_steps = snapshots * phase.every
    jump_steps = phase.whole_steps(jump_steps, "jump_steps")
    return measure(
        phase, model, optimizer, closure, partition=partition, rounds=rounds, ahead=ahead, jump_steps=jump_steps
    )


def _timed(work: Callable) -> tuple:
    """What `work` returns, and the seconds it took."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _interval(every: int, window: int) -> tuple[int, int]:
    """Iterations between snapshots and iterates in each snapshot's mean."""
    every = checks.integer("every", every, least=1)
    window = checks.integer("window", window, least=1)
    if every == 1:
        every = window
    if window > every:
        raise checks.InputError(f"window: expected at most every={every} iterates, got {window}")
    return every, window


def _patterns(name: str, patterns: str | Iterable[str] | None, names: list[str]) -> list[str]:
    if patterns is not None and not isinstance(patterns, Iterable):
        raise TypeError(f"{name}: expected a name pattern or several, got {patterns!r}")
    patterns = [patterns] if isinstance(patterns, str) else list(patterns or ())
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(candidate, pattern) for candidate in names):
            raise checks.InputError(f"{name}: the pattern {pattern!r} matches no parameter")
    return patterns


def _select(model: nn.Module, include, exclude) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, as include and exclude tell; each must be one FastKoop can record."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = _patterns("include", include, list(parameters))
    unwanted = _patterns("exclude", exclude, [name for name, _ in model.named_parameters()])

    def chosen(name: str) -> bool:
        inside = not wanted or any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
        return inside and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unwanted)

    parameters = {name: p for name, p in parameters.items() if chosen(name)}
    for name, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):
            raise checks.InputError(f"model: {name} is uninitialized; run the model once before making a phase")
        if parameter.device.type != "cpu":
            raise TypeError(f"model: this version records on the CPU, but {name} is on {parameter.device}")
        if parameter.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise TypeError(f"model: expected float parameters, but {name} is {parameter.dtype}; see exclude=")
    return parameters


def _unit_axis(model: nn.Module, name: str) -> int:
    """The axis over the units that a parameter feeds: 0, but 1 in the weight of a transposed convolution."""
    module = model.get_submodule(name.rpartition(".")[0])
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    return int(transposed and module.groups == 1 and name.endswith("weight"))
