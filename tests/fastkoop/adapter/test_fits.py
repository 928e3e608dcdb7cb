"""Fits: operators of a recording against the core on the same snapshots."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import adam_recorded, assert_predicted, bits, blocks, flat, mlp_rows, net, recorded, same_bits, scripted  # noqa: E402

import fastkoop as fk  # noqa: E402
from fastkoop import Momentum, Rank  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


def test_fit_twice_gives_the_same_bits():
    model, phase, _ = recorded(8)
    phase.jump(4)
    once = bits(model)
    phase.fit()
    assert phase.position == 4  # the parameters are where they were moved to, whatever is fitted
    phase.rollback()
    phase.jump(4)
    assert same_bits(bits(model), once)


def test_a_fit_after_a_move_does_not_forget_it():
    model, phase, _ = recorded(8)
    before = bits(model)
    phase.jump(50)
    phase.fit()
    phase.record()
    assert (phase.snapshots, phase.position) == (1, 0)  # no pair across the move
    model, phase, _ = recorded(8)
    phase.jump(50)
    phase.fit()
    phase.rollback()
    assert same_bits(bits(model), before)


def test_one_recording_can_be_fitted_in_several_ways():
    model, phase, trail = recorded(8, cutoff="array_api")
    phase.jump(3)
    usual = bits(model)
    phase.rollback()
    phase.fit(cutoff=Rank(1))
    assert all((op.rank == 1).all() for ops in phase.operators().values() for op in ops)
    phase.jump(3)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 3, cutoff=Rank(1))
    phase.rollback()
    phase.fit(cutoff="array_api")
    phase.jump(3)
    assert same_bits(bits(model), usual)
    with pytest.raises(TypeError, match="fit: expected cutoff, observables, stabilize, out_of_span, got every"):
        phase.fit(every=2)
    with pytest.raises(ValueError, match="is decided when a phase is made"):
        phase.fit(observables=Momentum())


def test_fit_reads_the_buffer_without_a_copy():
    _, phase, _ = recorded(4, partition="quasi-node", q=4)
    for recording, ops in zip(phase.parts.recordings, phase.operators().values(), strict=True):
        assert all(np.shares_memory(op._X, recording.buffer.numpy()) for op in ops)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_snapshots_are_refused_by_layer(value):
    model, phase, _ = recorded(4)
    with torch.no_grad():
        model[2].weight[1, 0] = value
    phase.record()
    before = bits(model)
    for act in (phase.fit, phase.step, lambda: phase.jump(1)):
        with pytest.raises(ValueError, match=r"layer 2: X: block \(1,\) holds a NaN or an infinity"):
            act()
    assert same_bits(bits(model), before)


def test_operators_by_layer_hold_both_sizes_of_quasi_nodes():
    _, phase, _ = recorded(5, partition="quasi-node", q=3)
    shapes = {name: [tuple(op.rank.shape) for op in ops] for name, ops in phase.operators().items()}
    assert shapes == {"0": [(5, 2), (5,)], "2": [(4, 2)], "4": [(3, 1), (3,)]}


class Scaled(nn.Module):
    """A matrix beside two vectors that are not its bias."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))
        self.scale = nn.Parameter(torch.ones(4))
        self.shift = nn.Parameter(torch.ones(4))


def test_operators_of_every_layer_are_there():
    model = nn.Sequential(Scaled())
    phase = KoopmanPhase(model)
    scripted(model, phase, 4)
    assert len(phase.operators()) == len(phase.groups) == 2


@pytest.mark.parametrize("snapshots", [0, 1])
def test_too_few_snapshots(snapshots):
    model = net()
    phase = KoopmanPhase(model)
    scripted(model, phase, snapshots)
    for act in (phase.fit, phase.step, lambda: phase.jump(1), phase.operators):
        with pytest.raises(ValueError, match=f"fit: expected at least 2 snapshots, got {snapshots}; train with"):
            act()


class TestObservables:
    @pytest.mark.parametrize(("partition", "q"), [("weight", None), ("quasi-node", 2), ("node", None), ("layer", None),
                                                  ("network", None)])  # fmt: skip
    @pytest.mark.parametrize(("observables", "stabilize"), [(fk.Affine(), "project"),
                                                            ((fk.Delay(2), fk.Affine()), "clip")])  # fmt: skip
    def test_jump_and_step_are_fit_and_predict(self, partition, q, observables, stabilize):
        _, phase, _ = adam_recorded(partition=partition, q=q, observables=observables, cutoff=1e-3, stabilize=stabilize,
                                   out_of_span="carry")  # fmt: skip
        views = [view for recording in phase.parts.recordings for view in recording.blocks(phase.snapshots)]
        expected = [
            fk.fit(view.numpy().copy(), time_axis=0, cutoff=1e-3, observables=observables, stabilize=stabilize,
                   out_of_span="carry").predict(4).ravel()
            for view in views
        ]  # fmt: skip
        phase.jump(4)
        got = np.concatenate([recording.current().numpy().ravel() for recording in phase.parts.recordings])
        np.testing.assert_allclose(np.sort(got), np.sort(np.concatenate(expected)), rtol=0, atol=1e-6)
        jumped = got
        phase.rollback()
        for ahead in (1, 2, 1, 1):
            phase.step(ahead)
        walked = np.concatenate([recording.current().numpy().ravel() for recording in phase.parts.recordings])
        np.testing.assert_allclose(walked, jumped, rtol=0, atol=2e-6)

    @pytest.mark.parametrize(("partition", "q"), [("weight", None), ("quasi-node", 2), ("node", None), ("layer", None)])
    def test_momentum_follows_a_quadratic_exactly(self, partition, q):
        """Full-batch gradient descent with momentum on a linear model is linear in weights and velocities."""
        torch.manual_seed(0)
        model = nn.Linear(3, 2, bias=False).double()
        x, target = torch.randn(20, 3, dtype=torch.float64), torch.zeros(20, 2, dtype=torch.float64)
        if partition != "layer" and partition != "node":
            x = torch.eye(3, dtype=torch.float64)[torch.arange(20) % 3]  # weights that do not see each other
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)

        def train():
            optimizer.zero_grad()
            (model(x) - target[:, : model.out_features]).square().mean().backward()
            optimizer.step()

        phase = KoopmanPhase(model, partition=partition, q=q, observables=fk.Momentum(), cutoff=1e-11)
        phase.attach(optimizer)
        for _ in range(26):
            train()
        phase.detach()
        assert phase.plan().bytes_per_snapshot == phase.parts.recordings[0].buffer[0].nbytes
        start = model.weight.detach().clone()
        for _ in range(15):
            train()
        true = model.weight.detach().clone()
        with torch.no_grad():
            model.weight.copy_(start)
        phase.jump(15)
        moved = (true - start).abs().max()
        assert (model.weight - true).abs().max() < 1e-5 * moved
        phase.rollback()
        for _ in range(15):
            phase.step()
        assert (model.weight - true).abs().max() < 1e-5 * moved

    def test_momentum_needs_velocities(self):
        model = nn.Linear(3, 2)
        phase = KoopmanPhase(model, observables=fk.Momentum())
        with pytest.raises(ValueError, match=r"Momentum\(\) reads the optimizer's velocities; call attach"):
            phase.record()
        for other, match in (
            (torch.optim.Adadelta(model.parameters()), "finds no velocity of weight in Adadelta"),
            (torch.optim.SGD(model.parameters(), lr=0.1), "finds no velocity of weight in SGD"),
            (torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9), "the learning rate of weight is 0"),
        ):
            with pytest.raises(ValueError, match=match):
                phase.attach(other)
            assert not phase.attached

    def test_too_few_snapshots_for_them(self):
        _, phase, _ = adam_recorded(3, observables=(fk.Delay(3), fk.Affine()))
        with pytest.raises(ValueError, match=r"at least 5 snapshots for Delay\(3\) with Affine\(\), got 3"):
            phase.fit()
