"""Text on a terminal: never markup, in whatever encoding the terminal has; a progress bar; errors as one sentence."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .checks import InputError

REFRESH_SECONDS = 0.1
PLAIN = str.maketrans({
    "±": "+-", "µ": "u", "…": "...", "×": "x", "→": "->", "·": "-", "–": "-", "’": "'", "“": '"', "”": '"', "²": "2",
})  # fmt: skip


def console(err: bool = False) -> Console:
    """A rich console that takes text as it is: brackets are brackets, numbers are not coloured."""
    return Console(stderr=err, markup=False, highlight=False, emoji=False, soft_wrap=True)


def encoded(text: str, encoding: str | None) -> str:
    """The text in what an encoding can say.

    >>> encoded("1 ± 2 µs", "ascii"), encoded("1 ± 2", "utf-8")
    ('1 +- 2 us', '1 ± 2')
    """
    encoding = encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    return text


def say(lines: str | Iterable[str], err: bool = False) -> None:
    """Print lines as they are."""
    stream = sys.stderr if err else sys.stdout
    for line in [lines] if isinstance(lines, str) else lines:
        print(encoded(line, getattr(stream, "encoding", None)), file=stream)


def sentence(error: BaseException) -> tuple[str, int]:
    """An exception as one sentence, and the exit code: 2 for what the caller can mend, else 1."""
    if isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
    elif isinstance(error, ImportError):
        text = f'{error.name or error} is not installed; pip install "fastkoop[mnist]"'
    elif isinstance(error, (InputError, TypeError)):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = f"not enough memory ({error or 'allocation failed'}); lower the number of delays, snapshots or blocks"
    else:
        text = f"{type(error).__name__}: {error} (FASTKOOP_TRACEBACK=1 shows where)"
    return " ".join(text.split()), 2 if isinstance(error, (InputError, MemoryError)) else 1


@contextlib.contextmanager
def one_sentence(leave: type[BaseException], keep: tuple[type[BaseException], ...]):
    """Turn exceptions into one sentence on standard error and an exit code; FASTKOOP_TRACEBACK=1 keeps them.

    Args:
        leave: raised with the code.
        keep: passed on.
    """
    try:
        yield
    except keep:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("FASTKOOP_TRACEBACK") == "1":
            raise
        text, code = sentence(error)
        say(f"fastkoop: {text}", err=True)
        raise leave(code) from None


@contextlib.contextmanager
def progress(seeds: int = 1):
    """A progress bar on standard error with the time left: tick(what, done, of), or tick(seed, what, done, of).

    Args:
        seeds: the bar's length is that of all of them.
    """
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("time left", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    terminal = console(err=True)
    with Progress(
        *columns, console=terminal, transient=True, refresh_per_second=5, disable=not terminal.is_terminal
    ) as bar:
        task, shown = bar.add_task("loading, on the first run compiling"), 0.0

        def tick(*state) -> None:
            nonlocal shown
            seed, (what, at, of) = (state[0] if len(state) == 4 else 0), state[-3:]
            now = time.monotonic()
            if now - shown > REFRESH_SECONDS or at == of:  # a bar per iteration would cost as much as a step
                shown = now
                words = what if seeds == 1 else f"seed {seed}: {what}"
                bar.update(task, description=words, completed=seed * of + at, total=seeds * of)

        yield tick
