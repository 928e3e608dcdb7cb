"""The page on safety is what the committed results say; tasks are what the page calls them."""

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.evidence.safety import candidates, run, tasks  # noqa: E402


@pytest.fixture(scope="module")
def results():
    """The committed runs."""
    return json.loads(run.FILE.read_text())


def test_the_page_shows_the_committed_results(results):
    assert pages.shown("safety", "verdict") == run.verdict(results)
    assert pages.shown("safety", "schedules") == run.table_of(results)
    assert pages.shown("safety", "candidates") == candidates.table_of(results["candidates"])


def test_every_task_has_its_runs(results):
    assert list(results["tasks"]) == list(tasks.TASKS)
    for runs in results["tasks"].values():
        gated = [(one["seed"], one["cutoff"], one["partition"]) for one in runs if one["gated"]]
        assert gated == list(itertools.product(range(5), run.CUTOFFS, run.PARTITIONS))
        assert len(runs) == 30


def test_the_verdict_counts_what_ends_above_the_bound(results):
    gated = [one for runs in results["tasks"].values() for one in runs if one["gated"]]
    above = sum(one["ratio"] is None or one["ratio"] > 1.05 for one in gated)
    said = pages.shown("safety", "verdict")
    assert said.startswith(f"**{above or 'None'} of {len(gated)} runs")
    assert f"let {sum(one['passed'] for one in gated)} of {sum(one['jumps'] for one in gated)} jumps pass" in said


def test_the_gate_holds_all_blocks_of_noisy_training(results):
    for name, runs in results["tasks"].items():
        found = run.summary(runs)
        assert found["moved"] < 0.01
        if tasks.TASKS[name].batch:
            assert found["passed"] == 0 and found["without"] > 1e3


def test_guarded_jumps_end_no_worse_than_mean_and_line(results):
    """Computed apart, in another order of summation: up to rounding of float32 weights."""
    for name, jumps in results["candidates"].items():
        assert len(jumps) == 5 * candidates.JUMPS, name
        for one in jumps:
            assert one["after"] <= one["before"]
            assert one["after"] <= min(one["mean"], one["line"]) * (1 + 1e-4)


class TestSummary:
    RUN = {"jumps": 4, "blocks": 20, "gated": True}  # noqa: RUF012 - never changed

    def test_counts(self):
        alone = {**self.RUN, "ratio": 1.0, "passed": 0, "moved": 0}
        runs = [alone, {**self.RUN, "ratio": 1.2, "passed": 1, "moved": 5},
                {**self.RUN, "ratio": None, "passed": 4, "moved": 20, "gated": False}]  # fmt: skip
        found = run.summary(runs)
        assert (found["runs"], found["jumps"], found["passed"], found["above"]) == (2, 8, 1, 1)
        assert (found["median"], found["worst"], found["moved"], found["without"]) == (1.1, 1.2, 0.125, np.inf)
        results = {"tasks": {"dropout": runs}}
        assert run.verdict(results).startswith("**1 of 2 runs with a schedule and no guard ends above 1.05")
        assert "dropout MLP, digits, Adam (1.200)" in run.verdict(results)
        assert run.table_of(results).endswith("| 1.100 | 1.200 | 1 | diverges |")


class TestTasks:
    def test_sequences_go_on_by_one_symbol(self):
        inputs, targets = tasks.sequences(0)
        assert inputs.shape == targets.shape == (tasks.SEQUENCES, tasks.CONTEXT)
        assert torch.equal(inputs[:, 1:], targets[:, :-1]) and int(inputs.max()) < tasks.SYMBOLS
        assert not torch.equal(inputs, tasks.sequences(1)[0])

    def test_the_transformer_is_causal(self):
        model = tasks.TASKS["transformer"].model(0).eval()
        tokens = tasks.sequences(0)[0][:2]
        later = tokens.clone()
        later[:, 12:] = (later[:, 12:] + 1) % tasks.SYMBOLS
        with torch.no_grad():
            a, b = model(tokens), model(later)
        torch.testing.assert_close(a[:, :12], b[:, :12])
        assert not torch.allclose(a[:, 12:], b[:, 12:])

    def test_runs_of_a_seed_see_the_same_batches(self):
        task = tasks.Task("small", lambda: tasks.mlp(64, 8, 10, dropout=0.2), tasks.SMALL,
                          tasks.OPTIMIZERS["Adam"], 32, 100)  # fmt: skip
        alone, held = run.trained(task, 0), run.trained(task, 0, cutoff="jax", partition="layer")
        assert run.trained(task, 0) == alone and alone["jumps"] == 0 and held["jumps"] == 1
        assert held["passed"] or held["end"] == alone["end"]

    def test_mean_and_line_are_those_of_the_iterates(self):
        model = tasks.mlp(2, 2)
        start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()
        iterates = torch.stack([start + t for t in range(candidates.RECORD)])

        def guard():
            there = torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()
            return float(there.mean() - start.mean())

        found = candidates.beside(model, guard, iterates, [0, 10])
        assert found["mean"] == pytest.approx((candidates.RECORD - 1) / 2, rel=1e-5)
        assert found["line"] == pytest.approx(114.5, rel=1e-5)  # the newest mean of ten
        assert guard() == pytest.approx(0.0, abs=1e-6)
