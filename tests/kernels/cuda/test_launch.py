"""Tiles, shared memory and grids, as arithmetic."""

import itertools

import emulator
import numpy as np
import pytest

from fastkoop.kernels.cuda import launch
from fastkoop.kernels.plan import resolution

A100 = launch.Device("A100", (8, 0), 108, 166_912, 167_936)
DEVICES = (emulator.H200, A100, emulator.T4)
SHAPES = [(n, m) for n, m in itertools.product((1, 2, 21, 33, 64, 65, 785, 15_700, 10**6), repeat=2) if min(n, m) <= 64]


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
@pytest.mark.parametrize("kernel", ["predict", "gram", "inverse"])
class TestTiles:
    @pytest.mark.parametrize("itemsize", [4, 8])
    def test_fit_and_cover(self, device, kernel, itemsize):
        for n, m in SHAPES:
            wide = n <= m
            shape = launch.shape_of(kernel, n, m, m + 1, wide, itemsize)
            how = launch.launch_of(shape, device)
            if how is None:
                assert not launch.takes(n, m, device)
                continue
            assert shape.shared(how.tile) == how.shared <= device.shared
            assert 0 < how.tile <= max(shape.lines, 31 + shape.lines)
            assert how.pitch >= how.tile + shape.extra and how.pitch % 8 == 4
            assert how.threads in (32, 64, 128)
            assert 1 <= how.splits <= -(-shape.lines // how.tile)

    def test_a_batch_changes_nothing_but_the_grid(self, device, kernel):
        how = launch.launch_of(launch.shape_of(kernel, 785, 8, 9, False, 4), device)
        assert launch.grid(3, how, device, 64) == 3
        assert launch.grid(10**6, how, device, 64) % device.multiprocessors == 0


def test_rows_of_a_fragment_meet_no_bank_twice():
    for count in range(1, 300):
        pitch = launch.pitch_of(count)
        assert count <= pitch < count + 8
        for size, words in ((4, 32), (8, 16)):  # a half warp at a time takes 8 bytes
            banks = {(row * pitch + k) % words for row in range(8 if size == 4 else 4) for k in range(4)}
            assert len(banks) == words


def test_two_resident_blocks_or_streams():
    small = launch.launch_of(launch.shape_of("predict", 785, 8, 9, False, 4), emulator.H200)
    assert small.tile == 785 and emulator.H200.shared_total // (small.shared + launch.RESERVED) >= 2
    large = launch.launch_of(launch.shape_of("predict", 785, 32, 33, False, 4), emulator.H200)
    assert large.tile < 785 and emulator.H200.shared_total // (large.shared + launch.RESERVED) >= 2
    assert large.tile % 32 == 0 and -(-785 // large.tile) * large.tile < 785 + 32 * -(-785 // large.tile)


def test_long_blocks_are_shared_whatever_the_batch():
    assert launch.launch_of(launch.shape_of("gram", 10**6, 32, 33, False, 4), emulator.H200).splits > 100
    assert launch.launch_of(launch.shape_of("gram", 785, 64, 65, False, 4), emulator.H200).splits == 1


@pytest.mark.parametrize("room", [0, 9_000, 40_000, 100_000])
def test_the_largest_tile_is_the_largest(room):
    for n, m in ((785, 8), (8, 785), (100, 33)):
        shape = launch.shape_of("predict", n, m, m + 1, n <= m, 4)
        fitting = [k for k in range(launch.LEAST_TILE, shape.lines + 32, 32) if shape.shared(k) <= room]
        assert launch.largest_tile(shape, room) == max(fitting, default=0)


def test_what_goes_to_the_library():
    assert launch.takes(785, 64, emulator.H200) and launch.takes(64, 10**5, emulator.H200)
    assert not launch.takes(785, 65, emulator.H200) and not launch.takes(65, 65, emulator.H200)
    assert launch.takes(785, 32, emulator.T4)


def test_sums_follow_the_device():
    assert launch.sum_kind(np.float32, emulator.H200) == launch.sum_kind(np.float64, A100) == "Tensor"
    assert launch.sum_kind(np.float32, emulator.T4) == "DoubleFloat"
    assert launch.sum_kind(np.float64, emulator.T4) == "Vector"


def test_pairs_of_floats_are_trusted_less():
    double, pairs = (launch.trust(kind, 785, 32, "float32") for kind in ("Vector", "DoubleFloat"))
    assert double.resolution == resolution(785, 32, "float32")
    assert pairs.resolution.gram > 10 * double.resolution.gram and pairs.tiny > double.tiny
    ratio = pairs.resolution.least / pairs.resolution.gram
    assert ratio == pytest.approx(double.resolution.least / double.resolution.gram)


def test_instances_hold_every_order():
    for order in range(1, launch.ORDER + 1):
        held = launch.solve_held(order)
        assert order <= 8 * held and (held == 2 or order > 4 * held)  # eight lanes hold a row
        slots = next(slots for slots in launch.CERTIFY_SLOTS if order < 32 * slots)
        assert order + 1 <= 32 * slots  # a row a lane
    assert launch.solve_held(launch.ORDER + 1) == max(launch.SOLVE_HELD)


def test_registers_bound_the_grid():
    how = launch.Launch(128, 1000)
    assert launch.grid(10**6, how, emulator.H200, 255) == 2 * 132
    assert launch.grid(10**6, how, emulator.H200, 32) == 16 * 132
    assert launch.grid(10**6, how, emulator.H200, 102) == 4 * 132  # 104 a thread, 4 warps of a file, not 4.9
    assert launch.grid(0, how, emulator.H200, 32) == 1
