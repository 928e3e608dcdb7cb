"""Candidates: states, mean and line of a recording, horizons, and the limit."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import adam_recorded, bits_of, same_bits  # noqa: E402

import fastkoop as fk  # noqa: E402
from fastkoop.adapter.candidates import horizon_steps, targets  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402

ALL = ("koopman", "mean", "line")


def trail_of(phase):
    """The snapshots of every group, side by side, (m+1, numbers)."""
    rows = [r.snapshots(phase.snapshots)[:, :, : r.group.n].flatten(1) for r in phase.parts.recordings]
    return torch.cat(rows, dim=1).double().numpy()


def now_of(phase):
    return np.concatenate([r.current().double().numpy().ravel() for r in phase.parts.recordings])


def test_what_is_tried_in_which_order():
    assert horizon_steps(math.inf, 2) == [0, *(2 * 2**k for k in range(11)), math.inf]
    assert horizon_steps(9, 2) == [0, 2, 4, 8, 9]
    assert targets(6, None, ALL, 1) == [("koopman", 6), ("mean", 0), ("line", 6)]
    assert targets(6, [1, math.inf], ALL, 1) == [("koopman", 1), ("koopman", math.inf), ("mean", 0), ("line", 1)]
    assert targets(2, "auto", ("mean", "koopman"), 1) == [("koopman", 0), ("koopman", 1), ("koopman", 2), ("mean", 0)]


@pytest.mark.parametrize("partition", ["weight", "node", "layer", "network"])
@pytest.mark.parametrize("winner", ["mean", "line"])
def test_the_guard_may_like_the_mean_or_the_line_best(partition, winner):
    _, phase, _ = adam_recorded(partition=partition)
    trail = trail_of(phase)
    scores = {("koopman", 4): 0.9, ("mean", 0): 0.5 if winner == "mean" else 0.8, ("line", 4): 0.6}
    values = iter([1.0, *scores.values()])
    report = phase.jump(4, guard=lambda: next(values), candidates=ALL)
    line = np.polynomial.polynomial.polyfit(np.arange(12), trail, 1)
    expected = trail.mean(axis=0) if winner == "mean" else line[0] + 15 * line[1]
    np.testing.assert_allclose(now_of(phase), expected, rtol=1e-5, atol=1e-6)
    assert (report.candidate, report.steps) == (winner, 0 if winner == "mean" else 4)
    assert report.others == [("mean", 0, scores["mean", 0]), ("line", 4, 0.6)]
    assert f", the {winner}" in str(report)
    for move in (phase.step, lambda: phase.jump(1)):
        with pytest.raises(ValueError, match=f"the parameters are at the recording's {winner}, from where no operator"):
            move()
    phase.rollback()
    np.testing.assert_array_equal(now_of(phase), trail[-1])
    phase.step()


def test_of_several_none_is_kept_that_is_no_better():
    model, phase, _ = adam_recorded()
    before = bits_of(model.parameters())
    report = phase.jump(4, guard=lambda: 1.0, candidates=ALL)
    assert report.rolled_back and report.candidate == "none" and same_bits(bits_of(model.parameters()), before)


def test_a_list_is_tried_as_given():
    _, phase, _ = adam_recorded()
    values = iter([5.0, 3.0, 2.0, 4.0])
    report = phase.jump(4, guard=lambda: next(values), horizon=[10, 1, 100])
    assert report.tried == [(10, 3.0), (1, 2.0), (100, 4.0)] and report.steps == 1 == phase.position


def test_a_noisy_preset_tries_all_candidates_with_a_horizon():
    _, phase, _ = adam_recorded(preset="noisy")
    report = phase.jump(2, guard=lambda: 1.0, horizon="auto")
    assert [name for name, *_ in report.others] == ["mean", "line", "line", "line"]
    report = phase.jump(2, guard=lambda: 1.0)
    assert not report.others


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"candidates": ALL}, "candidates: a guard chooses among them; pass guard="),
        (
            {"candidates": ("koopman", "median"), "guard": float},
            "candidates: expected one of 'koopman', 'mean', 'line'",
        ),
        ({"candidates": (), "guard": float}, "candidates: expected some of"),
        ({"candidates": ("mean", "mean"), "guard": float}, "once each"),
        ({"horizon": [], "guard": float}, 'horizon: expected None, "auto" or a list'),
        ({"horizon": [1, -2], "guard": float}, "horizon: expected an integer >= 0, got -2"),
        ({"horizon": [1]}, "horizon: keeps what a guard likes best; pass guard="),
    ],
)
def test_refusals(options, match):
    _, phase, _ = adam_recorded(4)
    with pytest.raises(ValueError, match=match):
        phase.jump(2, **options)


def test_horizons_move_in_multiples_of_every():
    _, phase, _ = adam_recorded(8, every=2)
    with pytest.raises(ValueError, match="horizon: expected a multiple of every=2, got 3"):
        phase.jump(4, guard=float, horizon=[2, 3])


# The limit


def settling(rows=3, **options):
    """A layer whose rows settle, grow and drift; recorded in float64."""
    model = nn.Linear(2, rows, bias=False).double()
    phase = KoopmanPhase(model, observables=fk.Affine(), **options)
    ways = (lambda t: 3.0 + 0.5**t, lambda t: 1.0 + 2.0**t, lambda t: 1.0 + 0.25 * t)
    for t in range(6):
        with torch.no_grad():
            for row in range(rows):
                model.weight[row, 0] = model.weight[row, 1] = ways[row](t)
        phase.record()
    return model, phase


def test_to_the_limit_go_the_blocks_that_have_one():
    model, phase = settling()
    before = model.weight.detach().clone()
    report = phase.jump(math.inf)
    torch.testing.assert_close(model.weight[0].detach(), torch.full((2,), 3.0, dtype=torch.float64), rtol=1e-10, atol=0)
    assert torch.equal(model.weight[1:], before[1:])
    assert report.held == {"diverges": 1, "drifts": 1} and [layer.kept for layer in report.layers] == [0]
    assert report.steps == math.inf == phase.position and "jump to the limit" in str(report)
    for move in (phase.step, lambda: phase.jump(1)):
        with pytest.raises(
            ValueError, match="the parameters are at the limit, from where no operator leads on; record"
        ):
            move()
    state = phase.state_dict()
    phase.rollback()
    assert torch.equal(model.weight, before)
    phase.step()
    other = KoopmanPhase(model, observables=fk.Affine())
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="at the limit"):
        other.step()
    other.record()
    assert other.position == 0 and other.snapshots == 1


def test_a_horizon_may_end_at_the_limit():
    model, phase = settling(1)
    report = phase.jump(math.inf, horizon="auto", guard=lambda: float((model.weight.detach() - 3.0).abs().max()))
    assert [steps for steps, _ in report.tried] == [0, *(2**k for k in range(11)), math.inf]
    assert abs(report.after) < 1e-12
    phase.rollback()
    report = phase.jump(4, horizon=[1, math.inf], guard=lambda: float((model.weight.detach() - 3.0).abs().max()))
    assert report.steps == math.inf


def test_velocities_at_the_limit_are_its_own():
    model = nn.Linear(2, 2, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    phase = KoopmanPhase(model, "network", observables=(fk.Affine(), fk.Momentum()), cutoff=1e-10)
    phase.attach(optimizer)
    for _ in range(16):
        optimizer.zero_grad()
        (model.weight * torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64) - 1.0).square().sum().backward()
        optimizer.step()
    phase.jump(math.inf, optimizer_state="predict")
    expected = torch.tensor([[1.0, 0.5], [1 / 3, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-8)
    assert optimizer.state[model.weight]["momentum_buffer"].abs().max() < 1e-7


def test_a_line_leaves_a_float64_recording_as_it_is():
    """A product in place would have scaled the snapshots, which `double` does not copy there."""
    model = nn.Linear(3, 1, dtype=torch.float64)
    phase = KoopmanPhase(model, "network")
    for _ in range(6):
        with torch.no_grad():
            model.weight += torch.randn(1, 3, dtype=torch.float64)
        phase.record()
    trail, values = trail_of(phase).copy(), iter([1.0, 0.5, 0.6, 0.7])
    report = phase.jump(64, guard=lambda: next(values), horizon=[1, 4, 64], candidates="line")
    np.testing.assert_array_equal(trail_of(phase), trail)
    line = np.polynomial.polynomial.polyfit(np.arange(6), trail, 1)
    np.testing.assert_allclose(now_of(phase), line[0] + 6 * line[1], rtol=1e-9, atol=1e-9)
    assert (report.candidate, report.steps, report.after) == ("line", 1, 0.5)
