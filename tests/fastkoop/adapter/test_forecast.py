"""Forecasts and the gate: recordings that foretell their own end, and those that do not."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, Limits  # noqa: E402


def descended(partition="network", count=15, noise=0.0, **options):
    """Weights that go to 1 at three slow rates, recorded, with noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    usual = {"observables": fk.Affine(), "cutoff": fk.Rank(3), "stabilize": "clip"}
    phase = KoopmanPhase(model, partition, **{**usual, **options})
    amounts = [[torch.randn_like(p) for p in model.parameters()] for _ in range(3)]
    for t in range(count):
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                value = 1.0 + sum(rate**t * amount[i] for rate, amount in zip((0.99, 0.9, 0.6), amounts, strict=True))
                parameter.copy_(value + noise * torch.randn_like(parameter))
        phase.record()
    return model, phase


@pytest.mark.parametrize("partition", ["network", "layer", "node"])
def test_a_smooth_recording_foretells_its_end(partition):
    _, phase = descended(partition)
    forecast = phase.forecast()
    assert list(forecast) == (["network"] if partition == "network" else ["0", "1"])
    assert forecast.overall.pays is True and forecast.overall.error < 1e-6 < forecast.overall.baseline <= 1
    for layer in forecast.values():
        assert len(layer.error) == len(layer.baseline) == len(layer.pays)
        assert layer.pays.all() and layer.overall.pays is True
        assert len(layer.apart) == len(layer.overshoot) == len(layer.error) and not layer.overshoot.any()


def test_noise_does_not():
    _, phase = descended(noise=0.3)
    forecast = phase.forecast()
    assert forecast.overall.pays is False and forecast.overall.error > 0.3
    assert isinstance(forecast.overall.error, float) and isinstance(forecast.overall.baseline, float)


def test_it_is_the_fit_of_the_first_part_judged_on_the_last():
    """The slow truth: refitted, and every miss by itself."""
    _, phase = descended("node", count=13, noise=0.01)
    [first, second] = phase.forecast().values()
    for layer, recording in zip((first, second), phase.parts.recordings, strict=True):
        X = recording.snapshots(13).numpy()[..., : recording.group.n]
        op = fk.fit(X[:9].copy(), time_axis=0, observables=fk.Affine(), cutoff=fk.Rank(3), stabilize="clip")
        miss = np.linalg.norm(op.predict(4) - X[-1], axis=-1) / np.linalg.norm(X[-1] - X[8], axis=-1)
        np.testing.assert_allclose(layer.error, miss, rtol=1e-6)


def test_of_snapshots_in_half_precision():
    """Which operators let go of, and see again to be judged."""
    _, phase = descended("layer", storage_dtype=torch.bfloat16)
    error = phase.forecast().overall.error
    assert 0 < error < 0.5 and phase.jump(2, gate="forecast").layers


def test_it_is_computed_once_a_fit(monkeypatch):
    from fastkoop.operator import KoopmanOperator

    _, phase = descended("layer")
    misses, calls = KoopmanOperator.misses, []
    monkeypatch.setattr(KoopmanOperator, "misses", lambda op: calls.append(op) or misses(op))
    phase.forecast()
    phase.jump(3, gate="forecast", limits=Limits(forecast=1.0))
    assert phase.forecast() is phase.forecast() and len(calls) == 2  # layers
    phase.fit(cutoff=fk.Rank(1))
    phase.forecast()
    assert len(calls) == 4


def test_a_recording_too_short_to_split_says_no():
    _, phase = descended(count=3)
    assert phase.forecast().overall.pays is False


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_gate_lets_pass_what_was_foretold(noise):
    model, phase = descended("node", noise=noise)
    before = [p.detach().clone() for p in model.parameters()]
    report = phase.jump(5, gate="forecast")
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    if noise:
        assert not any(moved) and report.held == {"forecast": 5}
        assert (report.steps, report.candidate, report.rolled_back, phase.position) == (0, "none", False, 0)
    else:
        assert all(moved) and not report.held and report.steps == 5


def test_a_gated_jump_asks_no_operator_but_other_candidates():
    _, phase = descended("node", noise=0.3)
    values = iter([1.0, 0.5, 0.7])
    report = phase.jump(5, gate="forecast", guard=lambda: next(values), candidates=("koopman", "mean", "line"))
    assert report.candidate == "mean" and report.others == [("mean", 0, 0.5), ("line", 5, 0.7)]
    assert report.held == {"forecast": 5}


def test_blocks_beyond_a_limit_of_the_forecast_stay():
    model, phase = descended("node", noise=0.01)
    errors = torch.cat([layer.error for layer in phase.forecast().values()]).numpy()
    bound = float(np.median(errors))
    before = [p.detach().clone() for p in model.parameters()]
    report = phase.jump(5, limits=Limits(forecast=bound))
    assert report.held == {"forecast": int((errors > bound).sum())} and 0 < report.held["forecast"] < 5
    rows = [not torch.equal(a[i], b[i]) for a, b in zip(before[::2], list(model.parameters())[::2], strict=True)
            for i in range(len(a))]  # fmt: skip
    assert rows == (errors <= bound).tolist()


def test_the_gate_has_one_name():
    _, phase = descended()
    with pytest.raises(ValueError, match="gate: expected one of 'forecast', got 'holdout'"):
        phase.jump(5, gate="holdout")
