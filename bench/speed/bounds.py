"""What bounds the benchmark's rows that miss their figures, from `fastkoop profile`.

fastkoop profile --out bench/results/profile    # on an idle machine
python -m bench speed table                     # puts it into the page
"""

from __future__ import annotations

import json
import pathlib
from statistics import median

from bench import RESULTS
from bench.common import pages


class Profile:
    """A profile.json, asked by kernel and size."""

    def __init__(self, path: pathlib.Path = RESULTS / "profile" / "profile.json"):
        self.results = json.loads(path.read_text())
        self.best = self.results["ceilings"][-1]

    def row(self, kernel: str, n: int, m: int, data: str = "full") -> dict:
        """One row."""
        asked = (kernel, n, m, data)
        [found] = (row for row in self.results["kernels"] if (row["kernel"], row["n"], row["m"], row["data"]) == asked)
        return found

    def time(self, *asked) -> float:
        """Microseconds a block."""
        return self.row(*asked)["microseconds_per_block"]

    def of_float64(self, *asked) -> float:
        """A kernel's share of the float64 matrix rate."""
        return 1e9 * self.row(*asked)["gigaflops_per_second"] / self.best["float64"]


def bounds(profile: Profile | None = None) -> str:
    """The page's list of what bounds the rows that miss their figures."""
    profile = profile or Profile()
    best, small = profile.best, (21, 32)
    grams = ", ".join(f"{profile.of_float64('gram', 785, m):.0%}" for m in (8, 32, 64))
    floor = 1e6 * profile.row("predict", 785, 8)["bytes"] / profile.row("predict", 785, 8)["blocks"] / best["copy"]
    C, D = (
        [profile.time(kernel, n, 1875) / 1e3 for kernel in ("predict", "product", "tridiagonal")] for n in (785, 15700)
    )
    lines = [
        f"A8 to A64: sums are float64, in which this machine's matrix product reaches {best['float64'] / 1e9:.0f} "
        f"GFLOP/s, against {best['float32'] / 1e9:.0f} in float32, the rate that the roofline is drawn with; the Gram "
        f"matrix alone reaches {grams} of the float64 rate at m = 8, 32, 64. A8's floor is copying, {floor:.1f} µs a "
        "block; converting its data to float64 and summing take longer.",
        "RR32 and RR64 at `array_api`: where a cutoff asks for more than a float64 Gram matrix resolves, hidden nodes' "
        "blocks are answered by its solution, which their data refines, or by their data alone; at n = 21, m = 32 that "
        f"takes {profile.time('predict', *small, 'unresolved'):.1f} and "
        f"{profile.time('predict', *small, 'truncated'):.1f} µs, against {profile.time('predict', *small):.1f} by the "
        "Gram matrix.",
        f"C: of {C[0]:.0f} ms a block, BLAS's float64 product alone takes {C[1]:.0f} and LAPACK's tridiagonal form "
        f"{C[2]:.0f}.",
        f"D: where much is kept, the product takes {D[1]:.0f} of {D[0]:.0f} ms and the tridiagonal form {D[2]:.0f}. "
        "`jax` keeps five directions: five passes over the data find them, which convert it to float64 and multiply it "
        "with 16 vectors twice.",
        f"P: its fits, with eigenvectors, are {fit_seconds():.1f} s of it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def fit_seconds(path: pathlib.Path = RESULTS / "steps" / "mnist.json") -> float:
    """What fitting all nodes at the report's setting takes."""
    repeats = json.loads(path.read_text())["repeats"]
    return median(fit for one in repeats for fit in one["adadelta"]["koopman"]["node"]["1"]["fit"])


def update() -> None:
    """Put it into the page."""
    pages.update("speed", bounds(), "bounds")
