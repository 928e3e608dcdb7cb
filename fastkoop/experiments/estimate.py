"""What a comparison will take, measured on a few iterations: for --dry-run, and to fit it into --budget seconds."""

from __future__ import annotations

import itertools
import textwrap
import time
from dataclasses import replace
from typing import NamedTuple

from ..torch_adapter import KoopmanPhase
from .averages import Average
from .baselines import BASELINES
from .config import Config, Setup, prepare
from .devices import Stopwatch
from .problems.checked import stop_if_not_finite

PROBED = 8  # iterations
PROBE_SECONDS = 2.0
STATED = 1.5  # an estimate is stated so many times as long as the parts that were measured
OF_STEPS, OF_EVALUATIONS = 0.6, 0.2  # shares of a budget; fit, jump and figures take the rest
LEAST = 12  # recorded iterations, of snapshots, and of the phase, that a budget leaves


class Costs(NamedTuple):
    """Seconds of an optimizer iteration, of recording it (averages included), and of an evaluation."""

    step: float
    record: float
    evaluation: float


def measure(setup: Setup) -> Costs:
    """A few iterations of seed 0, recorded, and an evaluation; nothing of them is kept."""
    training, watch = setup.training(0), Stopwatch(setup.problem.device)
    phase = KoopmanPhase(training.model, **setup.phase_options, capacity=PROBED)
    average, steps, records, began = Average(lambda count: 1 / count), [], [], time.perf_counter()
    for batch in itertools.islice(training.stream, PROBED):
        loss, seconds = watch.time(lambda batch=batch: training.step(batch))
        stop_if_not_finite(loss, "in the first iterations")
        steps.append(seconds)
        if not setup.options.observables.momentum:
            records.append(watch.time(phase.record)[1] + watch.time(lambda: average.add(training.model))[1])
        if time.perf_counter() - began > PROBE_SECONDS:
            break
    _, evaluation = watch.time(lambda: setup.problem.evaluate(training.model))
    return Costs(min(steps), min(records, default=0.0), evaluation)


def evaluations(setup: Setup) -> int:
    """Evaluations in a seed: both sides on the way, the jump and the baselines."""
    return 2 * (1 + -(-setup.final // setup.config.eval_every)) + len(BASELINES) + 2


def seconds(setup: Setup, costs: Costs) -> float:
    """What all seeds take, about."""
    lengths = setup.lengths
    steps = (lengths.before + lengths.record + 2 * lengths.phase) * costs.step + lengths.record * costs.record
    return STATED * setup.config.seeds * (steps + evaluations(setup) * costs.evaluation)


def within_budget(config: Config) -> Config:
    """The config with spans and evaluations that fit into its budget; spans are in iterations where they shrink.

    Raises:
        ValueError: as `prepare` does.
    """
    setup = prepare(config)
    costs, share = measure(setup), config.budget / config.seeds
    lengths, every = setup.lengths, setup.every
    steps = (lengths.before + lengths.record + 2 * lengths.phase) * costs.step + lengths.record * costs.record
    factor = min(1.0, OF_STEPS * share / max(steps, 1e-9))
    if factor < 1.0:
        before = int(factor * lengths.before)
        record = min(lengths.record, max(int(factor * lengths.record), LEAST * every))
        phase = min(lengths.phase, max(int(factor * lengths.phase), LEAST * every))
        config = replace(config, t1=f"{before}it", t2=f"{before + record}it", T=f"{phase}it")
        setup = prepare(config)
    affordable = max(2, int(OF_EVALUATIONS * share / max(costs.evaluation, 1e-9)) // 2)
    return replace(config, eval_every=max(config.eval_every, -(-setup.final // affordable) or 1))


def dry_run(config: Config) -> list[str]:
    """What a comparison would take, in lines; a few iterations are made, and nothing large is allocated."""
    config = config if config.budget is None else within_budget(config)
    setup = prepare(config)
    lengths, count = setup.lengths, config.seeds
    training = setup.training(0)
    plan = KoopmanPhase(training.model, **setup.phase_options, capacity=lengths.record // setup.every).plan()
    weights = sum(parameter.numel() for parameter in training.model.parameters())
    total = count * (lengths.before + lengths.record + setup.final)
    lines = [
        f"{setup.problem.name}: {weights} weights, {setup.config.partition}-wise, {setup.optimizer}",
        f"iterations a seed: {lengths.before} before recording, {lengths.record} recorded, {setup.final} in the phase",
        f"iterations in all: {total}, with {count * evaluations(setup)} evaluations",
        *(f"recording: {line}" for line in str(plan).splitlines()[:1]),
        f"time: about {seconds(setup, measure(setup)):.2g} s, and what compiling takes the first time",
        "nothing was trained",
    ]
    return [part for line in lines for part in textwrap.wrap(line, 80, subsequent_indent="  ")]
