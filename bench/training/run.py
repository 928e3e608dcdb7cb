"""Koopman phases in real training: three models, killed and resumed, on one rank and on two.

    python -m bench training run     # about 10 minutes on two cores; needs FASTKOOP_DATA_DIR or --data-dir
    python -m bench training table

Each model trains, records, jumps under a guard and trains on, three times over; once without a break, and once killed
(SIGKILL) in every stage and resumed from its last file, which has to end on the same bits. On two ranks it is sharded
with FSDP2. The JSON goes into bench/results/training/.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from bench import RESULTS, ROOT
from bench.common import pages
from bench.common.origin import environment
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

from . import models
from .worker import BURN_IN, LENGTH, RECORD, REST

FOLDER = RESULTS / "training"
# burn in, record, rest after the first jump, second recording, rest after the last jump
PLACES = (BURN_IN // 2, BURN_IN + 40, BURN_IN + RECORD + 30, BURN_IN + RECORD + REST + 45, LENGTH - 10)


def call(job: str, name: str, folder, ranks: int = 1, kill_at: int = -1, data_dir: str | None = None) -> int:
    """Run the worker, on several ranks under torchrun; the exit code."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["-m", "bench.training.worker", job, name, str(folder), str(kill_at), *([data_dir] if data_dir else [])]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    errors = subprocess.DEVNULL if kill_at >= 0 else None
    return subprocess.run(command, env=quiet, cwd=ROOT, stderr=errors).returncode


def trained(name: str, ranks: int, data_dir: str | None) -> dict:
    """Without a break, and killed in every stage; what each rank found."""
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        if call("train", name, pathlib.Path(whole), ranks, data_dir=data_dir):
            raise SystemExit(f"{name} on {ranks} ranks: the run without a break failed")
        for place in PLACES:
            code = call("train", name, pathlib.Path(cut), ranks, place, data_dir)
            if code != (-signal.SIGKILL if ranks == 1 else 1):  # torchrun has its own code for a rank that was killed
                raise SystemExit(f"{name} on {ranks} ranks: a run was not killed at iteration {place}")
        if call("train", name, pathlib.Path(cut), ranks, data_dir=data_dir):
            raise SystemExit(f"{name} on {ranks} ranks: the resumed run failed")
        each = [_read(whole, f"rank{rank}.json") for rank in range(ranks)]
        resumed = [_read(cut, f"rank{rank}.json") for rank in range(ranks)]
    first = each[0]
    return {
        "loss": first["loss"], "jumps": first["jumps"], "weight_bytes": first["weight_bytes"],
        "killed_at": list(PLACES), "iterations": LENGTH,
        "resumed_to_the_same_bits": [a["checksum"] for a in each] == [b["checksum"] for b in resumed],
    }  # fmt: skip


def _read(folder: str, name: str) -> dict:
    return json.loads((pathlib.Path(folder) / name).read_text())


def run(options: argparse.Namespace) -> None:
    """Everything, a model after another."""
    data_dir = options.data_dir
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in pages.select(options.names, models.NAMES, "model"):
        found = {"machine": environment(Host()), "model": name, "ranks": {}}
        with tempfile.TemporaryDirectory() as folder:
            for job in ("cost", "memory"):
                print(f"== {name}: {job}", flush=True)
                if call(job, name, pathlib.Path(folder), data_dir=data_dir):
                    raise SystemExit(f"{name}: {job} failed")
                found[job] = _read(folder, f"{job}.json")
        for ranks in (1, 2):
            print(f"== {name}: {ranks} rank{'s' * (ranks > 1)}, {len(PLACES)} kills", flush=True)
            found["ranks"][str(ranks)] = trained(name, ranks, data_dir)
        write_json(FOLDER / f"{name}.json", found)


def table_of() -> str:
    """The table, of the models that have results."""
    heads = (
        "model", "weights", "recording, share of a step", "memory, measured / planned", "the same, bfloat16",
        "jumps (loss before → after: steps)", "killed, resumed: same bits on 1 / 2 ranks",
        "bytes a jump on 2 ranks / weights",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name in models.NAMES:
        path = FOLDER / f"{name}.json"
        if path.exists():
            lines.append(row(json.loads(path.read_text())))
    return "\n".join(lines)


def row(found: dict) -> str:
    """A model's line."""
    one, two = found["ranks"]["1"], found["ranks"]["2"]
    memory = {kind: each["measured"] / each["planned"] for kind, each in found["memory"].items()}
    jumps = "; ".join(
        f"{jump['before']:.3f} → {jump['after']:.3f}: " + ("back" if jump["rolled_back"] else str(jump["steps"]))
        for jump in one["jumps"]
    )
    sent = max(jump["sent_bytes"] for jump in two["jumps"])
    said = ("yes" if ranks["resumed_to_the_same_bits"] else "no" for ranks in (one, two))
    cells = (
        found["model"], f"{one['weight_bytes'] // 4}",
        f"{found['cost']['record_seconds'] / found['cost']['step_seconds']:.1%}", f"{memory['float32']:.3f}",
        f"{memory['bfloat16']:.3f}", jumps, " / ".join(said), f"{sent / one['weight_bytes']:.2g}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("training", table_of())
