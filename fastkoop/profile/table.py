"""What ``fastkoop profile`` prints: ceilings, kernels size by size, and what first calls took."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from .throughput import Ceilings


def show(results: dict, console: Console) -> None:
    """Print a profile.json."""
    for line in ceilings(results):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(kernels(results["kernels"]))
    console.print(compiling(results["first_calls"]), soft_wrap=True, highlight=False)


def ceilings(results: dict) -> list[str]:
    """Ceilings, in words."""
    machine = results["machine"]
    lines = [f"{machine.get('device', machine['processor'])}, {results['config']['dtype']} data"]
    for level in results["ceilings"]:
        lines.append(
            f"{Ceilings(**level).whose}: copy {level['copy'] / 1e9:.3g} GB/s; matrix product "
            f"{level['float32'] / 1e9:.3g} GFLOP/s in float32, {level['float64'] / 1e9:.3g} in float64"
        )
    return lines


def kernels(rows: list[dict]) -> Table:
    """The kernels, size by size; on a GPU with the registers and the occupancy of a call's first launch."""
    launched = "launches" in rows[0]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for head in ("us/block", "±", "GB/s", "GFLOP/s", "flop/B", "of roof", *(("regs", "occup.") if launched else ())):
        table.add_column(head, justify="right")
    table.add_column("route")
    size = None
    for row in rows:
        if size != (row["n"], row["m"]):
            size = row["n"], row["m"]
            table.add_section()
            table.add_row(f"n = {size[0]}, m = {size[1]}", style="bold")
        time, share = row["seconds"], 100 * row["share"]
        table.add_row(
            f"  {row['kernel']}" + ("" if row["data"] == "full" else f", rank {row['rank']}"),
            digits(row["microseconds_per_block"]),
            f"{50 * (time['high'] - time['low']) / time['median']:.0f}%",
            digits(row["gigabytes_per_second"]),
            digits(row["gigaflops_per_second"]),
            digits(row["intensity"]),
            f"{share:.0f}%" if share >= 10 else f"{share:.1f}%",
            *(_launch(row["launches"]) if launched else ()),
            row["route"] or "",
        )
    return table


def _launch(launches: list[dict]) -> tuple[str, str]:
    """Registers and occupancy of the first launch; nothing where the libraries answer."""
    if not launches:
        return "", ""
    return str(launches[0]["registers"]), f"{launches[0]['occupancy']:.0%}"


def digits(value: float) -> str:
    """Three significant digits, without exponents.

    >>> digits(123.4), digits(0.0123), digits(0.00001)
    ('123', '0.0123', '0.0000')
    """
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.4f}"


def compiling(first: dict) -> str:
    """What the kernels' first calls took, in words."""
    compiled = [f"{kernel} {call['seconds']:.2g} s" for kernel, call in first.items() if call["compiled"]]
    cached = [call["seconds"] for call in first.values() if not call["compiled"]]
    parts = [f"{', '.join(compiled)} (compiled)"] if compiled else []
    parts += [f"{len(cached)} kernels {sum(cached):.2g} s (from the disk cache)"] if cached else []
    return "First calls, beyond the next ones: " + "; ".join(parts)
