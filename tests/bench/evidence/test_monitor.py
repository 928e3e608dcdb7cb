"""The page of the monitor is what the committed results say, and so are its sentences."""

import itertools
from statistics import median

import pytest

from bench.common import pages
from bench.evidence import monitor


def test_the_page_shows_the_committed_results():
    assert pages.shown("monitor") == monitor.table_of()


def test_what_the_page_says_of_the_cost():
    shares = {kind: median(values) for kind, values in monitor.committed("cost")["shares"].items()}
    assert shares["monitor"] <= 0.03 and shares["row"] > 1
    assert shares["read"] > 1 / 3


def test_the_interval_between_looks_is_the_monitor_s_own():
    assert monitor.committed("cost")["report"] == monitor.Beside("monitor").monitor.report


def test_models_beside_each_other_train_alike():
    sides = {kind: monitor.Beside(kind) for kind in ("plain", "monitor", "row", "read")}
    for _ in range(2):
        for side in sides.values():
            side.step()
    assert len({side.train() for side in sides.values()}) == 1  # the loss
    assert all(side.spent > 0 for side in sides.values())


@pytest.mark.parametrize("part", ["converges", "mnist-converges"])
def test_eigenvalues_gather_at_one_without_noise(part):
    runs = monitor.committed(part)
    smooth, noisy = ([row["from_one"] for row in runs[name]] for name in ("full batch", "batches of 64"))
    assert all(later < earlier for earlier, later in itertools.pairwise(smooth))
    assert runs["full batch"][-1]["stop"] and not any(row["stop"] for row in runs["batches of 64"])
    assert min(noisy) > 0.05 and noisy[-1] > noisy[0]


def test_the_stop_signal_comes_early_on_mnist():
    looks = monitor.committed("mnist-converges")["full batch"]
    first = next(row for row in looks if row["stop"])
    assert first["step"] == 533 and round(first["loss"], 2) == 0.49 and round(looks[-1]["loss"], 2) == 0.26


@pytest.mark.parametrize(("part", "times"), [("rates", 17), ("mnist-rates", 20)])
def test_a_rate_that_fails_shows_in_the_first_window(part, times):
    first = {lr: looks[0]["forecast"] for lr, looks in monitor.committed(part).items()}
    last = {lr: looks[-1]["loss"] for lr, looks in monitor.committed(part).items()}
    assert max(last, key=last.get) == "3.0" and last["3.0"] > 2
    assert round(first["3.0"]) == times and max(value for lr, value in first.items() if lr != "3.0") <= 1


def test_late_generalising_is_not_announced():
    for looks in monitor.committed("grokking").values():
        seen = monitor.transition(looks)
        assert seen["fitted"] < 100 and 2000 < seen["general"] - seen["fitted"] < 3450
        assert 0.4 < seen["scores"]["residual"]["before"] < 0.6
        assert all(area < 0.3 for area in seen["scores"]["forecast"].values())


def test_area_under_the_curve():
    assert monitor.auroc([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert monitor.auroc([1, 1], [True, False]) == 0.5
    assert monitor.auroc([1, 2], [True, True]) is None
