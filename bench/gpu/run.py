"""Everything that a GPU is needed for, in one command of under nine minutes: tests, benchmark, profile, checkers.

    python -m bench gpu --out results              # MNIST in FASTKOOP_DATA_DIR for the cases of real windows
    python -m bench gpu --out results --dry-run    # the same stages on an emulated device, tiny: half a minute

Stages come by worth: the environment, parity with the CPU, the benchmark family by family (A, R, B, RR, N, large),
peers that compile for long, the profile, every kernel, memory and race checks. Each writes its log, and what it found
is in summary.json and table.md as soon as it ends; the last words are a short table against the figures to reach.
Copy benchmark/*.json into bench/results/cuda/ and run `python -m bench gpu table` to publish. The verbs `kernels`
(every kernel once, compared with the reference), `environment` and `profile` (of the emulated device) are its stages.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil
import sys

from bench import ROOT
from bench.common import devices, origin
from bench.speed import tables
from bench.speed.cases import CASES
from fastkoop.checks import InputError
from fastkoop.files import prepare_out, write_json

from . import cycles, every_kernel, predictions, stages
from . import tables as gpu_tables

# families of cases by worth, and the seconds that each gets
FAMILIES = {
    "A": (("A8", "A16", "A32", "A64"), 60),
    "R": (("R32", "R32T"), 35),
    "B": (("B11", "B21"), 30),
    "RR": (("RR32", "RR8", "RR64"), 40),
    "N": (("N1",), 20),
    "large": (("C-jax", "D-jax"), 30),
}
SLOW_TO_START = ("compiled", "jax")  # peers that a stage of their own waits for
COMPILED = ("A8", "A32", "R32", "RR32-jax"), 50
UNSUPPORTED = re.compile(
    r"[^\n]*(device[^\n]*not supported|not supported[^\n]*device|unable to (attach|initialize)"
    r"|debugger[^\n]*not (available|supported))[^\n]*",
    re.I,
)  # of compute-sanitizer
TINY = ("A8", "R32", "B11", "RR8-jax")
SIZES = ((20, 4), (3, 40), (1, 9), (70, 66))  # of the emulated device's profile
SPARE = 10.0  # seconds before its end at which a family begins no further case


def bench(*arguments: object) -> list[str]:
    """The command of a benchmark."""
    return [sys.executable, "-m", "bench", *map(str, arguments)]


def plan(out: pathlib.Path, dry: bool) -> list[stages.Stage]:
    """The stages, at most 530 seconds together."""
    device = "emulated" if dry else "cuda"
    checker = shutil.which("compute-sanitizer")
    no_checker = "needs a CUDA device" if dry else None if checker else "compute-sanitizer is not on PATH"

    def speed(cases: tuple[str, ...], without: tuple[str, ...] = SLOW_TO_START):
        how = ["--blocks", 3, "--rounds", 1, "--repeat", 1] if dry else []
        how += [part for word in without for part in ("--without", word)]
        where = ["--device", device, "--out", out / "benchmark", "--seconds"]
        return lambda seconds: bench("speed", "run", *cases, *where, max(1.0, seconds - SPARE), *how)

    def profile(seconds: float) -> list[str]:
        if dry:
            return bench("gpu", "profile", "--out", out / "profile")
        command = [sys.executable, "-m", "fastkoop.cli", "profile", "--device", "cuda", "--out", str(out / "profile")]
        return [*command, "--seconds", str(max(5.0, 0.4 * seconds))]

    def kernels(seconds: float) -> list[str]:
        return bench("gpu", "kernels", "--device", device, "--seconds", 1.0 if dry else 0.4 * seconds)

    def checked(tool: str):
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        script = bench("gpu", "kernels", "--device", device, "--seconds")
        return lambda seconds: [checker, *options, *script, str(0.5 * seconds)]

    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests"), *(["--collect-only"] * dry)]
    families = {"dry": (TINY, 60)} if dry else FAMILIES
    return [
        stages.Stage("environment", 60 if dry else 20, lambda _: bench("gpu", "environment", "--device", device)),
        stages.Stage("parity", 105, lambda _: tests),
        *(stages.Stage(f"benchmark-{name}", seconds, speed(cases)) for name, (cases, seconds) in families.items()),
        stages.Stage("benchmark-compiled", COMPILED[1], speed(TINY[:1] if dry else COMPILED[0], ())),
        stages.Stage("profile", 60, profile),
        stages.Stage("kernels", 25, kernels),
        stages.Stage("memcheck", 25, checked("memcheck"), no_checker, UNSUPPORTED),
        stages.Stage("racecheck", 25, checked("racecheck"), no_checker, UNSUPPORTED),
    ]


def summary(out: pathlib.Path, done: list[dict]) -> dict:
    """All results in one: stages, the environment, every case, the profile."""
    profile = out / "profile" / "profile.json"
    return {
        "stages": done,
        "environment": _last_json(out / "environment.log"),
        "benchmark": tables.load(out / "benchmark"),
        "profile": json.loads(profile.read_text()) if profile.exists() else None,
    }


def _last_json(log: pathlib.Path) -> dict | None:
    """The last line of a log that is JSON."""
    for line in reversed(log.read_text().splitlines() if log.exists() else []):
        if line.startswith("{"):
            return json.loads(line)
    return None


def short(results: dict[str, dict]) -> list[str]:
    """A line a case that has figures to reach: ours beside them."""
    lines = [f"{'case':16}{'a block':>10}{'roofline':>10}{'goal':>6}{'vs expert':>11}{'goal':>6}{'error':>9}"]
    for case in CASES:
        if not case.gpu_goals:
            continue
        if case.name not in results:
            lines.append(f"{case.name:16}" + f"{'-':>10}" * 2)
            continue
        result, goals = results[case.name], case.gpu_goals
        expert, error = result["against"].get("expert"), result["contenders"]["fastkoop"]["error"]["median"]
        lines.append(
            f"{case.name:16}{tables.duration(tables.microseconds(result)):>10}{result['roofline']['share']:>10.0%}"
            f"{goals.get('roofline', 0) or '':>6}{expert['ratio'] if expert else float('nan'):>11.2f}"
            f"{goals.get('expert', ''):>6}{'-' if error is None else f'{error:.0e}':>9}" + " VOID" * result["void"]
        )
    return lines


def run(options: argparse.Namespace) -> int:
    """Run the stages; exit code 1 if one of them failed or was stopped."""
    if options.out is None:
        raise InputError("--out: expected a folder for everything; name it")
    out = prepare_out(options.out).resolve()

    def keep(done: list[dict]) -> None:
        results = summary(out, done)
        write_json(out / "summary.json", results)
        (out / "table.md").write_text(gpu_tables.table(results["benchmark"]) + "\n")

    done = stages.run(plan(out, options.dry_run), out, lambda line: print(line, flush=True), keep)
    print("\n".join(["", *short(summary(out, done)["benchmark"])]))
    return int(any(one["status"].startswith(("failed", "stopped")) for one in done))


def table(options: argparse.Namespace) -> None:
    """Write the page: what was measured, and what is predicted."""
    gpu_tables.update()
    predictions.update()
    cycles.update()


def kernels(options: argparse.Namespace) -> None:
    """Every CUDA kernel on small blocks: what a memory or race checker watches."""
    every_kernel.run(options.device, options.seconds)


def environment(options: argparse.Namespace) -> None:
    """A line of JSON about the machine."""
    print(json.dumps(origin.environment(devices.device_of(options.device))))


def profile(options: argparse.Namespace) -> None:
    """`fastkoop profile` of tiny blocks on the emulated device."""
    from rich.console import Console

    from fastkoop.profile.profiling import profile as measured
    from fastkoop.profile.request import Request
    from fastkoop.profile.table import show

    config = Request(sizes=SIZES, blocks=4, rounds=1, seconds=1.0, device="cuda", out=str(options.out))
    show(measured(config, device=devices.EmulatedGpu()), Console(width=120))
