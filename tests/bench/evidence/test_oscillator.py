"""The page's table of the paper's first experiment is what the committed results say, and the benchmark runs."""

import json
from statistics import median

import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.evidence import oscillator as bench  # noqa: E402

TINY = {"t1": 10, "t2": 60, "T": 50}


@pytest.fixture(autouse=True)
def one_thread():
    """As in the benchmark: a second thread only waits for the first on matrices of these sizes."""
    with bench.torch_threads(1):
        yield


@pytest.fixture(scope="module")
def found():
    """The committed results by setting."""
    return {one: json.loads((bench.FOLDER / f"{one.name}.json").read_text()) for one in bench.SETTINGS}


def test_the_page_shows_the_committed_results():
    assert pages.shown("oscillator") == bench.table_of()
    assert len([line for line in bench.table_of().splitlines() if line.startswith("| ")]) == 2 + len(bench.SETTINGS)


def test_every_setting_has_the_paper_s_networks(found):
    assert sorted(path.stem for path in bench.FOLDER.iterdir()) == sorted(one.name for one in bench.SETTINGS)
    assert sum(path.stat().st_size for path in bench.FOLDER.iterdir()) < 300_000
    for one, results in found.items():
        setting = results["setting"]
        assert (setting["t1"], setting["t2"], setting["T"], setting["seeds"]) == (35_000, 45_000, 2_500, 25)
        assert (setting["lr"], setting["partition"]) == (one.lr, one.partition)
        assert setting["dtype"] == one.dtype and setting["cutoff"] == one.cutoff and results["replaced"] == 2_500
        for measure in (results["loss"]["koopman"], results["error"]["drift"]["all"], results["seconds"]["fit"]):
            assert len(measure) == 25
        assert len(results["curve"]["iteration"]) == len(results["curve"]["koopman"]) == 51


def test_what_the_page_says_in_words_is_so(found):
    def middle(setting, *keys):
        value = found[setting]
        for key in keys:
            value = value[key]
        return median(value)

    def below(setting, end):
        loss = found[setting]["loss"]
        return sum(own < other for own, other in zip(loss["koopman"], loss[end], strict=True))

    node = {lr: bench.Setting(lr) for lr in (1.0, 0.1, 0.01, 1e-3)}
    assert found[node[1e-3]]["authors_measure"]["all"] < 0.021 and middle(node[1e-3], "error", "koopman", "all") < 0.125
    for lr in (1.0, 0.1, 0.01):
        rise = middle(node[lr], "loss", "koopman") / middle(node[lr], "loss", "start")
        assert middle(node[lr], "error", "koopman", "all") > 1 and 27 < rise < 253 and below(node[lr], "start") == 0
    assert middle(node[0.01], "error", "koopman", "0") > 4.3 and found[node[0.01]]["authors_measure"]["best"] < 0.29
    for cutoff in ("numpy", "array_api", "jax"):
        exact = bench.Setting(1e-3, cutoff=cutoff, dtype="float64")
        assert max(middle(exact, "error", "koopman", layer) for layer in "24") < 1e-4
        assert 0.2 < middle(exact, "error", "koopman", "0") < 0.22
        assert found[exact]["authors_measure"]["all"] < 1.001e-4
    network = bench.Setting(partition="network")
    assert below(network, "average") == 11 and middle(network, "loss", "average") < middle(network, "loss", "koopman")
    gains = [
        middle(node[1e-3], "loss", "start") - middle(node[1e-3], "loss", end)
        for end in ("koopman", "drift", "optimizer")
    ]
    assert 0.4 < gains[0] / gains[2] < 0.6 and gains[1] / gains[2] > 0.99 and below(node[1e-3], "drift") == 0
    for partition in ("layer", "network"):
        assert below(bench.Setting(1e-3, partition), "drift") < 25 / 2
    for setting, results in found.items():
        if setting.partition == "node":
            seconds = results["seconds"]
            phase, alone = median(seconds["optimizer_phase"]), median(seconds["fit"]) + median(seconds["jump"])
            assert 4.8 < phase / median(seconds["jumped"]) < 6 and phase / alone > 70


def test_settings_of_a_learning_rate_share_their_networks(found):
    for one, results in found.items():
        same = found[bench.Setting(one.lr, dtype=one.dtype)]
        for end in ("start", "optimizer", "average", "drift"):
            assert results["loss"][end] == same["loss"][end]


def test_a_tiny_run_has_every_figure_and_steps_of_a_single_network(tmp_path):
    settings = [bench.Setting(), bench.Setting(0.1, "layer", "jax")]
    bench.run_settings(settings, 2, tmp_path, **TINY)
    for setting in settings:
        results = json.loads((tmp_path / f"{setting.name}.json").read_text())
        assert results["curve"]["koopman"][-1] == pytest.approx(median(results["loss"]["koopman"]), rel=1e-6)
        assert bench.row(results).count("|") == 15
        assert 1 < median(results["seconds"]["step_by_double_autograd"]) / median(results["seconds"]["optimizer_step"])
        assert results["machine"]["torch_threads"] == 1
        seconds = results["seconds"]
        for whole, parts in (("walked", ("fit", "walk")), ("jumped", ("fit", "jump"))):
            for at in range(2):
                expected = 50 * seconds["record"][at] + sum(seconds[part][at] for part in parts)
                assert seconds[whole][at] == pytest.approx(expected, rel=1e-5)


def test_networks_trained_together_are_what_the_command_trains():
    """Apart from rounding, which these few iterations do not amplify yet."""
    problem = bench.Oscillator(dtype=torch.float64)
    states = bench.train_together(problem, 3, 1.0, 5, 20, lambda done: None)
    for seed in range(3):
        model = problem.make_model(seed)
        optimizer = bench.make_optimizer("adadelta", model, 1.0)
        replayed = bench.Replay(torch.float64, 5, states)
        other = replayed.make_model(seed)
        idle = bench.make_optimizer("adadelta", other, 1.0)
        for iteration in range(20):
            bench.train_step(problem, model, optimizer)
            replayed.train_step(other, idle, None)
            for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
                if iteration + 1 >= 5:
                    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_differentiating_twice_is_the_same_step():
    problem = bench.Oscillator(dtype=torch.float64)
    models = [problem.make_model(0) for _ in range(2)]
    for step, model in zip((bench.train_step, bench.step_by_double_autograd), models, strict=True):
        optimizer = bench.make_optimizer("adadelta", model, 1.0)
        for _ in range(5):
            step(problem, model, optimizer)
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
