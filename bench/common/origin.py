"""Where results come from: the machine, what is installed on it, the commit and the date."""

from __future__ import annotations

import datetime
import subprocess

import torch

from bench import ROOT
from fastkoop.profile.devices import Gpu, Host


def machine(device: Host | Gpu | None = None) -> dict:
    """The machine, its device and what is installed on it; no path and no host name."""
    device = device or Host()
    found = {**device.described(), "torch_threads": torch.get_num_threads()}
    return found if device.name == "cpu" else {**found, "driver": driver()}


def driver() -> str | None:
    """The NVIDIA driver's version; None where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return None


def commit() -> dict:
    """The commit, and whether the tree differs from it (results aside)."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def environment(device: Host | Gpu) -> dict:
    """All of it."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**machine(device), **commit(), "date": date}
