"""The facts of every cutoff rule: its number, what it needs of a block, and where a route changes. Plain Python.

A cutoff reaches the kernels as a pair (kind, value), see `contract.Rule`:

========== ============================== ==========================================================
kind       value                          singular values that count
========== ============================== ==========================================================
relative   c                              s > c max(s)
spacing    c                              s > c eps(max(s)), the spacing of the data's dtype at max(s)
rank       k                              the k largest
energy     share                          the fewest whose squares sum to >= share of all squares
median     w                              s > w median(s) over min(n, m) values, but at least the largest
========== ============================== ==========================================================

A count or a share never reaches into values that are zero at float64's resolution. `selection` applies a rule;
the CPU kernels compile these functions as they stand (cpu/selection.py), the CUDA kernels have twins of them
(cuda/src/cutoffs.cuh, algebra.cuh, evolve.cu, predict.cu) that tests/kernels/test_contract.py compares.
"""

from __future__ import annotations

import math

KINDS = {"relative": 0, "spacing": 1, "rank": 2, "energy": 3, "median": 4}
RELATIVE, SPACING, RANK, ENERGY, MEDIAN = range(5)
GAP = 16.0  # the mixed part of a prediction is that much smaller than the mixing angle, in the worst case measured
EPS = 2.0**-52

LEAST_SQUARED = 64  # steps below which a product a step is always less work


def needs_largest_only(kind):
    """Whether the largest singular value alone gives the threshold, so that a Gram matrix can prove full rank."""
    return kind == RELATIVE or kind == SPACING


def keeps_constant(kind, value):
    """Whether the rule keeps the one singular value of a constant trajectory, so that K x = x."""
    return kind != RELATIVE or value < 1.0


def floor(kind, length, largest):
    """The singular value below which all count as zero, for vectors of this length.

    Only the plain thresholds reach below float64's own resolution, when they are told to.
    """
    return 0.0 if needs_largest_only(kind) else length * EPS * largest


def squaring_pays(steps, order):
    """Whether powers of an order x order matrix by repeated squaring are less work than a product a step."""
    return steps > LEAST_SQUARED and steps > 4.0 * order * math.log2(steps)


def companion_squaring_pays(steps, order):
    """The same for a companion matrix, whose product costs `order` multiply-adds instead of their square."""
    return steps > 4.0 * order * order * math.log2(steps + 2.0)
