"""The figures of ``fastkoop compare``: an optimizer's step against a Koopman step.

`accuracy.png`, `loss.png` and `time.png` are the three panels of A. Rao, "Understanding 'Optimizing Neural
Networks via Koopman Operator Theory'", a critique of A. S. Dogra and W. T. Redman (NeurIPS 33, 2020,
arXiv 2006.02361); `weights.png` shows what the two dispute, the path of single weights. A linear system can
only grow or decay, so a Koopman loss may end at 1e3 or nan. The axes then follow the optimizer and whatever
is better than it, and the figure says in words where a curve leaves them.
"""

import functools
import io
import pathlib
import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..files import write_result
from .paths import WeightPaths

_WIDTH, _HEIGHT, _DPI = 7.0, 4.2, 120  # inches, inches, dots per inch
# Okabe and Ito's palette: distinct under the common colour blindnesses.
BLUE, RED = "#0072B2", "#D55E00"
_COLOURS = {"optimizer": BLUE, "koopman": RED}
_GREEN, _GREY = "#009E73", "#6A6A6A"
_NAMES = {"adadelta": "AdaDelta", "adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "sgd": "SGD"}


def draw(results: dict, paths: WeightPaths | None, out: pathlib.Path) -> list[pathlib.Path]:
    """Draw a comparison into the folder `out` and return the files written.

    Several runs (seeds) are thin lines under their median, in which a diverged loss counts as infinite, never
    as absent. Whatever `results` lacks is left out of the figures; a None among its numbers counts as nan.

    Args:
        results: the dict of results.json.
        paths: the weights to show in weights.png; None, or no labels, for no such file.
        out: a folder, created if need be. Each file appears complete or not at all.

    Returns:
        The paths of accuracy.png (where there are accuracies), loss.png, time.png and, with `paths`, weights.png:
        840 x 504 pixels, and weights.png is higher when it has more than two rows of panels.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return [save(fig, out / name) for name, fig in panels_of(results, paths).items()]


def render(results: dict, paths: WeightPaths | None) -> dict[str, bytes]:
    """The figures of `draw` as PNGs, by file name."""
    return {name: png(fig) for name, fig in panels_of(results, paths).items()}


def panels_of(results: dict, paths: WeightPaths | None) -> dict[str, Figure]:
    """The figures of `draw`, by file name."""
    figures = {"accuracy.png": _accuracy, "loss.png": _loss, "time.png": _time}
    if not has_accuracy(results):
        del figures["accuracy.png"]
    if paths is not None and len(paths.labels):
        figures["weights.png"] = functools.partial(_weights, paths=paths)
    with np.errstate(all="ignore"):  # diverged curves hold inf, nan and 1e300: expected here
        return {name: make(results) for name, make in figures.items()}


def has_accuracy(results):
    """Whether anything was classified; results that lack the curves are taken to."""
    curves = [(run.get(who) or {}).get("test_accuracy") for run in results.get("runs") or () for who in _COLOURS]
    return not curves or any(curve is None or any(v is not None for v in curve) for curve in curves)


def loss_name(results):
    """What the losses of a comparison are."""
    return (results.get("config") or {}).get("loss_name") or "test loss"


def epoch_name(results):
    """What t1, t2 and T count."""
    return (results.get("config") or {}).get("epoch_name") or "epoch"


def _accuracy(results):
    points = {who: _curves(results, who, "test_accuracy", 100) for who in _COLOURS}
    average = 100 * _median_of(results, "average", "test_accuracy")
    view = _View.of(*_ranges(points, average, best=np.max), reach=4, least=1.0)
    return _evaluated(results, points, average, view, "Test accuracy", "test accuracy (%)", "%")


def _loss(results):
    points = {who: _curves(results, who, "test_loss") for who in _COLOURS}
    for who, curves in points.items():
        points[who] = [(x, np.where(np.isnan(y), np.inf, y)) for x, y in curves]
    average = _median_of(results, "average", "test_loss")
    base, full = _ranges(points, average, best=np.min)
    shown = np.log10(full[np.isfinite(full) & (full > 0)])
    log = bool(shown.size and np.ptp(shown) > np.log10(3))
    view = _View.of(base, full, reach=4, least=0.1, log=log)
    name = loss_name(results)
    ylabel = f"{name} (log scale)" if log else name
    return _evaluated(results, points, average, view, name.capitalize(), ylabel, "")


def _evaluated(results, points, average, view, what, ylabel, unit):
    """The accuracy or the loss panel: both curves, the averaging baseline, words for what leaves the axes."""
    names = _names(results)
    notes = [(_leaving(f"{names[who]} ", points[who], view, unit), _COLOURS[who]) for who in points]
    fig, [ax] = _figure(results, f"{what}: {names['optimizer']} against Koopman", notes)
    for who, width in {"optimizer": 1.0, "koopman": 1.8}.items():
        _plot(ax, points[who], view, _COLOURS[who], names[who], width)
        _mark_exits(ax, points[who], view, _COLOURS[who])
    if np.isfinite(average):
        ax.axhline(average, color=_GREEN, lw=1.5, ls="--", zorder=4, label="mean of the recorded iterates")
    return _finish(fig, [ax], [view], results, ylabel)


def _time(results):
    """The time panel: every step a dot, a running median as a line, overall medians in the legend."""
    names = _names(results)
    points = {who: _curves(results, who, "step_seconds", 1e3) for who in _COLOURS}
    finite = {who: t[np.isfinite(t)] for who, t in ((who, _values(points[who])) for who in points)}
    every = np.concatenate(list(finite.values()))
    typical = np.concatenate([np.percentile(t, [1, 98]) for t in finite.values() if t.size] or [every])
    view = _View.of(typical, every, reach=0.1, least=0.1, log=True)
    notes = [(_other_times(results), "black"), (_outliers(every, view), _GREY)]
    fig, [ax] = _figure(results, f"Time per iteration: {names['optimizer']} against Koopman", notes)
    for who, t in finite.items():
        label = f"{names[who]}, median {_time_text(np.median(t))}" if t.size else names[who]
        for x, y in points[who]:
            ax.plot(x, view.clip(y), ".", color=_COLOURS[who], ms=2, alpha=0.3, mew=0)
        _plot(ax, [_median(points[who], bins=60)] if points[who] else [], view, _COLOURS[who], label, 1.8)
    return _finish(fig, [ax], [view], results, "ms per iteration (log scale)")


def _weights(results, paths):
    """Small multiples: each weight's recorded part in grey, then its true and its predicted path."""
    name, k = _names(results)["optimizer"], len(paths.labels)
    columns = {1: 1, 2: 2, 4: 2}.get(k, 3)
    title = f"Single weights: the path under {name} and the path Koopman predicts"
    fig, axes = _figure(results, title, [], -(-k // columns), columns)
    before, true, koopman = (np.asarray(v, float) for v in (paths.recorded, paths.true, paths.predicted))
    # Both paths start at the last recorded point.
    x = np.append(paths.recorded_iteration[-1:], paths.iteration)
    true, koopman = (np.concatenate([before[-1:], v]) for v in (true, koopman))
    views = []
    for i, (ax, label) in enumerate(zip(axes, paths.labels, strict=False)):
        base, predicted = np.concatenate([before[:, i], true[:, i]]), [(x, koopman[:, i])]
        view = _View.of(base, np.append(base, koopman[:, i]), reach=1, least=_least_height(base))
        views.append(view)
        _plot(ax, [(paths.recorded_iteration, before[:, i])], view, _GREY, "recorded", 1.0)
        # Thin on thick: where the two coincide, both are seen.
        _plot(ax, [(x, true[:, i])], view, _COLOURS["optimizer"], f"{name}, true path", 2.2)
        _plot(ax, predicted, view, _COLOURS["koopman"], "Koopman, predicted path", 1.1)
        _mark_exits(ax, predicted, view, _COLOURS["koopman"])
        ax.axvline(0, color="black", lw=0.8, ls=":")
        ax.set_title(label if len(label) < 34 else "…" + label[-32:], fontsize=8, parse_math=False)
        _write(ax, _leaving("", predicted, view, ""), above=np.sum(before[:, i] - view.middle) < 0)
    for ax in axes[max(0, k - columns) : k]:
        ax.tick_params(labelbottom=True)
    return _finish(fig, axes, views, results, "weight")


def _write(ax, words, above):
    """Small words in the left corner that the recorded path leaves free."""
    corner = {"y": 0.97, "va": "top"} if above else {"y": 0.03, "va": "bottom"}
    style = {"fontsize": 6.5, "color": _COLOURS["koopman"], "transform": ax.transAxes}
    ax.text(x=0.02, s=textwrap.fill(words, 22), **corner, **style)


def _least_height(values):
    """The axis of a weight that never moves needs some height; any other takes its own."""
    values = values[np.isfinite(values)]
    size = np.max(np.abs(values), initial=0)
    return 0.0 if values.size and np.ptp(values) > 1e-6 * size else 0.1 * size + 1e-12


@dataclass(frozen=True)
class _View:
    """The limits and the scale of a vertical axis."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, base, full, reach, least, log=False):
        """All of `full` if it spans few ranges of `base`, else what lies within `reach` ranges of base.

        A range is at least `least`, in decades when `log`.
        """
        forward, back = _scale(log)
        base, full = (forward(v[np.isfinite(v) & ((v > 0) | (not log))]) for v in (base, full))
        if not full.size:
            return cls(*((0.1, 10.0) if log else (0.0, 1.0)), log)
        base = base if base.size else full[:1]
        span = max(np.ptp(base), least)
        low, high = full.min(), full.max()
        if high - low > (1 + 2 * reach) * span:
            low, high = max(low, base.min() - reach * span), min(high, base.max() + reach * span)
        pad = max(0.05 * (high - low), (least - (high - low)) / 2)
        low, high = back(np.array([low - pad, high + pad]))
        return cls(max(low, 1e-300 if log else -1e300), min(high, 1e300), log)

    def clip(self, y):
        """Return y, what is far off pulled to 20 heights from the axes: same picture, no overflow in Agg."""
        forward, back = _scale(self.log)
        low, high = forward(np.array([self.low, self.high]))
        far = 20 * (high - low)
        return np.clip(y, *back(np.array([low - far, high + far])))

    @property
    def middle(self):
        return (self.low + self.high) / 2

    def misses(self, y):
        """Where y is off the axes; a nan is nowhere, hence not off."""
        return (y > self.high) | (y < self.low)


def _scale(log):
    return (np.log10, functools.partial(np.power, 10.0)) if log else (np.asarray, np.asarray)


def _ranges(points, average, best):
    """The values that set the axes (the optimizer's, the average, the best of all), and all values."""
    full = np.concatenate([*(_values(curves) for curves in points.values()), [average]])
    finite = full[np.isfinite(full)]
    base = np.concatenate([_values(points["optimizer"]), [average], [best(finite)] if finite.size else []])
    return base, full


def _floats(values):
    return np.array([np.nan if v is None else v for v in (() if values is None else values)], float)


def _curves(results, who, key, factor=1.0):
    """(iteration, value) of every run that has them; `step_seconds` holds every step from the first on.

    A Koopman step moves `every` iterations on: its seconds are shared among them.
    """
    every = (results.get("config") or {}).get("every") or 1
    stride = every if who == "koopman" else 1
    curves = []
    for run in results.get("runs") or ():
        part = run.get(who) or {}
        y = factor * _floats(part.get(key))
        x = _floats(part.get("iteration"))
        if key == "step_seconds":
            x, y = stride * np.arange(1, len(y) + 1), y / stride
        n = min(len(x), len(y))
        curves += [(x[:n], y[:n])] if n else []
    return curves


def _values(curves):
    return np.concatenate([y for _, y in curves] or [np.zeros(0)])


def _median_of(results, who, key):
    """The median over seeds of one number; nan when no seed has it."""
    values = _floats([(run.get(who) or {}).get(key) for run in results.get("runs") or ()])
    values = values[~np.isnan(values)]
    return np.median(values) if values.size else np.nan


def _median(curves, bins=None):
    """The median over seeds at the iterations all of them have; with `bins`, over stretches of time too."""
    common = functools.reduce(np.intersect1d, [x for x, _ in curves])
    together = np.stack([y[np.searchsorted(x, common)] for x, y in curves])
    if bins is None or len(common) < 5 * bins:
        return common, np.median(together, axis=0)
    stretches = np.array_split(np.arange(len(common)), bins)
    return tuple(np.array([np.median(v[..., s]) for s in stretches]) for v in (common, together))


def _exits(curves, view):
    """(iteration, edge) where each curve first leaves the axes."""
    for x, y in curves:
        off = view.misses(y)
        if off.any():
            i = np.argmax(off)
            yield x[i], view.high if y[i] > view.high else view.low


def _leaving(name, curves, view, unit):
    """Where curves leave the axes, how far they go, where they stop being finite; empty if none does."""
    left = [x for x, _ in _exits(curves, view)]
    broken = [x[np.argmin(np.isfinite(y))] for x, y in curves if not np.isfinite(y).all()]
    off = _values([(x, y[view.misses(y) & np.isfinite(y)]) for x, y in curves])
    words = [f"leaves the axes {_when(left, len(curves))}"] if left else []
    words += [f"goes to {max(off, key=lambda v: abs(v - view.low)):.3g}{unit}"] if off.size else []
    words += [f"turns inf or nan {_when(broken, len(curves))}"] if broken else []
    return name + "; ".join(words) if words else ""


def _when(iterations, seeds):
    first = f"at iteration {min(iterations):.0f}"
    return first if seeds == 1 else f"in {len(iterations)} of {seeds} seeds, first {first}"


def _outliers(times, view):
    above = times[times > view.high]
    words = f"{above.size} of {times.size} iterations lie above the axes; the slowest took "
    return words + _time_text(above.max()) if above.size else ""


def _other_times(results):
    """What a Koopman phase costs beside its steps."""
    kinds = {"record": "recording", "fit": "fitting", "jump": "one jump to the end"}
    cost = {word: 1e3 * _median_of(results, "koopman", f"{kind}_seconds") for kind, word in kinds.items()}
    known = [f"{word} {_time_text(t)}" for word, t in cost.items() if np.isfinite(t)]
    return "Koopman, beside its iterations: " + ", ".join(known) if known else ""


def _time_text(milliseconds):
    return f"{milliseconds:.3g} ms" if milliseconds < 1e3 else f"{milliseconds / 1e3:.3g} s"


def _names(results):
    name = str((results.get("config") or {}).get("optimizer") or "optimizer")
    return {"optimizer": _NAMES.get(name.lower(), name), "koopman": "Koopman"}


def _setting(results):
    """What was compared, as far as the config says it; no-break spaces keep each part together."""
    config, seeds = dict(results.get("config") or {}), len(results.get("runs") or ())
    config["optimizer"] = _names(results)["optimizer"] if config.get("optimizer") else None
    usual = {"every": 1, "window": 1, "observables": "identity", "out_of_span": "drop", "validation": 0}
    config |= {key: None for key, value in usual.items() if config.get(key) == value}
    words = {"dataset": "{}", "partition": "partition {}", "q": "q = {}", "t1": "t1 = {}", "t2": "t2 = {}"}
    unit = "" if str(config.get("T")).endswith("it") else f" {epoch_name(results)}s"
    words |= {"T": f"T = {{}}{unit}", "optimizer": "{}", "lr": "lr {}", "batch_size": "batch {}"}
    words |= {"cutoff": "cutoff {}", "stabilize": "stabilize {}", "every": "every {}", "device": "{}"}
    words |= {"window": "window {}", "observables": "observables {}", "out_of_span": "{} what is not spanned"}
    said = [text.format(config[key]) for key, text in words.items() if config.get(key) is not None]
    said.append(f"{seeds} seed" if seeds == 1 else f"{seeds} seeds (median: thick)")
    return "\u00a0· ".join(part.replace(" ", "\u00a0") for part in said)


def _figure(results, title, notes, rows=1, columns=1, sharex=True):
    """A figure under its heading (a title, the setting, coloured notes), and its axes in reading order."""
    lines = [(line, _GREY) for line in textwrap.wrap(_setting(results), 132)]
    lines += [(line, colour) for note, colour in notes for line in textwrap.wrap(note, 132)]
    height = _HEIGHT + 1.75 * max(0, rows - 2)
    room = 0.65 + 0.15 * len(lines)  # inches, the legend included
    fig = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    FigureCanvasAgg(fig)
    fig.set_layout_engine("constrained", rect=(0, 0, 1, 1 - room / height))
    style = {"x": 0.015, "va": "top", "parse_math": False}
    fig.text(y=1 - 0.09 / height, s=title, fontsize=11.5, weight="bold", **style)
    for i, (line, colour) in enumerate(lines):
        fig.text(y=1 - (0.34 + 0.15 * i) / height, s=line, fontsize=8, color=colour, **style)
    return fig, list(fig.subplots(rows, columns, sharex=sharex, squeeze=False).flat)


def panels(results, title, rows, columns):
    """A figure of square panels under the usual heading, and its axes in reading order."""
    return _figure(results, title, [], rows, columns, sharex=False)


def _plot(ax, curves, view, colour, label, width):
    """A thin line per seed under their median; a single curve is the thick line itself."""
    if not curves:
        return
    if len(curves) > 1:
        for x, y in curves:
            ax.plot(x, view.clip(y), color=colour, lw=0.6, alpha=0.3)
    x, y = _median(curves)
    few = len(x) < 25
    style = {"lw": 1.8, "marker": "o", "ms": 3} if few else {"lw": width}
    ax.plot(x, view.clip(y), color=colour, label=label, **style)


def _mark_exits(ax, curves, view, colour):
    for x, edge in _exits(curves, view):
        marker = "^" if edge == view.high else "v"
        ax.plot(x, edge, marker, color=colour, ms=7, clip_on=False, zorder=5)


def _finish(fig, axes, views, results, ylabel):
    """Limits, scales, grids, labels, and one legend below the heading; axes without a view go."""
    for ax in axes[len(views) :]:
        ax.remove()
    for ax, view in zip(axes, views, strict=False):
        ax.set_yscale("log" if view.log else "linear")
        ax.set_ylim(view.low, view.high)
        _ticks(ax, view, many=len(views) > 1)
        ax.margins(x=0.02)
        ax.grid(color="0.9", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        if not ax.lines:
            ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", color=_GREY)
    legend(fig, axes[0])
    t2 = (results.get("config") or {}).get("t2")
    epoch = "" if t2 is None else f" (the end of {epoch_name(results)} {t2})"
    fig.supxlabel("iteration after t2" + epoch, fontsize=9.5)
    fig.supylabel(ylabel, fontsize=9.5)
    return fig


def legend(fig, ax):
    """One legend for all panels, under the heading's last line."""
    y = fig.texts[-1].get_position()[1] - 0.25 / fig.get_figheight()
    place = {"loc": "center left", "bbox_to_anchor": (0.015, y), "borderpad": 0, "borderaxespad": 0}
    fig.legend(*ax.get_legend_handles_labels(), ncols=4, fontsize=8.5, frameon=False, **place)


def _ticks(ax, view, many):
    ax.tick_params(labelsize=7 if many else 9)
    ax.xaxis.set_major_locator(MaxNLocator(4 if many else 8, steps=[1, 2, 2.5, 5, 10], integer=True))
    if not view.log:
        ax.yaxis.set_major_locator(MaxNLocator(5 if many else 7, steps=[1, 2, 2.5, 5, 10]))
        return
    decades = np.log10(view.high / view.low)
    subs = (1, 1.5, 2, 3, 5, 7) if decades < 1.3 else (1, 2, 5) if decades < 3 else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def png(fig):
    """A figure's PNG."""
    stream = io.BytesIO()
    with np.errstate(all="ignore"):
        fig.canvas.print_png(stream)
    return stream.getvalue()


def save(fig, path):
    """Write a figure's PNG; returns the path."""
    return write_result(path, png(fig))
