"""The command line as a person meets it: what it prints, where, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from fastkoop.cli import app
from fastkoop.kernels.cuda import backend
from fastkoop.profile.throughput import Ceilings

QUICK = ("--t1", "1", "--t2", "2", "--T", "1")


def run(*arguments):
    """The fastkoop command in a process of its own."""
    command = [sys.executable, "-m", "fastkoop.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_compare_prints_a_table_and_the_verdict(tmp_path):
    done = run("compare", *QUICK, "--save-spectra", "--out", tmp_path / "new" / "folder")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "new" / "folder" / "spectra.npz")["eigenvalues"].shape == (1, 10)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("digits: Koopman (node-wise)") and lines[1].startswith("It ")
    assert "Koopman, one jump" in done.stdout and max(map(len, lines[:-1])) <= 80 and len(lines) <= 22
    assert json.loads((tmp_path / "new" / "folder" / "results.json").read_text())["complete"]


def test_profile_prints_ceilings_kernels_and_compile_time(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fastkoop.profile.devices.measure_ceilings", lambda k: Ceilings(k, k * 2e10, k * 1e11, k * 5e10)
    )
    options = ("--sizes", "20x4,3x9", "--blocks", "5", "--rounds", "1", "--seconds", "0.1", "--out", str(tmp_path))
    done = CliRunner().invoke(app, ["profile", *options])
    assert done.exit_code == 0, done.stderr
    assert "1 thread: copy 20 GB/s; matrix product 100 GFLOP/s in float32, 50 in float64" in done.stdout
    assert "n = 20, m = 4" in done.stdout and "n = 3, m = 9" in done.stdout
    for words in ("gram", "predict, rank", "of roof", "cholesky", "First calls"):
        assert words in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith("  ")) <= 80
    assert len(json.loads((tmp_path / "profile.json").read_text())["kernels"]) == 10 + 9
    assert (tmp_path / "roofline.png").exists()


def test_an_interrupted_profile_says_that_it_kept_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastkoop.profile.profiling.first_calls", interrupted)
    done = CliRunner().invoke(app, ["profile", "--out", str(tmp_path)])
    assert done.exit_code == 1 and done.stderr.strip() == "fastkoop: interrupted; kept nothing"
    assert list(tmp_path.iterdir()) == []


def test_info_names_versions_and_device():
    done = CliRunner().invoke(app, ["info"])
    assert done.exit_code == 0
    assert "numba" in done.stdout and "device" in done.stdout and "threads" in done.stdout


def test_warmup_says_seconds_per_kernel(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fastkoop.kernels.warm_up", lambda all: asked.append(all) or {"predict, float32": 1.5, "fit": 0.25}
    )
    for arguments in ([], ["--all"]):
        done = CliRunner().invoke(app, ["warmup", *arguments])
        lines = done.stdout.splitlines()
        assert done.exit_code == 0 and lines[0].startswith("compiled kernels are kept in")
        assert lines[-2:] == ["predict, float32     1.50 s", "fit                  0.25 s"]
    assert asked == [False, True]


def test_a_gpu_without_cupy_is_one_sentence_that_names_the_extras(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    backend.cache_clear()
    done = CliRunner().invoke(app, ["profile", "--device", "cuda", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "needs CuPy" in done.stderr and "fastkoop[cuda12]" in done.stderr
    assert "no cuda" in CliRunner().invoke(app, ["info"]).stdout


@pytest.fixture(autouse=True)
def handlers():
    """The process's own signal handlers, back after each test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "--t1", "3", "--t2", "3"), "t2: expected more than t1 = 3"),
        (("compare", "--T", "-1"), "T: expected an integer >= 0, got -1"),
        (("compare", "--partition", "quasi-node", "--q", "0"), "q: expected an integer >= 1, got 0"),
        (("compare", "--cutoff", "rank:0"), "Rank(k): expected an integer >= 1"),
        (("compare", "--cutoff", "energy:2"), "Energy(share): expected 0 < share <= 1"),
        (("compare", "--cutoff", "nonsense"), "cutoff: expected one of"),
        (("compare", "--stabilize", "-1"), "stabilize: expected a radius > 0"),
        (("compare", "--dataset", "mnist", "--data-dir", "/nonexistent"), "/nonexistent"),
        (("compare", "--out", "/proc/nothing"), "out: cannot write into '/proc/nothing'"),
        (("compare", "--out", ""), "out: expected a folder, got ''"),
        (("compare", "--lr", "1e308"), "lr: expected at most 3.4e+38, the largest float32, got 1e+308"),
        (("compare", "--observables", "delay:99999"), "99999"),
        (("compare", "--observables", "delay:9999999999999999999"), "integer < 2**63"),
        (("compare", "--t1", "3 it", "--t2", "2it"), "t2: expected more than t1 = 3"),
        (("compare", "--t1", "[red]"), "iterations such as \"500it\", got '[red]'"),
        (("compare", "--problem", "x[/y]"), "got 'x[/y]'"),
        (("compare", "--problem", "nothing.py:P"), "problem: there is no file 'nothing.py'"),
        (("compare", "--problem", "no_such_module:P"), "problem: cannot import 'no_such_module'"),
        (("compare", "--problem", "math:pi"), "a problem has the methods make_model, batches, loss, evaluate"),
        (("compare", "--problem", "math:tau2"), "problem: math has no 'tau2'"),
        (("compare", "--preset", "loud"), "preset: expected one of"),
        (("compare", "--budget", "-1"), "budget: expected seconds > 0"),
        (("sweep", "--grid", "speed=1"), "grid: expected NAME=VALUE"),
        (("phases", "--phases", "0"), "phases: expected an integer >= 1"),
        (("phases", "--line", "-1"), "line: expected epochs >= 0"),
        (("report", "/nonexistent"), "cannot read '/nonexistent'"),
        (("compare", "--seeds", "x"), "'--seeds'"),
        (("profile", "--device", "tpu"), "device: expected one of 'cpu', 'cuda', got 'tpu'"),
        (("profile", "--dtype", "half"), "dtype: expected one of 'float32', 'float64', got 'half'"),
        (("profile", "--sizes", "785"), "sizes: expected NxM,NxM,..."),
        (("profile", "--sizes", "900000x900000"), "sizes: 900000x900000 with 1 blocks takes about"),
        (("profile", "--blocks", "0"), "blocks: expected an integer >= 1, got 0"),
        (("profile", "--rounds", "0"), "rounds: expected an integer >= 1, got 0"),
        (("profile", "--seconds", "-1"), "seconds: expected a number > 0, got -1"),
        (("profile", "--out", "/proc/nothing"), "out: cannot write into '/proc/nothing'"),
        (("compere",), "compere"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert [*tmp_path.rglob("results.json"), *tmp_path.rglob("profile.json")] == []


def test_bad_usage_leaves_the_process_with_code_2():
    done = run("compare", "--t1", "3", "--t2", "3")
    assert done.returncode == 2
    assert done.stderr.startswith("fastkoop: t2: expected more than t1 = 3") and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_run_keeps_complete_seeds_and_says_so(tmp_path):
    command = [sys.executable, "-m", "fastkoop.cli", "compare", *QUICK, "--seeds", "500", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    results = tmp_path / "results.json"
    deadline = time.monotonic() + 300
    while not results.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "interrupted; kept" in errors and "Traceback" not in errors
    stored = json.loads(results.read_text())
    assert stored["complete"] is False and len(stored["runs"]) >= 1


@pytest.mark.parametrize("out", ["out[draft]", "o[/x]", "[bold]b[/bold]", "a:smile:", "[link=x]"])
def test_a_folder_s_name_is_text_and_never_markup(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = json.dumps(small_results())
    (tmp_path / out).mkdir(parents=True)
    (tmp_path / out / "results.json").write_text(results)
    done = CliRunner().invoke(app, ["report", out])
    assert done.exit_code == 0, done.stderr
    assert f"are in {out}" in done.stdout and (tmp_path / out / "report.html").exists()


def small_results():
    """results.json of two iterations, by hand."""
    side = {"iteration": [0, 2], "test_loss": [1.0, 0.5], "test_accuracy": [None, None], "step_seconds": [1e-3, 1e-3]}
    layer = {"0": 1.0}
    end = {"test_loss": None, "test_accuracy": None}
    at = {"gradients": 4, "seconds": 0.1}
    return {
        "config": {"dataset": "[bold]own[/]", "optimizer": "sgd", "partition": "node", "every": 1, "T": 1},
        "machine": {}, "complete": True,
        "runs": [{
            "seed": 0, "optimizer": side, "average": end,
            "koopman": {**side, "record_seconds": 0.1, "fit_seconds": 0.1, "jump_seconds": 0.1,
                        "rank": {"0": [1, 1, 1]}, "spectral_radius": layer, "residual": {"0": None}, "kept": {"0": 0},
                        "jumped": {**end, "guard_seconds": 0.0, "from_mean": None, "steps": 2, "rolled_back": False}},
            "baselines": {name: {**end, **at, "test_loss": 0.7} for name in ("start", "mean", "line", "optimizer")},
        }],
    }  # fmt: skip


@pytest.mark.parametrize("damage", [{"runs": []}, {"runs": [{"a": 1}]}, {"config": [1]}, {"runs": 3}, {"runs": [[]]}])
def test_damaged_results_are_refused_by_name(damage, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(small_results() | damage))
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2 and "results.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["--help"], ["compare", "--help"], ["sweep", "--help"], ["info"], ["nonsense"]])
def test_an_ascii_terminal_of_80_columns_reads_plain_text(command):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-m", "fastkoop.cli", *command], capture_output=True, timeout=300,
                          env=environment)  # fmt: skip
    text = (done.stdout + done.stderr).decode("ascii")
    assert done.returncode == (2 if command == ["nonsense"] else 0), text
    assert "Traceback" not in text and "╭" not in text
    assert max(map(len, text.splitlines())) <= 80 or command == ["info"]


def test_interrupted_while_the_figures_are_drawn(tmp_path, monkeypatch):
    """All that was computed is there, said, and drawn again from the file."""
    from fastkoop.experiments import compare as module

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_all", interrupted)
        done = CliRunner().invoke(app, ["compare", *QUICK, "--eval-every", "9", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "interrupted while the figures were drawn; results.json is complete with 1 of 1 seeds" in done.stderr
    assert f"fastkoop report {tmp_path}" in done.stderr
    again = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert again.exit_code == 0 and (tmp_path / "report.html").exists() and (tmp_path / "weights.png").exists()


def test_info_says_where_compiled_kernels_are():
    assert "kernels" in CliRunner().invoke(app, ["info"]).stdout
