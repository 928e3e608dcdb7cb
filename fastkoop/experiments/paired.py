"""Two sides on the same seeds: mean difference, spread, and whether chance would do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
COMPARABLE = 10.0  # a mean difference of so many times the other's mean is one of kind


@dataclass(frozen=True)
class Paired:
    """What `a` minus `b` is over seeds.

    mean, sd: of the differences; share: the mean difference over the mean of b, inf where a diverged on some seed and
    -inf where b did, not a number where both did; wins: seeds on which a is below b; p: of a two-sided paired t-test
    (Student 1908), not a number for fewer than two seeds or differences that are all the same.
    """

    seeds: int
    mean: float
    sd: float
    share: float
    wins: int
    p: float

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    @property
    def comparable(self) -> bool:
        """Whether both are of one size, so that the t-test, whose spread one outlier makes, says anything."""
        return abs(self.share) <= COMPARABLE

    def __str__(self) -> str:
        """In words: "2.1% below (5 of 5 seeds, p = 0.003)"."""
        wins = f"below on {self.wins} of {self.seeds} seeds"
        if math.isnan(self.share):
            return f"both diverged ({wins})"
        if math.isinf(self.share):
            return f"{'diverged' if self.share > 0 else 'below what diverged'} ({wins})"
        if not self.comparable:
            return f"{self.share + 1:.3g} times as high ({wins})"
        chance = "" if math.isnan(self.p) else f", p = {self.p:.2g}"
        return f"{abs(self.share):.2%} {'below' if self.share < 0 else 'above'} ({wins}{chance})"


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """a against b, one value a seed each.

    >>> str(paired([0.9, 1.1, 0.8], [1.0, 1.2, 1.0]))
    '12.50% below (below on 3 of 3 seeds, p = 0.057)'
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = x - y
        diverged = [not np.isfinite(side).all() for side in (x, y)]
        mean, share = float(difference.mean()), float(difference.mean() / y.mean())
        if any(diverged):
            share = math.nan if all(diverged) else math.copysign(math.inf, 0.5 - diverged[1])
        sd = float(difference.std(ddof=1)) if len(x) > 1 else math.nan
        alike = not (math.isfinite(sd) and sd > 0)
        p = math.nan if alike else float(stats.ttest_rel(x, y).pvalue)
    return Paired(len(x), mean, sd, share, int((difference < 0).sum()), p)
