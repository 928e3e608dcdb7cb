"""Where results come from: the machine, what is installed on it, the commit and the date."""

from __future__ import annotations

import datetime
import subprocess

import torch

from fastkoop.machine import describe_machine
from fastkoop.throughput import cache_bytes

from .readme import ROOT


def machine() -> dict:
    """The machine and what is installed on it; no path and no host name."""
    return {**describe_machine(), "torch_threads": torch.get_num_threads()}


def commit() -> dict:
    """The commit, and whether the tree differs from it (results aside)."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def environment() -> dict:
    """All of it."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**machine(), "cache_bytes": cache_bytes(), **commit(), "date": date}
