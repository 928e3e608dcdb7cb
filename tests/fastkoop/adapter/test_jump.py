"""Jump: predictions against the reference, guards, horizons, the way back."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import (  # noqa: E402
    GRANULARITIES,
    adam_recorded,
    assert_predicted,
    bits,
    bits_of,
    blocks,
    flat,
    mlp_rows,
    recorded,
    same_bits,
)

import fastkoop as fk  # noqa: E402
from fastkoop import cutoff as rules  # noqa: E402
from fastkoop.adapter.candidates import horizon_steps  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("iterations", [5, 14], ids=["tall nodes", "wide nodes"])
@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
@pytest.mark.parametrize("steps", [1, 5])
def test_jump_and_steps_equal_the_reference(partition, q, iterations, dtype, steps):
    model, phase, trail = recorded(iterations, dtype, partition=partition, q=q)
    places = blocks(mlp_rows(model), partition, q)
    start = bits(model)
    report = phase.jump(steps)
    assert_predicted(flat(model), trail, places, steps, dtype)
    assert not same_bits(bits(model), start)
    assert sum(layer.blocks for layer in report.layers) == len(places)
    assert sum(layer.kept for layer in report.layers) == 0
    phase.rollback()
    for done in range(1, steps + 1):
        phase.step()
        assert_predicted(flat(model), trail, places, done, dtype)


@pytest.mark.parametrize("cutoff", [0.05, "jax", rules.Rank(2), rules.Energy(0.9)])
def test_cutoff_reaches_every_block(cutoff):
    model, phase, trail = recorded(8, cutoff=cutoff)
    phase.jump(3)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 3, cutoff=cutoff)


def test_partition_by_pattern():
    model, phase, trail = recorded(8, partition={"0.*": "quasi-node", "2.*": "layer", "*": "weight"}, q=4)
    first, second, third = mlp_rows(model)
    places = blocks([first], "quasi-node", 4) + blocks([second], "layer", None) + blocks([third], "weight", None)
    phase.jump(4)
    assert_predicted(flat(model), trail, places, 4)


def test_clip_holds_an_exploding_trajectory():
    model = nn.Linear(1, 1, bias=False)
    phase = KoopmanPhase(model, stabilize="clip")
    for t in range(6):
        with torch.no_grad():
            model.weight.fill_(2.0**t)
        phase.record()
    report = phase.jump(50)
    assert model.weight.item() == pytest.approx(32.0, rel=1e-6)
    assert report.layers[0].spectral_radius == pytest.approx(1.0)


def test_jump_over_nothing_goes_to_the_newest_snapshot():
    model, phase, trail = recorded(8, every=3)
    assert not np.array_equal(flat(model), trail[5])
    report = phase.jump(0)
    assert report.steps == 0
    assert np.array_equal(flat(model), trail[5])


def test_going_to_the_newest_snapshot_is_a_move():
    """With windows it is a mean, which the next iterate does not follow."""
    model, phase, _ = recorded(8, window=4)
    before = bits(model)
    phase.jump(0)
    assert not same_bits(bits(model), before)
    phase.record()
    assert (phase.iterations, phase.snapshots) == (1, 0)


def test_guard_keeps_an_improvement():
    model, phase, trail = recorded(6)
    values = iter([2.0, 1.5])
    report = phase.jump(2, guard=lambda: next(values))
    assert (report.before, report.after, report.rolled_back, phase.position) == (2.0, 1.5, False, 2)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 2)
    assert "guard 2 -> 1.5, kept" in str(report)
    phase.rollback()
    assert np.array_equal(flat(model), trail[-1])


def test_guard_sees_the_model_before_and_after():
    model, phase, trail = recorded(6)
    seen = []
    phase.jump(2, guard=lambda: seen.append(flat(model)) or 0.0)
    assert np.array_equal(seen[0], trail[-1])
    assert np.array_equal(seen[1], flat(model))
    assert len(seen) == 2 and not np.array_equal(*seen)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1.0, 1.5), (1.0, math.nan), (1.0, math.inf), (math.nan, 1.0), (math.nan, math.nan),
        (math.inf, math.inf), (1.0, -math.inf),
    ],
)  # fmt: skip
@pytest.mark.parametrize("moved", [False, True])
def test_guard_puts_back(before, after, moved):
    model, phase, trail = recorded(6)
    if moved:
        phase.jump(3)
    kept, position = bits(model), phase.position
    values = iter([before, after])
    report = phase.jump(2, guard=lambda: next(values))
    assert report.rolled_back
    assert same_bits(bits(model), kept) and phase.position == position
    assert "worse: rolled back" in str(report)
    phase.step()
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), position + 1)


def test_guard_that_fails_puts_back():
    model, phase, _ = recorded(6)
    before, values = bits(model), iter([1.0])
    with pytest.raises(StopIteration):
        phase.jump(2, guard=lambda: next(values))
    assert same_bits(bits(model), before) and phase.position == 0


class TestHorizon:
    @pytest.mark.parametrize(
        ("steps", "every", "tried"),
        [(0, 1, [0]), (1, 1, [0, 1]), (2, 1, [0, 1, 2]), (8, 1, [0, 1, 2, 4, 8]), (9, 1, [0, 1, 2, 4, 8, 9]),
         (30, 5, [0, 5, 10, 20, 30])],
    )  # fmt: skip
    def test_steps(self, steps, every, tried):
        assert horizon_steps(steps, every) == tried

    @pytest.mark.parametrize("best", [0, 1, 2, 4, 8, 10])
    @pytest.mark.parametrize("partition", ["node", "layer"])
    def test_keeps_what_the_guard_likes_best(self, best, partition):
        model, phase, _ = adam_recorded(partition=partition)
        tried = [0, 1, 2, 4, 8, 10]
        states = {}
        for steps in tried:
            phase.jump(steps)
            states[steps] = bits_of(model.parameters())
            phase.rollback()
        values = iter([5.0] + [1.0 if steps == best else 2.0 + steps for steps in tried])
        report = phase.jump(10, horizon="auto", guard=lambda: next(values))
        assert report.steps == best == phase.position and not report.rolled_back
        assert [steps for steps, _ in report.tried] == tried
        assert (report.before, report.after) == (5.0, 1.0)
        assert same_bits(bits_of(model.parameters()), states[best])
        assert f"{best}: 1" in str(report)

    def test_is_one_factorisation(self, monkeypatch):
        _, phase, _ = adam_recorded()
        fits = []
        monkeypatch.setattr("fastkoop.adapter.fits.fit", lambda *a, **k: fits.append(1) or fk.fit(*a, **k))
        phase.jump(8, horizon="auto", guard=lambda: 1.0)
        assert len(fits) == 2  # layers

    @pytest.mark.parametrize(
        "values", [[1.0, 2.0, 3.0, 4.0], [1.0, math.nan, math.inf, math.nan], [math.nan, 1.0, 1.0, 1.0]]
    )
    def test_goes_back_if_nothing_is_better(self, values):
        model, phase, _ = adam_recorded()
        before, each = bits_of(model.parameters()), iter(values)
        report = phase.jump(2, horizon="auto", guard=lambda: next(each))
        assert report.rolled_back and report.steps == 0 and phase.position == 0
        assert same_bits(bits_of(model.parameters()), before)

    def test_of_two_equals_the_shorter(self):
        _, phase, _ = adam_recorded()
        values = iter([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        assert phase.jump(8, horizon="auto", guard=lambda: next(values)).steps == 1

    def test_no_better_than_now_is_not_kept(self):
        """Buffers that the guard moved come back, and the optimizer's state is left alone."""
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
        model, phase, optimizer = adam_recorded(model=model)
        state = [own["exp_avg"].clone() for own in optimizer.state.values()]
        before, x = bits_of([*model.parameters(), *model.buffers()]), torch.randn(16, 6)

        def guard():
            with torch.no_grad():
                model(x)
            return 1.0

        report = phase.jump(8, horizon="auto", guard=guard, optimizer_state=0.5)
        assert report.rolled_back and report.steps == 0
        assert same_bits(bits_of([*model.parameters(), *model.buffers()]), before)
        assert all(torch.equal(a, own["exp_avg"]) for a, own in zip(state, optimizer.state.values(), strict=True))

    def test_blocks_that_stay_keep_what_they_had_before_the_first_try(self):
        model = nn.Linear(1, 2, bias=False)
        phase = KoopmanPhase(model, "weight")
        for step in range(4):
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[10.0 ** (6 * step)], [0.5**step]]))
            phase.record()
        values = iter([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
        report = phase.jump(8, horizon="auto", guard=lambda: next(values))
        assert report.steps == 8 and report.layers[0].kept == 1
        assert model.weight[0] == 1e18 and model.weight[1] == 0.5**11

    def test_a_guard_that_fails_puts_back(self):
        model, phase, _ = adam_recorded()
        before, calls = bits_of(model.parameters()), iter([1.0, 0.9])
        with pytest.raises(StopIteration):
            phase.jump(8, horizon="auto", guard=lambda: next(calls))
        assert same_bits(bits_of(model.parameters()), before) and phase.position == 0

    @pytest.mark.parametrize(("horizon", "guard", "match"), [("all", lambda: 0.0, 'expected None, "auto" or a list'),
                                                             ("auto", None, "pass guard=")])  # fmt: skip
    def test_refusals(self, horizon, guard, match):
        _, phase, _ = adam_recorded(3)
        with pytest.raises(ValueError, match=match):
            phase.jump(2, guard=guard, horizon=horizon)
