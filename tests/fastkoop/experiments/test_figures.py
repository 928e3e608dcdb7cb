"""The comparison's figures: the files, and what the axes, lines and words in them are."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from fastkoop.experiments import figures
from fastkoop.experiments.figures import draw
from fastkoop.experiments.paths import WeightPaths

PANELS = ["accuracy.png", "loss.png", "time.png"]
CONFIG = {
    "dataset": "mnist", "partition": "quasi-node", "q": 10, "t1": 3, "t2": 5, "T": 1, "optimizer": "adadelta",
    "lr": 1.0, "batch_size": 64, "cutoff": "array_api", "stabilize": None, "every": 1, "seeds": 1,
    "eval_every": 1, "device": "cpu",
}  # fmt: skip
LENGTH = 400


def make_run(seed=0, koopman_loss=None, length=LENGTH):
    """A run with the numbers of a real one; `koopman_loss` maps iterations to losses."""
    rng = np.random.default_rng(seed)
    iteration = np.arange(length + 1)
    loss = 0.195 + 0.012 * rng.standard_normal(length + 1)
    koopman = 0.17 + 0.03 * iteration / length if koopman_loss is None else koopman_loss(iteration)
    accuracy = np.where(np.isfinite(koopman), np.clip(0.98 - 0.2 * koopman, 0.098, 1), 0.098)

    def part(loss, accuracy, milliseconds):
        seconds = 1e-3 * milliseconds * rng.uniform(0.95, 1.05, length)
        part = {"iteration": iteration, "test_loss": loss, "test_accuracy": accuracy, "step_seconds": seconds}
        return {name: values.tolist() for name, values in part.items()}

    beside = {"record_seconds": 0.6, "fit_seconds": 2.3, "jump_seconds": 0.012}
    return {
        "seed": seed,
        "optimizer": part(loss, 0.98 - 0.2 * loss, 0.71),
        "koopman": part(koopman, accuracy, 1.44) | beside,
        "average": {"test_loss": 0.161 + 0.001 * seed, "test_accuracy": 0.952},
    }


def make_results(seeds=1, **kwargs):
    return {"config": CONFIG, "machine": {}, "runs": [make_run(seed, **kwargs) for seed in range(seeds)]}


def make_paths(k=2, predicted=None, recorded=300):
    walk = np.cumsum(np.random.default_rng(1).standard_normal((recorded + LENGTH, k)), axis=0) * 2e-3
    labels = [f"layers.{i}.weight[{i}, 411]" for i in range(k)]
    true = walk[recorded:]
    predicted = true + 1e-3 if predicted is None else predicted
    return WeightPaths(labels, np.arange(1 - recorded, 1), walk[:recorded], np.arange(1, LENGTH + 1), true, predicted)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """draw(), but the figures come back by file name, built and not yet rendered."""

    def run(results, paths=None):
        kept = {}
        with monkeypatch.context() as patch:
            patch.setattr(figures, "save", lambda fig, path: kept.setdefault(path.name, fig))
            draw(results, paths, tmp_path)
        return kept

    return run


def words(fig):
    return " ".join(text.get_text() for text in fig.texts).replace("\u00a0", " ")


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def line(fig, label, axes=0):
    [found] = [line for line in fig.axes[axes].lines if line.get_label() == label]
    return found.get_ydata()


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("paths", [None, make_paths()], ids=["no weights", "weights"])
def test_writes_readable_pictures_and_nothing_else(tmp_path, seeds, paths):
    out = tmp_path / "new" / "folder"
    written = draw(make_results(seeds), paths, out)
    names = PANELS + ["weights.png"] * (paths is not None)
    assert [path.relative_to(out).as_posix() for path in written] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        picture = imread(path)
        assert picture.shape == (504, 840, 4)
        assert np.all(picture[:90, -6:, :3] == 1), "the heading runs off the figure"
        for colour in (figures._COLOURS["optimizer"], figures._COLOURS["koopman"]):
            rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert np.sum(np.all(np.abs(picture[..., :3] - rgb) < 0.02, axis=-1)) > 200, (path, colour)


def test_many_weights_make_the_picture_higher(tmp_path):
    assert imread(draw(make_results(), make_paths(7), tmp_path)[-1]).shape == (714, 840, 4)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 12])
def test_one_panel_per_weight(drawn, k):
    fig = drawn(make_results(), make_paths(k))["weights.png"]
    assert [ax.get_title() for ax in fig.axes] == make_paths(k).labels


def test_no_labels_no_weights(drawn):
    assert list(drawn(make_results(), make_paths(0))) == PANELS


def test_the_heading_says_what_is_shown(drawn):
    for fig in drawn(make_results(2), make_paths()).values():
        for part in ("AdaDelta", "mnist", "partition quasi-node", "q = 10", "t1 = 3", "t2 = 5",
                     "T = 1 epochs", "lr 1.0", "batch 64", "cutoff array_api", "2 seeds",
                     "iteration after t2"):  # fmt: skip
            assert part in words(fig)
        assert "stabilize" not in words(fig)


def test_a_calm_comparison_is_shown_whole_on_linear_axes(drawn):
    for name in ("accuracy.png", "loss.png"):
        fig = drawn(make_results())[name]
        low, high = fig.axes[0].get_ylim()
        assert fig.axes[0].get_yscale() == "linear"
        assert "leaves" not in words(fig)
        for label in ("AdaDelta", "Koopman", "mean of the recorded iterates"):
            assert low < np.min(line(fig, label)) and np.max(line(fig, label)) < high


def test_a_moderate_ratio_is_shown_whole_on_a_log_axis(drawn):
    fig = drawn(make_results(koopman_loss=lambda t: 0.17 * 6.0 ** (t / LENGTH)))["loss.png"]
    assert fig.axes[0].get_yscale() == "log"
    assert fig.axes[0].get_ylim()[1] > 1.02
    assert "leaves" not in words(fig)


EXPLOSIONS = {
    "1e3": (lambda t: 0.17 * 1e4 ** (t / LENGTH), "goes to 1.7e+03", "inf"),
    "1e300": (lambda t: 0.17 * 10.0 ** (0.75 * t), "goes to 1.7e+299", "inf"),
    "at once": (lambda t: np.where(t == 0, 0.2, 1e3), "leaves the axes at iteration 1; goes to 1e+03", "inf"),
    "inf": (lambda t: np.where(t < 200, 0.17, np.inf), "turns inf or nan at iteration 200", "goes to"),
    "nan": (lambda t: np.where(t < 200, 0.17, np.nan), "turns inf or nan at iteration 200", "goes to"),
    "all nan": (lambda t: np.full(len(t), np.nan), "turns inf or nan at iteration 0", "goes to"),
}


@pytest.mark.parametrize("case", EXPLOSIONS)
def test_an_exploding_loss_leaves_the_axes_in_words(drawn, case):
    koopman_loss, said, unsaid = EXPLOSIONS[case]
    fig = drawn(make_results(koopman_loss=koopman_loss))["loss.png"]
    fig.canvas.draw()
    heading = words(fig)
    assert "Koopman leaves the axes at iteration" in heading
    assert said in heading
    assert unsaid not in heading.replace("leaves", "")
    low, high = fig.axes[0].get_ylim()
    scale = np.log if fig.axes[0].get_yscale() == "log" else np.asarray
    loss = line(fig, "AdaDelta")
    assert low < loss.min() and loss.max() < high
    assert np.all(np.isfinite(line(fig, "Koopman"))), "the curve breaks off where it should leave the axes"
    height = np.ptp(scale(np.array([low, high])))
    assert np.ptp(scale(loss)) > 0.1 * height, "the optimizer's curve is squashed"
    assert any(marker.get_marker() == "^" for marker in fig.axes[0].lines)


def test_a_falling_accuracy_leaves_the_axes_below(drawn):
    fig = drawn(make_results(koopman_loss=lambda t: 0.17 * 1e4 ** (t / LENGTH)))["accuracy.png"]
    assert "goes to 9.8%" in words(fig)
    assert fig.axes[0].get_ylim()[0] > 50
    assert any(marker.get_marker() == "v" for marker in fig.axes[0].lines)


def test_everything_nan_still_makes_a_picture(tmp_path):
    results = make_results(2, koopman_loss=lambda t: np.full(len(t), np.nan))
    for run in results["runs"]:
        for key in ("test_loss", "test_accuracy", "step_seconds"):
            run["optimizer"][key] = [None] * len(run["optimizer"][key])
            run["koopman"][key] = [float("nan")] * len(run["koopman"][key])
        run["average"] = {"test_loss": float("inf"), "test_accuracy": None}
    paths = make_paths(3, predicted=np.full((LENGTH, 3), np.nan))
    assert [path.name for path in draw(results, paths, tmp_path)] == [*PANELS, "weights.png"]


@pytest.mark.parametrize("end", [1e300, float("inf")])
def test_an_optimizer_that_explodes_too(tmp_path, end):
    results = make_results(2, koopman_loss=lambda t: 0.17 * 10.0 ** (0.75 * t))
    for run in results["runs"]:
        run["optimizer"]["test_loss"][200:] = [end] * (LENGTH - 199)
    paths = make_paths(2)
    paths.true[200:], paths.recorded[10], paths.predicted[300:] = end, -end, -end
    assert len(draw(results, paths, tmp_path)) == 4


def test_the_median_counts_diverged_seeds(drawn):
    results = make_results(3)
    for run in results["runs"][1:]:
        run["koopman"]["test_loss"][100:] = [None] * (LENGTH - 99)
    fig = drawn(results)["loss.png"]
    median = line(fig, "Koopman")
    alive = np.array(results["runs"][0]["koopman"]["test_loss"])
    assert median[:100] == pytest.approx(alive[:100])
    assert np.all(median[100:] > fig.axes[0].get_ylim()[1])
    assert "in 2 of 3 seeds, first at iteration 100" in words(fig)


def test_seeds_are_thin_lines_under_their_median(drawn):
    results = make_results(3)
    fig = drawn(results)["loss.png"]
    widths = sorted(line.get_linewidth() for line in fig.axes[0].lines if len(line.get_xdata()) > 2)
    assert len(widths) == 2 * (3 + 1) and widths[5] < widths[6]
    losses = [run["optimizer"]["test_loss"] for run in results["runs"]]
    assert line(fig, "AdaDelta") == pytest.approx(np.median(losses, axis=0))
    assert line(fig, "mean of the recorded iterates") == pytest.approx([0.162, 0.162])


def test_seeds_evaluated_at_different_iterations_share_a_median_where_they_can(drawn):
    results = make_results(2)
    for name in ("iteration", "test_loss"):
        results["runs"][1]["koopman"][name] = results["runs"][1]["koopman"][name][: LENGTH + 1 : 10][:21]
    assert len(line(drawn(results)["loss.png"], "Koopman")) == 21


def test_a_seed_without_a_koopman_phase_does_not_spoil_the_median(drawn):
    results = make_results(2)
    del results["runs"][1]["koopman"]
    alone = results["runs"][0]["koopman"]["test_loss"]
    assert line(drawn(results)["loss.png"], "Koopman") == pytest.approx(alone)


def test_one_slow_iteration_does_not_squash_the_times(drawn):
    results = make_results()
    results["runs"][0]["koopman"]["step_seconds"][0] = 1.3
    fig = drawn(results)["time.png"]
    assert fig.axes[0].get_ylim()[1] < 2
    assert legend(fig) == ["AdaDelta, median 0.71 ms", "Koopman, median 1.44 ms"]
    assert "1 of 800 iterations lie above the axes; the slowest took 1.3 s" in words(fig)
    assert "recording 600 ms, fitting 2.3 s, one jump to the end 12 ms" in words(fig)


def test_times_that_a_coarse_clock_calls_zero(drawn):
    results = make_results()
    results["runs"][0]["optimizer"]["step_seconds"][::2] = [0.0] * (LENGTH // 2)
    fig = drawn(results)["time.png"]
    fig.canvas.draw()
    assert 0 < fig.axes[0].get_ylim()[0] < 1


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"config": {}, "runs": []},
        {"config": None, "runs": [{}]},
        {"runs": [make_run()]},
        {"config": CONFIG, "runs": [{who: make_run()[who]} for who in ("koopman", "optimizer", "average")]},
        {"config": CONFIG, "runs": [{"optimizer": {"iteration": [0], "test_loss": [0.2]}, "koopman": None}]},
        {"config": {**CONFIG, "dataset": "a $ cutoff_{ $"}, "runs": [make_run(length=1)]},
    ],
    ids=["empty", "no runs", "empty run", "no config", "parts", "one point", "mathematics"],
)
def test_missing_parts_are_left_out(tmp_path, results):
    assert [path.name for path in draw(results, None, tmp_path)] == PANELS


def test_nothing_recorded_is_said(drawn):
    for fig in drawn({}).values():
        assert "nothing recorded" in [text.get_text() for text in fig.axes[0].texts]


def test_weights_show_where_a_path_leaves_and_where_it_ends(drawn):
    predicted = make_paths(3).true.copy()
    predicted[:, 0] += 1e-3 * 10.0 ** np.arange(LENGTH)[:].clip(max=305)
    predicted[200:, 1] = np.nan
    paths = make_paths(3, predicted=predicted)
    fig = drawn(make_results(), paths)["weights.png"]
    fig.canvas.draw()
    said = [" ".join(text.get_text() for text in ax.texts).replace("\n", " ") for ax in fig.axes]
    assert said[0].startswith("leaves the axes at iteration") and said[0].endswith("goes to 1e+302")
    assert said[1:] == ["turns inf or nan at iteration 201", ""]
    for i, ax in enumerate(fig.axes):
        base = np.concatenate([paths.recorded[:, i], paths.true[:, i]])
        assert ax.get_ylim()[0] < base.min() and base.max() < ax.get_ylim()[1]
        assert np.ptp(base) > 0.3 * np.ptp(ax.get_ylim())


def test_weights_continue_from_the_last_recorded_point(drawn):
    paths = make_paths(1)
    fig = drawn(make_results(), paths)["weights.png"]
    for label in ("AdaDelta, true path", "Koopman, predicted path"):
        [path] = [line for line in fig.axes[0].lines if line.get_label() == label]
        assert (path.get_xdata()[0], path.get_ydata()[0]) == (0, paths.recorded[-1, 0])
        assert len(path.get_xdata()) == LENGTH + 1


@pytest.mark.parametrize("value", [0.0, 0.03125, -7.0])
def test_a_weight_that_never_moves(drawn, value):
    paths = make_paths(1, predicted=np.full((LENGTH, 1), value))
    paths.recorded[:], paths.true[:] = value, value
    fig = drawn(make_results(), paths)["weights.png"]
    fig.canvas.draw()
    low, high = fig.axes[0].get_ylim()
    assert low < value < high


def test_weights_with_nothing_recorded_and_with_mathematics_in_a_name(drawn):
    paths = make_paths(1, recorded=0)
    paths.labels[0] = "a_very.long_name.of.a.parameter.$weight_{$[3, 411]"
    fig = drawn(make_results(), paths)["weights.png"]
    fig.canvas.draw()
    title = fig.axes[0].get_title()
    assert title.startswith("…") and title.endswith("$weight_{$[3, 411]")


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    (tmp_path / "accuracy.png").write_bytes(b"old")

    def interrupt(source, target):
        assert source.parent == target.parent
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(make_results(), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.png"]
    assert (tmp_path / "accuracy.png").read_bytes() == b"old"


def test_the_inputs_stay_as_they_were(tmp_path):
    results, paths = make_results(2), make_paths(2, predicted=np.full((LENGTH, 2), np.nan))
    draw(results, paths, tmp_path)
    assert results == make_results(2)
    assert np.array_equal(paths.true, make_paths(2).true) and np.all(np.isnan(paths.predicted))


def test_no_global_plotting_state():
    code = "import sys, fastkoop.experiments.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_koopman_step_over_several_iterations_is_shared_among_them(drawn):
    """At every=10 a step of 1 ms is 0.1 ms an iteration, drawn where it ends."""
    results = make_results()
    results["config"] = CONFIG | {"every": 10}
    results["runs"][0]["koopman"]["step_seconds"] = [1e-3] * (LENGTH // 10)
    fig = drawn(results)["time.png"]
    assert "Koopman, median 0.1 ms" in legend(fig)
    dots = [drawn_line for drawn_line in fig.axes[0].lines if len(drawn_line.get_xdata()) == LENGTH // 10]
    assert dots[0].get_xdata()[[0, -1]].tolist() == [10, LENGTH]
    assert dots[0].get_ydata() == pytest.approx(0.1)
    assert max(len(drawn_line.get_xdata()) for drawn_line in fig.axes[0].lines) == LENGTH  # the optimizer's stay
