"""When does a Koopman phase pay? The guide's page and the README's verdict, taken from every committed result.

`python -m bench pays table` writes the figure bench/pages/when.svg, the part "measured" of fastkoop/guide/pays.md and
the README's part "verdict".
"""

from __future__ import annotations

import functools
import json
import math
import textwrap
from statistics import median

from bench import PAGES, ROOT
from bench.common import pages
from bench.evidence import candidates
from bench.evidence.smooth import noise, replaced, rule
from bench.evidence.smooth import run as smooth

GUIDE = ROOT / "fastkoop" / "guide"
FIGURE = PAGES / "when.svg"
CHEAP = ("line", "secant", "mean")
LEFT, RIGHT, TOP, BOTTOM = 70, 610, 58, 300  # of the plot, in pixels
LOW, HIGH = -5, 0  # decades
COLOURS = {"none": "#6A6A6A", "cheap": "#D55E00", "Koopman": "#0072B2"}
LABELS = {"none": "no jumps", "cheap": "jumps by line, secant or mean", "Koopman": "Koopman jumps"}


def swept() -> dict[int, dict[str, float]]:
    """Median gaps by batch: without jumps, of the best cheap extrapolation, of Koopman."""
    found = {}
    for one in json.loads(noise.FILE.read_text())["batches"]:
        gaps = {method: noise.middle(row) for method, row in one["rows"].items()}
        cheap = min(gaps[method] for method in CHEAP)
        found[one["batch"]] = {**gaps, "cheap": cheap}
    return found


def figure() -> str:
    """The SVG: gaps from full batches to noisy ones."""
    found = swept()
    at = {batch: LEFT + 50 + (RIGHT - LEFT - 100) * i / (len(found) - 1) for i, batch in enumerate(found)}

    def height(gap: float) -> float:
        return TOP + (BOTTOM - TOP) * (HIGH - math.log10(max(gap, 10.0**LOW))) / (HIGH - LOW)

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" font-size="13">',
        '<rect width="640" height="360" fill="white"/>',
        '<text x="320" y="22" text-anchor="middle" font-size="16">Without noise Koopman jumps win by far; '
        "with noise they do not</text>",
        '<text x="320" y="42" text-anchor="middle" fill="#444444">softmax regression on 1200 digits: '
        "gap to the optimum after 800 iterations, lower is better</text>",
    ]
    for decade in range(LOW, HIGH + 1):
        y = height(10.0**decade)
        lines.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#E4E4E4"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">10<tspan dy="-5" font-size="10">'
                     f"{decade}</tspan></text>".replace(">-", ">−"))  # fmt: skip
    for batch, x in at.items():
        name = "full batch" if batch == max(found) else f"{batch}"
        lines.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{name}</text>')
    lines.append(f'<text x="320" y="{BOTTOM + 44}" text-anchor="middle">images a batch: more noise to the right</text>')
    for kind, colour in COLOURS.items():
        points = [(at[batch], height(gaps[kind])) for batch, gaps in found.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="3"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>' for x, y in points]
    for row, (kind, colour) in enumerate(COLOURS.items()):
        y = BOTTOM - 74 + 22 * row
        lines.append(f'<line x1="340" x2="366" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        lines.append(f'<text x="374" y="{y + 4}" fill="{colour}">{LABELS[kind]}</text>')
    return "\n".join([*lines, "</svg>", ""])


def wrapped(items: list[str]) -> str:
    """Items of a list as pages are set: up to 126 characters a line, links whole."""
    fill = functools.partial(
        textwrap.fill, width=126, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(fill, items))


def _ahead(results: dict[str, dict], method: str) -> str:
    """On how many problems a method ends below Koopman's best form."""
    return f"{sum(method in smooth.ahead(one) for one in results.values())} of {len(results)}"


def _forecast() -> tuple[str, int]:
    """How often the forecast is right, and on how many recordings."""
    every = [one for runs in json.loads(rule.FILE.read_text())["settings"].values() for run in runs for one in run]
    return f"{rule.shares(every)['accuracy']:.0%}", len(every)


def verdict() -> str:
    """The three lines that the README shows, too."""
    results, sweep = smooth.load(), swept()
    digits = {method: smooth.gap(median(smooth.gaps(results["digits"], method))) for method in ("none", "Koopman")}
    accuracy, count = _forecast()
    least = sweep[min(sweep)]
    return wrapped([
        "- **Yes: smooth training**, full batches below the stability limit. Digits softmax regression, 800 gradients: "
        f"{digits['Koopman']} from the optimum with jumps, {digits['none']} without. But L-BFGS, where you can use it, "
        f"is ahead on {_ahead(results, 'L-BFGS')} such problems.",
        f"- **No: noisy mini-batches.** In batches of {min(sweep)} a jump on a line ends {least['line']:.2g} from the "
        f"optimum, an operator's {least['Koopman']:.2g}; on MNIST with AdaDelta a moving average, "
        "nearly free, does as well.",
        f"- **Ask first**: `phase.forecast()`, which reads the recording alone, was right on {accuracy} of {count} "
        "recordings. And use a guard: an operator that diverges destroys the model.",
    ])  # fmt: skip


def measured() -> str:
    """What the guide's sections rest on, a line each."""
    results, sweep = smooth.load(), swept()
    lines = [
        f"- **Alternatives.** L-BFGS ends below Koopman on {_ahead(results, 'L-BFGS')} smooth problems, Nesterov's "
        f"method with restarts on {_ahead(results, 'Nesterov')} ([smooth training](../../bench/pages/smooth.md)).",
    ]
    full = sweep[max(sweep)]
    lines.append(
        f"- **Noise.** Full batches: {full['cheap'] / full['Koopman']:.0f} times closer to the optimum than the best "
        "of line, secant and mean; "
        + "; ".join(f"batches of {batch}: {gaps['cheap'] / gaps['Koopman']:.1f}" for batch, gaps in sweep.items()
                    if batch != max(sweep))
        + " ([the sweep](../../bench/pages/forecast.md#where-noise-ends-it))."
    )  # fmt: skip
    tasks = json.loads(replaced.FILE.read_text())["tasks"]
    for task in tasks.values():
        share, seconds = (median(replaced.shares(task, "koopman", what)) for what in ("gradients", "seconds"))
        lbfgs = median(replaced.shares(task, "l-bfgs", "gradients"))
        lines.append(
            f"- **Steps replaced**, {task['words']}: the loss of {replaced.STEPS} steps of gradient descent after "
            f"{share:.0%} of the gradients, guard included, and {seconds:.0%} of the CPU seconds; L-BFGS needs "
            f"{lbfgs:.0%} ([smooth training](../../bench/pages/smooth.md#phases-that-replace-steps))."
        )
    found = json.loads(candidates.FILE.read_text())
    jumps, gated = (candidates.all_jumps(found, name) for name in ("candidates", "gate"))
    above = sum(jump["taken"]["validation"] > (1 + 1e-6) * jump["mean"]["validation"] for jump in jumps)
    no = sum(not jump["pays"] for jump in gated)
    lines.append(
        "- **MNIST with AdaDelta**, mean and line among the candidates: "
        f"{above} of {len(jumps)} guarded jumps end above the recording's mean on the guard's images. "
        f"Without a guard the forecast says no at {no} of {len(gated)} "
        "([noisy training](../../bench/pages/pays.md#mean-and-line-as-candidates-and-the-gate))."
    )
    return wrapped(lines)


def write() -> None:
    """The figure, the guide's parts and the README's."""
    FIGURE.write_text(figure())
    pages.update("pays", verdict(), "verdict", GUIDE)
    pages.update("pays", measured(), "measured", GUIDE)
    pages.update("README", verdict(), "verdict", ROOT)
