"""The pseudo-inverse rules: which singular values of F count.

Libraries differ silently, and on real training runs the rule alone can decide whether a Koopman phase
diverges. With s1 the largest singular value of F (n, m) and eps that of the data's dtype, a value counts
if it is strictly above

- "array_api": max(n, m) eps s1 - the array API standard's, SciPy's, PyTorch's and Octave's rule;
- "matlab": max(n, m) eps(s1), with MATLAB's eps(x), the spacing of the dtype at x;
- "numpy": 1e-15 s1, whatever the dtype (CuPy's rule too);
- "jax": 10 max(n, m) eps s1;
- a float c in [0, 1): c s1;
- "svht": the optimal hard threshold for unknown noise (Gavish & Donoho 2014, IEEE Trans. Inf. Theory
  60(8), equation 11 over the median of the Marchenko-Pastur law); the largest value counts in any case, so that
  noise, a single weight or a single pair is not taken for nothing.

`Rank` and `Energy` count instead of comparing.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import InputError, integer, number

RATHER = "; 1 or more would drop every value, below 0 none can lie"
NAMES = ("array_api", "matlab", "numpy", "jax", "svht")


@dataclass(frozen=True)
class Rank:
    """Keep the k largest singular values, fewer where F has fewer that are not zero.

    >>> Rank(3)
    Rank(k=3)
    """

    k: int

    def __post_init__(self) -> None:
        k = integer("Rank(k)", self.k, least=1, cure="a rank of 0 would predict zero")
        object.__setattr__(self, "k", k)


@dataclass(frozen=True)
class Energy:
    """Keep the fewest singular values whose squares sum to at least `share` of all squares.

    >>> Energy(0.999)
    Energy(share=0.999)
    """

    share: float

    def __post_init__(self) -> None:
        share = number("Energy(share)", self.share, "a number")
        if not 0.0 < share <= 1.0:
            raise InputError(f"Energy(share): expected 0 < share <= 1, got {self.share}")
        object.__setattr__(self, "share", share)


Cutoff = str | float | Rank | Energy


def checked(cutoff: Any) -> Cutoff:
    """`cutoff` if it is a rule; numbers become Python's own."""
    if isinstance(cutoff, (Rank, Energy)):
        return cutoff
    if isinstance(cutoff, str):
        if cutoff not in NAMES:
            raise InputError(
                f"cutoff: expected one of {', '.join(map(repr, NAMES))}, a number, Rank(k) or Energy(share), "
                f"got {cutoff!r}"
            )
        return cutoff
    share = number("cutoff", cutoff, "a name, a number, Rank(k) or Energy(share)")
    if not 0.0 <= share < 1.0:
        cure = f"; Rank({share:.0f}) keeps that many" if 1.0 <= share < 2**31 and share == int(share) else ""
        raise InputError(
            f"cutoff: expected a number in [0, 1), relative to the largest singular value, got {cutoff}{cure or RATHER}"
        )
    return share


def resolve(cutoff: Cutoff, n: int, m: int, dtype: Any) -> tuple[str, float]:
    """The (kind, value) pair that kernels/ take, for blocks of n weights and m columns.

    >>> kind, value = resolve("jax", 785, 1875, np.float32)
    >>> kind, f"{value:.1e}"
    ('relative', '2.2e-03')
    """
    if type(cutoff) in (str, float, Rank, Energy):
        return _resolved(cutoff, n, m, dtype)
    return _resolved(checked(cutoff), n, m, dtype)


@functools.lru_cache(maxsize=256)
def _resolved(cutoff: Cutoff, n: int, m: int, dtype: Any) -> tuple[str, float]:
    cutoff, eps = checked(cutoff), float(np.finfo(dtype).eps)
    if isinstance(cutoff, Rank):
        return "rank", float(cutoff.k)
    if isinstance(cutoff, Energy):
        return "energy", float(cutoff.share)
    if not isinstance(cutoff, str):
        return "relative", float(cutoff)
    if cutoff == "svht":
        return "median", hard_threshold(min(n, m) / max(n, m))
    if {"array_api": 1.0, "matlab": 1.0, "numpy": 0.0, "jax": 10.0}[cutoff] * max(n, m) * eps >= 1.0:
        raise InputError(
            f"cutoff: {cutoff!r} drops every singular value of blocks of {n} rows and {m} columns in "
            f"{np.dtype(dtype)}; use a number, Rank(k) or Energy(share), or float64"
        )
    return {
        "array_api": ("relative", max(n, m) * eps),
        "matlab": ("spacing", float(max(n, m))),
        "numpy": ("relative", 1e-15),
        "jax": ("relative", 10 * max(n, m) * eps),
    }[cutoff]


@functools.lru_cache(maxsize=256)
def hard_threshold(aspect: float) -> float:
    """Gavish and Donoho's factor on the median singular value, aspect = min(n, m) / max(n, m).

    >>> round(hard_threshold(1.0), 3)
    2.858
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq

    low, high = (1 - math.sqrt(aspect)) ** 2, (1 + math.sqrt(aspect)) ** 2

    # x = low + (high - low) sin^2(u) removes the square-root ends of the Marchenko-Pastur density
    def below(x):
        u = math.asin(math.sqrt((x - low) / (high - low)))
        return quad(
            lambda u: (
                (high - low) ** 2
                * math.sin(2 * u) ** 2
                / (4 * math.pi * aspect * (low + (high - low) * math.sin(u) ** 2))
            ),
            0.0,
            u,
        )[0]

    median = brentq(lambda x: below(x) - 0.5, low, high)
    root = math.sqrt(aspect**2 + 14 * aspect + 1)
    return math.sqrt(2 * (aspect + 1) + 8 * aspect / (aspect + 1 + root)) / math.sqrt(median)


def describe(cutoff: Cutoff) -> str:
    """The rule in the words its user wrote in Python."""
    if isinstance(cutoff, Rank):
        return f"Rank(k={cutoff.k})"
    if isinstance(cutoff, Energy):
        return f"Energy(share={cutoff.share})"
    return str(cutoff)


def word(cutoff: Cutoff) -> str:
    """The rule as it is written on the command line.

    >>> word(Rank(3)), word(Energy(0.99)), word(0.01)
    ('rank:3', 'energy:0.99', '0.01')
    """
    if isinstance(cutoff, Rank):
        return f"rank:{cutoff.k}"
    if isinstance(cutoff, Energy):
        return f"energy:{cutoff.share}"
    return str(cutoff)


def read(text: str) -> Cutoff:
    """The rule that `describe` or `word` gave these words; what is no number is taken for a name, see `checked`.

    >>> read("Rank(k=3)"), read("rank:3"), read("energy:0.99"), read("0.01"), read("jax")
    (Rank(k=3), Rank(k=3), Energy(share=0.99), 0.01, 'jax')
    """
    counting = re.fullmatch(r"(?:Rank\(k=|rank:)(-?\d+)\)?", text)
    if counting:
        return Rank(int(counting[1]))
    sharing = re.fullmatch(r"(?:Energy\(share=|energy:)([^)]+)\)?", text)
    try:
        return Energy(float(sharing[1])) if sharing else float(text)
    except InputError:
        raise
    except ValueError:
        return text
