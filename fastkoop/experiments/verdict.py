"""What a comparison says, in a table and in words."""

from __future__ import annotations

import math
from statistics import median, stdev

from . import baselines
from .costs import seconds
from .figures import loss_name
from .paired import SIGNIFICANT, paired
from .problems.movement import words as movement_words
from .problems.oscillator import NAME as OSCILLATOR

OPTIMIZER, KOOPMAN, AVERAGE = "optimizer", "koopman", "average"


def _over_seeds(results: dict, value) -> float:
    return median(value(run) for run in results["runs"])


def final_loss(run: dict, side: str) -> float:
    """Test loss at the end of the T phase; of "average", of the mean of the recorded iterates. Diverged is inf."""
    loss = run[side]["test_loss"]
    return _number(loss[-1] if isinstance(loss, list) else loss)


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
            median_step = _over_seeds(results, lambda run, side=side: seconds(run, side)["step"])
            step = milliseconds(median_step / (results["config"]["every"] if side == KOOPMAN else 1))
            phase = f"{_over_seeds(results, lambda run, side=side: seconds(run, side)['phase']):.3g} s"
        if side == KOOPMAN:
            phase += f" ({_over_seeds(results, lambda run: seconds(run, KOOPMAN)['jump']):.3g} s by jump)"
        table.append((label, f"{loss:.4g}", "-" if math.isnan(accuracy) else f"{accuracy:.2%}", step, phase))
    return table


BASELINES = {key: kind.label for key, kind in baselines.BASELINES.items()}
FREE = ("start", "mean", "moving", "line", "secant")  # what costs no gradient beyond the recording
RIVALS = ("rna", "anderson", "nesterov", "l-bfgs")  # what extrapolates or minimises better where it can be used


def short_rows(results: dict) -> list[tuple[str, ...]]:
    """The short table: who, loss, accuracy, gradients, seconds since t2; medians over seeds."""
    runs, name = results["runs"], results["config"]["optimizer"]
    at_t2, at_end = _over_seeds(results, _gradients("start")), _over_seeds(results, _gradients("optimizer"))

    def line(label: str, loss, accuracy, gradients: float, spent: float) -> tuple[str, ...]:
        shares = [accuracy(run) for run in runs]
        share = "-" if any(value is None or math.isnan(value) for value in shares) else f"{median(shares):.2%}"
        return label, f"{_over_seeds(results, loss):.4g}", share, f"{gradients:g}", f"{spent:.3g}"

    def cost(side: str, what: str) -> float:
        return _over_seeds(results, lambda run: seconds(run, side)[what])

    def sides(side: str):
        return (lambda run: final_loss(run, side)), (lambda run: final_accuracy(run, side))

    def of(key: str, what: str):
        return lambda run: run["baselines"][key][what]

    table = [
        line("Koopman, one jump", jump_loss, lambda run: run[KOOPMAN]["jumped"]["test_accuracy"], at_t2,
             cost(KOOPMAN, "jump")),
        line("Koopman, step by step", *sides(KOOPMAN), at_t2, cost(KOOPMAN, "phase")),
        line(f"{name}", *sides(OPTIMIZER), at_end, cost(OPTIMIZER, "phase")),
    ]  # fmt: skip
    for key, kind in baselines.BASELINES.items():
        if kind.short and all(run["baselines"].get(key) for run in runs):
            table.append(line(
                kind.short.format(name=name), lambda run, key=key: _number(run["baselines"][key]["test_loss"]),
                of(key, "test_accuracy"), _over_seeds(results, _gradients(key)),
                _over_seeds(results, of(key, "seconds")),
            ))  # fmt: skip
    return table


def _gradients(key: str):
    return lambda run: run["baselines"][key]["gradients"]


def _number(loss: float | None) -> float:
    """A loss of results.json: None is one that was not finite."""
    return math.inf if loss is None or math.isnan(loss) else loss


def jump_loss(run: dict) -> float:
    """Test loss after one jump."""
    return _number(run[KOOPMAN]["jumped"]["test_loss"])


def pays(run: dict) -> bool:
    """Whether the jump ends below everything that costs no gradient."""
    return jump_loss(run) < min(_number(run["baselines"][key]["test_loss"]) for key in FREE if key in run["baselines"])


def verdict(results: dict) -> list[str]:
    """Whether the phase paid, beside what, and what it took, in three or four sentences."""
    runs, name, what = results["runs"], results["config"]["optimizer"], loss_name(results)
    won = [pays(run) for run in runs]
    free = {
        key: _over_seeds(results, lambda run, key=key: _number(run["baselines"][key]["test_loss"]))
        for key in FREE
        if all(key in run["baselines"] for run in runs)
    }
    best = min(free, key=free.__getitem__)
    jump, end = _over_seeds(results, jump_loss), _over_seeds(results, lambda run: final_loss(run, OPTIMIZER))
    steps = runs[0]["optimizer"]["iteration"][-1]
    lines = [
        f"{_answer(won)}: one jump over {steps} iterations ends at a {what} of {jump:.4g}; the best of what costs no "
        f"further gradient, {BASELINES[best]}, is at {free[best]:.4g}; {steps} iterations of {name} end at {end:.4g}."
    ]
    lines += _forecast_words(runs, won) + _rival_words(results, jump)
    spent, phase = (
        _over_seeds(results, lambda run, side=side: seconds(run, side)["jump"]) for side in (KOOPMAN, OPTIMIZER)
    )
    if phase and spent:
        lines.append(f"Recording, fit and jump took {spent:.3g} s, {_faster(phase / spent)} than those iterations.")
    return lines + movement_words([run[OSCILLATOR] for run in runs if OSCILLATOR in run], name)


def _rival_words(results: dict, jump: float) -> list[str]:
    """What else there is that ends below the jump."""
    ends = {
        BASELINES[key]: _over_seeds(results, lambda run, key=key: _number(run["baselines"][key]["test_loss"]))
        for key in RIVALS
        if all(key in run["baselines"] for run in results["runs"])
    }
    ahead = [f"{label} {end:.3g}" for label, end in sorted(ends.items(), key=lambda item: item[1]) if end < jump]
    return [f"Ahead of it: {'; '.join(ahead)}."] if ahead else []


def _answer(won: list[bool]) -> str:
    if len(won) == 1:
        return "It pays" if won[0] else "It does not pay"
    head = "It pays" if all(won) else "It does not pay" if not any(won) else "It pays on some seeds"
    return f"{head} ({sum(won)} of {len(won)})"


def _forecast_words(runs: list[dict], won: list[bool]) -> list[str]:
    """What the recording said of the jump beforehand, and whether it was right."""
    said = [run[KOOPMAN]["forecast"]["pays"] for run in runs if run[KOOPMAN].get("forecast")]
    if len(said) != len(runs):
        return []
    right = sum(a == b for a, b in zip(said, won, strict=True))
    if len(runs) == 1:
        return [f"The forecast from the recording alone was: {'it pays' if said[0] else 'it does not'}; it was "
                f"{'right' if right else 'wrong'}."]  # fmt: skip
    return [
        f"The forecast from the recording alone said yes on {sum(said)} of {len(runs)} seeds and was right on {right}."
    ]


def baseline_rows(results: dict) -> list[tuple[str, ...]]:
    """A line per baseline and for the jump: who, test loss (mean and spread), accuracy, gradients, seconds since t2,
    and how far Koopman's jump is from it."""
    runs, name = results["runs"], results["config"]["optimizer"]
    jump = [jump_loss(run) for run in runs]
    spent = _over_seeds(results, lambda run: seconds(run, KOOPMAN)["jump"])
    table = [(
        f"Koopman, {results['config']['partition']}, one jump", spread(jump),
        _share([run[KOOPMAN]["jumped"]["test_accuracy"] for run in runs]),
        str(runs[0]["baselines"]["mean"]["gradients"]), f"{spent:.3g}", "",
    )]  # fmt: skip
    for key, label in BASELINES.items():
        entries = [run["baselines"].get(key) for run in runs]
        if None in entries:  # results of an earlier version, or a phase of no iterations
            continue
        losses = [_number(entry["test_loss"]) for entry in entries]
        table.append((
            label.format(name=name), spread(losses), _share([entry["test_accuracy"] for entry in entries]),
            f"{median(entry['gradients'] for entry in entries):g}",
            f"{median(entry['seconds'] for entry in entries):.3g}", str(paired(jump, losses)),
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
    difference = paired(*([final_loss(run, side) for run in runs] for side in (KOOPMAN, AVERAGE)))
    verdict = "beats" if koopman < average else "does not beat"
    sure = ", which chance may have done" if difference.p >= SIGNIFICANT and difference.comparable else ""
    said = f", {difference}{sure}" if len(runs) > 1 else ""
    lines.append(f"It {verdict} the mean of the recorded iterates ({average:.4g}), which costs next to nothing{said}.")
    return [*lines, *_jump_words(results)]


def _jump_words(results: dict) -> list[str]:
    """Where a guarded jump led, and whether Koopman's weights are the mean of the recorded in disguise."""
    runs, lines = results["runs"], []
    if results["config"].get("horizon"):
        chosen = ", ".join("back" if run[KOOPMAN]["jumped"]["rolled_back"] else str(run[KOOPMAN]["jumped"]["steps"])
                           for run in runs)  # fmt: skip
        loss = _over_seeds(results, jump_loss)
        count = results["config"]["validation"]
        lines.append(f"By the loss on {count} validation images the guarded jump goes {chosen} iterations far, "
                     f"where the test loss is {loss:.4g}.")  # fmt: skip
    distance = _over_seeds(results, lambda run: run[KOOPMAN]["jumped"]["from_mean"])
    if math.isfinite(distance):
        lines.append(f"The jump ends {distance:.3g} times as far from that mean as it set out.")
    return lines


def _dip(run: dict) -> tuple[int, float]:
    """(iteration, loss over the starting loss) of the best evaluated state of one run."""
    losses = [_number(loss) for loss in run[KOOPMAN]["test_loss"]]
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
