"""The benchmark: FastKoop against the library routines and against what an expert would write.

    python -m bench speed run                 # every case, about 20 minutes on two cores; MNIST in FASTKOOP_DATA_DIR
    python -m bench speed run A32 RR32        # some cases or families
    python -m bench speed run --device cuda   # the same on a GPU, with a GPU's batches and peers
    python -m bench speed table               # then writes the page; --results FOLDER prints another run's tables

Each case is measured in interleaved rounds, the whole twice, and written to <out>/<case>.json. Run it on an idle
machine: libraries whose threads wait for one another become ten times as slow beside another busy process, which
flatters FastKoop.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from statistics import median

import numpy as np

from bench import RESULTS, ROOT
from bench.common import devices, origin
from fastkoop.checks import InputError
from fastkoop.files import write_json
from fastkoop.profile.devices import Gpu, Host

from . import bounds, cases, data, experts, measure, roofline, tables

EXPERTS = ("expert", "rank-aware")


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def described(one: measure.Contender) -> dict:
    """A contender's entry in the JSON."""
    return {
        "kind": one.kind,
        "variant": one.variant,
        "blocks": one.blocks,
        "rounds": [len(repeat) for repeat in one.seconds],
        "microseconds_a_block": [[1e6 * value for value in quartiles(repeat)] for repeat in one.seconds],
        "compile_seconds": one.first_seconds - one.call_seconds if one.compiles else None,
        "error": one.error,
    }


def ratio(one: measure.Contender, ours: measure.Contender) -> dict:
    """A contender's median over FastKoop's in every repeat; the middle of these, and how far they spread."""
    repeats = [median(a) / median(b) for a, b in zip(one.seconds, ours.seconds, strict=True)]
    return {"ratio": median(repeats), "low": min(repeats), "high": max(repeats), "repeats": repeats}


def accurate(error: dict, yardstick: dict | None, slack: float = 2.0) -> bool:
    """Whether a peer's error is not worse than the float32 SVD's, but for luck: a factor of two.

    Leaving a fast peer out would flatter FastKoop, hence the slack, which `void` does not grant.
    """
    value = error["median"]
    if value is None:
        return True
    return value == value and (yardstick is None or value <= slack * yardstick["median"])


def void(ours: dict, yardstick: dict | None) -> bool:
    """Whether FastKoop's error, median or largest, is not below the float32 SVD's: its row does not count."""
    if ours["median"] is None or yardstick is None:
        return False
    return not (ours["median"] <= yardstick["median"] and ours["max"] <= yardstick["max"])


def same_form(one: measure.Contender, forms: dict[str, measure.Contender]) -> measure.Contender:
    """FastKoop in the form that this contender is in: a CUDA graph against a CUDA graph, where there is one."""
    return forms.get("fastkoop in a graph", forms["fastkoop"]) if "in a graph" in one.name else forms["fastkoop"]


def denominators(entrants: list[measure.Contender]) -> dict:
    """Column -> who it is measured against and the ratio: the fastest of each sort whose error is good enough."""
    forms = {one.name: one for one in entrants if one.kind == "fastkoop"}
    others = [one for one in entrants if one.kind != "fastkoop"]
    svd = next((one.error for one in others if one.name == measure.SVD_PEER), None)
    sorts = {
        "expert": lambda one: one.kind in EXPERTS and "chunks" not in one.name,
        "chunks": lambda one: one.kind in EXPERTS and "chunks" in one.name,
        "library": lambda one: one.kind == "library",
        "numpy": lambda one: one.name == "numpy pinv",
        "report": lambda one: one.kind == "report",
    }
    found = {}
    for column, belongs in sorts.items():
        named = column in ("numpy", "report")  # these are a matter of who, not of how accurate
        fit = [one for one in others if belongs(one) and (named or accurate(one.error, svd))]
        if fit:
            found[column] = min(
                ({"peer": one.name, **ratio(one, same_form(one, forms))} for one in fit), key=lambda one: one["ratio"]
            )
    return found


def measure_case(case: cases.Case, options: argparse.Namespace, ceiling: dict, device: Host | Gpu) -> dict:
    """Everything about a case that one process can tell."""
    turns = measure.rotations(case, device, options.blocks)
    batches = turns[0]
    entrants, absent = measure.contenders(
        case, turns, device, lambda name: progress(case, f"preparing {name}"), options.without
    )
    judge = measure.Judge(case, batches, device)
    for repeat in range(options.repeat):
        progress(case, f"measurement {repeat + 1} of {options.repeat}")
        measure.run_rounds(entrants, options.rounds, judge)
    ours = entrants[0]
    blocks = sum(X.shape[1] for X in batches)
    floor = measure_floor(case, batches, ceiling, ours, blocks)
    svd = next((one.error for one in entrants if one.name == measure.SVD_PEER), None)
    return {
        "case": asdict(case),
        "blocks": blocks,
        "rotations": len(turns),
        "absent": absent,
        "contenders": {one.name: described(one) for one in entrants},
        "ratios": {one.name: ratio(one, ours) for one in entrants[1:]},
        "against": denominators(entrants),
        "void": void(ours.error, svd),
        "roofline": floor,
    }


def measure_floor(case, batches, ceiling, ours, blocks: int) -> dict:
    """The floor of the case and FastKoop's share of it."""
    floor = roofline.floor_seconds(batches, case.steps, case.result == "states", ceiling)
    taken = median(median(repeat) for repeat in ours.seconds) * blocks
    return {**ceiling, **floor, "share": floor["seconds"] / taken}


def child(*arguments: str, **environment: str) -> dict:
    """What child.py prints, from a process of its own."""
    command = [sys.executable, "-m", "bench.speed.child", *arguments]
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def cold_start(case: cases.Case, known: dict[tuple, dict]) -> dict:
    """First calls in fresh processes, with no compiled kernels on disk and with all.

    Kernels are compiled per side (tall, wide) and engine, not per case: measured once for each, on the case named.
    """
    shapes = [(n > case.m, min(n, case.m) > measure.KERNEL_ORDER) for n, _ in case.sizes]
    key = tuple(shapes)
    if key not in known:
        with tempfile.TemporaryDirectory() as folder:
            empty = child("cold", case.name, NUMBA_CACHE_DIR=folder)
            cached = child("cold", case.name, NUMBA_CACHE_DIR=folder)
        known[key] = {"measured_on": case.name, "empty_cache": empty, "warm_cache": cached}
    return known[key]


def peak_memory(case: cases.Case) -> dict | None:
    """Increments of FastKoop and of one peer, each in a process of its own."""
    if case.memory is None:
        return None
    return {name: child("memory", case.name, name) for name in ("fastkoop", case.memory)}


def progress(case: cases.Case, what: str) -> None:
    """One line that the next one overwrites, on a terminal; silence in a file."""
    if sys.stderr.isatty():
        print(f"\r\033[K{case.name}: {what}", end="", file=sys.stderr, flush=True)


def verdict(result: dict) -> str:
    """A case in one line."""
    ours = median(middle for _, middle, _ in result["contenders"]["fastkoop"]["microseconds_a_block"])
    against = ", ".join(f"{one['ratio']:.2f} {column} ({one['peer']})" for column, one in result["against"].items())
    error = result["contenders"]["fastkoop"]["error"]["median"]
    error = "-" if error is None else f"{error:.1e}"
    void = "; VOID" if result["void"] else ""
    share = f"{result['roofline']['share']:.0%} of the roofline"
    return f"{result['case']['name']}: {ours:.4g} us a block; {against}; error {error}{void}; {share}"


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options with `selected` cases and the folder for their results."""
    if options.rounds < 1 or options.repeat < 1:
        raise InputError("--rounds, --repeat: expected at least 1")
    if options.device == "emulated" and options.out is None:
        raise InputError("--device emulated: its times are nothing to keep; give a folder with --out")
    options.out = options.out or RESULTS / options.device
    options.only_time |= options.device != "cpu"
    options.selected = cases.select(options.names)
    return options


def run(options: argparse.Namespace) -> None:
    """Measure the cases and write a JSON file of each."""
    options = checked(options)
    device, end, failed = devices.device_of(options.device), time.monotonic() + options.seconds, []
    options.out.mkdir(parents=True, exist_ok=True)
    environment, ceiling, known = origin.environment(device), roofline.ceilings(device), {}
    for case in options.selected:
        began = time.perf_counter()
        if time.monotonic() > end:
            print(f"{case.name}: skipped, {options.seconds:g} seconds are over")
            continue
        try:
            result = measure_case(case, options, ceiling, device)
        except data.NoRecording as error:
            print(f"{case.name}: skipped, {error}")
            continue
        except (MemoryError, RuntimeError) as error:  # of FastKoop itself; the other cases are still worth having
            print(f"{case.name}: failed, {measure.why(error)}")
            failed.append(case.name)
            continue
        finally:
            gc.collect()
            device.release()
            experts.forget_compiled()
        result["cold_start"] = None if options.only_time else cold_start(case, known)
        result["memory"] = None if options.only_time else peak_memory(case)
        result["load_average"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # who else was at work
        result["environment"], result["options"] = environment, {"rounds": options.rounds, "repeat": options.repeat}
        result["took_seconds"] = time.perf_counter() - began
        write_json(options.out / f"{case.name}.json", result)
        progress(case, "")
        print(verdict(result), flush=True)
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed")


def table(options: argparse.Namespace) -> None:
    """Write the page, or print the tables of another folder."""
    if options.results is not None:
        print(tables.tables(tables.load(options.results)))
        return
    tables.update()
    bounds.update()
