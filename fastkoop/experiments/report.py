"""report.html: a comparison in one file that needs no network: verdict, panels, spectra, ranks, costs."""

from __future__ import annotations

import html
import math
import pathlib
from collections.abc import Iterable, Sequence
from statistics import median

from ..files import write_result
from . import figures
from .costs import seconds
from .eigenvalue_figure import eigenvalue_figure
from .figures import loss_name
from .panels import accuracy_panel, loss_panel, paths_panel, spectra_panel, time_panel
from .paths import WeightPaths
from .verdict import KOOPMAN, OPTIMIZER, baseline_rows, rows, short_rows, verdict, words

PANELS = ("loss.png", "accuracy.png", "time.png", "weights.png", "spectra.png")
IN_TITLE = ("dataset", "optimizer", "partition", "device")
LAYER_HEADS = ("layer", "rank: least", "median", "most", "residual", "spectral radius", "kept")
STYLE = """
:root { color-scheme: light; --ink: #1d1f21; --soft: #5b6168; --line: #d9dce0; --accent: #0072b2; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); margin: 0 auto; padding: 1.2rem 1rem 3rem;
       max-width: 60rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p.setting { color: var(--soft); margin: 0 0 1.2rem; overflow-wrap: anywhere; }
ul.verdict { padding-left: 1.1rem; } ul.verdict li { margin: .25rem 0; }
ul.verdict li:first-child { font-weight: 600; }
h3 { font-size: .9rem; font-weight: 600; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0; } p.keys { margin: 0 0 .3rem; font-size: .9rem; }
p.keys span { margin-right: 1.2rem; white-space: nowrap; }
p.keys i { display: inline-block; width: .9rem; height: .25rem; margin-right: .4rem; vertical-align: middle; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(16rem, 100%), 1fr)); gap: .4rem 1rem; }
svg { width: 100%; height: auto; display: block; font-family: system-ui, sans-serif; fill: var(--ink); }
svg.wide { font-size: 12px; } svg.small { font-size: 16px; }
svg .grid { stroke: var(--line); } svg .unit { fill: none; stroke: var(--soft); stroke-width: 1.5; }
svg .mark { fill-opacity: 0; } svg .mark:hover { fill-opacity: 1; }
@media (max-width: 40rem) { body { font-size: 15px; padding: .8rem .7rem 2rem; } svg.wide { font-size: 25px; } }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; min-width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.words { text-align: left; white-space: normal; min-width: 11rem; }
th { font-weight: 600; vertical-align: bottom; }
"""


FILES = ("report.html", *PANELS)  # beside results.json


def images(results: dict) -> dict[str, bytes]:
    """The figures' PNGs by file name."""
    paths = WeightPaths.of(results["paths"]) if results.get("paths") else None
    drawn = figures.render(results, paths)
    if (figure := eigenvalue_figure(results)) is not None:
        drawn["spectra.png"] = figures.png(figure)
    return drawn


def draw_all(results: dict, out: pathlib.Path) -> None:
    """Draw the figures and report.html into the folder `out`; an earlier comparison's that it has none of go.

    Args:
        results: as results.json has them.
        out: a folder.
    """
    drawn = images(results)
    for name, data in drawn.items():
        write_result(out / name, data)
    for name in set(PANELS) - set(drawn):
        (out / name).unlink(missing_ok=True)
    write_report(results, out)


def write_report(results: dict, path: pathlib.Path) -> pathlib.Path:
    """Write report.html to a file, or into a folder. Returns its path."""
    path = path / "report.html" if path.is_dir() else path
    return write_result(path, page(results).encode())


def fragment(results: dict) -> str:
    """Verdict and short table, for a notebook."""
    heads = ("", loss_name(results), "accuracy", "gradients", "seconds")
    sentences = "".join(f"<p>{_text(line)}</p>" for line in verdict(results))
    return f"<div>{sentences}{_table(heads, short_rows(results))}</div>"


def page(results: dict) -> str:
    """The page."""
    config = results["config"]
    title = f"Koopman against {config['optimizer']} on {config['dataset']}, {config['partition']}-wise"
    parts = [
        f"<h1>{_text(title)}</h1>", f'<p class="setting">{_text(_setting(results))}</p>',
        f'<ul class="verdict">{"".join(f"<li>{_text(line)}</li>" for line in verdict(results))}</ul>',
        loss_panel(results),
        _section("In more words", f'<ul>{"".join(f"<li>{_text(line)}</li>" for line in words(results))}</ul>'),
        _section("At the end of the phase", _table(("", "loss", "accuracy", "an iteration", "T phase"), rows(results))),
        _section(
            "Against what costs next to nothing",
            _table(("", "loss", "accuracy", "gradients", "s since t2", "Koopman's jump is"), baseline_rows(results),
                   last_words=True),
            "Losses are means over seeds with their standard deviation; p is of a paired t-test over seeds.",
        ),
        *(_section(title, panel) for title, panel in _panels(results).items() if panel),
        _section("What it cost", _table(("", "seconds", "optimizer steps"), _costs(results)),
                 "Medians over seeds; an optimizer step is forward, backward and update."),
        _section("The operators", _table(LAYER_HEADS, _layers(results)),
                 "Of the first seed. The residual is how the operator misses its own last step, 1 being no better than "
                 "no change; a spectral radius above 1 grows; kept blocks had no finite prediction."),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )  # fmt: skip


def _setting(results: dict) -> str:
    config, machine = results["config"], results["machine"]
    said = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in config.items()
        if value is not None and name not in IN_TITLE
    ]
    versions = machine.get("versions", {})
    place = [machine.get("processor"), f"{machine.get('cores')} cores"]
    place += [f"{name} {versions[name]}" for name in ("fastkoop", "torch", "numpy") if name in versions]
    return " · ".join([*said, *filter(None, place)])


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="setting">{_text(note)}</p>' if note else ""
    return f"<h2>{_text(title)}</h2>\n{body}\n{note}"


def _panels(results: dict) -> dict[str, str]:
    return {
        "Accuracy over the phase": accuracy_panel(results), "Time per iteration": time_panel(results),
        "Paths of single weights": paths_panel(results), "Eigenvalues of the operators": spectra_panel(results),
    }  # fmt: skip


def _table(heads: Sequence[str], lines: Iterable[Sequence], last_words: bool = False) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = []
    for line in lines:
        cells = [f"<td>{_text(cell)}</td>" for cell in line]
        if last_words:
            cells[-1] = f'<td class="words">{_text(line[-1])}</td>'
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _text(value) -> str:
    return html.escape(str(value))


def _costs(results: dict) -> list[tuple[str, str, str]]:
    """What a phase costs, in seconds and in optimizer steps of the same run."""
    runs = results["runs"]

    def over(value) -> float:
        return median(value(run) for run in runs)

    step = over(lambda run: seconds(run, OPTIMIZER)["step"])
    costs = {
        "an optimizer step": step,
        "recording, all of it": over(lambda run: run[KOOPMAN]["record_seconds"]),
        "fit": over(lambda run: run[KOOPMAN]["fit_seconds"]),
        "one Koopman step": over(lambda run: seconds(run, KOOPMAN)["step"]),
        "one jump to the end": over(lambda run: run[KOOPMAN]["jump_seconds"]),
        "the guard's evaluations": over(lambda run: run[KOOPMAN]["jumped"]["guard_seconds"]),
        "the whole phase, walked": over(lambda run: seconds(run, KOOPMAN)["phase"]),
        "the whole phase, by one jump": over(lambda run: seconds(run, KOOPMAN)["jump"]),
        "the optimizer's phase": over(lambda run: seconds(run, OPTIMIZER)["phase"]),
    }
    return [
        (name, f"{value:.3g}", f"{value / step:.4g}" if step else "-")
        for name, value in costs.items()
        if not math.isnan(value)
    ]


def _layers(results: dict) -> list[tuple]:
    entry = results["runs"][0][KOOPMAN]
    return [
        (name, *(f"{rank:g}" for rank in ranks), _digits(entry["residual"][name], 3),
         _digits(entry["spectral_radius"][name], 5), entry["kept"][name])
        for name, ranks in entry["rank"].items()
    ]  # fmt: skip


def _digits(value: float | None, count: int) -> str:
    return "-" if value is None else f"{value:.{count}g}"
