"""What a comparison says, in a table and in words."""

from __future__ import annotations

import math
from statistics import median, stdev

from .compare import seconds
from .paired import SIGNIFICANT, paired
from .problems.movement import words as movement_words
from .problems.oscillator import NAME as OSCILLATOR

OPTIMIZER, KOOPMAN, AVERAGE = "optimizer", "koopman", "average"


def _over_seeds(results: dict, value) -> float:
    return median(value(run) for run in results["runs"])


def _worst_as_infinite(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def final_loss(run: dict, side: str) -> float:
    """Test loss at the end of the T phase; of "average", of the mean of the recorded iterates. Diverged is inf."""
    loss = run[side]["test_loss"]
    return _worst_as_infinite(loss[-1] if isinstance(loss, list) else loss)


def final_accuracy(run: dict, side: str) -> float:
    """Test accuracy likewise; nan of what classifies nothing."""
    accuracy = run[side]["test_accuracy"]
    accuracy = accuracy[-1] if isinstance(accuracy, list) else accuracy
    return math.nan if accuracy is None else accuracy


def rows(results: dict) -> list[tuple[str, ...]]:
    """The final table: who, final test loss, accuracy, per iteration, T phase, medians over seeds."""
    name = results["config"]["optimizer"]
    labels = {OPTIMIZER: name, KOOPMAN: f"Koopman, {results['config']['partition']}", AVERAGE: "mean of the recorded"}
    table = []
    for side, label in labels.items():
        loss = _over_seeds(results, lambda run, side=side: final_loss(run, side))
        accuracy = _over_seeds(results, lambda run, side=side: final_accuracy(run, side))
        step, phase = "", ""
        if side != AVERAGE:
            each = _over_seeds(results, lambda run, side=side: seconds(run, side)["step"])
            step = milliseconds(each / (results["config"]["every"] if side == KOOPMAN else 1))
            phase = f"{_over_seeds(results, lambda run, side=side: seconds(run, side)['phase']):.3g} s"
        if side == KOOPMAN:
            phase += f" ({_over_seeds(results, lambda run: seconds(run, KOOPMAN)['jump']):.3g} s by jump)"
        table.append((label, f"{loss:.4g}", "-" if math.isnan(accuracy) else f"{accuracy:.2%}", step, phase))
    return table


BASELINES = {
    "start": "no jump: the last recorded iterate",
    "mean": "mean of the recorded iterates (SWA)",
    "moving": "moving average of the recorded iterates",
    "line": "the line through the recorded iterates, at the last",
    "rank one": "a jump with operators of rank 1",
    "equal time": "{name}, as long as the Koopman phase took",
    "optimizer": "{name}, to the end of the phase",
    "optimizer mean": "{name}, mean of its last iterates there",
    "optimizer moving": "{name}, moving average there",
}


def baseline_rows(results: dict) -> list[tuple[str, ...]]:
    """A line per baseline and for the jump: who, test loss (mean and spread), accuracy, gradients, seconds since t2,
    and how far Koopman's jump is from it."""
    runs, name = results["runs"], results["config"]["optimizer"]
    jump = [_worst_as_infinite(run[KOOPMAN]["jumped"]["test_loss"]) for run in runs]
    spent = _over_seeds(results, lambda run: seconds(run, KOOPMAN)["jump"])
    table = [(
        f"Koopman, {results['config']['partition']}, one jump", spread(jump),
        _share([run[KOOPMAN]["jumped"]["test_accuracy"] for run in runs]),
        str(runs[0]["baselines"]["mean"]["gradients"]), f"{spent:.3g}", "",
    )]  # fmt: skip
    for key, label in BASELINES.items():
        own = [run["baselines"].get(key) for run in runs]
        if None in own:  # results of an earlier version, or a phase of no iterations
            continue
        losses = [_worst_as_infinite(each["test_loss"]) for each in own]
        table.append((
            label.format(name=name), spread(losses), _share([each["test_accuracy"] for each in own]),
            f"{median(each['gradients'] for each in own):g}", f"{median(each['seconds'] for each in own):.3g}",
            str(paired(jump, losses)),
        ))  # fmt: skip
    return table


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = sum(values) / len(values)
    return f"{mean:.4f} ± {stdev(values):.4f}" if len(values) > 1 and math.isfinite(mean) else f"{mean:.4g}"


def _share(values: list[float | None]) -> str:
    return "-" if None in values else f"{sum(values) / len(values):.2%}"


def milliseconds(value: float) -> str:
    """A duration of a step."""
    return "-" if math.isnan(value) else f"{value * 1e3:.3g} ms"


def words(results: dict) -> list[str]:
    """Which side won and by how much, in loss and in time including recording and fit."""
    name = results["config"]["optimizer"]
    entries = [run[OSCILLATOR] for run in results["runs"] if OSCILLATOR in run]
    return [*_loss_words(results, name), *movement_words(entries, name), *_time_words(results, name)]


def _loss_words(results: dict, name: str) -> list[str]:
    runs = results["runs"]
    optimizer, koopman, average = (
        _over_seeds(results, lambda run, side=side: final_loss(run, side)) for side in (OPTIMIZER, KOOPMAN, AVERAGE)
    )
    wins = sum(final_loss(run, KOOPMAN) < final_loss(run, OPTIMIZER) for run in runs)
    low, high = sorted((optimizer, koopman))
    winner, ratio = "Koopman" if koopman < optimizer else name, high / low if low else math.inf
    seeds = f"Koopman ends below {name} on {wins} of {len(runs)} seed{'s' * (len(runs) != 1)}"
    if koopman == optimizer:
        lines = [f"Loss: neither is ahead, both end the phase at {koopman:.4g}."]
    else:
        lines = [f"Loss: {winner} ends the phase ahead, {low:.4g} against "
                 f"{high:.4g} ({ratio:.3g} times); {seeds}."]  # fmt: skip
    at, loss = (median(both) for both in zip(*map(_dip, runs), strict=True))
    lines.append(f"On the way its test loss is lowest at iteration {at:g}, {loss:.1%} of its start's.")
    found = paired(*([final_loss(run, side) for run in runs] for side in (KOOPMAN, AVERAGE)))
    verdict = "beats" if koopman < average else "does not beat"
    sure = ", which chance may have done" if found.p >= SIGNIFICANT and found.comparable else ""
    said = f", {found}{sure}" if len(runs) > 1 else ""
    lines.append(f"It {verdict} the mean of the recorded iterates ({average:.4g}), which costs next to nothing{said}.")
    return [*lines, *_jump_words(results)]


def _jump_words(results: dict) -> list[str]:
    """Where a guarded jump led, and whether Koopman's weights are the mean of the recorded in disguise."""
    runs, lines = results["runs"], []
    if results["config"].get("horizon"):
        chosen = ", ".join("back" if run[KOOPMAN]["jumped"]["rolled_back"] else str(run[KOOPMAN]["jumped"]["steps"])
                           for run in runs)  # fmt: skip
        loss = _over_seeds(results, lambda run: _worst_as_infinite(run[KOOPMAN]["jumped"]["test_loss"]))
        count = results["config"]["validation"]
        lines.append(f"By the loss on {count} validation images the guarded jump goes {chosen} iterations far, "
                     f"where the test loss is {loss:.4g}.")  # fmt: skip
    distance = _over_seeds(results, lambda run: run[KOOPMAN]["jumped"]["from_mean"])
    if math.isfinite(distance):
        lines.append(f"The jump ends {distance:.3g} times as far from that mean as it set out.")
    return lines


def _dip(run: dict) -> tuple[int, float]:
    """(iteration, loss over the starting loss) of the best evaluated state of one run."""
    losses = [_worst_as_infinite(loss) for loss in run[KOOPMAN]["test_loss"]]
    best = min(range(len(losses)), key=losses.__getitem__)
    return run[KOOPMAN]["iteration"][best], losses[best] / losses[0]


def _time_words(results: dict, name: str) -> list[str]:
    def of(side: str, what: str) -> float:
        return _over_seeds(results, lambda run: seconds(run, side)[what])

    every = results["config"]["every"]
    step = of(KOOPMAN, "step") / every
    lines = []
    if not math.isnan(step):
        lines.append(f"Time per iteration: a Koopman step is {_faster(of(OPTIMIZER, 'step') / step)} than {name}'s.")
    for what, said in (("phase", "step by step"), ("jump", "by one jump")):
        ratio = of(OPTIMIZER, "phase") / of(KOOPMAN, what) if of(OPTIMIZER, "phase") else math.nan
        if not math.isnan(ratio):
            lines.append(f"Whole phase {said}, recording and fit included: Koopman is {_faster(ratio)}.")
    return lines


def _faster(ratio: float) -> str:
    return f"{ratio:.3g} times faster" if ratio >= 1 else f"{1 / ratio:.3g} times slower"
