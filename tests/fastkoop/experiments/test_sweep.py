"""fastkoop sweep and fastkoop phases: settings on the same recordings, and whole runs with several phases."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastkoop as fk
from fastkoop import Affine, InputError, Rank
from fastkoop.cli import app, parse_grid
from fastkoop.experiments import sweep as module
from fastkoop.experiments.averages import weights_of
from fastkoop.experiments.config import Config, prepare
from fastkoop.experiments.phases import (
    Extrapolation,
    at_gradients,
    at_seconds,
    comparisons,
    rows,
    run_phases,
    seconds_of,
)
from fastkoop.experiments.sweep import (
    GRID,
    Iterates,
    baseline,
    baseline_rows,
    best_rows,
    described,
    never_diverges,
    ranking,
    settings,
    sweep,
)

QUICK = {"t1": 1, "t2": 3, "T": 2}
SMALL = {
    "partition": ["node", "network"], "cutoff": ["jax", Rank(1)], "stabilize": ["clip"],
    "observables": ["identity", Affine()], "window": [1, 4],
}  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return sweep(Config.of(**QUICK, seeds=2, out=str(out)), SMALL), out


def test_every_setting_has_losses_at_every_horizon(swept):
    results, out = swept
    stored = json.loads((out / "sweep.json").read_text())
    assert stored["complete"] and stored["horizons"] == [1, 2] and stored["config"]["validation"] == 1437 // 6
    assert len(stored["settings"]) == 16 and len(stored["runs"]) == 32
    assert {(run["seed"], run["setting"]) for run in stored["runs"]} == {(s, i) for s in range(2) for i in range(16)}
    for run in stored["runs"]:
        assert len(run["test_loss"]) == len(run["validation_loss"]) == len(run["jump_seconds"]) == 2
        assert run["fit_seconds"] > 0 and run["record_seconds"] > 0
    for own in results["baselines"].values():
        assert set(own) == {"start", "mean", "optimizer 1", "optimizer mean 1", "optimizer 2", "optimizer mean 2",
                            *(f"moving {decay}" for decay in module.DECAYS),
                            *(f"line {share}" for share in module.AHEAD)}  # fmt: skip
        assert own["mean"]["test_loss"] < 2.3


def iterates_of(config):
    """Seed 0's recording, as a sweep has it."""
    setup = prepare(module.with_validation(config))
    return setup, Iterates(setup, 0, module._horizons_of(setup), lambda *_: None)


def test_a_setting_is_what_a_phase_of_its_own_gives(swept):
    """Replayed recordings are those of training: the same jump, and the same losses, as without a sweep."""
    results, out = swept
    setup, iterates = iterates_of(Config.of(**QUICK, seeds=1, out=str(out)))
    i = next(i for i, setting in enumerate(results["settings"])
             if setting == described({"partition": "network", "window": 4, "observables": Affine(), "stabilize": "clip",
                                      "cutoff": Rank(1), "out_of_span": "drop"}))  # fmt: skip
    rows = []
    for at in range(iterates.count):
        iterates.show(at)
        rows.append(torch.nn.utils.parameters_to_vector(iterates.model.parameters()).detach())
    skip = iterates.count % 4
    means = torch.stack(rows[skip:]).reshape(-1, 4, len(rows[0])).mean(dim=1).numpy()
    op = fk.fit(means.T.copy(), cutoff=Rank(1), observables=Affine(), stabilize="clip")
    end = torch.from_numpy(op.predict(iterates.per_epoch // 4))
    torch.nn.utils.vector_to_parameters(end, iterates.model.parameters())
    run = next(run for run in results["runs"] if run["seed"] == 0 and run["setting"] == i)
    assert run["test_loss"][0] == pytest.approx(setup.problem.evaluate(iterates.model).loss, rel=1e-4)


def test_what_the_snapshots_do_not_span_is_a_setting_too(tmp_path):
    grid = {"partition": ["layer"], "cutoff": [Rank(1)], "stabilize": [0.9], "observables": [Affine()], "window": [4],
            "out_of_span": ["drop", "carry"]}  # fmt: skip
    drop, carry = sweep(Config.of(**QUICK, out=str(tmp_path)), grid)["runs"]
    assert drop["test_loss"] != carry["test_loss"]


def test_the_best_by_validation_is_named(swept):
    results, _ = swept
    best = ranking(results)
    assert [loss for loss, _ in best] == sorted(loss for loss, _ in best) and len(best) == 16
    losses = [run["validation_loss"][-1] for run in results["runs"] if run["setting"] == best[0][1]]
    assert best[0][0] == pytest.approx(np.mean(losses))
    table = best_rows(results, 3)
    assert len(table) == 3 and "of 2 seeds" in table[0][-1] and "partition" in table[0][0]
    assert [row[0] for row in baseline_rows(results)][:3] == ["start", "mean", "moving 0.98"]
    for kind in ("moving", "line"):
        best = module.best_baseline(results, kind)
        losses = {name: np.mean(baseline(results, name, "validation_loss")) for name in results["baselines"]["0"]}
        assert best.startswith(kind) and losses[best] == min(v for name, v in losses.items() if name.startswith(kind))


def test_what_diverged_is_last_and_said():
    run = {"seed": 0, "validation_loss": [0.1, None], "test_loss": [0.1, None]}
    fine = {"seed": 0, "validation_loss": [0.1, 0.2], "test_loss": [0.1, 0.2]}
    own = {"start": {"test_loss": 0.3}}
    results = {"runs": [{**run, "setting": 0}, {**fine, "setting": 1}], "horizons": [1, 2], "baselines": {"0": own}}
    assert ranking(results)[0][1] == 1
    assert [never_diverges(results, setting) for setting in range(2)] == [False, True]
    own["start"]["test_loss"] = 0.15
    assert not never_diverges(results, 1)


def test_an_interrupted_sweep_goes_on_where_it_stopped(swept, tmp_path):
    results, _ = swept
    seen = []

    def interrupt(seed, what, at, of):
        if what == "settings":
            seen.append((seed, at))
            if (seed, at) == (1, 5):
                raise KeyboardInterrupt

    config = Config.of(**QUICK, seeds=2, out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        sweep(config, SMALL, interrupt)
    stored = json.loads((tmp_path / "sweep.json").read_text())
    assert len(stored["runs"]) == 16 + 5 and not stored["complete"]
    again = sweep(config, SMALL)
    assert len(again["runs"]) == 32
    losses = {(run["seed"], run["setting"]): run["test_loss"] for run in results["runs"]}
    for run in again["runs"]:
        assert run["test_loss"] == pytest.approx(losses[run["seed"], run["setting"]], rel=1e-5)


def test_the_optimizer_s_mean_is_of_as_many_iterates_as_were_recorded(tmp_path):
    """At T = 1 it reaches back into the recording."""
    setup, iterates = iterates_of(Config.of(t1=1, t2=3, T=2, out=str(tmp_path)))
    training, trail = setup.training(0), []
    training.run(5 * iterates.per_epoch, lambda *_: trail.append(weights_of(training.model)))
    for epochs in (1, 2):
        last = trail[(3 + epochs - 2) * iterates.per_epoch : (3 + epochs) * iterates.per_epoch]
        mean = {name: torch.stack([weights[name] for weights in last]).mean(dim=0) for name in last[0]}
        expected = iterates.judge(training.model, mean)["test_loss"]
        assert iterates.baselines[f"optimizer mean {epochs}"]["test_loss"] == pytest.approx(expected, rel=1e-4)


def test_another_sweep_in_the_same_folder_is_refused(swept, tmp_path):
    _, out = swept
    with pytest.raises(InputError, match=r"seeds: .* has 2 of them, got 1; ask for as many"):
        sweep(Config.of(**QUICK, seeds=1, out=str(out)), SMALL)
    with pytest.raises(InputError, match="holds another sweep; name another folder"):
        sweep(Config.of(**QUICK, seeds=2, out=str(out)), {**SMALL, "window": [2]})
    with pytest.raises(InputError, match="holds another sweep"):
        sweep(Config.of(**{**QUICK, "T": 3}, seeds=2, out=str(out)), SMALL)


def test_bad_sweeps(tmp_path):
    with pytest.raises(
        InputError, match=r"problem: a sweep chooses by validate\(model\), and oscillator has no such method"
    ):
        sweep(Config.of(problem="oscillator", out=str(tmp_path)))
    with pytest.raises(InputError, match="at least 1 epoch"):
        sweep(Config.of(**{**QUICK, "T": 0}, out=str(tmp_path)))
    with pytest.raises(InputError, match="partition: expected one of"):
        sweep(Config.of(**QUICK, out=str(tmp_path)), {"partition": ["nodes"]})


LISTS = {"test_loss": [], "validation_loss": [], "jump_seconds": []}
DAMAGED = {
    "cut": "{", "deep": "[" * 200_000, "list": "[]", "bytes": "\xff", "config": {"config": [1]},
    "runs": {"runs": [{"a": 1}]}, "run": {"runs": [1]}, "setting": {"runs": [{"seed": 0, "setting": 99}]},
    "baselines": {"baselines": []}, "baseline": {"baselines": {"0": [1]}}, "seed": {"baselines": {"x": {}}},
    "losses": {"baselines": {"0": {"mean": 3}}}, "lists": {"runs": [{"seed": 0, "setting": 0, **LISTS}]},
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_sweep_is_refused_by_name(swept, tmp_path, damage):
    _, out = swept
    path = tmp_path / "sweep.json"
    whole = json.loads((out / "sweep.json").read_text())
    path.write_text(damage if isinstance(damage, str) else json.dumps(whole | damage), encoding="latin-1")
    with pytest.raises(InputError, match=r"out: .*sweep\.json.*name another folder"):
        sweep(Config.of(**QUICK, seeds=2, out=str(tmp_path)), SMALL)


def test_grids_as_written_on_the_command_line():
    found = parse_grid("partition=node,layer; cutoff=jax,1e-2,rank:3;stabilize=none,clip,0.9;window=1,20;"
                       "observables=identity,affine+delay:2")  # fmt: skip
    assert found == {
        "partition": ["node", "layer"], "cutoff": ["jax", 0.01, Rank(3)], "stabilize": [None, "clip", 0.9],
        "window": [1, 20], "observables": ["identity", (Affine(), fk.Delay(2))],
    }  # fmt: skip
    assert parse_grid("") == {}
    assert len(list(settings(GRID))) == 3 * 4 * 3 * 2 * 2
    for text, match in (
        ("speed=1", "expected NAME=VALUE"),
        ("window", "expected NAME"),
        ("window=x", "window: expected an integer"),
    ):
        with pytest.raises(InputError, match=match):
            parse_grid(text)


@pytest.fixture(scope="module")
def phased(tmp_path_factory):
    out = tmp_path_factory.mktemp("phases")
    config = Config.of(t1=1, t2=2, T=1, seeds=2, cutoff="jax", stabilize="clip", out=str(out))
    return run_phases(config, phases=3, rest=1, ahead=0.5), out


def test_phases_share_gradients_and_end_where_they_should(phased):
    results, out = phased
    stored = json.loads((out / "phases.json").read_text())
    assert stored["complete"] and stored["phases"] == 3 and stored["rest"] == 1
    assert (out / "phases.png").read_bytes().startswith(b"\x89PNG")
    per_epoch = -(-1437 // 64)
    for run in stored["runs"]:
        assert run["koopman"]["gradients"][-1] == per_epoch * (1 + 3 * 2)
        alone, average = run["optimizer"], run["optimizer moving"]
        for at in map(alone["gradients"].index, (stored["gradients"], stored["whole"])):
            assert alone["test_loss"][at] != average["test_loss"][at]
        assert alone["seconds"][-1] >= run["koopman"]["seconds"][-1]
        assert average["seconds"][-1] >= run["koopman moving"]["seconds"][-1]
        assert [jump["gradients"] for jump in run["jumps"]] == [per_epoch * at for at in (2, 4, 6)]
        first = run["koopman"]["gradients"].index(per_epoch * 2 - (per_epoch * 2) % (per_epoch // 8))
        assert run["koopman"]["test_loss"][: first - 1] == run["optimizer"]["test_loss"][: first - 1]
        assert run["koopman"]["seconds"] == sorted(run["koopman"]["seconds"])
        assert run["koopman moving"]["seconds"] == sorted(run["koopman moving"]["seconds"])
        assert run["line"]["gradients"] == run["koopman"]["gradients"]
        assert run["line"]["test_loss"][: first - 1] == run["optimizer"]["test_loss"][: first - 1]
        assert run["line"]["test_loss"][first] != run["optimizer"]["test_loss"][first]
    assert [row[0] for row in rows(results)] == ["koopman", "line", "optimizer"]
    assert len(comparisons(results)) == 8
    assert (stored["gradients"], stored["whole"]) == (per_epoch * (1 + 3 * 2), per_epoch * (1 + 3 * 3))


def test_jumps_that_make_training_diverge_are_a_result(tmp_path):
    config = Config.of(t1=1, t2=3, T=2, seeds=1, optimizer="sgd", lr=0.1, out=str(tmp_path))
    results = run_phases(config, phases=3, rest=1)
    (run,) = results["runs"]
    assert results["complete"] and "holds a NaN" in run["jumps"][-1]["refused"]
    assert not np.isfinite(run["koopman"]["test_loss"][-1]) and np.isfinite(run["optimizer"]["test_loss"]).all()
    assert "diverged" in str(comparisons(results)["last iterate, equal gradients"])


def test_the_null_model_jumps_along_a_line():
    model = torch.nn.Linear(1, 1, bias=False)
    null, trail = Extrapolation(model, burn_in=1, record=3, rest=1, ahead=2), []
    for weight in (9.0, 1.0, 2.0, 3.0, 7.0, 1.0, 1.0, 1.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(weight)
        null.step()
        trail.append(model.weight.item())
    assert trail == pytest.approx([9, 1, 2, 5, 7, 1, 1, 1, 5])


def test_losses_at_equal_gradients_and_seconds():
    run = {"optimizer": {"gradients": [5, 10, 15], "seconds": [0.5, 1.0, 1.5], "test_loss": [3.0, 2.0, 1.0]}}
    assert [at_gradients(run, "optimizer", n) for n in (5, 12, 99)] == [3.0, 2.0, 1.0]
    assert [at_seconds(run, "optimizer", s) for s in (0.1, 1.2, 9.0)] == [3.0, 1.0, 1.0]
    assert [seconds_of(run, "optimizer", n) for n in (5, 12)] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "match"),
    [(["--grid", "window=1"], "grid: settings for --sweep"), (["--rest", "2"], "rest: epochs after each"),
     (["--line", "1"], "line: expected epochs >= 0"), (["--line", "-1", "--phases", "2"], "line: expected epochs"),
     (["--sweep", "--phases", "2"], "phases: a sweep tries settings of one phase"),
     (["--sweep", "--recommended"], "recommended: a sweep tries settings of its --grid"),
     (["--sweep", "--cutoff", "jax"], "cutoff: a sweep tries settings of its --grid"),
     (["--recommended", "--preset", "smooth"], "recommended: it is --preset noisy, got --preset smooth"),
     (["--phases", "2", "--T", "0"], "T: a phase that jumps over 0 epochs"),
     (["--sweep", "--grid", "window=25", "--t1", "1", "--t2", "6", "--T", "1"], "every: 25 iterations are longer"),
     (["--sweep", "--grid", "observables=momentum", "--optimizer", "momentum"], "leave Momentum() out"),
     (["--horizon", "auto"], "pass --validation"), (["--observables", "momentum"], "needs an optimizer with velo"),
     (["--validation", "2000"], "expected fewer than the 1437 training images"),
     (["--window", "3", "--every", "2"], "window: expected at most every=2"),
     (["--observables", "affin"], "observables: expected")],
)  # fmt: skip
def test_bad_options_on_the_command_line(options, match, tmp_path):
    done = CliRunner().invoke(app, ["compare", "--out", str(tmp_path), *options])
    assert done.exit_code == 2 and match in done.stderr, done.stderr
    assert not any(tmp_path.iterdir())
