"""The benchmark's cases, as data: one table for the benchmarks, their tests and their page.

Letters as everywhere: B blocks of n weights, m snapshot pairs, T steps. Where the data come from is in data.py.
A case is named family-variant: "RR32-jax" is of the family "RR32", and a family names all its cases.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastkoop.checks import InputError

LIBRARY = ("numpy pinv", "torch pinv", "torch gelsd", "torch gelsy", "jax pinv")
EXPERT = ("expert", "expert compiled", "expert in chunks")
RANK_AWARE = ("rank-aware", "rank-aware compiled", "rank-aware in chunks")
CURVE = ("numpy pinv", "torch pinv", "torch gelsd", "expert", "expert in chunks")
# No vmap(pinv) for large blocks: minutes of a float32 SVD without a batch to spread over.
LARGE = ("numpy pinv", "torch pinv", "torch gelsd", "torch gelsy", "rank-aware")
WALKS = ("torch pinv", "torch gelsd", "rank-aware")

# The same on a GPU. torch.linalg.lstsq has only gels there, which takes full rank for granted.
GPU_LIBRARY = ("cupy pinv", "torch pinv", "torch gesvda", "torch gels", "jax pinv")
GPU_LARGE = ("cupy pinv", "torch pinv", "torch gesvda")
GPU_EXPERT = ("expert", "expert compiled", "expert in a graph")
GPU_RANK_AWARE = (
    "rank-aware", "rank-aware compiled", "rank-aware in a graph", "cupy rank-aware", "cupy rank-aware in a graph",
)  # fmt: skip

NODES = ((785, 20), (21, 50))  # 784-20-20-20-10: weights of a node, bias included, and how many such nodes


@dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    blocks counts windows where data is "windows" (each has all 70 nodes), gpu_blocks those on a GPU, where they repeat
    the others; last is the smallest singular value beside a largest of 1; result "states" wants all T states, "state"
    the last one; goals are ratios to reach on two CPU cores, gpu_goals on an H200, and "roofline" the share of it.
    """

    name: str
    m: int
    blocks: int
    gpu_blocks: int | None = None
    n: int | None = 785
    data: str = "graded"
    last: float | None = 1e-2
    cutoff: str = "array_api"
    steps: int = 1
    result: str = "state"
    dtype: str = "float32"
    peers: tuple[str, ...] = LIBRARY + EXPERT
    goals: dict[str, float] = field(default_factory=dict, hash=False)
    gpu_goals: dict[str, float] = field(default_factory=dict, hash=False)
    time_last: bool = False  # also timed in the layout (..., n, m+1)
    memory: str | None = None  # the peer whose peak memory stands beside FastKoop's

    @property
    def family(self) -> str:
        """The name without its variant."""
        return self.name.partition("-")[0]

    @property
    def gpu_peers(self) -> tuple[str, ...]:
        """Who it is measured against on a GPU."""
        library = GPU_LARGE if self.data.startswith("first layer") else GPU_LIBRARY
        return library + (GPU_EXPERT if "expert" in self.peers else GPU_RANK_AWARE)

    @property
    def real(self) -> bool:
        """Whether the data is a recorded MNIST run."""
        return self.last is None

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(n, blocks) of every batch of equal blocks."""
        if self.n is not None:
            return ((self.n, self.blocks),)
        return tuple((n, count * self.blocks) for n, count in NODES)


def _goals(expert: float | None, library: float, numpy: float | None = None, **more: float) -> dict[str, float]:
    ratios = {"expert": expert, "library": library, "numpy": numpy, **more}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _gpu(roofline: float) -> dict[str, float]:
    """At least three times the expert's captured form, and this share of the roofline."""
    return {"expert": 3, "roofline": roofline}


def _windows(m: int, windows: int, cutoff: str) -> Case:
    return Case(
        f"RR{m}-{cutoff}", m, windows, 5 * windows, n=None, data="windows", last=None, cutoff=cutoff,
        peers=LIBRARY + RANK_AWARE, goals=_goals(3, 6, 25), gpu_goals={"expert": 5} if m == 32 else {},
    )  # fmt: skip


def _all_windows() -> tuple[Case, ...]:
    sizes = ((8, 100), (32, 100), (64, 25))
    return tuple(_windows(m, windows, cutoff) for m, windows in sizes for cutoff in ("array_api", "jax"))


def _recorded(family: str, cutoff: str, **options) -> Case:
    return Case(f"{family}-{cutoff}", 1875, last=None, cutoff=cutoff, **options)


def _large() -> tuple[Case, ...]:
    large = {"peers": LARGE, "memory": "torch pinv", "gpu_goals": {"expert": 1}}
    nodes = {"blocks": 20, "data": "first layer, nodes", **large}
    layer = {"blocks": 1, "data": "first layer", "n": 15700, **large}
    walk = {"blocks": 1, "data": "nodes", "n": None, "steps": 938}
    return (
        _recorded("C", "jax", **nodes, goals=_goals(None, 2.5, 12)),
        _recorded("C", "array_api", **nodes, goals=_goals(None, 3, 7.5)),
        _recorded("D", "jax", **layer, goals=_goals(None, 8, 15)),
        _recorded("D", "array_api", **layer, goals=_goals(None, 3, 5)),
        _recorded("P", "jax", **walk, result="states", peers=("the report's", *WALKS), goals={"report": 35}),
        _recorded("P", "array_api", **walk, result="states", peers=("the report's", *WALKS), goals={"report": 20}),
        _recorded("Pj", "jax", **walk, peers=WALKS),
        _recorded("Pj", "array_api", **walk, peers=WALKS),
    )


def _curves() -> tuple[Case, ...]:
    """Case S: cost against B, against T on decaying modes, and against n."""
    return (
        *(Case(f"S-B{B}", 32, B, peers=CURVE) for B in (1, 10, 100, 1000)),
        *(Case(f"S-T{T}", 32, 200, data="modes", steps=T, peers=CURVE) for T in (1, 10, 100, 1000)),
        *(Case(f"S-n{n}", 32, 157000 // n, n=n, peers=CURVE) for n in (196, 392, 785, 1570, 3140)),
    )


CASES: tuple[Case, ...] = (
    Case("A8", 8, 2000, 20_000, goals=_goals(6, 14, 30, roofline=2 / 3), gpu_goals=_gpu(0.6), time_last=True),
    Case("A16", 16, 2000, 20_000, goals=_goals(4, 8, 35), gpu_goals=_gpu(0.6)),
    Case("A32", 32, 2000, 10_000, goals=_goals(4.5, 11, 50, roofline=1 / 2), gpu_goals=_gpu(0.5), time_last=True),
    Case("A64", 64, 500, 10_000, goals=_goals(3.5, 11, 40), gpu_goals=_gpu(0.35)),
    Case("R32", 32, 2000, 10_000, last=1e-7, peers=LIBRARY + RANK_AWARE, goals=_goals(3.5, 7, 30),
         gpu_goals={"expert": 5}),
    Case("R32T", 32, 2000, 10_000, data="modes", last=1e-7, steps=100, peers=LIBRARY + RANK_AWARE),
    *_all_windows(),
    Case("B11", 1000, 2000, 20_000, n=11, goals=_goals(8, 12, 35), gpu_goals=_gpu(0.6)),
    Case("B21", 1875, 500, 20_000, n=21, goals=_goals(5, 8, 50), gpu_goals=_gpu(0.4)),
    Case("N1", 1875, 16_750, 1_000_000, n=1),
    *_large(),
    *_curves(),
)  # fmt: skip

FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))


def select(names: list[str]) -> list[Case]:
    """Cases by name or family, in the order named; all of them, in the table's, if no name is given.

    >>> [case.name for case in select(["C", "A8"])]
    ['C-jax', 'C-array_api', 'A8']
    """
    known = {case.name for case in CASES} | set(FAMILIES)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"case: expected one of {', '.join(FAMILIES)}, or one with its variant, got {unknown[0]!r}")
    named = [case for name in names for case in CASES if name in (case.name, case.family)]
    return list(dict.fromkeys(named)) if names else list(CASES)
