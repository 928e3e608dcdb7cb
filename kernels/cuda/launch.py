"""Pure arithmetic for the CUDA kernels: tiles, shared memory, threads and grids per problem and device. Runs anywhere.

All but the grid depends on the block's own problem and the device's kind alone, never on how many blocks there are,
so that a block's bits do not depend on its batch.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ..plan import LEAST_TRACE, MOST_TRACE, Resolution, resolution

ORDER = 64  # the largest min(n, m) that the CUDA kernels take: 9 tiles of 8 snapshots are what registers hold
TILE_ROWS = (1, 2, 3, 5, 9)  # instances of the Gram kernels: rows of the Gram matrix in tiles of 8
SOLVE_HELD = (2, 4, 8)  # instances of `solve`: numbers of a row that one of eight lanes holds
CERTIFY_SLOTS = (1, 2, 3)  # of `certify`: rows, order + 1 of them, that a lane holds
INVERSE_LINES = 64  # inverse.cu
ROOM_BYTES = 72  # Room in tiles.cuh
STATES = 8  # reconstruct.cu
RESERVED = 1024  # bytes of shared memory that the system takes of every CTA
LEAST_TILE = 64  # lines of a tile below which its barriers cost more than they bring

# A block of more bytes than this is shared by several CTAs, of so many lines each: it would leave a device idle.
LONG_BLOCK, SHARE_LINES = 1 << 20, 2048

# Devices whose double arithmetic runs at half the rate of float, and has matrix instructions: A100, H100 / H200, B200.
FAST_DOUBLE = ((8, 0), (9, 0), (10, 0))


class Device(NamedTuple):
    """What a launch needs to know of a device: a CTA may ask for `shared` bytes, a multiprocessor has shared_total."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    shared_total: int
    threads: int = 2048
    registers: int = 65536
    ctas: int = 32


class Launch(NamedTuple):
    """Shape of one launch. tile: lines in shared memory at a time; pitch: numbers from row to row of it."""

    threads: int
    shared: int
    tile: int = 0
    pitch: int = 0
    splits: int = 1


def pitch_of(count: int) -> int:
    """The least row length >= count whose eight rows by four numbers fall into different banks: 4 modulo 8."""
    return count + (4 - count) % 8


def bytes_of(*parts: tuple[int, int]) -> int:
    """Shared memory of parts (count, itemsize), each on 16 bytes, as `Shared` in device.cuh hands them out."""
    return sum((count * size + 15) // 16 * 16 for count, size in parts)


def square(order: int) -> tuple[int, int]:
    """A matrix of doubles whose rows are an odd number apart."""
    return order * (order | 1), 8


def padded(order: int, held: int) -> tuple[int, int]:
    """The same, rows padded to what `eigenvectors` of dense.cuh holds of them."""
    return order * (8 * held + 1), 8


def solve_held(order: int) -> int:
    """The instance of `solve` for matrices of this order."""
    return next((held for held in SOLVE_HELD if order <= 8 * held), max(SOLVE_HELD))


def solve_bytes(order: int, wide: bool) -> int:
    """Shared memory of `solve`."""
    matrices = [padded(order, solve_held(order))] * (3 if wide else 2)
    return bytes_of(*matrices, *[(order, 8)] * 3, (order, 4), (1, 16), (3, 4))


def scratch(order: int) -> tuple[int, int]:
    """`Scratch` of algebra.cuh."""
    return 4 * order + 18, 8


def certify_bytes(order: int) -> int:
    """Shared memory of `certify`."""
    return bytes_of(square(order + 1), square(order + 1), scratch(order), (order, 8))


def evolve_bytes(order: int) -> int:
    """Shared memory of `evolve`."""
    return bytes_of((order * order, 8), (order * order, 8), (order, 8), (order, 8))


def exact_bytes(order: int) -> int:
    """Shared memory of `exact` and `inverse_exact`; its first vector also holds a number a warp."""
    return bytes_of(square(order), (max(order, 8), 8), (order, 8), (order, 4))


class Shape(NamedTuple):
    """One block as rows and lines (tiles.cuh), and the parts of shared memory beside its tile."""

    rows: int
    lines: int
    extra: int  # lines that a tile needs beyond its own
    itemsize: int
    fixed: tuple[tuple[int, int], ...]
    per_line: int = 0  # bytes a line of the tile, beside the tile itself

    def pitch(self, tile: int) -> int:
        """Numbers from row to row of such tiles: three more than its lines, as a row may begin within 16 bytes."""
        return pitch_of(tile + self.extra + 3)

    def shared(self, tile: int) -> int:
        """Bytes for tiles of so many lines."""
        return bytes_of(
            (1, ROOM_BYTES), (self.rows * self.pitch(tile), self.itemsize), *self.fixed, (tile * self.per_line, 1)
        )


def shape_of(kernel: str, n: int, m: int, columns: int, wide: bool, itemsize: int) -> Shape:
    """The shape that `predict`, `gram` or `inverse` gives to blocks of n weights and m pairs."""
    order = n if wide else m
    rows, lines = (n, m) if wide else (columns, n)
    if kernel == "predict":
        fixed = (square(order + 1), square(order + 1), scratch(order))
        return Shape(rows, lines, int(wide), itemsize, fixed, 8 if wide else 0)
    if kernel == "gram":
        return Shape(rows, lines, int(wide), itemsize, (square(rows), square(rows), (16, 8)))
    matrix = padded(order, min(tile_rows(order) or 8, 8))
    fixed = (matrix, matrix, (order * INVERSE_LINES, 8), (order, 8), (order, 8))
    return Shape(rows, lines, 0, itemsize, (*fixed, (16, 8), (order, 4)))


@functools.lru_cache(maxsize=1024)
def launch_of(shape: Shape, device: Device) -> Launch | None:
    """Tile and threads for a shape; None where not even the least tile fits the device's shared memory.

    A block stays in shared memory if two CTAs with one each fit a multiprocessor. Otherwise its tiles pass through
    as many CTAs, up to four, as leave a tile worth its barriers, and the second pass finds the data in L2.
    """
    ctas = device.shared_total // (shape.shared(shape.lines) + RESERVED)
    tile = shape.lines if ctas >= 2 and shape.shared(shape.lines) <= device.shared else 0
    for ctas in () if tile else (4, 3, 2, 1):
        room = min(device.shared, device.shared_total // ctas - RESERVED)
        most = largest_tile(shape, room)
        if most:
            count = math.ceil(shape.lines / most)
            tile = 32 * math.ceil(shape.lines / count / 32)
            break
    if not tile:
        return None
    work = shape.rows * tile
    threads = 32 if work <= 2048 else 64 if work <= 8192 else 128
    splits = 1
    if shape.rows * shape.lines * shape.itemsize > LONG_BLOCK:
        splits = math.ceil(shape.lines / max(SHARE_LINES, tile))
    return Launch(threads, shape.shared(tile), tile, shape.pitch(tile), splits)


def largest_tile(shape: Shape, room: int) -> int:
    """The most lines, a multiple of 32 from LEAST_TILE on, whose tile fits; 0 if none does."""
    per_line = shape.rows * shape.itemsize + shape.per_line
    tile = min((room - shape.shared(0)) // per_line, shape.lines + 31) // 32 * 32
    while tile >= LEAST_TILE and shape.shared(tile) > room:
        tile -= 32
    return tile if tile >= LEAST_TILE else 0


def small_launch(order: int, shared: int) -> Launch:
    """A launch of the kernels that work on matrices of this order alone."""
    return Launch(32 if order <= 8 else 64 if order <= 16 else 128 if order <= 32 else 256, shared)


def grid(blocks: int, shape: Launch, device: Device, registers: int) -> int:
    """CTAs that are resident at once, each to take every so-manyth block.

    Registers are given to warps, eight a thread at a time, from four files that share a multiprocessor's.
    """
    a_warp = 256 * math.ceil(max(registers, 1) / 8)
    by_registers = 4 * (device.registers // 4 // a_warp) // (shape.threads // 32)
    by_shared = device.shared_total // (shape.shared + RESERVED)
    resident = max(1, min(device.ctas, device.threads // shape.threads, by_registers, by_shared))
    return max(1, min(blocks, resident * device.multiprocessors))


def tile_rows(rows: int) -> int | None:
    """The instance for a Gram matrix of so many rows, if there is one."""
    return next((R for R in TILE_ROWS if rows <= 8 * R), None)


@functools.lru_cache(maxsize=1024)
def takes(n: int, m: int, device: Device) -> bool:
    """Whether the kernels take blocks of n weights and m pairs, or the libraries."""
    order, wide = min(n, m), n <= m
    most = max(solve_bytes(order, wide), evolve_bytes(order), exact_bytes(order))
    shapes = (shape_of(kernel, n, m, m + 1, wide, 8) for kernel in ("predict", "gram", "inverse"))
    return order <= ORDER and most <= device.shared and all(launch_of(shape, device) for shape in shapes)


def sum_kind(dtype, device: Device) -> str:
    """How products are summed: on the matrix unit, in double, or in pairs of floats where double is slow."""
    if device.capability in FAST_DOUBLE:
        return "Tensor"
    return "DoubleFloat" if np.dtype(dtype) == np.float32 else "Vector"


class Trust(NamedTuple):
    """What sums of one kind resolve, and the sums of squares between which that holds."""

    resolution: Resolution
    tiny: float
    huge: float


def trust(kind: str, n: int, m: int, dtype) -> Trust:
    """Rounding bounds of a sum kind.

    Pairs of floats that settle every four terms lose at most length 2^-46 of the sum of moduli (four times the square
    of 2^-24 a term, as in Ogita, Rump & Oishi 2005, proposition 5.5), and products below 2^-126 altogether.
    """
    bounds = resolution(n, m, dtype)
    if kind != "DoubleFloat":
        return Trust(bounds, LEAST_TRACE, MOST_TRACE)
    lost = max(n, m) * 2.0**-46
    return Trust(bounds._replace(gram=bounds.gram + lost, least=bounds.least * (1.0 + lost / bounds.gram)), 1e-19, 1e36)
