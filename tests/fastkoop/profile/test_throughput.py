"""The timer under a clock of our own; costs and floors against numbers worked out by hand."""

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest

from fastkoop.machine import free_memory
from fastkoop.profile.throughput import (
    COSTS,
    PARTS,
    USUAL_CACHES,
    Ceilings,
    Cost,
    Timing,
    cache_bytes,
    copy_bandwidth,
    copy_bytes,
    matrix_rate,
    measure,
    measure_ceilings,
    record_cost,
    wall,
)


def lasting(*durations):
    """A timer that makes the calls last so long."""
    readings = itertools.chain.from_iterable((10.0 * i, 10.0 * i + lasts) for i, lasts in enumerate(durations))
    return functools.partial(wall, clock=lambda: next(readings))


class TestMeasure:
    def test_median_and_quartiles(self):
        timing = measure(lambda: None, rounds=5, timer=lasting(5.0, 1.0, 2.0, 4.0, 3.0))
        assert timing == Timing(median=3.0, low=2.0, high=4.0, rounds=5)

    def test_warmup_is_called_and_not_timed(self):
        calls = []
        timing = measure(lambda: calls.append(0), rounds=2, warmup=3, timer=lasting(1.0, 1.0))
        assert len(calls) == 5 and timing.rounds == 2

    def test_stops_when_the_seconds_are_over(self):
        assert measure(lambda: None, rounds=9, seconds=3.5, timer=lasting(*[1.0] * 9)).rounds == 4

    def test_makes_the_least_calls_whatever_they_take(self):
        assert measure(lambda: None, rounds=9, seconds=0.0, timer=lasting(*[1.0] * 9)).rounds == 3
        assert measure(lambda: None, rounds=1, seconds=0.0, timer=lasting(1.0)).rounds == 1

    def test_passes_errors_on(self):
        with pytest.raises(ZeroDivisionError):
            measure(lambda: 1 / 0)


# n, m, bytes a number, rank -> bytes, flops
HAND = [
    # tall, n = 5, m = 3: 20 numbers of data, a 4 x 4 Gram matrix of 10 dot products of length 5
    ("gram", (5, 3, 4, 3), 20 * 4 + 16 * 8, 10 * 5 * 2),
    ("gram", (5, 3, 8, 3), 20 * 8 + 16 * 8, 10 * 5 * 2),
    # wide, n = 2, m = 4: 10 numbers; C has 3 dot products, D has 4, all of length 4; the result is 5 x 2
    ("gram", (2, 4, 4, 2), 10 * 4 + 10 * 8, (3 + 4) * 4 * 2),
    # basis 3 x 3, operator 3 x 3, start 3, reports 34 bytes; 27 / 3 + 2 * 27
    ("solve", (5, 3, 4, 3), 8 * (16 + 9 + 9 + 3) + 34, 9 + 54),
    # rank 2: basis 3 x 2, operator 2 x 2, start 2; 36 to tridiagonalise, 36 back, 36 + 24 for the operator
    ("solve", (5, 3, 4, 2), 8 * (16 + 6 + 4 + 2) + 34, 36 + 36 + 36 + 24),
    # wide: basis and readout 2 x 2 each; 8 // 3 + 2 * 8
    ("solve", (2, 4, 4, 2), 8 * (10 + 8 + 4 + 2) + 34, 2 + 16),
    ("evolve", (5, 3, 4, 2), 8 * (3 * 2 + 2 + 3), 2 * 3 * 2),
    ("advance", (5, 3, 4, 2), 8 * (4 + 2 + 2), 2 * 4),
    # Fp is 5 x 3, three coefficients, five results
    ("reconstruct", (5, 3, 4, 3), (15 + 5) * 4 + 3 * 8, 2 * 15),
    ("reconstruct", (2, 4, 4, 2), 2 * 8 + 2 * 4, 0),
    # 20 numbers in, 5 out; 6 + 3 dot products of length 5; Cholesky 9, two solves of 9; Fp c 30
    ("predict", (5, 3, 4, 3), 25 * 4, 9 * 5 * 2 + 9 + 18 + 30),
    ("predict", (5, 3, 4, 2), 25 * 4, 9 * 5 * 2 + 36 + 36 + 30),
    # 10 in, 2 out; 3 dot products of length 4; 8 // 3 + 2 * 4; F^T y and Fp g of 16 each
    ("predict", (2, 4, 8, 2), 12 * 8, 24 + 2 + 8 + 32),
    # 15 in, 15 out; 6 dot products of length 5; Cholesky 9, two triangular solves of 45 each
    ("pinv", (5, 3, 4, 3), 30 * 4, 60 + 9 + 90),
    ("pinv", (3, 5, 4, 3), 30 * 4, 60 + 9 + 90),
    ("pinv", (5, 3, 4, 2), 30 * 4, 60 + 36 + 36 + 120),
    # 15 float64 numbers in, a 3 x 3 matrix out, 6 dot products of length 5; 4/3 of 27
    ("product", (5, 3, 4, 3), 8 * (15 + 9), 6 * 5 * 2),
    ("product", (3, 5, 4, 3), 8 * (15 + 9), 6 * 5 * 2),
    ("tridiagonal", (5, 3, 4, 3), 8 * 18, 36),
]
EVERY = {**COSTS, **PARTS}


@pytest.mark.parametrize(("kernel", "problem", "size", "flops"), HAND)
def test_costs_by_hand(kernel, problem, size, flops):
    assert EVERY[kernel](*problem) == Cost(size, flops)


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize(("n", "m"), [(785, 32), (21, 1875), (1, 1875), (7, 7)])
def test_costs_are_positive_and_grow_with_the_data(kernel, n, m):
    few, many = (EVERY[kernel](n, m, size, min(n, m)) for size in (4, 8))
    assert 0 < few.bytes <= many.bytes and 0 <= few.flops == many.flops


def test_intensity():
    assert Cost(4, 10).intensity == 2.5


def test_recording_reads_and_writes_a_snapshot():
    assert record_cost(5, 3, 4, 3) == Cost(40, 0)


class TestCeilings:
    roof = Ceilings(threads=2, copy=10.0, float32=8.0, float64=4.0)

    def test_floor_is_the_later_of_both_roofs(self):
        assert self.roof.floor(Cost(bytes=100, flops=8), "float32") == 10.0
        assert self.roof.floor(Cost(bytes=10, flops=80), "float32") == 10.0
        assert self.roof.floor(Cost(bytes=10, flops=80), np.float64) == 20.0

    def test_float32_is_held_to_the_faster_rate(self):
        assert self.roof._replace(float32=2.0).rate(np.float32) == 4.0

    def test_whose_they_are(self):
        assert [self.roof._replace(threads=k).whose for k in (None, 1, 2)] == ["device", "1 thread", "2 threads"]

    def test_best_of_two(self):
        assert self.roof.best(Ceilings(2, 9.0, 9.0, 9.0)) == Ceilings(2, 10.0, 9.0, 9.0)


def test_the_machine_is_measured():
    assert copy_bandwidth(3, 1 << 16, rounds=1) > 0
    assert matrix_rate(np.float32, 1, rounds=1, order=8) > 0
    assert matrix_rate(np.float64, 2, rounds=1, order=8) > 0


def test_all_ceilings_are_measured_with_the_threads_asked_for(monkeypatch):
    rates = {(np.float32, 3, 4, 5.0): 2.0, (np.float64, 3, 4, 5.0): 1.5}
    monkeypatch.setattr("fastkoop.profile.throughput.copy_bytes", lambda: 99)
    monkeypatch.setattr("fastkoop.profile.throughput.copy_bandwidth", lambda *how: {(3, 99, 4, 5.0): 1.0}[how])
    monkeypatch.setattr("fastkoop.profile.throughput.matrix_rate", lambda *how: rates[how])
    assert measure_ceilings(3, 4, 5.0) == Ceilings(3, 1.0, 2.0, 1.5)


def test_the_copy_exceeds_the_last_cache_unless_memory_is_short(monkeypatch):
    monkeypatch.setattr("fastkoop.profile.throughput.cache_bytes", lambda: {"L2": 1, "last": 1000})
    monkeypatch.setattr("fastkoop.profile.throughput.free_memory", lambda: 1e9)
    assert copy_bytes() == 4000
    monkeypatch.setattr("fastkoop.profile.throughput.free_memory", lambda: 8000.0)
    assert copy_bytes() == 1000


def test_caches_as_linux_tells_them(tmp_path):
    caches = [(1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", "1024K"), (3, "Unified", "96M")]
    for index, (level, kind, size) in enumerate(caches):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "index9").mkdir()  # one that tells nothing
    assert cache_bytes(str(tmp_path)) == {"L2": 1 << 20, "last": 96 << 20}
    assert cache_bytes(str(tmp_path / "nowhere")) == USUAL_CACHES


def test_memory_is_there():
    assert free_memory() > 1 << 20


def test_importing_loads_neither_a_framework_nor_matplotlib():
    unwanted = "{'torch', 'cupy', 'jax', 'matplotlib'}"
    code = f"import sys, fastkoop.profile.profiling; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
