"""`compare` on problems that the package does not know: four good ones, and bad ones with a sentence each."""

import json
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastkoop
from fastkoop import InputError
from fastkoop.cli import app
from fastkoop.experiments.config import Config, prepare
from fastkoop.experiments.results import Results

USER = pathlib.Path(__file__).parent / "user"
DATA = os.environ.get("FASTKOOP_DATA_DIR")


def by_file(name):
    return f"{USER / name.split(':')[0]}.py:{name.split(':')[1]}"


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """Linear regression by full-batch gradient descent, from the command's own door."""
    out = tmp_path_factory.mktemp("regression")
    return fastkoop.compare(by_file("regression:Regression"), out=str(out)), out


def test_the_files_are_as_short_as_promised():
    for path in USER.glob("*.py"):
        assert path.name in ("bad.py", "odd.py") or len(path.read_text().splitlines()) <= 40


def test_the_jump_is_gradient_descent_s_by_algebra(regression):
    """w(t) = w* + (I - H/L)^t (w0 - w*): what the optimizer did, what the jump predicts."""
    results, _ = regression
    (run,) = results["runs"]
    problem = prepare(Config.of(problem=by_file("regression:Regression"))).problem.problem
    start = problem.make_model(0).weight[0].detach() - problem.best
    H = problem.x.T @ problem.x / len(problem.x)
    step = torch.eye(4, dtype=torch.float64) - problem.rate * H
    for at, loss in ((60, run["koopman"]["test_loss"][0]), (260, run["optimizer"]["test_loss"][-1]),
                     (260, run["koopman"]["jumped"]["test_loss"])):  # fmt: skip
        assert loss == pytest.approx(float((torch.linalg.matrix_power(step, at) @ start).norm()), rel=1e-6)
    assert run["koopman"]["forecast"]["pays"] and "It pays" in results.verdict
    assert run["optimizer"]["test_accuracy"] == [None] * 201


def test_results_are_a_mapping_and_come_back_from_their_file(regression, tmp_path):
    results, out = regression
    stored = json.loads((out / "results.json").read_text())
    assert results.as_dict() == stored and set(stored) == set(results)
    again = Results.read(out)
    assert again.table() == results.table() and again.verdict == results.verdict
    copied = pickle.loads(pickle.dumps(results))
    assert copied.as_dict() == stored and copied.table(details=True) == results.table(details=True)
    assert max(map(len, results.table(details=True).splitlines())) <= 80
    path = again.report(tmp_path / "again.html")
    assert "<svg" in path.read_text() and results.verdict.split(".")[0] in path.read_text()
    assert again.report(tmp_path).name == "report.html"


def test_a_notebook_shows_verdict_and_table(tmp_path):
    """A cell whose last line is a comparison, executed by nbclient in a kernel of its own."""
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    source = f"import fastkoop\nfastkoop.compare({by_file('regression:Regression')!r}, t1=20, t2=50, T=30)"
    notebook, file = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / "pays.ipynb"
    nbformat.write(notebook, file)
    run = "import sys; from nbclient.cli import main; sys.argv[1:] = sys.argv[1:] + ['--inplace']; main()"
    done = subprocess.run([sys.executable, "-c", run, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    [cell] = nbformat.read(file, as_version=4).cells
    shown = next(output for output in cell.outputs if output.output_type == "execute_result")
    assert "<table>" in shown.data["text/html"] and "It pays" in shown.data["text/html"]
    assert shown.data["text/plain"] == "Results('regression', 1 run)" and "<script" not in shown.data["text/html"]


@pytest.mark.parametrize(
    ("name", "spans"),
    [("transformer:Characters", ("5it", "29it", "10it")), ("physics:Physics", ("10it", "50it", "20it")),
     pytest.param("conv_net:ConvNet", ("1", "3", "1"), marks=[
         pytest.mark.mnist, pytest.mark.skipif(not DATA, reason="FASTKOOP_DATA_DIR names no MNIST files")])],
)  # fmt: skip
def test_problems_that_the_package_does_not_know(name, spans, tmp_path):
    """Shorter than the files say; as they say it, `python -m bench compare` runs them."""
    given = ["--t1", spans[0], "--t2", spans[1], "--T", spans[2], "--eval-every", "10", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["compare", "--problem", by_file(name), *given])
    assert done.exit_code == 0, done.stderr
    stored = json.loads((tmp_path / "results.json").read_text())
    (run,) = stored["runs"]
    assert stored["complete"] and "test loss" in done.stdout and max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert run["optimizer"]["iteration"] == run["koopman"]["iteration"]
    assert all(loss is not None for loss in run["optimizer"]["test_loss"])
    assert {"mean", "line", "optimizer"} <= set(run["baselines"])


def test_batch_normalisation_s_statistics_follow_the_weights():
    """The mean of the iterates, judged with statistics of its own; the model's are put back."""
    from fastkoop.experiments.normalization import Statistics
    from fastkoop.experiments.problems.checked import CheckedProblem

    class Normalised:
        def make_model(self, seed):
            return torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))

        def batches(self, seed):
            return [torch.tensor([[1.0], [3.0]])]

        def loss(self, model, batch):
            return model(batch).sum()

        def evaluate(self, model):
            return 0.0

    problem = CheckedProblem(Normalised())
    model = problem.make_model(0).eval()
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    with Statistics(problem).of(model):
        assert model[1].running_mean.item() == pytest.approx(10.0) and not model.training
    assert model[1].running_mean.item() == 0.0 and model[1].momentum == 0.1


@pytest.mark.parametrize("name", ["Iterable", "SeveralLosses", "Frozen", "QuasiNewton", "OwnOptimizer", "Half"])
def test_unusual_problems_are_compared(name):
    spans = {"t1": "3it", "t2": "15it", "T": "6it"}
    results = fastkoop.compare(by_file(f"odd:{name}"), **spans, eval_every=3)
    (run,) = results["runs"]
    losses = run["optimizer"]["test_loss"]
    assert all(map(np.isfinite, losses)) and losses[-1] != losses[0] and len(run["koopman"]["step_seconds"]) == 6
    assert np.isfinite(run["koopman"]["jumped"]["test_loss"]) and "seconds" in results.table()


def test_a_twin_of_a_quasi_newton_optimizer_goes_on_as_it_would():
    """L-BFGS loses half of itself where it is copied; its history has to come along all the same."""
    setup = prepare(Config.of(problem=by_file("odd:QuasiNewton")))
    training = setup.training(0)
    for _ in range(3):
        training.step(next(training.stream))
    twin, batches = training.twin(), [next(training.stream) for _ in range(3)]
    for side in (training, twin):
        for batch in batches:
            side.step(batch)
    for mine, its in zip(training.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(mine, its)


BAD = {
    "NoLoss": "tiny: a problem has the methods make_model, batches, loss, evaluate; this one lacks loss",
    "Empty": "tiny.batches: expected at least one batch",
    "OneShot": "tiny.batches: expected at least one batch",
    "NoParameters": "tiny.make_model: the model has no trainable parameters",
    "Meta": "tiny.make_model: the model is on meta, the comparison runs on cpu",
    "NotFinite": "tiny.make_model: the parameter weight holds a NaN or an infinity from the start",
    "NaNLoss": "tiny: the only seed stopped; seed 0: the training loss is nan at iteration 1",
    "Evaluates": "tiny.evaluate failed: KeyError: 'missing' (bad.py, line",
    "NoNumber": 'tiny.evaluate: expected a number or a mapping with "loss", got str',
    "NoLossKey": 'tiny.evaluate: expected a mapping with "loss", got accuracy',
    "Explodes": "tiny.loss failed: RuntimeError: the [red] cable (bad.py, line",
    "Vector": "tiny.loss failed: RuntimeError: grad can be implicitly created only for scalar outputs",
    "Constructor": "problem: Constructor() failed: OSError: no data (bad.py, line",
    "NotAModel": "tiny.make_model: expected a torch.nn.Module, got str",
    "NotAnOptimizer": "tiny.make_optimizer: expected a torch.optim.Optimizer, got str",
    "Generator": "tiny.batches: the batches have no length",
    "NaNEvaluated": "tiny: the only seed stopped; seed 0: evaluate says nan where the phase starts, at iteration 16",
    "HalfEpochs": 'tiny.epochs: expected whole epochs, or iterations as "500it", got 0.5',
    "Plateau": "odd.make_optimizer: expected a scheduler whose step() takes nothing",
    "TooShort": "odd.make_optimizer's scheduler failed: ValueError: Tried to step",
    "Complex": "odd.make_model: expected real parameters, got complex numbers in phase",
}


@pytest.mark.parametrize(("name", "says"), BAD.items(), ids=BAD)
def test_a_bad_problem_is_one_sentence_and_exit_code_2(name, says, tmp_path):
    spans = ["--t1", "2it", "--t2", "12it", "--T", "4it"] if name == "OneShot" else []
    file = "odd" if says.startswith("odd") else "bad"
    done = CliRunner().invoke(app, ["compare", "--problem", by_file(f"{file}:{name}"), *spans, "--out", str(tmp_path)])
    if name == "Generator":
        says = "t1: the problem's batches have no length"
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_stream_that_fails_is_told_by_its_method(tmp_path):
    with pytest.raises(InputError, match=re.escape("tiny.batches failed: ValueError: the file is cut (bad.py, line")):
        fastkoop.compare(by_file("bad:Generator"), t1="2it", t2="12it", T="4it")


def test_a_seed_that_stops_leaves_the_others(tmp_path):
    results = fastkoop.compare(by_file("bad:SecondSeed"), seeds=3, out=str(tmp_path))
    assert [run["seed"] for run in results["runs"]] == [0, 2] and results["complete"]
    assert results["stopped"] == [{"seed": 1, "reason": results["stopped"][0]["reason"]}]
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "Seed 1 stopped: the training loss is inf at iteration 1" in done.stdout


def test_a_seed_that_stops_leaves_the_others_in_phases_too(tmp_path):
    given = ["phases", "--problem", by_file("odd:Stopped"), "--phases", "1", "--t2", "8", "--seeds", "2"]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "phases.json").read_text())
    assert done.exit_code == 0 and [run["seed"] for run in stored["runs"]] == [0], done.stderr
    assert stored["stopped"] == [{"seed": 1, "reason": stored["stopped"][0]["reason"]}]
    assert "Seed 1 stopped: the training loss is nan at iteration 1" in done.stdout


def test_an_object_a_class_and_a_function_are_problems(tmp_path):
    space = {}
    exec((USER / "bad.py").read_text(), space)
    Good = space["Good"]
    losses = [
        fastkoop.compare(problem)["runs"][0]["optimizer"]["test_loss"] for problem in (Good(), Good, lambda: Good())
    ]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(TypeError, match="speed: no option of a comparison"):
        fastkoop.compare(Good(), speed=3)


def test_a_dry_run_trains_nothing_and_says_what_it_would_take(tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", "--problem", by_file("bad:Good"), "--dry-run", "--out", str(out)])
    assert done.exit_code == 0 and not out.exists(), done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in ("tiny: 3 weights", "4 before recording, 12 recorded, 8 in the phase", "iterations in all: 24",
                  "recording: a snapshot every 1 iterations", "time: about"):  # fmt: skip
        assert words in done.stdout, done.stdout


def test_a_budget_shrinks_spans_and_evaluations(monkeypatch):
    from fastkoop.experiments import estimate

    monkeypatch.setattr(estimate, "measure", lambda setup: estimate.Costs(0.01, 0.0, 0.1))
    config = estimate.within_budget(Config.of(budget=10.0))
    lengths = prepare(config).lengths
    assert lengths.before + lengths.record + 2 * lengths.phase == pytest.approx(600, abs=3)  # 6 s of steps
    assert -(-lengths.phase // config.eval_every) <= 10  # 2 s of evaluations, of both sides
    whole = estimate.within_budget(Config.of(budget=1e6))
    assert (whole.t1, whole.t2, whole.T) == (None, None, None)


def test_the_default_path_prints_both_problems_in_45_lines(tmp_path):
    """digits with results.json in --out, softmax in its subfolder; evaluations are few here, for the time's sake."""
    from fastkoop.experiments.terminal import summary_lines

    softmax = fastkoop.compare("softmax", eval_every=100, t1=20, t2=60, T=100)
    digits = fastkoop.compare("digits", eval_every=23, t1=1, t2=3, T=1)
    lines = [*summary_lines(digits), "", "", *summary_lines(softmax), ""]
    assert len(lines) <= 45 and max(map(len, lines)) <= 80
    loss = np.array(softmax["runs"][0]["optimizer"]["test_loss"])
    assert (loss >= 0).all() and loss[-1] < loss[0] and softmax["config"]["loss_name"] == "gap to the optimum"
