"""Everything that a GPU is needed for, in one command of under nine minutes: tests, benchmark, profile, checkers.

    python bench/gpu.py --out results              # MNIST in FASTKOOP_DATA_DIR for the cases of real windows
    python bench/gpu.py --out results --dry-run    # the same stages on an emulated device, tiny: half a minute

Writes into the folder, stage by stage: environment.log, tests.log, benchmark/<case>.json, profile/, kernels.log,
memcheck.log, racecheck.log; then summary.json, and as its last words a short table against the figures to reach.
Copy benchmark/*.json into bench/results/cuda/ and run `python bench/tables.py` to publish.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys

from fastkoop.files import prepare_out, write_json

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench import gpu_tables, stages, tables  # noqa: E402
from bench.cases import CASES  # noqa: E402

# what has a figure to reach first
FAMILIES = ("A8", "A16", "A32", "A64", "R32", "B11", "B21", "RR32", "C-jax", "N1", "R32T", "D-jax", "RR8", "RR64")
TINY = ("A8", "R32", "B11", "RR8-jax")
SPARE = 25.0  # seconds before its end at which the benchmark begins no further case


def python(script: str, *arguments: object) -> list[str]:
    """The command of one of our scripts."""
    return [sys.executable, str(ROOT / "bench" / script), *map(str, arguments)]


def plan(out: pathlib.Path, dry: bool) -> list[stages.Stage]:
    """The stages, at most 530 seconds together."""
    device = "emulated" if dry else "cuda"
    checker = shutil.which("compute-sanitizer")
    no_checker = "needs a CUDA device" if dry else None if checker else "compute-sanitizer is not on PATH"

    def benchmark(seconds: float) -> list[str]:
        how = ["--blocks", 3, "--rounds", 1, "--repeat", 1, *TINY] if dry else [*FAMILIES]
        where = ["--device", device, "--out", out / "benchmark", "--seconds", max(1.0, seconds - SPARE)]
        return python("run.py", *where, *how)

    def profile(seconds: float) -> list[str]:
        if dry:
            return python("devices.py", "--out", out / "profile")
        command = [sys.executable, "-m", "fastkoop.cli", "profile", "--device", "cuda", "--out", str(out / "profile")]
        return [*command, "--seconds", str(max(5.0, 0.4 * seconds))]

    def kernels(seconds: float) -> list[str]:
        return python("every_kernel.py", "--device", device, "--seconds", 1.0 if dry else 0.4 * seconds)

    def checked(tool: str):
        options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
        script = python("every_kernel.py", "--device", device, "--seconds")
        return lambda seconds: [checker, *options, *script, str(0.5 * seconds)]

    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests"), *(["--collect-only"] * dry)]
    return [
        stages.Stage("environment", 20, lambda _: python("origin.py", "--device", device)),
        stages.Stage("tests", 110, lambda _: tests),
        stages.Stage("benchmark", 200, benchmark),
        stages.Stage("profile", 80, profile),
        stages.Stage("kernels", 30, kernels),
        stages.Stage("memcheck", 45, checked("memcheck"), no_checker),
        stages.Stage("racecheck", 45, checked("racecheck"), no_checker),
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


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; exit code 1 if one of them failed or was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for everything")
    parser.add_argument("--dry-run", action="store_true", help="on an emulated device, with tiny sizes")
    options = parser.parse_args(arguments)
    out = prepare_out(options.out).resolve()
    done = stages.run(plan(out, options.dry_run), out, lambda line: print(line, flush=True))
    results = summary(out, done)
    write_json(out / "summary.json", results)
    (out / "table.md").write_text(gpu_tables.table(results["benchmark"]) + "\n")
    print("\n".join(["", *short(results["benchmark"])]))
    return int(any(one["status"].startswith(("failed", "stopped")) for one in done))


if __name__ == "__main__":
    sys.exit(main())
