"""What each side of a comparison took."""

from __future__ import annotations

import math
from statistics import median


def seconds(run: dict, side: str) -> dict[str, float]:
    """What a side's T phase cost in one run: per step (median), step by step, and straight to the end."""
    entry = run[side]
    walked = sum(entry["step_seconds"])
    if side == "optimizer":
        return {"step": _median(entry["step_seconds"]), "phase": walked, "jump": walked}
    overhead = entry["record_seconds"] + entry["fit_seconds"] + entry.get("jumped", {}).get("guard_seconds", 0.0)
    return {
        "step": _median(entry["step_seconds"]),
        "phase": overhead + walked,
        "jump": overhead + entry["jump_seconds"],
    }


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan
