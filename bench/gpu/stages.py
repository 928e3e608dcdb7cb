"""Commands one after another, each with its share of the time, and what each said kept whatever comes later."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

GRACE = 5.0  # seconds between asking a command to stop and stopping it


@dataclass(frozen=True)
class Stage:
    """One command.

    seconds: its share; what earlier stages left is added. command: made from the seconds it has; skip: why it cannot
    be run here, or None; unsupported: what a tool says in its log where it cannot work on this device.
    """

    name: str
    seconds: float
    command: Callable[[float], list[str]]
    skip: str | None = None
    unsupported: re.Pattern | None = None


def run(
    stages: list[Stage],
    out: pathlib.Path,
    say: Callable[[str], None] = print,
    after: Callable[[list[dict]], None] = lambda done: None,
) -> list[dict]:
    """Run the stages; each writes into <out>/<name>.log. Returns name, status, seconds and last line of each.

    after: called with those so far when a stage ends, so that its results are kept whatever comes later.
    """
    end, done = time.monotonic(), []
    for stage in stages:
        end += stage.seconds
        if stage.skip:
            one = {"stage": stage.name, "status": f"skipped: {stage.skip}", "seconds": 0.0, "said": ""}
        else:
            one = _run(stage, end - time.monotonic(), out / f"{stage.name}.log")
        say(f"{one['stage']}: {one['status']}, {one['seconds']:.0f} s" + (f"; {one['said']}" if one["said"] else ""))
        done.append(one)
        after(done)
    return done


def _run(stage: Stage, allowed: float, log: pathlib.Path) -> dict:
    """One stage in a process group of its own, so that its children stop with it."""
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            stage.command(allowed), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            code = process.wait(timeout=allowed)
            status = "ok" if code == 0 else f"failed with exit code {code}"
        except BaseException as error:
            _stop(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = f"stopped after {allowed:.0f} seconds"
    text = log.read_text(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    said = lines[-1].strip() if lines else ""
    if status.startswith("failed") and stage.unsupported and (why := stage.unsupported.search(text)):
        status = f"skipped: the tool says {why[0].strip()!r}"
    return {"stage": stage.name, "status": status, "seconds": time.monotonic() - began, "said": said[:200]}


def _stop(process: subprocess.Popen) -> None:
    """End a process group, first by asking."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=GRACE)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
