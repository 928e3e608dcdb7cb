"""The job of ``fastkoop profile``: this machine's ceilings, and what every kernel reaches of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..backends import ROUTES, resolution
from ..files import plain, prepare_out, write_json, write_result
from .devices import Gpu, Host, open_device
from .request import Request
from .throughput import COSTS, PARTS, RECORD, Ceilings, Cost, Timing, measure
from .workload import LONG_FLOPS, Workload, last_value, rule_of, snapshots

EVERY = {**COSTS, **PARTS, **RECORD}
FLOAT64_KERNELS = ("solve", "evolve", "advance", *PARTS)  # whatever the data: a Gram matrix and Factors are float64


def kernels_of(device: Host | Gpu) -> tuple[str, ...]:
    """The kernels that a device has."""
    return (*COSTS, *(() if device.name == "cpu" else RECORD))


def first_calls(dtype, device: Host | Gpu) -> dict[str, dict]:
    """Seconds that each kernel's first call, on a tall and a wide block, takes beyond the next one: its compile time.

    "compiled" is False where the disk cache had it, or this process had called it before.
    """
    times: dict[str, dict] = {}
    workloads = [
        Workload(snapshots(n, m, 1, dtype, 0.1, xp=device.xp), ("relative", 1e-6), device) for n, m in ((5, 3), (3, 5))
    ]
    for kernel in kernels_of(device):
        with device.compiling() as compiled:
            took = 0.0
            for workload in workloads:
                call = workload.calls()[kernel]
                # on the wall: a device has nothing to do while its kernels are compiled
                first, steady = (measure(call, 1, warmup=0).median for _ in range(2))
                took += max(0.0, first - steady)
            times[kernel] = {"seconds": took, "compiled": compiled()}
    return times


class Task(NamedTuple):
    """One row to measure."""

    n: int
    m: int
    data: str
    kernel: str


def tasks(config: Request, device: Host | Gpu) -> list[Task]:
    """The rows of a profile, those on the same data next to each other.

    Full-rank and truncated blocks cost differently where they are solved, in solve and predict; one singular value
    cannot be truncated. Wide blocks need no readout: their coefficients are the states. Small blocks may have singular
    values that count and that no Gram matrix resolves. Large ones leave parts to BLAS and LAPACK on a CPU; those that
    take about a second a call there are only predicted.
    """
    rows = []
    for n, m in config.sizes:
        how = device.plan(n, m, config.dtype)
        long = how.flops > LONG_FLOPS
        parts = PARTS if how.engine == "library" and device.name == "cpu" else ()
        kernels = (
            ("predict",) if long else [kernel for kernel in kernels_of(device) if n > m or kernel != "reconstruct"]
        )
        rows += [Task(n, m, "full", kernel) for kernel in (*kernels, *parts)]
        if min(n, m) > 1 and not long:
            rows += [Task(n, m, "truncated", kernel) for kernel in ("solve", "predict")]
            if how.engine == "kernel" and last_value(n, m, "unresolved") ** 2 < resolution(n, m, config.dtype).least:
                rows.append(Task(n, m, "unresolved", "predict"))
    return rows


def rows(config: Request, device: Host | Gpu, tick: Callable[[str, int, int], None]) -> Iterator[dict]:
    """Measure the kernels, a row of profile.json each but for its share, in about `config.seconds`.

    On a machine too slow for that every row still gets a round, and the parts of large blocks three.
    """
    end = time.monotonic() + config.seconds
    least, todo = (4 * device.private_cache, device.batch_bytes), tasks(config, device)
    workload, batch_of = None, None
    for done, task in enumerate(todo):
        tick(f"{task.n}x{task.m} {task.kernel}, {task.data}", done, len(todo))
        if batch_of != task[:3]:
            workload, batch_of = None, task[:3]  # the old batch goes before the new one comes
            blocks = config.batch(task.n, task.m, device)
            X = snapshots(task.n, task.m, blocks, config.dtype, last_value(*batch_of), xp=device.xp)
            workload = Workload(X, rule_of(task.n, task.m), device, least)
            del X  # the problem has it
        call = (workload.parts if task.kernel in PARTS else workload.calls())[task.kernel]
        result = call()
        seconds = (end - time.monotonic()) / (len(todo) - done)
        least_rounds = 3 if seconds > 0 or task.kernel in PARTS else 1  # a thread's first product is slower
        timing = measure(call, config.rounds, seconds, least=least_rounds, warmup=0, timer=device.timer)
        yield row(task, workload, timing, _route(task.kernel, result, device)) | _launches(device, call)
    tick("done", len(todo), len(todo))


def _launches(device: Host | Gpu, call: Callable[[], object]) -> dict:
    """What a call launches, on a device that launches."""
    return {} if device.name == "cpu" else {"launches": device.launches_of(call)}


def _route(kernel: str, result, device: Host | Gpu) -> str | None:
    """The word for how most blocks were answered, where a kernel reports it."""
    taken = result.route if kernel == "solve" else result[1] if kernel in ("predict", "pinv") else None
    return None if taken is None else ROUTES[np.bincount(device.host(taken)).argmax()]


def row(task: Task, workload: Workload, timing: Timing, route: str | None) -> dict:
    """What one kernel did. Bytes and flops are those of a call, that is of all its blocks."""
    size, blocks, rank = workload.X.dtype.itemsize, workload.batch(task.kernel), workload.rank
    block = EVERY[task.kernel](task.n, task.m, size, rank)
    cost = Cost(blocks * block.bytes, blocks * block.flops)
    return {
        **task._asdict(),
        "blocks": blocks,
        "rank": rank,
        "route": route,
        "seconds": timing._asdict(),
        "microseconds_per_block": 1e6 * timing.median / blocks,
        **cost._asdict(),
        "intensity": cost.intensity,
        "gigabytes_per_second": 1e-9 * cost.bytes / timing.median,
        "gigaflops_per_second": 1e-9 * cost.flops / timing.median,
    }


def against(row: dict, dtype: str, ceilings: Ceilings) -> dict:
    """The share of the roofline that a row reached, and which of the two roofs is the lower one there."""
    cost, dtype = Cost(row["bytes"], row["flops"]), "float64" if row["kernel"] in FLOAT64_KERNELS else dtype
    memory = cost.bytes / ceilings.copy >= cost.flops / ceilings.rate(dtype)
    share = ceilings.floor(cost, dtype) / row["seconds"]["median"]
    return {"share": share, "bound": "memory" if memory else "arithmetic"}


def profile(
    config: Request, tick: Callable[[str, int, int], None] = lambda *_: None, device: Host | Gpu | None = None
) -> dict:
    """Measure ceilings and kernels, and write profile.json and roofline.png into `config.out`.

    The highest ceilings are measured before and after the kernels and the higher ones count, so that a
    machine that sped up meanwhile flatters nobody.

    Args:
        config: what to measure; checked here.
        tick: called with what is going on, how many rows are done, and of how many.
        device: to measure on, if not the one that `config` names.

    Returns:
        The contents of profile.json.

    Raises:
        ValueError, TypeError: on bad options, before anything is measured.
    """
    from .roofline import draw  # Matplotlib, which is better missed now than after a minute

    config = config.checked()
    device = open_device(config.device) if device is None else device
    config.fits(device)
    out, total = prepare_out(config.out), len(tasks(config, device))
    tick("first calls", 0, total)
    compiling = first_calls(config.dtype, device)
    tick("ceilings", 0, total)
    before = device.ceilings()
    measured = list(rows(config, device, tick))
    tick("ceilings, again", total, total)
    ceilings = [*before[:-1], before[-1].best(device.ceilings()[-1])]
    results = {
        "config": config.described(),
        "machine": device.described(),
        "ceilings": [level._asdict() for level in ceilings],
        "first_calls": compiling,
        "kernels": [{**entry, **against(entry, config.dtype, ceilings[-1])} for entry in measured],
    }
    write_json(out / "profile.json", results)
    write_result(out / "roofline.png", draw(results))
    return plain(results)
