"""The contract's functions on a CUDA device: the same names, arguments and reports as cpu.py, device arrays in and out.

Everything runs in order on the caller's current stream and nothing waits for it, so that all of it can be captured
in a CUDA graph. Large blocks (min(n, m) > launch.ORDER) are the exception: cuBLAS and cuSOLVER answer them, and their
ranks are decided on the host.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .. import spectrum
from ..contract import Factors, Rule, ascending, check_coefficients, check_gram, check_side
from ..cutoffs import keeps_constant
from ..plan import NON_FINITE, SVD, UNRESOLVED, ZERO, Plan
from ..plan import plan as cpu_plan
from . import library as cuda_library
from .arguments import COUNTS, FACTORS, PROBLEM, STRIP, layout_of, marks, mergeable
from .arguments import split as split  # for who records, beside STRIP
from .driver import Driver, driver_for
from .launch import (
    CERTIFY_SLOTS,
    ORDER,
    SOLVE_HELD,
    STATES,
    TILE_ROWS,
    Device,
    Launch,
    certify_bytes,
    evolve_bytes,
    exact_bytes,
    grid,
    launch_of,
    shape_of,
    small_launch,
    solve_bytes,
    solve_held,
    sum_kind,
    takes,
    tile_rows,
    trust,
)

NAMES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

# Device memory for Gram matrices and operators of pending blocks: this much, or as much as the data itself takes.
WORKSPACE = 1 << 28
EXACT_WORKSPACE = 1 << 27  # for the SVD's columns: so many CTAs run at once
GRID_Y = 65535


def instances(device: Device) -> list[str]:
    """Name expressions of every kernel that can be launched on a device of this kind."""
    names = ["add_parts", "write_counts", "evolve", *(f"certify<{slots}>" for slots in CERTIFY_SLOTS)]
    names += [f"solve<{held}>" for held in SOLVE_HELD]
    for dtype, data in NAMES.items():
        kind = sum_kind(dtype, device)
        tiled = [f"{data}, fastkoop::{kind}, {R}" for R in TILE_ROWS]
        names += [f"{kernel}<{data}>" for kernel in ("predict_scalars", "combine", "exact", "inverse_exact")]
        names += [f"record<{data}, {to}>" for to in NAMES.values()]
        names += [f"{kernel}<{rows}>" for kernel in ("predict", "gram", "inverse") for rows in tiled]
    return [f"fastkoop::{name}" for name in names]


class Cuda:
    """The contract on one device, through its driver; kernels/__init__.py says what each function means."""

    def __init__(self, driver: Driver, workspace: int = WORKSPACE):
        self.driver, self.xp, self.device, self.workspace = driver, driver.xp, driver.device, workspace

    # What a launch is made of.

    def plan(self, blocks: int, n: int, m: int, dtype, steps: int = 1) -> Plan:
        """`plan.plan` with this device's engine: "kernel", or "library" where cuBLAS and cuSOLVER answer."""
        how = cpu_plan(blocks, n, m, dtype, steps)
        return how._replace(engine="kernel" if takes(n, m, self.device) else "library")

    def host(self, array) -> np.ndarray:
        """A copy in host memory, once the work before it is done."""
        return self.driver.host(array)

    @staticmethod
    def rows_of(array):
        """Rows (q, ..., n) as `combine` takes them."""
        return array

    def aligned_empty(self, shape: tuple[int, ...], dtype):
        """An uninitialised device array; all of them are aligned."""
        return self.xp.empty(shape, dtype)

    def _problem(self, blocks: int, n: int, m: int, dtype, cutoff=("relative", 0.0), **numbers) -> np.ndarray:
        """The numbers of a launch; those that not every kernel reads by name."""
        bounds = trust(sum_kind(dtype, self.device), n, m, dtype)
        kind, value, digits = Rule(*cutoff).numbers(dtype)
        numbers = {
            "blocks": blocks, "n": n, "m": m, "columns": m + 1, "order": min(n, m), "wide": n <= m,
            "rule": kind, "value": value, "digits": digits,
            "gram": bounds.resolution.gram, "svd": bounds.resolution.svd, "least": bounds.resolution.least,
            "tiny": bounds.tiny, "huge": bounds.huge, **numbers,
        }  # fmt: skip
        problem = np.zeros((), PROBLEM)
        for field, number in numbers.items():
            problem[field] = number
        return problem

    def _tiled(self, kernel: str, X, n: int, m: int, wide: bool, cutoff=("relative", 0.0)) -> tuple:
        """Name, shape and problem of a launch whose tiles pass over the blocks of X (columns, ..., n)."""
        size, blocks = X.dtype.itemsize, math.prod(X.shape[1:-1])
        shape = shape_of(kernel, n, m, len(X), wide, size)
        how = launch_of(shape, self.device)
        vectors = X.strides[0 if wide else -1] == size  # lines lie side by side
        problem = self._problem(
            blocks, n, m, X.dtype, cutoff, columns=len(X), order=n if wide else m, wide=wide, lines=shape.lines,
            tile=how.tile, pitch=how.pitch, splits=how.splits, vectors=vectors,
        )  # fmt: skip
        name = f"fastkoop::{kernel}<{NAMES[X.dtype]}, fastkoop::{sum_kind(X.dtype, self.device)}, "
        return f"{name}{tile_rows(shape.rows)}>", how, problem

    def _launch(self, name: str, blocks: int, how: Launch, *arguments) -> None:
        """As many CTAs as are resident at once, over all blocks."""
        if blocks:
            ctas = grid(blocks, how, self.device, self.driver.registers(name))
            self.driver.launch(name, (ctas, 1), how.threads, how.shared, arguments)

    def _waves(self, count: int) -> int:
        """CTAs of 256 threads for a grid-stride loop over `count` numbers."""
        return max(1, min(-(-count // 256), 8 * self.device.multiprocessors))

    # The four steps.

    def gram(self, X, side: str | None = None):
        """Gram matrices of X (m+1, ..., n): (B, m+1, m+1), or (B, 2n+1, n) of wide blocks; float64."""
        n, m = X.shape[-1], len(X) - 1
        check_side(side)
        wide = n <= m if side is None else side == "weights"
        shape = shape_of("gram", n, m, m + 1, wide, X.dtype.itemsize)
        if tile_rows(shape.rows) is None or launch_of(shape, self.device) is None:
            return cuda_library.gram(self, X, wide)
        B = math.prod(X.shape[1:-1])
        out = self.xp.empty((B, 2 * n + 1, n) if wide else (B, m + 1, m + 1))
        name, how, problem = self._tiled("gram", X, n, m, wide)
        if B:
            parts = self.xp.empty((B, how.splits, *out.shape[1:])) if how.splits > 1 else out
            ctas = how.splits, min(B, GRID_Y)
            self.driver.launch(name, ctas, how.threads, how.shared, (X, layout_of(X), problem, parts))
            if how.splits > 1:
                size = math.prod(out.shape[1:])
                sizes = np.int32(how.splits), np.int32(size), np.int32(B)
                self.driver.launch("fastkoop::add_parts", (self._waves(out.size), 1), 256, 0, (parts, *sizes, out))
        return out

    def solve(self, gram, n: int, m: int, cutoff: tuple[str, float], dtype) -> Factors:
        """Reduced operators from Gram matrices; unlike a CPU's they keep r = min(n, m) columns, zero past the rank."""
        check_gram(gram, n, m)
        gram, dtype = self.xp.ascontiguousarray(gram), np.dtype(dtype)
        if not takes(n, m, self.device):
            factors = cuda_library.solve(self, gram, n, m, cutoff, dtype)
        else:
            factors = self._allocate(len(gram), n, m)
            self._solve(gram, n, m, cutoff, dtype, factors)
        unresolved = factors.route == SVD
        factors.route[unresolved], factors.edge[unresolved] = UNRESOLVED, True
        return factors

    def _allocate(self, B: int, n: int, m: int, route=None, steps: int | None = None) -> Factors:
        """Uninitialised factors; the three reports are columns of one array. One step needs no operator."""
        xp, order = self.xp, min(n, m)
        basis, operator = xp.empty((B, order, order)), None if steps == 1 else xp.empty((B, order, order))
        readout = xp.empty((B, order, order)) if n <= m else basis
        route = xp.empty(B, np.int8) if route is None else route
        return Factors(
            basis, readout, operator, xp.empty((B, order)), xp.empty(B, np.int64), *xp.empty((B, 3)).T,
            xp.empty(B, np.bool_), route,
        )  # fmt: skip

    def _pointers(self, factors: Factors) -> np.ndarray:
        """Factors as the kernels take them."""
        arrays = {
            "basis": factors.basis, "readout": factors.readout, "op": factors.operator, "start": factors.start,
            "reports": factors.threshold, "rank": factors.rank, "edge": factors.edge, "route": factors.route,
        }  # fmt: skip
        pointers = np.zeros((), FACTORS)
        for field, array in arrays.items():
            pointers[field] = self.driver.address(array)
        return pointers

    def _solve(self, gram, n: int, m: int, cutoff, dtype, factors: Factors, pending=None) -> None:
        """`solve` of all blocks, or of those on a list whose route is EIGEN; route SVD where a Gram matrix fails."""
        how = small_launch(min(n, m), solve_bytes(min(n, m), n <= m))
        problem = self._problem(len(gram), n, m, dtype, cutoff)
        work = np.uint64(self.driver.address(pending))
        self._launch(
            f"fastkoop::solve<{solve_held(min(n, m))}>", len(gram), how, gram, problem, work, self._pointers(factors)
        )

    def _exactly(self, X, cutoff, factors: Factors, routes: tuple[int, ...], pending=None) -> None:
        """Factors from the data itself of the blocks, all or those on a list, whose route is one of these."""
        n, m, blocks = X.shape[-1], len(X) - 1, math.prod(X.shape[1:-1])
        problem, work = self._problem(blocks, n, m, X.dtype, cutoff), np.uint64(self.driver.address(pending))
        self._launch_on_copies("exact", X, problem, work, marks(routes), self._pointers(factors))

    def _launch_on_copies(self, kernel: str, X, problem: np.ndarray, *arguments) -> None:
        """A kernel whose CTAs each need a copy of a block in device memory: as many as fit the workspace."""
        blocks, n, m, order = (int(problem[field]) for field in ("blocks", "n", "m", "order"))
        if not blocks:
            return
        name = f"fastkoop::{kernel}<{NAMES[X.dtype]}>"
        how = small_launch(order, exact_bytes(order))._replace(threads=256 if n * m > 8192 else 64)
        ctas = grid(blocks, how, self.device, self.driver.registers(name))
        workspace = self.xp.empty((max(1, min(ctas, EXACT_WORKSPACE // (8 * n * m))), n * m))
        arguments = X, layout_of(X), problem, workspace, *arguments
        self.driver.launch(name, (len(workspace), 1), how.threads, how.shared, arguments)

    def fit(self, X, cutoff: tuple[str, float], *, refine: bool = False, known=None) -> Factors:
        """Reduced operators of X (m+1, ..., n), each on the route that resolves the cutoff; see cpu.fit.

        The libraries of large blocks make their Gram matrices themselves, whatever is known.
        """
        n, m = X.shape[-1], len(X) - 1
        if not takes(n, m, self.device):
            return cuda_library.fit(self, X, cutoff, refine)
        factors = self._allocate(math.prod(X.shape[1:-1]), n, m)
        if refine:
            factors.route[...] = SVD
        else:
            gram = self.gram(X) if known is None else self.xp.ascontiguousarray(known)
            self._solve(gram, n, m, cutoff, X.dtype, factors)
        self._exactly(X, cutoff, factors, self._unsettled(X.dtype))
        return factors

    @staticmethod
    def _unsettled(dtype) -> tuple[int, ...]:
        """Routes of Gram matrices that leave a block to its data: squares of float64 data may overflow, or vanish."""
        return (SVD,) if dtype == np.float32 else (SVD, ZERO, NON_FINITE)

    def evolve(self, factors: Factors, steps: np.ndarray, pending=None, out=None):
        """Coefficients of K^steps x_last: (B, len(steps), q), float64, for ascending counts steps >= 1.

        pending: a list of blocks (how many, then which; int32) to evolve no others; out: where the others' already are.
        """
        steps = ascending(steps)
        factors = self._contiguous(factors)
        B, q, r = factors.readout.shape
        if not (q == r <= ORDER and evolve_bytes(r) <= self.device.shared):
            return cuda_library.evolve(self, factors, steps)
        out = self.xp.empty((B, len(steps), q)) if out is None else out
        if len(steps):
            how = small_launch(q, evolve_bytes(q))
            problem = self._problem(B, q, q, np.float64)  # of which it reads blocks and order
            work = np.uint64(self.driver.address(pending))
            strides = np.diff(steps)
            even = not len(strides) or (strides == strides[0]).all()
            counts = np.uint64(0) if even else self._counts(steps)
            stride = strides[0] if len(strides) else np.int64(0)
            arguments = self._pointers(factors), problem, work, counts, steps[0], stride, np.int32(len(steps)), out
            self._launch("fastkoop::evolve", B, how, *arguments)
        return out

    def _contiguous(self, factors: Factors) -> Factors:
        """The same with what `evolve` reads in C order and of the right type, whoever made it."""
        dtypes = {"readout": "f8", "start": "f8", "rank": "i8", "route": "i1"}
        if factors.operator is not None:
            dtypes["operator"] = "f8"
        return factors._replace(
            **{name: self.xp.ascontiguousarray(getattr(factors, name), dtype) for name, dtype in dtypes.items()}
        )

    def _counts(self, steps: np.ndarray):
        """Uneven step counts in device memory, written there by launches that hold them by value.

        So they are this call's alone, in order on its stream, and a graph that captures it writes its own again.
        """
        counts = self.xp.empty(len(steps), np.int64)
        for first in range(0, len(steps), 64):
            some = np.zeros((), COUNTS)
            count = min(64, len(steps) - first)
            some["at"][:count] = steps[first : first + count]
            self.driver.launch(
                "fastkoop::write_counts", (1, 1), 32, 0, (some, np.int32(first), np.int32(count), counts)
            )
        return counts

    def advance(self, factors: Factors, start, steps: int):
        """Coordinates `steps` further on: operator^steps start, (B, r)."""
        r = factors.operator.shape[1]
        identity = self.xp.tile(self.xp.eye(r), (len(start), 1, 1))
        moved = factors._replace(basis=identity, readout=identity, start=self.xp.ascontiguousarray(start))
        return self.evolve(moved, np.array([steps + 1]))[:, 0]

    def follow(self, rows, factors: Factors, largest, start, steps: int, out=None) -> tuple:
        """`advance`, then `combine` of the coordinates: states (B, n), coordinates, and their bound, 0-D."""
        y = self.advance(factors, start, steps) if steps else start
        states = self.combine(rows, y[:, None], products=False)[0]
        if out is not None:
            out[...] = states
            states = out
        return states, y, (abs(y) * largest).sum()

    def combine(self, rows, coefficients, *, products: bool = True):
        """Sums over rows (q, ..., n) with coefficients (B, k, q): (k, B, n) in rows' dtype."""
        check_coefficients(coefficients, math.prod(rows.shape[1:-1]), len(rows))
        B, states, q = coefficients.shape
        if not q:  # rank 0
            return self.xp.zeros((states, B, rows.shape[-1]), rows.dtype)
        out = self.xp.empty((states, B, rows.shape[-1]), rows.dtype)
        if 8 * STATES * q > self.device.shared:
            return cuda_library.combine(rows, coefficients, out)
        self._combine(rows, self.xp.ascontiguousarray(coefficients), q, out)
        return out

    def _combine(self, rows, coefficients, q: int, out, pending=None) -> None:
        """`combine` into out (k, B, n), for all blocks or those on a list."""
        states, B, n = out.shape
        if not out.size:
            return
        problem = self._problem(B, n, 1, rows.dtype)
        across, most = -(-n // 256), 16 * self.device.multiprocessors
        ctas = min(across, most), min(B, GRID_Y, max(1, most // across))
        work = np.uint64(self.driver.address(pending))
        arguments = rows, layout_of(rows), problem, coefficients, np.int32(q), np.int32(states), work, out
        threads = min(256, -(-n // 32) * 32)
        self.driver.launch(f"fastkoop::combine<{NAMES[rows.dtype]}>", ctas, threads, 8 * STATES * q, arguments)

    def reconstruct(self, X, coefficients, *, side: str | None = None, products: bool = True):
        """States (k, B, n) in X's dtype from coefficients (B, k, q), whose first n are the states of wide blocks."""
        n = X.shape[-1]
        if (side or ("snapshots" if n > len(X) - 1 else "weights")) == "snapshots":
            return self.combine(X[1:], coefficients, products=products)
        out = self.xp.empty((coefficients.shape[1], coefficients.shape[0], n), X.dtype)
        self._combine(X, self.xp.ascontiguousarray(coefficients[..., :n]), 0, out)
        return out

    # The fused forms.

    def predict(self, X, steps: int, cutoff: tuple[str, float]) -> tuple:
        """K^steps x_last of every block (B, n), and the route each block took; see cpu.predict.

        Blocks pass in slices whose Gram matrices and operators fit the workspace.
        """
        n, m, B = X.shape[-1], len(X) - 1, math.prod(X.shape[1:-1])
        xp = self.xp
        if steps == 0:
            finite = xp.isfinite(X).all(axis=(0, -1)).reshape(B)
            out = xp.where(finite[:, None], X[-1].reshape(B, n), np.nan).astype(X.dtype)
            return out, xp.where(finite, ZERO, NON_FINITE).astype(np.int8)
        out, route = xp.empty((B, n), X.dtype), xp.empty(B, np.int8)
        if not takes(n, m, self.device):
            factors = cuda_library.fit(self, X, cutoff, False)
            out[...] = self.reconstruct(X, self.evolve(factors, np.array([steps])))[0]
            return out, factors.route
        order = min(n, m)
        a_block = 8 * ((m + 1) ** 2 if n > m else (2 * n + 1) * n) + 8 * order * (order * (3 if n <= m else 2) + 1)
        most = max(1, max(self.workspace, X.nbytes) // a_block)
        flat = X if X.ndim == 3 else X.reshape(m + 1, B, n) if mergeable(X) else None
        if flat is None or B <= most:
            self._predict(X, steps, cutoff, out, route)
        else:
            for first in range(0, B, most):
                some = slice(first, first + most)
                self._predict(flat[:, some], steps, cutoff, out[some], route[some])
        return out, route

    def _predict(self, X, steps: int, cutoff, out, route) -> None:
        n, m, B = X.shape[-1], len(X) - 1, len(out)
        if not B:
            return
        wide, factors = n <= m, self._allocate(B, n, m, route, steps)
        pending, routes = self.xp.zeros(B + 1, np.int32), (SVD,)
        name, how, problem = self._tiled("predict", X, n, m, wide, cutoff)
        if n == 1 and keeps_constant(*Rule(*cutoff).numbers(X.dtype)[:2]):
            name = f"fastkoop::predict_scalars<{NAMES[X.dtype]}>"
            arguments = X, layout_of(X), problem, np.int64(steps), out, route, pending
            self.driver.launch(name, (self._waves(B), 1), 256, 0, arguments)
        elif how.splits == 1:
            grams = self.xp.empty((B, 2 * n + 1, n) if wide else (B, m + 1, m + 1))
            arguments = X, layout_of(X), problem, np.int64(steps), out, route, grams, pending
            self._launch(name, B, how, *arguments)
            self._solve(grams, n, m, cutoff, X.dtype, factors, pending)
        else:  # a block by many CTAs: nothing is finished before its Gram matrix is
            self._predict_long(X, steps, cutoff, out, factors, pending)
            return
        self._exactly(X, cutoff, factors, routes, pending)
        coefficients = self.evolve(factors, np.array([steps]), pending)
        rows, q = (X, 0) if wide else (X[1:], m)
        self._combine(rows, coefficients, q, out[None], pending)

    def _predict_long(self, X, steps: int, cutoff, out, factors: Factors, pending) -> None:
        """`_predict` of blocks whose Gram matrices are summed before any is judged."""
        n, m, B = X.shape[-1], len(X) - 1, len(out)
        wide, order, grams = n <= m, min(n, m), self.gram(X)
        coefficients = self.xp.empty((B, 1, order))
        how = small_launch(order, certify_bytes(order))
        problem = self._problem(B, n, m, X.dtype, cutoff)
        arguments = grams, problem, np.int64(steps), coefficients, factors.route, pending
        slots = next(slots for slots in CERTIFY_SLOTS if order < 32 * slots)
        self._launch(f"fastkoop::certify<{slots}>", B, how, *arguments)
        self._solve(grams, n, m, cutoff, X.dtype, factors, pending)
        self._exactly(X, cutoff, factors, self._unsettled(X.dtype), pending)
        self.evolve(factors, np.array([steps]), pending, coefficients)
        rows, q = (X, 0) if wide else (X[1:], m)
        self._combine(rows, coefficients, q, out[None])

    def pinv(self, F, cutoff: tuple[str, float]) -> tuple:
        """The pseudo-inverse (B, m, n) of every block of F (m, ..., n), and the route each block took; see cpu.pinv."""
        m, *batch, n = F.shape
        B, wide = math.prod(batch), n <= m
        out, route = self.xp.empty((B, m, n), F.dtype), self.xp.empty(B, np.int8)
        if not takes(n, m, self.device):
            return cuda_library.pinv(self, F, cutoff, out, route)
        if B:
            name, how, problem = self._tiled("inverse", F, n, m, wide, cutoff)
            self._launch(name, B, how, F, layout_of(F), problem, out, route)
            self._launch_on_copies("inverse_exact", F, problem, marks((SVD,)), out, route)
        return out, route

    def record(self, strips: np.ndarray, source, snapshot) -> None:
        """Write strips of parameters of dtype `source` into one snapshot of the time-major buffer, in one launch.

        strips: what `split` made, in device memory, as bytes; snapshot: the buffer's row, 1-D.
        """
        if count := strips.nbytes // STRIP.itemsize:
            name = f"fastkoop::record<{NAMES[np.dtype(source)]}, {NAMES[snapshot.dtype]}>"
            self.driver.launch(name, (count, 1), 256, 0, (strips, snapshot))

    # What has no kernel: small nonsymmetric eigenproblems, on the host.

    def _on_host(self, function, factors: Factors, *arguments):
        host = factors._replace(**{name: self.driver.host(array) for name, array in factors._asdict().items()})
        return function(host, *arguments)

    def eigenvalues(self, factors: Factors):
        """See spectrum.eigenvalues; computed on the host."""
        return self.xp.asarray(self._on_host(spectrum.eigenvalues, factors))

    def modes(self, factors: Factors):
        """See spectrum.modes; computed on the host."""
        values, vectors = self._on_host(spectrum.modes, factors)
        return self.xp.asarray(values), self.xp.asarray(vectors)

    def clip(self, factors: Factors, radius: float):
        """See spectrum.clip; computed on the host."""
        clipped, condition = self._on_host(spectrum.clip, factors, radius)
        moved = {name: self.xp.asarray(array) for name, array in clipped._asdict().items()}
        return factors._replace(**moved), self.xp.asarray(condition)


@functools.cache
def backend(ordinal: int) -> Cuda:
    """The contract on one device."""
    return Cuda(driver_for(ordinal))
