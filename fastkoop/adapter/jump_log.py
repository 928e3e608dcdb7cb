"""JumpLog: what a jump did, as names and numbers for any logger, and as one line for Python's logging."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

from .forecast import Overall
from .report import JumpReport

LOGGER = logging.getLogger("fastkoop")


class JumpLog:
    """Hands every jump's figures to `log(name, value, step)`; all names begin with "koopman/", all values are finite.

    Attributes:
        saved: optimizer iterations that all jumps so far stand for, which needed no gradients.
    """

    def __init__(self, log: Callable[[str, float, int], object] | None):
        if log is not None and not callable(log):
            raise TypeError(f"log: expected a function log(name, value, step), got {type(log).__name__}")
        self._log, self.saved = log, 0

    def __call__(self, report: JumpReport, forecast: Overall, step: int) -> None:
        """Log a jump that was made after `step` optimizer iterations, and its recording's forecast."""
        self.saved += report.steps if math.isfinite(report.steps) else 0
        LOGGER.info("%s", line(report, forecast, step))
        if self._log is not None:
            for name, value in figures(report, forecast, self.saved):
                if math.isfinite(value):
                    self._log(f"koopman/{name}", float(value), step)


def figures(report: JumpReport, forecast: Overall, saved: int) -> Iterator[tuple[str, float]]:
    """A jump's figures by name; those of blocks are sums, extremes and medians over the layers."""
    layers = report.layers
    yield "steps", report.steps
    yield "kept", not report.rolled_back
    yield "tried", len(report.tried) + len(report.others)
    yield "seconds", report.seconds
    yield "gradients_saved", saved
    if report.before is not None and report.after is not None:
        yield "guard_before", report.before
        yield "guard_after", report.after
    yield "forecast_error", forecast.error
    yield "forecast_baseline", forecast.baseline
    yield "forecast_pays", forecast.pays
    yield "blocks", sum(layer.blocks for layer in layers)
    yield "blocks_not_finite", sum(layer.kept for layer in layers)
    yield "blocks_held", sum(report.held.values())
    if layers:
        yield "rank", max(layer.rank[1] for layer in layers)
        yield "spectral_radius", max(layer.spectral_radius for layer in layers)


def line(report: JumpReport, forecast: Overall, step: int) -> str:
    """A jump in one line."""
    moved = any(layer.blocks > sum(layer.held.values()) for layer in report.layers)
    outcome = f"moved to the {report.candidate}, {report.steps} iterations on"
    if report.rolled_back or not moved:
        outcome = "stayed"
    judged = "" if None in (report.before, report.after) else f"; guard {report.before:.4g} -> {report.after:.4g}"
    tried = len(report.tried) + len(report.others)
    return (
        f"koopman: {outcome} after iteration {step}{judged}; {tried} tried, forecast error {forecast.error:.2g} "
        f"(baseline {forecast.baseline:.2g}), {report.seconds:.2g} s"
    )
