"""What a comparison says, in a table and in words."""

from __future__ import annotations

import math
from statistics import median

from .compare import seconds

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
    """Test accuracy likewise."""
    accuracy = run[side]["test_accuracy"]
    return accuracy[-1] if isinstance(accuracy, list) else accuracy


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
        table.append((label, f"{loss:.4g}", f"{accuracy:.2%}", step, phase))
    return table


def milliseconds(value: float) -> str:
    """A duration of a step."""
    return "-" if math.isnan(value) else f"{value * 1e3:.3g} ms"


def words(results: dict) -> list[str]:
    """Which side won and by how much, in loss and in time including recording and fit."""
    name = results["config"]["optimizer"]
    return [*_loss_words(results, name), *_time_words(results, name)]


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
    best = min(((loss, at) for run in runs for at, loss in _dip(run)), default=None)
    if best:
        lines.append(f"On the way Koopman is best at iteration {best[1]}, with a loss {best[0]:.1%} of its start's.")
    verdict = "beats" if koopman < average else "does not beat"
    lines.append(
        f"It {verdict} the mean of the recorded iterates ({average:.4g}), which costs next to nothing."
    )
    return lines


def _dip(run: dict):
    """(iteration, loss over the starting loss) of the best evaluated state of one run."""
    losses = [_worst_as_infinite(loss) for loss in run[KOOPMAN]["test_loss"]]
    best = min(range(len(losses)), key=losses.__getitem__)
    yield run[KOOPMAN]["iteration"][best], losses[best] / losses[0]


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
