"""The whole road: `compare` end to end on digits, its files, its bad input; a slice of real MNIST."""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastkoop as fk
from fastkoop import InputError
from fastkoop.experiments.compare import compare
from fastkoop.experiments.config import Config, prepare
from fastkoop.experiments.costs import seconds
from fastkoop.experiments.verdict import rows, words
from fastkoop.torch_adapter import KoopmanPhase

FIGURES = ("accuracy.png", "loss.png", "spectra.png", "time.png", "weights.png")
QUICK = {"t1": 1, "t2": 3, "T": 1}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """One comparison on digits, its results and its folder."""
    out = tmp_path_factory.mktemp("compare")
    ticks = []
    results = compare(Config.of(**QUICK, seeds=2, out=str(out)), lambda *state: ticks.append(state))
    return results, out, ticks


def test_results_have_the_contract_s_shape(run_once):
    _, out, _ = run_once
    stored = json.loads((out / "results.json").read_text())
    assert stored["config"]["dataset"] == "digits" and stored["complete"] is True
    assert stored["machine"]["versions"]["torch"] == torch.__version__
    assert [run["seed"] for run in stored["runs"]] == [0, 1]
    per_epoch = math.ceil(1437 / 64)
    for run in stored["runs"]:
        for side in ("optimizer", "koopman"):
            assert run[side]["iteration"] == list(range(per_epoch + 1))
            assert len(run[side]["test_loss"]) == len(run[side]["test_accuracy"]) == per_epoch + 1
            assert len(run[side]["step_seconds"]) == per_epoch and min(run[side]["step_seconds"]) > 0
        assert run["optimizer"]["test_loss"][0] == run["koopman"]["test_loss"][0]
        assert run["optimizer"]["test_loss"][1] != run["koopman"]["test_loss"][1]
        assert set(run["koopman"]["rank"]) == set(run["koopman"]["spectral_radius"]) == {"0", "2", "4", "6"}
        for key in ("record_seconds", "fit_seconds", "jump_seconds"):
            assert run["koopman"][key] > 0
        assert 0 < run["average"]["test_accuracy"] <= 1


COMPILED = """
import importlib, os, pkgutil, sys
from numba.core.dispatcher import Dispatcher
from fastkoop.kernels import cpu
from fastkoop.experiments import compare, runs
from fastkoop.experiments.config import Config, prepare

names = [found.name for found in pkgutil.iter_modules(cpu.__path__)]
modules = [importlib.import_module(f"fastkoop.kernels.cpu.{name}") for name in names]

def signatures():
    found = [(name, one) for module in modules for name, one in vars(module).items() if isinstance(one, Dispatcher)]
    return {f"{one.__module__}.{name}: {signature}" for name, one in found for signature in one.overloads}

def late(options):
    config = Config.of(**options, out=sys.argv[1])
    runs.compile_kernels(prepare(config).options)
    before = signatures()
    compare.compile_kernels = lambda *_: 0.0
    compare.compare(config)
    print(len(before) > 0, sorted(signatures() - before), flush=True)

for options in SETTINGS:  # each in a process where no kernel has been loaded, imports made once for all
    child = os.fork()
    if not child:
        try:
            late(options)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


SETTINGS = (
    {}, {"partition": "layer", "t2": 7, "stabilize": "clip"},  # 138 snapshots: LAPACK
    {"partition": "weight", "cutoff": "svht", "every": 3}, {"problem": "oscillator", "t1": 10, "t2": 210, "T": 10},
)  # fmt: skip


def test_no_kernel_is_compiled_or_loaded_once_training_has_begun(tmp_path):
    code = COMPILED.replace("SETTINGS", repr([{**QUICK, **options} for options in SETTINGS]))
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == ["True []"] * len(SETTINGS), done.stderr[-2000:]


def test_the_figures_are_there_and_nothing_else(run_once):
    _, out, _ = run_once
    assert sorted(path.name for path in out.iterdir()) == sorted((*FIGURES, "report.html", "results.json"))
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)


def test_progress_is_reported_for_every_part(run_once):
    _, _, ticks = run_once
    assert {what for _, what, _, _ in ticks} == {"training", "recording", "adadelta and Koopman"}
    assert all(1 <= done <= of for _, _, done, of in ticks)


def test_the_same_seed_gives_the_same_curves(run_once, tmp_path):
    results, _, _ = run_once
    again = compare(Config.of(**QUICK, out=str(tmp_path)))
    for side in ("optimizer", "koopman"):
        assert again["runs"][0][side]["test_loss"] == results["runs"][0][side]["test_loss"]
    assert again["runs"][0]["average"] == results["runs"][0]["average"]


def test_the_verdict_names_winner_ratio_and_time(run_once):
    results, _, _ = run_once
    table = rows(results)
    assert [row[0] for row in table] == ["adadelta", "Koopman, node", "mean of the recorded"]
    text = " ".join(words(results))
    assert "ends the phase ahead" in text and "recording and fit included" in text and "mean of the recorded" in text
    run = results["runs"][0]
    cost = seconds(run, "koopman")
    walked = sum(run["koopman"]["step_seconds"])
    assert cost["phase"] == run["koopman"]["record_seconds"] + run["koopman"]["fit_seconds"] + walked


def _fake(optimizer_loss, koopman_loss, average_loss):
    side = {"iteration": [0, 1], "test_accuracy": [0.5, 0.6], "step_seconds": [1e-3]}
    return {
        "config": {"optimizer": "adam", "partition": "node", "every": 1},
        "runs": [
            {
                "seed": 0,
                "optimizer": {**side, "test_loss": [1.0, optimizer_loss]},
                "koopman": {
                    **side, "test_loss": [1.0, koopman_loss], "step_seconds": [5e-4], "record_seconds": 0.01,
                    "fit_seconds": 0.02, "jump_seconds": 0.001,
                    "jumped": {"guard_seconds": 0.0, "from_mean": math.nan},
                },
                "average": {"test_loss": average_loss, "test_accuracy": 0.6},
            }
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((0.5, 0.25, 0.3), ("Loss: Koopman ends the phase ahead, 0.25 against 0.5 (2 times)", "It beats the mean")),
        ((0.5, 2.0, 0.3), ("Loss: adam ends the phase ahead, 0.5 against 2 (4 times)", "It does not beat the mean")),
        ((0.5, math.nan, 0.3), ("Loss: adam ends the phase ahead, 0.5 against inf", "It does not beat the mean")),
    ],
)
def test_the_verdict_is_honest_either_way(losses, expected):
    text = " ".join(words(_fake(*losses)))
    assert all(part in text for part in expected)
    assert "a Koopman step is 2 times faster than adam's" in text
    assert "step by step, recording and fit included: Koopman is 30.5 times slower" in text


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "weight"},
        {"partition": "quasi-node", "q": 13},
        {"partition": "quasi-node", "q": 10_000},
        {"partition": "layer", "stabilize": "clip"},
        {"partition": "network", "cutoff": "jax"},
        {"every": 7, "eval_every": 2},
        {"T": 0},
        {"optimizer": "momentum", "cutoff": 1e-3},
    ],
)
def test_every_setting_runs(options, tmp_path):
    results = compare(Config.of(**{**QUICK, **options}, out=str(tmp_path)))
    run = results["runs"][0]
    assert run["koopman"]["iteration"] == run["optimizer"]["iteration"]
    every = options.get("every", 1)
    assert len(run["koopman"]["step_seconds"]) == len(run["optimizer"]["step_seconds"]) // every
    assert np.isfinite(run["koopman"]["test_loss"][0])
    assert (tmp_path / "weights.png").exists() == (options.get("T", 1) > 0)


def test_a_jump_of_rank_one_goes_as_far_as_the_phase(tmp_path, monkeypatch):
    targets, jump = [], KoopmanPhase.jump

    def spy(phase, steps, *arguments, **options):
        targets.append(phase.position + steps)
        return jump(phase, steps, *arguments, **options)

    monkeypatch.setattr(KoopmanPhase, "jump", spy)
    results = compare(Config.of(t1=1, t2=3, T=2, cutoff="jax", out=str(tmp_path)))
    assert targets == [46, 46]
    own = results["runs"][0]["baselines"]
    assert own["equal time"]["seconds"] > 0 and own["equal time"]["gradients"] > 3 * 23


def test_an_earlier_comparison_s_figures_are_not_left_beside_the_results(tmp_path):
    for name in ("report.html", "accuracy.png", "weights.png", "spectra.png"):
        (tmp_path / name).write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    compare(Config.of(problem="oscillator", t1=5, t2=30, T=0, out=str(tmp_path)))
    assert (tmp_path / "report.html").read_text() != "old" and not (tmp_path / "accuracy.png").exists()
    assert not (tmp_path / "weights.png").exists() and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_preset_follows_the_recording_and_what_is_explicit_wins(tmp_path):
    """Noisy: twelve means of the recording; written down as what they are."""
    asked = {"t1": 1, "t2": 4, "T": 1, "preset": "noisy"}
    results = compare(Config.of(**asked, partition="layer", out=str(tmp_path)))
    config = results["config"]
    assert (config["cutoff"], config["observables"], config["stabilize"]) == ("Rank(k=1)", "Affine()", 0.875)
    assert config["window"] == config["every"] == 3 * 23 // 12
    by_hand = {"cutoff": fk.Rank(1), "observables": fk.Affine(), "stabilize": 0.875, "window": 5}
    same = compare(Config.of(t1=1, t2=4, T=1, partition="layer", **by_hand, out=str(tmp_path / "by-hand")))
    assert same["runs"][0]["koopman"]["test_loss"] == results["runs"][0]["koopman"]["test_loss"]
    mixed = prepare(Config.of(**asked, cutoff="jax", every=2)).options
    assert (mixed.cutoff, mixed.stabilize, mixed.every, mixed.window) == ("jax", 0.875, 2, 1)
    smooth = prepare(Config.of(**{**asked, "preset": "smooth"})).options
    assert (smooth.cutoff, smooth.stabilize, smooth.every) == (fk.Rank(8), 1.0, 1)


def test_both_sides_cover_the_same_iterations(tmp_path):
    """23 iterations at every=7: the optimizer's time must not hold the two that no Koopman step reaches."""
    ticks = []
    results = compare(Config.of(**QUICK, every=7, out=str(tmp_path)), lambda _, *state: ticks.append(state))
    run = results["runs"][0]
    assert len(run["optimizer"]["step_seconds"]) == 21 == 7 * len(run["koopman"]["step_seconds"])
    assert run["optimizer"]["iteration"][-1] == run["koopman"]["iteration"][-1] == 21
    assert ticks[-1] == ("adadelta and Koopman", 90, 90)  # 69 until the phase


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t1": 5, "t2": 5}, "t2: expected more than t1 = 5 epochs, got 5"),
        ({"T": -1}, "T: expected an integer >= 0, got -1"),
        ({"partition": "quasi-node", "q": 0}, "q: expected an integer >= 1, got 0"),
        ({"partition": "quasi-node"}, 'q: the partition "quasi-node" needs --q'),
        ({"q": 3}, 'q: only the partition "quasi-node" takes --q, got 3'),
        ({"partition": "nodes"}, "partition: expected one of 'weight'"),
        ({"problem": "cifar"}, "problem: expected one of 'digits', 'mnist', 'oscillator', 'softmax', or FILE.py:NAME"),
        ({"optimizer": "lion"}, "optimizer: expected one of 'adadelta'"),
        ({"cutoff": "scipy"}, "cutoff: expected one of 'array_api'"),
        ({"cutoff": -1.0}, "cutoff: expected"),
        ({"stabilize": "cut"}, "stabilize: expected one of 'clip', 'project', got 'cut'"),
        ({"lr": 0.0}, "lr: expected a number > 0"),
        ({"device": "tpu"}, "device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"device": "cuda:77"}, "device: cuda:77 is not there"),
        ({"preset": "loud"}, "preset: expected one of 'published', 'noisy', 'smooth'"),
        ({"lr": 1e308}, "lr: expected at most 3.4e+38"),
        ({"t1": "5 epochs"}, 't1: expected epochs such as 3, or iterations such as "500it"'),
        ({"observables": fk.Delay(99999)}, "99999"),
        ({"budget": 0}, "budget: expected seconds > 0"),
        ({"out": ""}, "out: expected a folder, got ''"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
        ({"seeds": 0}, "seeds: expected an integer >= 1"),
        ({"every": 40}, "every: 46 recorded iterations hold fewer than 2 snapshots"),
    ],
)
def test_bad_options_are_one_clear_error(options, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        compare(Config.of(**{**QUICK, "out": str(tmp_path), **options}))
    assert not (tmp_path / "results.json").exists()


def test_a_loss_that_is_not_finite_stops_the_seed(tmp_path):
    with pytest.raises(
        InputError, match=r"digits: the only seed stopped; seed 0: the training loss is \S+ at iteration"
    ):
        compare(Config.of(**QUICK, optimizer="sgd", lr=1e30, out=str(tmp_path)))


def test_an_interrupted_run_keeps_the_seeds_that_are_done(tmp_path):
    def interrupt(seed, what, done, of):
        if seed == 1 and what == "recording":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(Config.of(**QUICK, seeds=3, out=str(tmp_path)), interrupt)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [run["seed"] for run in stored["runs"]] == [0] and stored["complete"] is False


@pytest.mark.mnist
@pytest.mark.skipif(not os.environ.get("FASTKOOP_DATA_DIR"), reason="FASTKOOP_DATA_DIR names no MNIST files")
def test_real_mnist_dips_below_its_start(tmp_path):
    """An early dip below the starting loss, as published, on real MNIST after one epoch."""
    config = Config.of(problem="mnist", t1=1, t2=2, T=1, cutoff="jax", eval_every=20, out=str(tmp_path))
    run = compare(config)["runs"][0]
    losses = run["koopman"]["test_loss"]
    assert len(run["koopman"]["step_seconds"]) == 938
    assert min(losses[1:6]) < losses[0]
    assert run["koopman"]["rank"]["0"][2] > 1
