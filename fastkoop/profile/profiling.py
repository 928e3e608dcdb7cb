"""The job of ``fastkoop profile``: this machine's ceilings, and what every kernel reaches of them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from .. import checks
from .. import cutoff as rules
from ..backends import ROUTES, each_large_block, resolution, tridiagonalize
from ..files import plain, prepare_out, write_json, write_result
from .devices import Gpu, Host, open_device
from .throughput import COSTS, PARTS, RECORD, Ceilings, Cost, Timing, measure

# A node of the report's first layer over 8, 32 and 64 steps; a hidden node over 32 steps and over two epochs; a
# single weight, a node and the whole of the first layer over two epochs.
SIZES = ((785, 8), (785, 32), (785, 64), (21, 32), (21, 1875), (1, 1875), (785, 1875), (15700, 1875))
LAST_VALUE = {"full": 1e-2, "truncated": 1e-7}  # singular values run from 1 to this
UNRESOLVED = 1.5  # times the cutoff: where the smallest one counts, but may be too small for a Gram matrix
LONG_FLOPS = 1e10  # blocks that take about a second a call
DISTINCT = 64  # blocks made; a batch repeats them
MOST_BLOCKS = 1 << 18  # for kernels that take next to nothing a block
MADE_BYTES = 32 << 20  # of float64 while they are made
ONE = np.array([1])
EVERY = {**COSTS, **PARTS, **RECORD}
FLOAT64_KERNELS = ("solve", "evolve", "advance", *PARTS)  # whatever the data: a Gram matrix and Factors are float64


@dataclass(frozen=True)
class Request:
    """One profile. blocks None: as many as make a batch that exceeds the caches, or of large blocks one a thread."""

    sizes: tuple[tuple[int, int], ...] = SIZES
    blocks: int | None = None
    dtype: str = "float32"
    rounds: int = 9
    seconds: float = 40.0
    device: str = "cpu"
    out: str = "fastkoop-profile"

    def checked(self) -> Request:
        """The same.

        Raises:
            ValueError, TypeError: naming the option, what was expected, what was found and the cure.
        """
        checks.choice("device", self.device, ("cpu", "cuda"))
        checks.choice("dtype", self.dtype, ("float32", "float64"))
        checks.integer("rounds", self.rounds, least=1)
        if not 0 < self.seconds < math.inf:
            raise checks.InputError(f"seconds: expected a number > 0, got {self.seconds}")
        if self.blocks is not None:
            checks.integer("blocks", self.blocks, least=1)
        return self

    def fits(self, device: Host | Gpu) -> None:
        """Nothing, if every size fits into the device's memory.

        Raises:
            ValueError: naming the size, its bytes, the device's and the cure.
        """
        for n, m in self.sizes:
            blocks, free = self.batch(n, m, device), device.free_memory()
            needed = _memory(n, m, blocks, self.dtype) + 6 * device.batch_bytes
            if needed > free / 2:
                raise checks.InputError(
                    f"sizes: {n}x{m} with {blocks} blocks takes about {needed / 1e9:.1f} GB, more than half "
                    f"of the {free / 1e9:.1f} GB that are free; name a smaller size, or fewer --blocks"
                )

    def batch(self, n: int, m: int, device: Host | Gpu) -> int:
        """Blocks of this size in a batch."""
        if self.blocks is not None:
            return self.blocks
        fitting = max(1, device.batch_bytes // (n * (m + 1) * np.dtype(self.dtype).itemsize))
        return min(fitting, device.abreast) if device.plan(n, m, self.dtype).engine == "library" else fitting

    def described(self) -> dict:
        """The config of profile.json."""
        last = {**LAST_VALUE, "unresolved": f"{UNRESOLVED} times the cutoff"}
        config = {**asdict(self), "steps": 1, "last_singular_value": last}
        del config["out"]
        return config


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Sizes as written on the command line: NxM,NxM,...

    >>> parse_sizes("785x32,21x1875")
    ((785, 32), (21, 1875))
    """
    sizes = []
    for part in text.split(","):
        n, cross, m = part.strip().lower().partition("x")
        if not (cross and n.isdecimal() and m.isdecimal() and int(n) and int(m)):
            raise checks.InputError(
                f"sizes: expected NxM,NxM,... with N weights and M snapshot pairs, both >= 1, got {text!r}; "
                "for example 785x32,21x1875"
            )
        sizes.append((int(n), int(m)))
    return tuple(dict.fromkeys(sizes))


def _memory(n: int, m: int, blocks: int, dtype: str) -> float:
    """Bytes that profiling this size takes, about: data, result, Gram matrices and Factors, blocks in the making."""
    q, data = min(n, m), n * (m + 2)
    made = 3 * 8 * data * _distinct(n, m, blocks) / _stacked(n, m)
    return blocks * (3.0 * data * np.dtype(dtype).itemsize + 8.0 * 8 * q * q) + made


def _distinct(n: int, m: int, blocks: int) -> int:
    return min(blocks, DISTINCT, max(1, MADE_BYTES // (8 * n * (m + 1))))


def _stacked(n: int, m: int) -> int:
    """How many times the long side of a block repeats itself: a large one takes too long to make otherwise."""
    short, long = sorted((n, m))
    return max(1, min(8 * long * short // MADE_BYTES, long // short))


def snapshots(n: int, m: int, blocks: int, dtype, last: float, seed: int = 0, xp=np):
    """Random snapshots (m+1, blocks, n), as recorded, whose F has singular values from 1 to `last`, geometric.

    xp: whose array it is to be; only distinct blocks travel to a device.
    """
    rng, made = np.random.default_rng(seed), _distinct(n, m, blocks)
    short, long = sorted((n, m))
    times = _stacked(n, m)
    F = _orthonormal(rng, made, long // times, short) * (np.geomspace(1.0, last, short) / math.sqrt(times))
    F = np.tile(F @ _orthonormal(rng, made, short, short), (1, times, 1))
    F = np.pad(F, ((0, 0), (0, long - F.shape[1]), (0, 0)))
    if n <= m:
        F = F.swapaxes(1, 2)
    X = np.empty((m + 1, made, n), dtype)
    X[:-1] = F.transpose(2, 0, 1)
    X[-1] = rng.normal(size=(made, n)) / math.sqrt(n)
    return xp.take(xp.asarray(X), xp.arange(blocks) % made, axis=1)


def _orthonormal(rng, count: int, rows: int, columns: int) -> np.ndarray:
    """Random matrices (count, rows, columns) with orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(count, rows, columns)))[0]


class Problem:
    """A batch of blocks and the calls to time on it. What a kernel needs from another one is made at its first call.

    Args:
        X: snapshots (m+1, B, n), where the device wants them.
        cutoff: pair (kind, value).
        device: whose kernels are called.
        least: bytes of Gram matrices to solve at least, and of Factors to evolve: those of the blocks are much
            smaller than their snapshots, and repeated until there are as many.
    """

    def __init__(self, X, cutoff: tuple[str, float], device: Host | Gpu, least: tuple[int, int] = (0, 0)):
        self.X, self.cutoff, self.device, self.least = X, cutoff, device, least
        self.n, self.m, self.blocks = X.shape[2], len(X) - 1, X.shape[1]
        self.kernels = device.kernels

    @functools.cached_property
    def grams(self):
        """Gram matrices of the blocks, over and over."""
        S = self.kernels.gram(self.X)
        return self._repeat(S, min(self.least[0] / S.nbytes, MOST_BLOCKS / len(S)))

    @functools.cached_property
    def factors(self):
        """Reduced operators of `grams`, over and over."""
        factors = self._solve()
        times = min(self.least[1] / max(factors.operator.nbytes, 1), MOST_BLOCKS / len(factors.rank))
        return type(factors)(*(self._repeat(part, times) for part in factors))

    def _repeat(self, array, times: float):
        return self.device.xp.concatenate([array] * max(1, math.ceil(times)))

    @functools.cached_property
    def coefficients(self):
        """Coefficients of the next state of each block."""
        return self.kernels.evolve(self.factors, ONE)[: self.blocks].copy()

    def _solve(self):
        return self.kernels.solve(self.grams, self.n, self.m, self.cutoff, self.X.dtype)

    def calls(self) -> dict[str, Callable[[], object]]:
        """What to time, by kernel, each after those it needs."""
        kernels = self.kernels
        extra = {} if self.device.name == "cpu" else {"record": self._record}
        return {
            "gram": lambda: kernels.gram(self.X),
            "solve": self._solve,
            "evolve": lambda: kernels.evolve(self.factors, ONE),
            "advance": lambda: kernels.advance(self.factors, self.factors.start, 1),
            "reconstruct": lambda: kernels.reconstruct(self.X, self.coefficients),
            "predict": lambda: kernels.predict(self.X, 1, self.cutoff),
            "pinv": lambda: kernels.pinv(self.X[:-1], self.cutoff),
            **extra,
        }

    @functools.cached_property
    def _record(self) -> Callable[[], object]:
        return self.device.recorder(self.batch("record"), self.n, self.X.dtype)

    @functools.cached_property
    def parts(self) -> dict[str, Callable[[], object]]:
        """What `predict` of large blocks leaves to BLAS and LAPACK: a product of float64 data, its tridiagonal form."""
        lines = [np.asarray(self.X[:-1, b], np.float64) for b in range(self.blocks)]
        if self.n > self.m:
            lines = [A.T for A in lines]
        G, order = [A.T @ A for A in lines], min(self.n, self.m)

        def tridiagonal(b: int):
            return tridiagonalize(G[b].copy())

        return {
            "product": lambda: each_large_block(lambda b: lines[b].T @ lines[b], self.blocks, order),
            "tridiagonal": lambda: each_large_block(tridiagonal, self.blocks, order),
        }

    def batch(self, kernel: str) -> int:
        """Blocks in one call of a kernel."""
        if kernel == "solve":
            return len(self.grams)
        if kernel == "record":  # of a snapshot alone: as many nodes as fill the batch's bytes
            return max(1, min(self.device.batch_bytes // (self.n * self.X.dtype.itemsize), MOST_BLOCKS))
        return len(self.factors.rank) if kernel in ("evolve", "advance") else self.blocks

    @property
    def rank(self) -> int:
        """The median rank of the blocks; of those that take about a second a call all singular values count."""
        if self.device.plan(self.n, self.m, self.X.dtype).flops > LONG_FLOPS:
            return min(self.n, self.m)
        return int(np.median(self.device.host(self.factors.rank)))


def kernels_of(device: Host | Gpu) -> tuple[str, ...]:
    """The kernels that a device has."""
    return (*COSTS, *(() if device.name == "cpu" else RECORD))


def first_calls(dtype, device: Host | Gpu) -> dict[str, dict]:
    """Seconds that each kernel's first call, on a tall and a wide block, takes beyond the next one: its compile time.

    "compiled" is False where the disk cache had it, or this process had called it before.
    """
    times: dict[str, dict] = {}
    problems = [
        Problem(snapshots(n, m, 1, dtype, 0.1, xp=device.xp), ("relative", 1e-6), device) for n, m in ((5, 3), (3, 5))
    ]
    for kernel in kernels_of(device):
        with device.compiling() as compiled:
            took = 0.0
            for problem in problems:
                call = problem.calls()[kernel]
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
            if how.engine == "kernel" and _last_value(n, m, "unresolved") ** 2 < resolution(n, m, config.dtype).least:
                rows.append(Task(n, m, "unresolved", "predict"))
    return rows


def _rule(n: int, m: int) -> tuple[str, float]:
    """One cutoff for both dtypes: float64's own would truncate nothing of 1e-7."""
    return rules.resolve("array_api", n, m, np.float32)


def _last_value(n: int, m: int, data: str) -> float:
    """The smallest singular value of such data, beside a largest of 1."""
    return UNRESOLVED * _rule(n, m)[1] if data == "unresolved" else LAST_VALUE[data]


def rows(config: Request, device: Host | Gpu, tick: Callable[[str, int, int], None]) -> Iterator[dict]:
    """Measure the kernels, a row of profile.json each but for its share, in about `config.seconds`.

    On a machine too slow for that every row still gets a round, and the parts of large blocks three.
    """
    end = time.monotonic() + config.seconds
    least, todo = (4 * device.private_cache, device.batch_bytes), tasks(config, device)
    problem, made = None, None
    for done, task in enumerate(todo):
        tick(f"{task.n}x{task.m} {task.kernel}, {task.data}", done, len(todo))
        if made != task[:3]:
            problem, made = None, task[:3]  # the old batch goes before the new one comes
            blocks = config.batch(task.n, task.m, device)
            X = snapshots(task.n, task.m, blocks, config.dtype, _last_value(*made), xp=device.xp)
            problem = Problem(X, _rule(task.n, task.m), device, least)
            del X  # the problem has it
        call = (problem.parts if task.kernel in PARTS else problem.calls())[task.kernel]
        result = call()
        seconds = (end - time.monotonic()) / (len(todo) - done)
        least_rounds = 3 if seconds > 0 or task.kernel in PARTS else 1  # a thread's first product is slower
        timing = measure(call, config.rounds, seconds, least=least_rounds, warmup=0, timer=device.timer)
        yield row(task, problem, timing, _route(task.kernel, result, device)) | _launches(device, call)
    tick("done", len(todo), len(todo))


def _launches(device: Host | Gpu, call: Callable[[], object]) -> dict:
    """What a call launches, on a device that launches."""
    return {} if device.name == "cpu" else {"launches": device.launches_of(call)}


def _route(kernel: str, result, device: Host | Gpu) -> str | None:
    """The word for how most blocks were answered, where a kernel reports it."""
    taken = result.route if kernel == "solve" else result[1] if kernel in ("predict", "pinv") else None
    return None if taken is None else ROUTES[np.bincount(device.host(taken)).argmax()]


def row(task: Task, problem: Problem, timing: Timing, route: str | None) -> dict:
    """What one kernel did. Bytes and flops are those of a call, that is of all its blocks."""
    size, blocks, rank = problem.X.dtype.itemsize, problem.batch(task.kernel), problem.rank
    one = EVERY[task.kernel](task.n, task.m, size, rank)
    cost = Cost(blocks * one.bytes, blocks * one.flops)
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
        "kernels": [{**one, **against(one, config.dtype, ceilings[-1])} for one in measured],
    }
    write_json(out / "profile.json", results)
    write_result(out / "roofline.png", draw(results))
    return plain(results)
