"""The one command for a GPU, from end to end on an emulated device; its parts; and the page's tables."""

import json
import math
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from bench import ROOT, needs
from bench.__main__ import main, parse, parser
from bench.common import devices, pages
from bench.gpu import every_kernel, stages
from bench.gpu import peers as gpu_peers
from bench.gpu import predictions as predicted
from bench.gpu import run as gpu
from bench.gpu import tables as gpu_tables
from bench.speed import cases, measure, peers, run, tables

pytestmark = pytest.mark.skipif(devices.emulator().COMPILER is None, reason="the emulation needs a C++ compiler")


@pytest.fixture(scope="module")
def device():
    """An emulated H200."""
    return devices.EmulatedGpu()


# Tests find none of the packages that only they need; libraries that use one of them still do.
BLOCKER = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mpmath", "pooch", "pydmd", "lightning", "transformers", "accelerate"):
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            if "/tests/" in frame.f_code.co_filename or "/fastkoop/" in frame.f_code.co_filename:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def dried(tmp_path_factory):
    """The folder of a dry run, its exit code and what it printed."""
    out, said = tmp_path_factory.mktemp("gpu"), []
    (blocker := tmp_path_factory.mktemp("blocker") / "sitecustomize.py").write_text(BLOCKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(blocker.parent))
        patch.setattr(gpu, "TINY", ("A8", "B11"))
        patch.setattr("builtins.print", lambda *words, **_: said.extend(" ".join(map(str, words)).splitlines()))
        code = main(["gpu", "--out", str(out), "--dry-run"])
    return out, code, said


class TestDryRun:
    def test_every_stage_runs_or_says_why_not(self, dried):
        out, code, said = dried
        done = json.loads((out / "summary.json").read_text())["stages"]
        status = {one["stage"]: one["status"] for one in done}
        assert code == 0, status
        names = ["environment", "parity", "benchmark-dry", "benchmark-compiled", "profile", "kernels"]
        assert list(status) == [*names, "memcheck", "racecheck"]
        for name, found in status.items():
            assert found == ("skipped: needs a CUDA device" if "check" in name else "ok"), (name, found)
        assert [line.partition(":")[0] for line in said[: len(done)]] == list(status)

    def test_tests_are_collected_where_their_own_packages_are_missing(self, dried):
        log = (dried[0] / "parity.log").read_text()
        assert "not collected" in log and "mpmath" in log and "test_contract.py" in log
        assert "TestReal" in log and "error" not in log.splitlines()[-1]

    def test_the_summary_holds_all_results(self, dried):
        out, _, _ = dried
        found = json.loads((out / "summary.json").read_text())
        assert list(found["benchmark"]) == ["A8", "B11"] and found["environment"]["device"] == "emulated H200"
        result = found["benchmark"]["A8"]
        assert result["blocks"] == 3 and not result["void"]
        assert set(result["contenders"]) | set(result["absent"]) == {
            "fastkoop", "fastkoop in a graph", *cases.select(["A8"])[0].gpu_peers,
        }  # fmt: skip
        assert "no CUDA graphs" in result["absent"]["fastkoop in a graph"]
        rows = found["profile"]["kernels"]
        assert {"gram", "solve", "evolve", "reconstruct", "predict", "pinv", "record"} <= {
            row["kernel"] for row in rows
        }
        assert all(0 < one["occupancy"] <= 1 and one["registers"] > 0 for row in rows for one in row["launches"])
        assert found["profile"]["ceilings"][0]["threads"] is None
        text = (out / "summary.json").read_text()
        assert str(ROOT) not in text and str(out) not in text

    def test_a_short_table_comes_last(self, dried):
        out, _, said = dried
        with_goals = [case.name for case in cases.CASES if case.gpu_goals]
        assert [line.split()[0] for line in said[-len(with_goals) :]] == with_goals
        assert "| A8 | 785 | 8 | 3 |" in (out / "table.md").read_text()
        assert (out / "profile" / "roofline.png").read_bytes().startswith(b"\x89PNG")


class TestStart:
    @pytest.mark.parametrize(("absent", "words"), [
        ("array_api_compat", "array-api-compat is missing.*pip download --no-deps -d wheels array-api-compat"),
        ("fastkoop.kernels", "fastkoop is not installed; .*pip wheel"),
    ])  # fmt: skip
    def test_says_in_one_sentence_what_is_missing(self, absent, words, capfd):
        code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({absent!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)  # as if it were nowhere
sys.meta_path.insert(0, Absent())
sys.argv = ["bench", "gpu", "--out", "nowhere"]
import runpy
runpy.run_module("bench", run_name="__main__")
"""
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 2
        said = capfd.readouterr().err.strip()
        assert re.search(words, said) and len(said.splitlines()) == 1

    def test_nothing_is_missing_here(self):
        assert needs.missing() is None


class TestPlan:
    def test_takes_less_than_nine_minutes(self, tmp_path):
        assert sum(stage.seconds for stage in gpu.plan(tmp_path, False)) < 535

    def test_goes_by_worth(self, tmp_path):
        names = [stage.name for stage in gpu.plan(tmp_path, False)]
        families = [f"benchmark-{name}" for name in ("A", "R", "B", "RR", "N", "large", "compiled")]
        assert names == ["environment", "parity", *families, "profile", "kernels", "memcheck", "racecheck"]

    def test_a_real_run_names_the_device_and_every_case(self, tmp_path):
        plan = gpu.plan(tmp_path, False)
        commands = {stage.name: stage.command(100.0) for stage in plan}
        for name, command in commands.items():
            assert name == "parity" or ("cuda" in command and "emulated" not in command)
        asked = {name: parse(parser(), command[3:]) for name, command in commands.items() if "benchmark" in name}
        assert all(
            (options.benchmark, options.verb, options.seconds) == ("speed", "run", 90.0) for options in asked.values()
        )
        selected = [case for options in asked.values() for case in cases.select(options.names)]
        left_out = {case.name for case in cases.CASES if case.gpu_goals} - {case.name for case in selected}
        assert left_out == {"C-array_api", "D-array_api"}
        assert asked["benchmark-A"].without == ["compiled", "jax"] and asked["benchmark-compiled"].without == []
        assert "--collect-only" not in commands["parity"]


class TestStages:
    def test_keep_what_was_said_whatever_comes(self, tmp_path):
        def python(code):
            return lambda seconds: [sys.executable, "-c", code]

        said = []
        began = time.monotonic()
        done = stages.run(
            [
                stages.Stage("good", 30, python("print('a'); print('b')")),
                stages.Stage("bad", 5, python("print('before'); raise SystemExit(3)")),
                stages.Stage("absent", 5, python(""), "no such tool"),
            ],
            tmp_path,
            said.append,
        )
        assert [one["status"] for one in done] == ["ok", "failed with exit code 3", "skipped: no such tool"]
        assert (tmp_path / "good.log").read_text() == "a\nb\n" and done[1]["said"] == "before"
        assert len(said) == 3 and time.monotonic() - began < 30

    def test_hand_on_what_is_done_as_soon_as_a_stage_ends(self, tmp_path):
        kept = []
        one = stages.Stage("one", 30, lambda _: [sys.executable, "-c", "print(1)"])
        two = stages.Stage("two", 5, lambda _: [], "no such tool")
        stages.run([one, two], tmp_path, lambda _: None, lambda done: kept.append([each["stage"] for each in done]))
        assert kept == [["one"], ["one", "two"]]

    @pytest.mark.parametrize(("says", "code", "status"), [
        ("========= Error: Device not supported. Please refer to the documentation", 1, "skipped: the tool says"),
        ("========= Error: Unable to attach to the process", 255, "skipped: the tool says"),
        ("========= Invalid __global__ read of size 4 bytes", 9, "failed with exit code 9"),
    ])  # fmt: skip
    def test_a_checker_that_knows_not_the_device_fails_nothing(self, tmp_path, says, code, status):
        command = [sys.executable, "-c", f"print({says!r}); raise SystemExit({code})"]
        [one] = stages.run(
            [stages.Stage("memcheck", 30, lambda _: command, None, gpu.UNSUPPORTED)], tmp_path, lambda _: None
        )
        assert one["status"].startswith(status)

    def test_stop_what_takes_too_long_with_its_children(self, tmp_path):
        child = "subprocess.run([sys.executable, '-c', 'while True: 0'])"
        code = f"import subprocess, sys; print('on', flush=True); {child}"
        [one] = stages.run([stages.Stage("slow", 2, lambda _: [sys.executable, "-c", code])], tmp_path)
        assert one["status"] == "stopped after 2 seconds" and one["said"] == "on" and one["seconds"] < 15

    def test_unspent_time_is_the_next_ones(self, tmp_path):
        given = []

        def command(seconds):
            given.append(seconds)
            return [sys.executable, "-c", ""]

        stages.run([stages.Stage("a", 60, command), stages.Stage("b", 5, command)], tmp_path, lambda _: None)
        assert given[0] <= 60 and 5 < given[1] <= 65


def test_every_peer_of_a_gpu_exists_and_agrees(device):
    """On well-conditioned tall and wide blocks, one step and many, all that run here predict the same."""
    rng, known = np.random.default_rng(0), gpu_peers.gpu_peers(device)
    assert {name for case in cases.CASES for name in case.gpu_peers} <= set(known)
    left_out = set()
    for n, m, steps in ((12, 4, 1), (12, 4, 40), (4, 12, 1), (4, 12, 30)):
        X = np.cumsum(rng.standard_normal((m + 1, 5, n), np.float32), axis=0)
        X /= np.linalg.norm(X[0], axis=-1)[None, :, None] * 4.0 ** np.arange(m + 1)[:, None, None]
        problem = peers.Problem(1e-6, steps, False)
        expected = np.array([measure.truth(X[:, b].T, measure.svd(X[:, b].T), steps, 1e-6) for b in range(5)])
        for name, peer in known.items():
            if "jax" in name or (name == "expert" and n < m and steps > 1):
                continue  # an optional package; the expert of full rank takes one step of wide blocks
            for make in peer.variants.values():
                try:
                    got = np.asarray(make(problem)(peer.take(X)))
                except RuntimeError:
                    left_out.add(name)
                    continue
                assert np.allclose(got, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max()), (name, n, m, steps)
    assert left_out <= {name for name in known if "graph" in name or "compiled" in name} | {"torch gesvda"}


def test_a_peer_out_of_memory_is_recorded_as_such(device, monkeypatch):
    def greedy(device):
        def run(X):
            raise MemoryError("Out of memory allocating 1,000 bytes, see /some/where")

        everybody = gpu_peers.gpu_peers(device)
        return everybody | {"expert": peers.Peer("expert", "expert", {"": lambda problem: run}, take=lambda X: X)}

    monkeypatch.setattr(measure, "gpu_peers", greedy)
    [case] = cases.select(["A8"])
    entrants, absent = measure.contenders(case, measure.rotations(case, device, 2), device)
    assert absent["expert"].startswith("out of memory (MemoryError") and "where" not in absent["expert"]
    assert entrants[0].name == "fastkoop" and "torch pinv" in {one.name for one in entrants}


def test_batches_of_a_gpu_repeat_those_of_a_cpu(device):
    case = cases.Case("X", 3, 2, 6, n=5)
    [X] = measure.batches_on(case, device)
    assert X.shape == (4, 6, 5) and np.array_equal(X[:, 0], X[:, 2]) and not np.array_equal(X[:, 0], X[:, 1])
    assert measure.batches_on(case, device, blocks=1)[0].shape == (4, 1, 5)
    assert len(measure.rotations(case, device)) > 1  # the emulated cache holds more than this


def test_a_graph_is_measured_against_a_graph():
    def one(name, kind, seconds):
        error = {"median": 1e-6, "max": 1e-6}
        return measure.Contender(name, kind, [], 1, 1, run.time, error=error, seconds=[[seconds]])

    ours, graph = one("fastkoop", "fastkoop", 2.0), one("fastkoop in a graph", "fastkoop", 1.0)
    others = [one("expert", "expert", 8.0), one("expert in a graph", "expert", 5.0), one("torch pinv", "library", 6.0)]
    found = run.denominators([ours, graph, *others])
    assert (found["expert"]["peer"], found["expert"]["ratio"]) == ("expert", 4.0)
    assert found["library"]["ratio"] == 3.0
    assert run.denominators([ours, *others])["expert"]["ratio"] == 2.5  # where ours could not be captured


def test_the_checkers_script_finds_wrong_answers_and_names_what_it_left_out(device, monkeypatch, capsys):
    monkeypatch.setattr(every_kernel, "shapes", lambda: [(9, 3)])
    every_kernel.run("emulated", math.inf)
    said = capsys.readouterr().out
    assert "kernels ran and agree" in said and "not launched: " in said
    monkeypatch.setattr(every_kernel.reference, "predict", lambda X, *_: 2 + np.zeros(len(X)))
    with pytest.raises(SystemExit, match="n = 9, m = 3, float32, T = 1, block 0: off by"):
        every_kernel.run("emulated", math.inf)


def test_the_page_shows_the_committed_results_and_predictions():
    assert pages.shown("cuda", "cases") == gpu_tables.table(tables.load(gpu_tables.FOLDER))
    stored = json.loads(predicted.FILE.read_text())
    assert stored == json.loads(json.dumps(predicted.predictions())), "python -m bench gpu table"
    assert pages.shown("cuda", "predictions") == predicted.table(stored)


def test_predictions_are_labelled_and_add_up():
    found = predicted.predictions()
    assert "predictions" in found["what"] and "nothing was measured" in found["what"]
    by_name = {one["case"]: one for one in found["cases"]}
    assert by_name["A8"]["floor_seconds"] == pytest.approx(20_000 * 785 * 10 * 4 / 4.8e12, rel=1e-6)
    assert by_name["A8"]["bound"] == "memory" and by_name["A64"]["bound"] == "arithmetic"
    for one in found["cases"]:
        assert one["floor_seconds"] <= one["at_best_seconds"] <= one["without_matrix_unit_seconds"] * 4
        assert one["to_reach_seconds"] is None or one["to_reach_seconds"] > one["floor_seconds"]
