"""The page's tables of Koopman steps are what the committed results say, and the benchmark runs."""

import json
from dataclasses import asdict
from statistics import median

import pytest

torch = pytest.importorskip("torch")

from bench.common import pages  # noqa: E402
from bench.steps import run as steps  # noqa: E402
from bench.steps import sides, tables  # noqa: E402
from bench.steps.measure import once  # noqa: E402
from bench.steps.setting import Setting  # noqa: E402
from fastkoop.experiments.problems import datasets  # noqa: E402
from fastkoop.experiments.training import Batches, make_model, make_optimizer, train_step  # noqa: E402

TINY = {
    "dataset": "digits", "t1": 1, "t2": 3, "epochs": (1, 2), "every": (1, 4), "rounds": 2, "ahead": 5, "stretch": 7,
    "shared": 5, "optimizers": ("adadelta",), "modes": ("eager",),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A benchmark of seconds, on digits."""
    folder = tmp_path_factory.mktemp("steps")
    path = steps.measure_all(Setting(**TINY), 2, None, folder)
    assert [file.name for file in folder.iterdir()] == ["digits.json"]
    return path


def test_the_page_shows_the_committed_results():
    assert pages.shown("steps") == tables.table_of(steps.FOLDER / "mnist.json")


def test_what_the_page_says_in_words_is_so():
    repeats = json.loads((steps.FOLDER / "mnist.json").read_text())["repeats"]
    for partition, low, high in (("node", 4, 5), ("layer", 20, 22)):
        ratios = [
            median(one["adadelta"]["optimizer"]["eager"]["step"])
            / median(one["adadelta"]["koopman"][partition]["1"]["step"])
            for one in repeats
        ]
        assert low < median(ratios) < high
    for partition, every, low, high in (("node", "1", 2, 2.5), ("layer", "1", 2.5, 4), ("node", "10", 25.5, 26.5),
                                        ("layer", "10", 35, 36)):  # fmt: skip
        ratios = []
        for one in repeats:
            phase = one["adadelta"]["koopman"][partition][every]
            cost = phase["record_seconds"] + median(phase["fit"]) + median(phase["jump_phase"]["2"])
            spent = one["adadelta"]["optimizer"]["eager"]["seconds"]
            ratios.append(median(spent["1870" if every == "10" else "1876"]) / cost)
        assert low < median(ratios) < high
    for name, window, said in (("adadelta", "10", 0.056), ("momentum", "1", 0.051), ("momentum", "10", 0.072)):
        found = median(share for one in repeats for share in one[name]["record_share"]["node"][window])
        assert round(found, 3) == said
    for partition in ("node", "layer"):
        assert median(share for one in repeats for share in one["adadelta"]["record_share"][partition]["1"]) < 0.05


def test_a_tiny_run_has_every_figure(tiny):
    results = json.loads(tiny.read_text())
    assert len(results["repeats"]) == 2 and results["machine"]["versions"]["torch"] == torch.__version__
    assert set(results) == {"machine", "commit", "uncommitted", "setting", "to_reach", "repeats"}
    for one in results["repeats"]:
        found = one["adadelta"]
        eager = found["optimizer"]["eager"]
        assert eager["reason"] is None and set(eager["seconds"]) == {"20", "23", "44", "46"}
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in eager["seconds"].values())
        for partition in ("node", "layer"):
            for every in ("1", "4"):
                side = found["koopman"][partition][every]
                for name in ("fit", "step", "ahead"):
                    assert len(side[name]) == 2 and min(side[name]) > 0
                for way in ("walk_phase", "ahead_phase", "jump_phase"):
                    assert set(side[way]) == {"1", "2"} and all(len(each) == 2 for each in side[way].values())
                assert set(side["loss"]["2"]) == {"walk", "jump"} and side["record_seconds"] > 0
            assert all(len(found["record_share"][partition][window]) == 2 for window in ("1", "10"))
            walked, jumped = (found["koopman"][partition]["1"]["loss"]["1"][way] for way in ("walk", "jump"))
            assert walked == pytest.approx(jumped, rel=1e-2)
        assert found["average_loss"] > 0
    first, second = results["repeats"]
    assert first["adadelta"]["koopman"]["node"]["1"]["loss"] == second["adadelta"]["koopman"]["node"]["1"]["loss"]


def test_the_tables_have_a_row_for_every_mode_and_phase(tiny):
    rows = tables.table_of(tiny).splitlines()
    assert rows[2].startswith("| to reach, against AdaDelta, eager |  | ≥ 3 | ≥ 10 |")
    assert len(rows) == 4 + 1 + 2 + 2 * 2 * 2


def test_what_does_not_compile_is_left_out_with_its_reason(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(sides.torch, "compile", fail)
    change = {"modes": ("eager", "compiled"), "rounds": 1, "every": (1,), "partitions": ("node",)}
    setting = Setting(**(TINY | change))
    found = once(setting, None)
    assert found["adadelta"]["optimizer"]["compiled"] == {
        "reason": "RuntimeError: no compiler", "step": [], "seconds": {}, "loss": {},
    }  # fmt: skip
    results = {"setting": asdict(setting), "to_reach": steps.TO_REACH, "repeats": [found]}
    assert "torch.compile fails here" in "\n".join(tables.step_rows(results))
    assert len(tables.phase_rows(results, 23)) == 4


@pytest.mark.parametrize("mode", ["eager", "compiled", "optimizer compiled"])
def test_an_optimizer_starts_over_in_place(mode, monkeypatch):
    monkeypatch.setattr(sides.torch, "compile", lambda function, **_: function)
    data = datasets.load("digits")
    model = make_model(data.features, data.classes, 0)
    optimizer = make_optimizer("adadelta", model, None)
    batches = list(Batches(data, 64, 0).epoch())
    train_step(model, optimizer, *batches[0])
    side = sides.Optimizer((model, optimizer), mode, batches)
    ends = []
    for _ in range(2):
        side.restart()
        side.advance(5)
        side.advance(9)
        assert len(side.seconds) == 9
        ends.append([p.detach().clone() for p in side.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    for images, labels in batches[:9]:
        train_step(model, optimizer, images, labels)
    assert all(torch.equal(a, b) for a, b in zip(ends[0], model.parameters(), strict=True))
