"""What a comparison is asked for, checked before anything is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from .. import checks
from ..adapter.presets import PRESETS, preset_options
from ..options import Options
from ..partition import GRANULARITIES
from .devices import check_device
from .problems.checked import CheckedProblem
from .problems.loading import open_problem
from .training import OPTIMIZERS, Training, named_optimizer

WITH_VELOCITY = ("adam", "momentum")
LARGEST_RATE = 3.4e38  # float32's largest number
OF_A_PHASE = tuple(entry.name for entry in fields(Options))


def phase_options(preset: str | None, recorded: int, chosen: Mapping[str, Any]) -> Options:
    """A preset's options for a recording of so many iterations; what was chosen explicitly wins.

    >>> phase_options("noisy", 240, {"cutoff": "jax"}).describe()["cutoff"], phase_options("noisy", 240, {}).window
    ('jax', 20)
    """
    values = dict(preset_options(preset, recorded))
    if {"window", "every"} & set(chosen):
        values.pop("window", None)
        values.pop("every", None)
    return Options(**{**values, **chosen})


class Span(NamedTuple):
    """A stretch of training, in epochs or in iterations."""

    count: int
    iterations: bool

    @classmethod
    def of(cls, name: str, value) -> Span:
        """From an integer, epochs, or from text: "3" or "500it".

        >>> Span.of("t1", 3), Span.of("t1", "500it")
        (Span(count=3, iterations=False), Span(count=500, iterations=True))
        """
        if isinstance(value, str):
            match = re.fullmatch(r"(-?\d+)\s*(it|iterations)?", value.strip())
            if match is None:
                raise checks.InputError(
                    f'{name}: expected epochs such as 3, or iterations such as "500it", got {value!r}'
                )
            return cls(checks.integer(name, int(match[1]), least=0), match[2] is not None)
        return cls(checks.integer(name, value, least=0), False)

    def in_iterations(self, name: str, per_epoch: int | None) -> int:
        """So many iterations."""
        if self.iterations:
            return self.count
        if per_epoch is None:
            raise checks.InputError(
                f"{name}: the problem's batches have no length, so that {self.count} epochs mean nothing; give "
                f"iterations, --{name} 500it"
            )
        return self.count * per_epoch

    def described(self) -> int | str:
        """As results.json has it."""
        return f"{self.count}it" if self.iterations else self.count


@dataclass(frozen=True)
class Lengths:
    """A comparison in iterations: before recording, of recording, and of the T phase."""

    before: int
    record: int
    phase: int
    per_epoch: int | None

    def final(self, every: int) -> int:
        """What Koopman steps can reach of the phase."""
        return self.phase // every * every


@dataclass(frozen=True)
class Config:
    """One comparison. What is None takes the problem's or the usual value.

    Args:
        problem: a built-in problem's name, "FILE.py:NAME", "MODULE:NAME", or an object, see `problems.contract`.
        data_dir: folder with MNIST's files.
        partition, q: blocks, see `fastkoop.partition`.
        t1, t2, T: epochs before recording, at its end, and of the phase; or iterations, as "500it".
        optimizer, lr, batch_size: None takes the problem's, then AdaDelta.
        chosen: options of a phase that were named explicitly, see `fastkoop.options`.
        preset: "published", "noisy" or "smooth", for what was not.
        horizon: "auto" lets validation choose how far the jump goes.
        validation: images that are taken out of the training set, to choose by.
        seeds: seeds 0 .. seeds-1 are run.
        eval_every: iterations between evaluations.
        device: "cpu", "cuda" or "cuda:N".
        out: folder of the results; None writes nothing.
        budget: seconds that the comparison may take, about; spans and evaluations shrink to fit.
    """

    problem: Any = "digits"
    data_dir: str | None = None
    partition: str | None = None
    q: int | None = None
    t1: int | str | None = None
    t2: int | str | None = None
    T: int | str | None = None
    optimizer: str | None = None
    lr: float | None = None
    batch_size: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    horizon: str | None = None
    validation: int = 0
    seeds: int = 1
    eval_every: int = 1
    device: str = "cpu"
    out: str | None = "fastkoop-compare"
    budget: float | None = None

    @classmethod
    def of(cls, **options) -> Config:
        """From flat keywords, a phase's options among them.

        >>> Config.of(cutoff="jax", seeds=2).chosen
        {'cutoff': 'jax'}
        """
        chosen = {name: options.pop(name) for name in OF_A_PHASE if name in options}
        unknown = set(options) - {entry.name for entry in fields(cls)}
        if unknown:
            raise TypeError(f"{', '.join(sorted(unknown))}: no option of a comparison; expected some of "
                            f"{', '.join((*(entry.name for entry in fields(cls)), *OF_A_PHASE))}")  # fmt: skip
        return cls(chosen=chosen, **options)

    def checked(self) -> Config:
        """The same, checked as far as it says nothing about the problem.

        Raises:
            ValueError, TypeError: naming the option, what was expected, what was found and the cure.
        """
        if self.partition is not None:
            checks.choice("partition", self.partition, GRANULARITIES)
        if self.optimizer is not None:
            checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.preset is not None:
            checks.choice("preset", self.preset, PRESETS)
        check_device(self.device)
        for name in ("seeds", "eval_every"):
            checks.integer(name, getattr(self, name), least=1)
        if self.batch_size is not None:
            checks.integer("batch_size", self.batch_size, least=1)
        self._check_rate()
        self._check_horizon()
        if self.budget is not None and not (isinstance(self.budget, (int, float)) and 0 < self.budget < math.inf):
            raise checks.InputError(f"budget: expected seconds > 0, got {self.budget}")
        for name in ("t1", "t2", "T"):
            if getattr(self, name) is not None:
                Span.of(name, getattr(self, name))
        Options(**self.chosen)
        return self

    def _check_rate(self) -> None:
        if self.lr is None:
            return
        if not (isinstance(self.lr, (int, float)) and math.isfinite(self.lr) and self.lr > 0):
            raise checks.InputError(f"lr: expected a number > 0, got {self.lr}")
        if self.lr > LARGEST_RATE:
            raise checks.InputError(f"lr: expected at most {LARGEST_RATE:g}, the largest float32, got {self.lr:g}")

    def _check_horizon(self) -> None:
        checks.integer("validation", self.validation, least=0)
        if self.horizon not in (None, "auto"):
            raise checks.InputError(f'horizon: expected "auto", got {self.horizon!r}; leave it out for the whole phase')


@dataclass(frozen=True)
class Setup:
    """A checked comparison of a problem that was opened: nothing in it is left open.

    Args:
        config: without a None that has a usual value.
        problem: what is trained.
        options: of the phase.
        lengths: in iterations.
        optimizer: its name in results.
        lr: its learning rate.
        dtype: of the parameters.
    """

    config: Config
    problem: CheckedProblem
    options: Options
    lengths: Lengths
    optimizer: str
    lr: float | None
    dtype: Any

    @property
    def every(self) -> int:
        """Iterations between snapshots."""
        return self.options.every

    @property
    def final(self) -> int:
        """Iterations of the T phase that Koopman steps can reach."""
        return self.lengths.final(self.options.every)

    @property
    def phase_options(self) -> dict[str, Any]:
        """What a KoopmanPhase takes of it."""
        return {"partition": self.config.partition, "q": self.config.q, **self.options.phase_arguments}

    def training(self, seed: int) -> Training:
        """A model of a seed, not yet trained."""
        return Training(self.problem, seed, self.config.optimizer, self.config.lr)

    def described(self) -> dict[str, Any]:
        """The config of results.json."""
        config = asdict(replace(self.config, problem=None, chosen={}))
        for name in ("data_dir", "out", "problem", "chosen", "budget"):  # places on one machine mean nothing on another
            del config[name]
        words = {"optimizer": self.optimizer, "lr": self.lr, "batch_size": self.problem.batch_size}
        names = {"loss_name": self.problem.loss_name, "epoch_name": self.problem.epoch_name}
        return {"dataset": self.problem.name, **config, **words, **self.options.describe(), **names}


def prepare(config: Config) -> Setup:
    """Open the problem that a config names and fill in what the config leaves open.

    Raises:
        ValueError, TypeError: naming the option or the problem's method at fault.
    """
    config = config.checked()
    problem = open_problem(config)
    defaults = problem.problem
    if config.partition is None:
        config = replace(config, partition=getattr(defaults, "partition", "node"))
    _check_blocks(config)
    if config.preset is None:
        config = replace(config, preset=getattr(defaults, "preset", None))
    if config.optimizer is None and not problem.makes_optimizer:
        config = replace(config, optimizer="adadelta")
    if config.horizon and not problem.validates:
        cure = "pass --validation" if problem.batch_size else "give the problem a method validate(model)"
        raise checks.InputError(f'horizon: "auto" is guarded by the loss on validation images; {cure}')
    usual = dict(zip(("t1", "t2", "T"), problem.epochs, strict=True))
    spans = {name: Span.of(name, usual[name] if (value := getattr(config, name)) is None else value) for name in usual}
    config = replace(config, **{name: span.described() for name, span in spans.items()})
    probe = Training(problem, 0, config.optimizer, config.lr)
    lengths = _lengths(spans, probe.batches.per_epoch)
    options = phase_options(config.preset, lengths.record, config.chosen)
    if options.observables.momentum and config.optimizer not in (None, *WITH_VELOCITY):
        raise checks.InputError(
            f"observables: Momentum() needs an optimizer with velocities, {' or '.join(WITH_VELOCITY)}, got "
            f"{config.optimizer}"
        )
    check_lengths(lengths, options, config.preset == "noisy" and "every" not in config.chosen)
    rate = probe.optimizer.param_groups[0].get("lr")
    return Setup(
        config, problem, options, lengths, config.optimizer or named_optimizer(probe.optimizer),
        float(rate) if isinstance(rate, (int, float)) else None, next(probe.model.parameters()).dtype,
    )  # fmt: skip


def _check_blocks(config: Config) -> None:
    if config.partition == "quasi-node" and config.q is None:
        raise checks.InputError('q: the partition "quasi-node" needs --q, the number of weights in a block')
    if config.partition != "quasi-node" and config.q is not None:
        raise checks.InputError(f'q: only the partition "quasi-node" takes --q, got {config.q}')
    if config.q is not None:
        checks.integer("q", config.q, least=1)


def _lengths(spans: dict[str, Span], per_epoch: int | None) -> Lengths:
    """Epochs as iterations."""
    at = {name: span.in_iterations(name, per_epoch) for name, span in spans.items()}
    if at["t2"] <= at["t1"]:
        unit = "iterations" if spans["t2"].iterations else "epochs"
        raise checks.InputError(
            f"t2: expected more than t1 = {spans['t1'].count} {unit}, got {spans['t2'].count}; recording runs from t1 "
            "to t2"
        )
    return Lengths(at["t1"], at["t2"] - at["t1"], at["T"], per_epoch)


def check_lengths(lengths: Lengths, options: Options, by_preset: bool = False) -> None:
    """Raise if a recording would hold no pair, or a phase no step."""
    recorded, every = lengths.record, options.every
    if recorded // every < 2:
        raise checks.InputError(
            f"every: {recorded} recorded iterations hold fewer than 2 snapshots at every={every}; lower it, "
            "or record for more epochs (t2 - t1)"
        )
    if 0 < lengths.phase < every:
        cure = "record for fewer epochs (t2 - t1)" if by_preset else "lower it"
        raise checks.InputError(
            f"every: {every} iterations are longer than the T phase of {lengths.phase}, in which "
            f"no Koopman step would be made; {cure}, or raise T"
        )
    options.observables.check(recorded // every)
