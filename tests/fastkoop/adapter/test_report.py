"""Reports: what operators are, in plain words and numbers."""

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import mlp_rows, recorded, trained  # noqa: E402

from fastkoop import cutoff as rules  # noqa: E402
from fastkoop.kernels import reference  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, LayerReport  # noqa: E402


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
