"""Which singular values of a block count, their threshold, and whether a Gram matrix can tell. Plain Python.

One rule for every route of every backend: CUDA's library routes and LAPACK's call these functions, the CPU kernels
compile them (cpu/selection.py), src/cutoffs.cuh is their twin.
"""

from __future__ import annotations

import math

from .cutoffs import ENERGY, GAP, MEDIAN, RANK, SPACING


def spacing(x, digits):
    """Distance from x > 0, rounded to `digits` significand bits, to the next larger number with as many."""
    fraction, exponent = math.frexp(x)
    if fraction >= 1.0 - math.ldexp(1.0, -digits - 1):  # rounds up to a power of two
        exponent += 1
    denormal = -149 if digits == 24 else -1074
    return math.ldexp(1.0, max(exponent - digits, denormal))


def limit(largest, kind, value, digits, scale):
    """The threshold of the kinds that need only the largest singular value; monotone in it.

    Both are in units of `scale`, a power of two that only the spacing depends on.
    """
    if kind == SPACING:
        return value * (spacing(largest * scale, digits) / scale) if largest > 0.0 else 0.0
    return value * largest


def select(squares, p, kind, value, digits, scale, blur, slack, floor):
    """Rank, threshold and edge of one block from its p squared singular values, largest first.

    scale: the singular values are sqrt(squares) * scale (a power of two; only "spacing" sees it);
    blur + 2 slack s: the uncertainty of the square of s (a Gram route blurs squares, an SVD values);
    floor: singular values <= it count as zero. The threshold is in the units of sqrt(squares).
    edge: a square lies within its uncertainty of the threshold's, so that rank +- 1 would be as right.
    """
    largest = math.sqrt(max(squares[0], 0.0))
    if not largest > floor:
        return 0, floor, False
    live = 0
    while live < p and squares[live] > floor * floor:
        live += 1
    if kind == RANK or kind == ENERGY:
        rank = min(int(value), live) if kind == RANK else 0
        edge = False
        if kind == ENERGY:
            total, running = 0.0, 0.0
            for i in range(live):
                total += squares[i]
            while rank < live and running < value * total:
                running += squares[rank]
                rank += 1
            doubt = live * (blur + 2.0 * slack * largest)
            edge = rank < live and abs(running - value * total) <= doubt
            edge |= rank > 1 and abs(running - squares[rank - 1] - value * total) <= doubt
        elif 0 < rank < live:
            doubt = blur + 2.0 * slack * math.sqrt(squares[rank - 1])
            edge = squares[rank - 1] - squares[rank] <= 2.0 * doubt
        # the first value that does not count
        return rank, math.sqrt(max(squares[rank], 0.0)) if rank < p else 0.0, edge
    if kind == MEDIAN:
        low, high = math.sqrt(max(squares[p // 2], 0.0)), math.sqrt(max(squares[(p - 1) // 2], 0.0))
        threshold = max(value * 0.5 * (low + high), floor)
        blur *= 1.0 + value * value  # the median is as uncertain as what it is compared with
        slack *= 1.0 + value
    else:
        threshold = limit(largest, kind, value, digits, scale)
    rank, edge = 0, False
    while rank < p and math.sqrt(max(squares[rank], 0.0)) > threshold:
        rank += 1
    if kind == SPACING:  # it jumps at powers of two
        doubt = blur / largest + slack
        high = limit(largest + doubt, kind, value, digits, scale)
        edge = high != limit(largest - doubt, kind, value, digits, scale)
    for i in range(p):
        edge |= abs(squares[i] - threshold * threshold) <= blur + 2.0 * slack * threshold + slack * slack
    if kind == MEDIAN and rank == 0:  # all noise, or a single value: the largest is kept, so that no block vanishes
        rank, threshold = 1, math.sqrt(max(squares[1], 0.0)) if p > 1 else 0.0
        edge |= p > 1 and squares[0] - squares[1] <= 2.0 * (blur + 2.0 * slack * largest)
    return rank, threshold, edge


def resolved(squares, p, kind, value, rank, threshold, least):
    """Whether a Gram matrix whose eigenvalues are trusted down to `least` settles this selection.

    The values kept must be that large, and so must GAP times the gap below them, by which the kept vectors
    mix with the dropped ones (Davis & Kahan 1970); squares has one value more than rank, if there is one.
    """
    if rank > 0 and squares[rank - 1] < least:
        return False
    if 0 < rank < p and GAP * (squares[rank - 1] - squares[rank]) < least:
        return False
    if kind == RANK:  # fewer than were asked for: whether the next is zero only the data can tell
        return rank >= min(int(value), p)
    return kind == ENERGY or rank == p or threshold * threshold >= least
