"""Where the operators' eigenvalues lie, a panel a layer, against the unit circle: what is outside grows."""

from __future__ import annotations

import numpy as np

from . import figures

WIDEST, LEAST = 1.6, 1.1  # half the axes; what lies farther out is drawn on their edge


def eigenvalue_figure(results: dict):
    """The figure, of the run that has eigenvalues; None if none does."""
    stored = [run["koopman"]["eigenvalues"] for run in results["runs"] if run["koopman"].get("eigenvalues")]
    if not stored:
        return None
    layers = {name: np.array(values, float).reshape(-1, 2) for name, values in stored[0].items()}
    columns = 1 if len(layers) == 1 else 2 if len(layers) <= 4 else 4
    rows = -(-len(layers) // columns)
    title = "Eigenvalues of the operators against the unit circle (seed 0)"
    fig, axes = figures.panels(results, title, rows, columns)
    circle = np.exp(2j * np.pi * np.linspace(0, 1, 361))
    for ax, (name, values) in zip(axes, layers.items(), strict=False):
        radii = np.hypot(*values.T)
        ax.plot(circle.real, circle.imag, color="0.6", lw=0.8)
        middle, reach = _window(values)
        shown = np.clip(values, middle - reach, middle + reach)
        for outside, colour, label in ((False, figures.BLUE, "decays"), (True, figures.RED, "grows")):
            chosen = shown[(radii > 1.0) == outside]
            ax.plot(*chosen.T, ".", color=colour, ms=5, mew=0, alpha=0.7, label=label)
        ax.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(-reach, reach), aspect="equal")
        ax.set_title(f"{name}: {int((radii > 1).sum())} of {len(values)} outside", fontsize=8, parse_math=False)
        ax.tick_params(labelsize=7)
        ax.locator_params(nbins=5)
        ax.grid(color="0.92", lw=0.5)
    for ax in axes[len(layers) :]:
        ax.remove()
    figures.legend(fig, axes[0])
    return fig


def _window(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle and half the width of square axes: the whole circle, and what lies around it if it is not too far out."""
    farthest = float(np.hypot(*values.T).max(initial=0.0))
    return np.zeros(2), min(max(LEAST, 1.05 * farthest), WIDEST)
