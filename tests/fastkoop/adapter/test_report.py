"""Reports: what operators are, in plain words and numbers."""

import copy
import io
import json
import math
import pickle
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import bits, mlp_rows, recorded, same_bits, trained  # noqa: E402

import fastkoop as fk  # noqa: E402
from fastkoop import cutoff as rules  # noqa: E402
from fastkoop.kernels import reference  # noqa: E402
from fastkoop.torch_adapter import JumpReport, KoopmanPhase, LayerReport  # noqa: E402


def test_report_says_what_the_operators_are():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    phase = KoopmanPhase(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    phase.attach(optimizer)
    trail = trained(model, 9, optimizer=optimizer)
    report = phase.jump(3)
    assert report.steps == 3 and report.seconds > 0
    assert (report.before, report.after, report.rolled_back) == (None, None, False)
    assert [layer.name for layer in report.layers] == ["0", "2"] == list(phase.operators())
    for layer, units in zip(report.layers, mlp_rows(model), strict=True):
        ranks, radii, residuals = [], [], []
        for unit in units:
            X = np.stack(trail, axis=1)[unit]
            rule = rules.resolve("array_api", len(unit), 8, X.dtype)
            K = reference.fit(X, rule)
            ranks.append(len(reference.truncated_svd(X[:, :-1], rule)[1]))
            radii.append(np.abs(np.linalg.eigvals(K)).max())
            miss = np.linalg.norm(K @ X[:, -2] - X[:, -1])
            residuals.append(miss / np.linalg.norm(X[:, -1] - X[:, -2]))
            assert np.isfinite(residuals[-1])  # no unit of this network is dead
        assert layer.rank == (min(ranks), np.median(ranks), max(ranks))
        assert (layer.granularity, layer.blocks, layer.weights) == ("node", len(units), units.size)
        assert layer.spectral_radius == pytest.approx(max(radii), rel=1e-6)
        shares = [float(op.overshoot.max()) for op in layer.operators]
        assert layer.overshoot == layer.as_dict()["overshoot"] == max(shares) and 0 <= layer.overshoot <= 1
        assert layer.residual == pytest.approx(np.sort(residuals)[(len(residuals) - 1) // 2], rel=1e-4, abs=1e-6)
    lines = str(report).splitlines()
    assert lines[0].startswith("jump over 3 steps in")
    assert lines[1].startswith("0: 5 node blocks, rank ")


def test_seconds_of_a_jump_are_without_its_report(monkeypatch):
    """The residual's pass over the recording is the report's, not the jump's."""
    _, phase, _ = recorded(6)
    phase.jump(2)
    phase.rollback()
    report = LayerReport.of

    def slowly(*arguments):
        time.sleep(0.2)
        return report(*arguments)

    monkeypatch.setattr(LayerReport, "of", slowly)
    assert phase.jump(2).seconds < 0.2


def test_report_of_uneven_ranks():
    """Smallest, median and largest; the blocks that stand still have no residual."""
    model = nn.Linear(4, 3)
    phase = KoopmanPhase(model)
    for seed in range(9):
        with torch.no_grad():
            model.weight[0], model.bias[0] = 0.0, 0.0
            model.weight[1], model.bias[1] = 0.5, 0.25
            model.weight[2] = torch.randn(4, generator=torch.Generator().manual_seed(seed))
            model.bias[2] = 0.1 * (-1) ** (seed // 2)
        phase.record()
    [layer] = phase.jump(1).layers
    assert layer.rank == (0, 1.0, 5)
    assert 0.0 < layer.residual


def test_reports_of_any_number_of_blocks(monkeypatch):
    """torch.quantile refuses more than 2^24 values, as a weight-wise embedding has them."""
    _, phase, _ = recorded(4, partition="weight")

    def refuse(*_, **__):
        raise RuntimeError("quantile() input tensor is too large")

    monkeypatch.setattr(torch, "quantile", refuse)
    monkeypatch.setattr(torch.Tensor, "quantile", refuse)
    assert phase.jump(2).layers[0].rank == (1, 1.0, 1)


# Plain numbers, copies


def jumped(**options):
    model, phase, _ = recorded(9, **options)
    return model, phase, phase.jump(3, guard=lambda: 1.0, horizon=[0, 1, 3], candidates=("koopman", "mean"))


def test_as_plain_numbers():
    _, _, report = jumped()
    told = report.as_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert [layer["name"] for layer in told["layers"]] == ["0", "2", "4"]
    assert told["layers"][0]["rank"] == list(report.layers[0].rank)
    assert told["tried"] == [[0, 1.0], [1, 1.0], [3, 1.0]] and told["others"] == [["mean", 0, 1.0]]
    assert (told["rolled_back"], told["candidate"], told["limit"]) == (True, "none", False)


def test_what_is_not_finite_is_none():
    report = JumpReport(math.inf, 0.1, [], before=np.float64("nan"), after=torch.tensor(2.0))
    told = report.as_dict()
    assert (told["steps"], told["limit"], told["before"], told["after"]) == (None, True, None, 2.0)
    assert str(report).startswith("jump to the limit")


@pytest.mark.parametrize("storage", [None, torch.bfloat16])
@pytest.mark.parametrize("way", ["copy", "pickle", "torch.save"])
def test_copies_predict_the_same_bits(way, storage):
    """Of a phase after a jump and in mid-walk, and of the jump's report."""
    model, phase, report = jumped(storage_dtype=storage)
    phase.step()
    phase.detach()
    if way == "copy":
        other_model, other, told = copy.deepcopy((model, phase, report))
    elif way == "pickle":
        other_model, other, told = pickle.loads(pickle.dumps((model, phase, report)))
    else:
        file = io.BytesIO()
        torch.save((model, phase, report), file)
        file.seek(0)
        other_model, other, told = torch.load(file, weights_only=False)
    assert told.as_dict() == report.as_dict()
    for _ in range(2):
        phase.step()
        other.step()
        assert same_bits(bits(model), bits(other_model))
    other.jump(4)
    assert not same_bits(bits(model), bits(other_model))  # they share no memory
    phase.jump(4)
    assert same_bits(bits(model), bits(other_model))
    if storage is None:
        [op], [twin] = report.layers[0].operators, told.layers[0].operators
        assert torch.equal(op.predict(5), twin.predict(5))


def test_compiling_is_told_apart(monkeypatch):
    """The clock of a jump stands still while kernels compile."""
    from numba.core import event

    fit = fk.fit

    def slowly(*arguments, **options):
        with event.trigger_event("numba:compile"):
            time.sleep(0.2)
        return fit(*arguments, **options)

    monkeypatch.setattr("fastkoop.adapter.fits.fit", slowly)
    _, phase, _ = recorded(6, partition="network")
    report = phase.jump(2)
    assert report.compile_seconds >= 0.2 and phase.fits.compile_seconds >= 0.2
    assert report.seconds < 0.2 and phase.fit_seconds < 0.2
    assert "s of compiling" in str(report)
