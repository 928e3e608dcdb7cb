"""What the GPU cases should take on an H200, by arithmetic: nothing here has been measured.

    python -m bench gpu table      # writes bench/results/cuda/predictions.json and the page

Bytes and flops are those of kernels.plan; the rates are the datasheet's; tiles and resident CTAs are those of
kernels/cuda/launch.py, with the registers that the compiler reports for sm_90 (tests/kernels/cuda/resources.json).
"""

from __future__ import annotations

import json

from bench import RESULTS, ROOT
from bench.common import pages
from bench.speed.cases import CASES, Case
from fastkoop import backends
from fastkoop.files import plain, write_json
from fastkoop.kernels import plan
from fastkoop.kernels.cuda import launch as cuda

FILE = RESULTS / "cuda" / "predictions.json"
H200 = cuda.Device("NVIDIA H200", (9, 0), 132, 232_448, 233_472)
DATASHEET = {"bytes_per_second": 4.8e12, "float64_tensor": 67e12, "float64_vector": 34e12}
SHAPE_RATE = 0.5  # of the matrix rate that mma.m8n8k4, the shape of the kernels, reaches on Hopper
DTYPE, SIZE = "float32", 4
FAMILIES = ("A8", "A16", "A32", "A64", "R32", "R32T", "RR8", "RR32", "RR64", "B11", "B21", "N1", "C", "D")


def registers(name: str) -> int:
    """Registers a thread of a kernel takes on sm_90."""
    table = json.loads((ROOT / "tests" / "kernels" / "cuda" / "resources.json").read_text())
    return table["kernels"]["90"][name]["registers"]


def batch(n: int, m: int, blocks: int, steps: int) -> dict:
    """One batch of equal blocks: its cost, and how the fused kernel takes it.

    executed_flops pads the Gram matrix to tiles of 8 by 8, which is what the matrix unit works on.
    """
    how, wide = plan(blocks, n, m, DTYPE, steps), n <= m
    made = {"n": n, "m": m, "blocks": blocks, "bytes": how.bytes, "flops": how.flops, "executed_flops": how.flops}
    if n == 1 or not cuda.takes(n, m, H200):
        return {**made, "kernel": "a thread a weight" if n == 1 else "cuBLAS, cuSOLVER"}
    shape = cuda.shape_of("predict", n, m, m + 1, wide, SIZE)
    tiles = cuda.tile_rows(shape.rows)
    one = cuda.launch_of(shape, H200)
    name = f"predict<{DTYPE.removesuffix('32')}, {cuda.sum_kind(DTYPE, H200)}, {tiles}>"
    padded = blocks * shape.lines * tiles * (tiles + 1) * 64
    return {
        **made,
        "executed_flops": max(padded, how.flops),
        "kernel": name,
        "tile": one.tile,
        "lines": shape.lines,
        "threads": one.threads,
        "resident_ctas": backends.resident(H200, one.threads, one.shared, registers(name)),
        "reads_twice": one.tile < shape.lines,  # what does not stay in shared memory is read again, from L2
    }


def predict(case: Case) -> dict:
    """One case: floor of the roofline, and the best that can be had of padded tiles."""
    factor = (case.gpu_blocks or case.blocks) / case.blocks
    batches = [batch(n, case.m, round(count * factor), case.steps) for n, count in case.sizes]
    size, flops, executed = (sum(one[key] for one in batches) for key in ("bytes", "flops", "executed_flops"))
    moved = size / DATASHEET["bytes_per_second"]
    floor, goal = max(moved, flops / DATASHEET["float64_tensor"]), case.gpu_goals.get("roofline")
    return {
        "case": case.name,
        "batches": batches,
        "bytes": size,
        "flops": flops,
        "floor_seconds": floor,
        "bound": "memory" if floor == moved else "arithmetic",
        "at_best_seconds": max(moved, executed / (SHAPE_RATE * DATASHEET["float64_tensor"])),
        "without_matrix_unit_seconds": max(moved, flops / DATASHEET["float64_vector"]),
        "to_reach_seconds": None if goal is None else floor / goal,
    }


def predictions() -> dict:
    """The contents of predictions.json."""
    cases = [case for case in CASES if case.family in FAMILIES]
    return plain({
        "what": "predictions for an NVIDIA H200 by arithmetic; nothing was measured",
        "datasheet": DATASHEET,
        "cases": [predict(case) for case in cases],
    })  # fmt: skip


def milliseconds(seconds: float | None) -> str:
    """Three digits.

    >>> milliseconds(0.000123), milliseconds(None)
    ('0.123', '')
    """
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def row(one: dict) -> str:
    """A case's line of the table."""

    def each(cell) -> str:
        return " / ".join(dict.fromkeys(cell(batch) for batch in one["batches"]))

    launched = [batch for batch in one["batches"] if "tile" in batch]
    cells = [
        one["case"], each(lambda b: str(b["n"])), str(one["batches"][0]["m"]), each(lambda b: str(b["blocks"])),
        f"{one['bytes'] / 1e9:.3g}", f"{one['flops'] / 1e9:.3g}",
        f"{milliseconds(one['floor_seconds'])} {one['bound']}",
        each(lambda b: f"{b['tile']} of {b['lines']}" if "tile" in b else b["kernel"]),
        each(lambda b: str(b["resident_ctas"])) if launched else "",
        each(lambda b: "yes" if b["reads_twice"] else "no") if launched else "",
        milliseconds(one["at_best_seconds"]), milliseconds(one["to_reach_seconds"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(results: dict) -> str:
    """The table, in Markdown."""
    heads = (
        "case", "n", "m", "B", "GB", "GFLOP", "floor, ms", "lines in shared memory", "CTAs an SM", "read again from L2",
        "at best, ms", "to reach, ms",
    )  # fmt: skip
    rates = results["datasheet"]
    said = (
        f"**Predicted, not measured**: by the H200's datasheet, {rates['bytes_per_second'] / 1e12:g} TB/s and "
        f'{rates["float64_tensor"] / 1e12:g} TFLOP/s (float64, matrix unit). "At best" pads the Gram matrices to '
        "tiles of 8 x 8, by an instruction that runs at half that rate on Hopper; what a block's own small solve "
        "takes, a second look at truncated blocks, and of C and D cuSOLVER's eigenvectors, come on top."
    )
    head = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*head, *map(row, results["cases"]), "", said])


def update() -> None:
    """Write the JSON and the page's table."""
    results = predictions()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, results)
    pages.update("cuda", table(results), "predictions")
