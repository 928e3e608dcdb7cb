"""A comparison on a terminal: plain text in 80 columns, the verdict first, one short table, details on request."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from .figures import loss_name
from .verdict import baseline_rows, rows, short_rows, verdict, words

WIDTH = 80


def columns(heads: Sequence[str], lines: Iterable[Sequence[str]], width: int = WIDTH) -> list[str]:
    """Left-aligned first column, right-aligned others; the first is cut where the line would be too long.

    >>> columns(("", "loss"), [("mean", "0.25"), ("line", "1")])
    ['       loss', 'mean   0.25', 'line      1']
    """
    table = [list(map(str, heads)), *(list(map(str, line)) for line in lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 3 * (len(widths) - 1)))
    out = []
    for row in table:
        first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 2] + ".."
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        out.append("   ".join(cells).rstrip())
    return out


def wrapped(text: str, indent: str = "") -> list[str]:
    """A paragraph in lines of 80 columns."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def heading(results) -> str:
    """What was compared, in one line."""
    config, count = results["config"], len(results["runs"])
    seeds = f"{count} seed{'s' * (count != 1)}"
    return f"{config['dataset']}: Koopman ({config['partition']}-wise) against {config['optimizer']}, {seeds}"


def table_lines(results) -> list[str]:
    """The short table."""
    return columns(("at the end", loss_name(results), "accuracy", "gradients", "seconds"), short_rows(results))


def summary_lines(results) -> list[str]:
    """What `fastkoop compare` prints."""
    lines = [heading(results)]
    for sentence in verdict(results):
        lines += wrapped(sentence)
    return [*lines, "", *table_lines(results), *stopped_lines(results)]


def stopped_lines(results) -> list[str]:
    """A sentence for every seed that was left out."""
    return [
        line
        for stop in results.get("stopped", ())
        for line in wrapped(f"Seed {stop['seed']} stopped: {stop['reason']}.")
    ]


def details_lines(results) -> list[str]:
    """What `--details` adds: both sides' table, every baseline with the paired comparison, all words."""
    lines = columns(("medians over seeds", loss_name(results), "accuracy", "an iteration", "T phase"), rows(results))
    table = baseline_rows(results)
    lines += ["", *columns(("at the end", loss_name(results), "accuracy", "gradients", "s since t2"),
                           [row[:-1] for row in table]), ""]  # fmt: skip
    for row in table:
        if row[-1]:
            lines += wrapped(f"Against {row[0]}: Koopman's jump is {row[-1]}.", "  ")
    lines.append("")
    for sentence in words(results):
        lines += wrapped(sentence, "  ")
    return lines


def sweep_lines(results) -> list[str]:
    """What `fastkoop sweep` prints: the best settings by validation, and the baselines beside them."""
    from .sweep import baseline_rows, best_rows

    lines, table = [], best_rows(results)
    for i, (setting, validation, test, against) in enumerate(table, 1):
        lines += wrapped(f"{i}. validation {validation}, test {test}: {setting}", "   ")
        lines += wrapped(f"   {against} of the mean of the recorded", "   ") if i == 1 else []
    lines = ["Settings, best by validation first"[:WIDTH], *lines, ""]
    lines += columns(("beside them", "validation loss", "test loss"), [row[:3] for row in baseline_rows(results)])
    return lines + stopped_lines(results)


def phases_lines(results) -> list[str]:
    """What `fastkoop phases` prints."""
    from .phases import comparisons, rows

    lines = []
    for held, difference in comparisons(results).items():
        lines += wrapped(f"{held}: Koopman ends {difference}", "  ")
    lines += ["", *columns(("", "gradients", "seconds", "test loss", "of the moving average"), rows(results))]
    return lines + stopped_lines(results)
