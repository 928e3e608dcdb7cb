"""The page's table on frameworks is what the committed results say, and so are the sentences around it."""

import json

import pytest

pytest.importorskip("torch")

from bench.common import pages
from bench.training import frameworks


def runs():
    found = json.loads(frameworks.FILE.read_text())["frameworks"]
    assert set(found) == set(frameworks.TRAINERS)
    return {name: entry["runs"] for name, entry in found.items()}


def test_the_page_shows_the_committed_results():
    assert pages.shown("training", "frameworks") == frameworks.table_of()


def test_nothing_is_left_and_nothing_is_lost_or_gained():
    for name, seeds in runs().items():
        alone = [seed["alone"]["loss"] for seed in seeds]
        with_jumps = [seed["koopman"]["loss"] for seed in seeds]
        assert len(seeds) == frameworks.SEEDS
        spread = max(alone) - min(alone)
        assert abs(sum(with_jumps) - sum(alone)) / len(seeds) < max(spread, 0.01), name
        assert all(seed["koopman"]["bytes_after_close"] == 0 and seed["koopman"]["jumps"] >= 2 for seed in seeds)
        assert all(seed["koopman"]["checkpoint_bytes"] < 1.5 * seed["koopman"]["held_bytes"] for seed in seeds)


def test_loops_on_the_same_batches_end_on_the_same_losses():
    plain, lightning, accelerated = (runs()[name] for name in ("plain loop", "Lightning", "accelerate"))
    for key in ("alone", "koopman"):
        losses = [[round(seed[key]["loss"], 5) for seed in seeds] for seeds in (plain, lightning, accelerated)]
        assert losses[0] == losses[1] == losses[2]
