"""Koopman phases in real training: three models, killed and resumed, on one rank and on two.

    python bench/training.py run     # about 10 minutes on two cores; needs FASTKOOP_DATA_DIR or --data-dir
    python bench/training.py table   # rewrites the part of README.md between the training markers

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

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench import readme, training_models  # noqa: E402
from bench.origin import environment  # noqa: E402
from bench.training_worker import BURN_IN, LENGTH, RECORD, REST  # noqa: E402
from fastkoop.files import write_json  # noqa: E402
from fastkoop.profile.devices import Host  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "training"
WORKER = ROOT / "bench" / "training_worker.py"
# burn in, record, rest after the first jump, second recording, rest after the last jump
PLACES = (BURN_IN // 2, BURN_IN + 40, BURN_IN + RECORD + 30, BURN_IN + RECORD + REST + 45, LENGTH - 10)


def call(job: str, name: str, folder, ranks: int = 1, kill_at: int = -1, data_dir: str | None = None) -> int:
    """Run the worker, on several ranks under torchrun; the exit code."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += [str(WORKER), job, name, str(folder), "--kill-at", str(kill_at)]
    command += ["--data-dir", data_dir] if data_dir else []
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=quiet, stderr=subprocess.DEVNULL if kill_at >= 0 else None).returncode


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


def run(names: list[str], data_dir: str | None) -> None:
    """Everything, a model after another."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
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
        write_json(RESULTS / f"{name}.json", found)


def table() -> str:
    """The README's table, of the models that have results."""
    heads = (
        "model", "weights", "recording, share of a step", "memory, measured / planned", "the same, bfloat16",
        "jumps (loss before → after: steps)", "killed, resumed: same bits on 1 / 2 ranks",
        "bytes a jump on 2 ranks / weights",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for name in training_models.NAMES:
        path = RESULTS / f"{name}.json"
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


def main() -> None:
    """Run models, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    names = ", ".join(training_models.NAMES)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {names}; all if none")
    parser.add_argument("--data-dir", help="folder with the MNIST files")
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in training_models.NAMES]
    if unknown:
        parser.error(f"unknown model {unknown[0]}; expected one of {names}")
    if options.what == "run":
        run(options.models or list(training_models.NAMES), options.data_dir)
    readme.update("training", table())


if __name__ == "__main__":
    main()
