"""The oscillator: exact derivatives, the true solution, and a comparison on it from end to end."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastkoop import InputError
from fastkoop.cli import app
from fastkoop.experiments.compare import compare
from fastkoop.experiments.config import Config, prepare
from fastkoop.experiments.problems.oscillator import Oscillator
from fastkoop.experiments.training import make_optimizer, torch_threads
from fastkoop.experiments.verdict import rows, words

QUICK = {"problem": "oscillator", "t1": 60, "t2": 360, "T": 40, "cutoff": "numpy"}
DOUBLE = Oscillator(dtype=torch.float64)


def step(problem, model, optimizer):
    """One optimizer iteration."""
    optimizer.zero_grad()
    problem.loss(model).backward()
    optimizer.step()


def by_autograd(problem, model):
    """Loss, z and z' of a model by the definition, differentiating z(t) with autograd."""
    t = problem.times.T.clone().to(problem.dtype).requires_grad_()
    z = torch.tensor(problem.start, dtype=problem.dtype) + (1 - torch.exp(-t)) * model(t)
    x, p = z.split(1, dim=1)
    dx, dp = (torch.autograd.grad(one, t, torch.ones_like(t), create_graph=True)[0] for one in (x, p))
    loss = ((dx - p) ** 2 + (dp + x + x**3) ** 2).mean()
    return loss, z.T, torch.cat([dx, dp], dim=1).T


@pytest.mark.parametrize("hidden", [(10, 10), (7,), (4, 3, 5)])
def test_the_time_derivative_and_the_gradient_are_exact(hidden):
    problem = replace(DOUBLE, hidden=hidden)
    model = problem.make_model(1)
    weights = tuple(model.parameters())
    loss, z, rate = by_autograd(problem, model)
    mine, my_rate = problem.solution(weights)
    torch.testing.assert_close(mine, z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(my_rate, rate, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.residual(weights), loss, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(loss, weights)
    for got, wanted in zip(torch.autograd.grad(problem.residual(weights), weights), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_float32_is_the_default_and_close_to_float64():
    problem = Oscillator()
    model = problem.make_model(0)
    loss = problem.evaluate(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert loss == pytest.approx(DOUBLE.evaluate(model.double()), rel=1e-5)


def test_every_network_starts_at_the_initial_values():
    z, _ = DOUBLE.solution(tuple(DOUBLE.make_model(3).parameters()))
    assert z[:, 0].tolist() == [1.3, 1.0]
    assert [len(units) for units in z] == [200, 200] and DOUBLE.times[0, -1] == pytest.approx(4 * np.pi, rel=1e-15)


def test_networks_side_by_side_are_each_their_own():
    models = [tuple(DOUBLE.make_model(seed).parameters()) for seed in range(3)]
    together = DOUBLE.residual([torch.stack(same) for same in zip(*models, strict=True)])
    torch.testing.assert_close(together, torch.stack([DOUBLE.residual(one) for one in models]), rtol=1e-12, atol=0)


def test_the_exact_solution_keeps_its_energy_and_meets_hamilton_s_equations():
    x, p = Oscillator(end=2.0, points=2001).exact
    energy = p**2 / 2 + x**2 / 2 + x**4 / 4
    assert np.ptp(energy) < 1e-10 and (x[0], p[0]) == (1.3, 1.0)
    between = slice(1, -1)
    rates = [(one[2:] - one[:-2]) / 2e-3 for one in (x, p)]
    np.testing.assert_allclose(rates, [p[between], -x[between] - x[between] ** 3], atol=2e-5)


def test_training_lowers_the_loss_and_nears_the_exact_solution():
    problem = Oscillator(end=1.5, points=40)
    model = problem.make_model(0)
    optimizer = make_optimizer("adam", model, 1e-2)
    losses, errors = [], []
    for iteration in range(1201):
        if iteration % 400 == 0:
            losses.append(problem.evaluate(model))
            errors.append(problem.solution_error(dict(model.named_parameters())))
        step(problem, model, optimizer)
    assert losses[0] > 1 and losses[-1] < 1e-3 and losses == sorted(losses, reverse=True)
    assert errors[0] > 0.3 and errors[-1] < 0.01


def lived_through(setup):
    """All weights, (iterations, weights) of a node each, from t1 on, of seed 0 trained apart from any comparison."""
    problem = Oscillator()
    model = problem.make_model(0)
    optimizer, states = make_optimizer(setup.optimizer, model, setup.lr), []
    lengths = setup.lengths
    for _ in range(lengths.before + lengths.record + lengths.phase):
        with torch_threads(problem.threads):
            step(problem, model, optimizer)
        nodes = [
            row
            for i in (0, 2, 4)
            for row in torch.cat([model[i].weight, model[i].bias[:, None]], dim=1).detach().double().numpy()
        ]
        states.append([row.copy() for row in nodes])
    return [np.array(node) for node in zip(*states[lengths.before :], strict=True)]


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A short comparison and its folder."""
    out = tmp_path_factory.mktemp("oscillator")
    ticks = []
    results = compare(Config.of(**QUICK, seeds=2, out=str(out)), lambda *state: ticks.append(state))
    return results, out, ticks


def test_results_have_the_contract_s_shape(run_once):
    _, out, ticks = run_once
    stored = json.loads((out / "results.json").read_text())
    assert stored["complete"] and [run["seed"] for run in stored["runs"]] == [0, 1]
    assert stored["config"]["dataset"] == "oscillator" and stored["config"]["batch_size"] is None
    assert (stored["config"]["t1"], stored["config"]["t2"], stored["config"]["T"]) == (60, 360, 40)
    for run in stored["runs"]:
        for side in ("optimizer", "koopman"):
            assert run[side]["iteration"] == list(range(41)) and run[side]["test_accuracy"] == [None] * 41
            assert min(run[side]["test_loss"]) > 0 and len(run[side]["step_seconds"]) == 40
        assert run["average"]["test_loss"] > 0 and run["average"]["test_accuracy"] is None
        entry = run["oscillator"]
        assert set(entry) == {
            "loss", "solution_error", "movement", "error", "weights", "seconds", "optimizer_steps", "replaced",
        }  # fmt: skip
        ends = {"start", "optimizer", "koopman", "average", "drift"}
        assert set(entry["loss"]) == set(entry["solution_error"]) == ends
        assert entry["loss"]["start"] == run["koopman"]["test_loss"][0]
        assert entry["loss"]["optimizer"] == run["optimizer"]["test_loss"][-1]
        assert entry["loss"]["koopman"] == run["koopman"]["test_loss"][-1]
        assert entry["loss"]["average"] == run["average"]["test_loss"]
        assert {layer: len(one["error"]) for layer, one in entry["weights"].items()} == {"0": 20, "2": 110, "4": 22}
        assert entry["replaced"] == 40 and entry["optimizer_steps"]["optimizer_step"] == 1
        assert set(run["koopman"]["rank"]) == {"0", "2", "4"}
    assert sorted(path.name for path in out.iterdir()) == [
        "loss.png", "report.html", "results.json", "spectra.png", "time.png", "weights.png",
    ]  # fmt: skip
    assert {what for _, what, _, _ in ticks} == {"training", "recording", "adadelta and Koopman"}


def test_the_phase_is_the_published_operator_s(run_once):
    """Every node's K = F' pinv(F) in NumPy, to the power T, on a training of its own."""
    results, _, _ = run_once
    setup = prepare(Config.of(**QUICK))
    entry = results["runs"][0]["oscillator"]
    span, T = setup.lengths.record, setup.lengths.phase
    predicted, true, start, before, mean = [], [], [], [], []
    for node in lived_through(setup):
        recorded, last = node[:span].T, node[span - 1]
        K = recorded[:, 1:] @ np.linalg.pinv(recorded[:, :-1], rcond=1e-15)
        predicted.append(np.linalg.matrix_power(K, T) @ last)
        true.append(node[-1])
        start.append(last)
        before.append(node[span - 1 - T])
        mean.append(node[:span].mean(axis=0))
    predicted, true, start, before, mean = map(np.concatenate, (predicted, true, start, before, mean))
    moved = np.linalg.norm(true - start)
    assert entry["movement"]["all"] == pytest.approx(moved, rel=1e-5)
    for name, end in (("koopman", predicted), ("average", mean), ("drift", 2 * start - before)):
        assert entry["error"][name]["all"] == pytest.approx(np.linalg.norm(end - true) / moved, rel=1e-3)
    single = np.sort(np.abs(predicted - true))
    mine = np.sort(np.abs(np.concatenate([one["error"] for one in entry["weights"].values()])))
    np.testing.assert_allclose(mine, single, atol=1e-3 * single.max())


def test_the_verdict_leaves_accuracy_out_and_sets_the_error_beside_the_movement(run_once):
    results, _, _ = run_once
    assert [row[2] for row in rows(results)] == ["-", "-", "-"]
    assert all(float(row[1]) > 0 for row in rows(results))
    text = " ".join(words(results))
    assert "not moving: 1" in text and "by the authors' medians" in text and "recording and fit included" in text


def test_the_same_seed_gives_the_same_curves_and_torch_keeps_its_threads(run_once, tmp_path):
    results, _, _ = run_once
    before = torch.get_num_threads()
    again = compare(Config.of(**QUICK, out=str(tmp_path)))
    assert torch.get_num_threads() == before
    for side in ("optimizer", "koopman"):
        assert again["runs"][0][side]["test_loss"] == results["runs"][0][side]["test_loss"]


@pytest.mark.parametrize(
    "options",
    [{"T": 0}, {"partition": "network", "stabilize": "clip"}, {"every": 7, "optimizer": "momentum", "lr": 1e-3}],
)
def test_every_setting_runs(options, tmp_path):
    run = compare(Config.of(**{**QUICK, **options}, eval_every=5, out=str(tmp_path)))["runs"][0]
    entry, moved, every = run["oscillator"], options.get("T", 40) > 0, options.get("every", 1)
    assert entry["replaced"] == len(run["optimizer"]["step_seconds"]) == (40 // every * every if moved else 0)
    assert (entry["movement"]["all"] > 0) == moved and np.isnan(entry["error"]["koopman"]["all"]) != moved
    assert words({"config": prepare(Config.of(**QUICK)).described(), "runs": [run]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "batch_size: the oscillator's points are one batch, got 64; leave --batch-size out"),
        ({"t1": 360}, "t2: expected more than t1 = 360 epochs, got 360"),
        ({"every": 200}, "every: 300 recorded iterations hold fewer than 2 snapshots"),
        ({"every": 50}, "every: 50 iterations are longer than the T phase of 40"),
        ({"validation": 5}, "validation: the oscillator has no images to take out"),
    ],
)
def test_bad_options_are_one_clear_error(options, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        compare(Config.of(**{**QUICK, **options}, out=str(tmp_path)))
    assert not (tmp_path / "results.json").exists()


def test_an_interrupted_run_keeps_the_networks_that_are_done(tmp_path):
    def interrupt(seed, what, done, of):
        if seed == 1 and what == "recording":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(Config.of(**QUICK, seeds=3, out=str(tmp_path)), interrupt)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [run["seed"] for run in stored["runs"]] == [0] and stored["complete"] is False


def test_the_paper_s_setting_is_the_default():
    setup = prepare(Config.of(problem="oscillator"))
    lengths = setup.lengths
    assert (lengths.before, lengths.record, lengths.phase) == (35_000, 10_000, 2_500)
    assert (setup.optimizer, setup.lr, setup.problem.batch_size) == ("adadelta", 1.0, None)
    assert prepare(Config.of(problem="digits")).problem.batch_size == 64


def test_the_command_runs_and_says_what_the_losses_are(tmp_path):
    options = ("--t1", "20", "--t2", "120", "--T", "20", "--lr", "0.5", "--out", str(tmp_path))
    done = CliRunner().invoke(app, ["compare", "--dataset", "oscillator", *options])
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "residual loss" in said and "Koopman ends" in said and "not moving: 1" in said
    refused = CliRunner().invoke(app, ["compare", "--dataset", "oscillator", "--batch-size", "9"])
    assert refused.exit_code == 2 and refused.stderr.startswith("fastkoop: batch_size: the oscillator's points")
