"""Walker: one predicted state after another, and back."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import (  # noqa: E402
    GRANULARITIES,
    assert_predicted,
    bits,
    blocks,
    exploding,
    flat,
    mlp_rows,
    net,
    recorded,
    same_bits,
    trained,
)

from fastkoop import Affine, Rank  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


def test_step_and_jump_mix():
    model, phase, trail = recorded(8)
    places = blocks(mlp_rows(model), "node", None)
    moves = [
        (lambda: phase.jump(3), 3), (phase.step, 4), (phase.step, 5), (lambda: phase.jump(2), 7),
        (lambda: phase.jump(0), 7), (phase.step, 8),
    ]  # fmt: skip
    for move, position in moves:
        move()
        assert phase.position == position
        assert_predicted(flat(model), trail, places, position)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
def test_looking_ahead_changes_no_bit(partition, q, dtype):
    model, phase, _ = recorded(9, dtype, partition=partition, q=q, every=2)
    states = []
    for _ in range(12):
        phase.step()
        states.append(bits(model))
    phase.rollback()
    for done, ahead in enumerate((1, 4, 1, 1, 1, 7, 2, 2, 1, 1, 1, 3)):
        phase.step(ahead=ahead)
        assert phase.position == 2 * (done + 1)
        assert same_bits(bits(model), states[done]), done
    phase.jump(4)
    phase.step(ahead=3)
    assert phase.position == 30


def test_ahead_is_checked():
    _, phase, _ = recorded(4)
    with pytest.raises(ValueError, match="ahead: expected an integer >= 1, got 0"):
        phase.step(ahead=0)


def test_rollback_is_bit_exact():
    model, phase, _ = recorded(6, torch.float32, every=2)
    trained(model, 1)
    with torch.no_grad():
        model[0].bias[0] = -0.0
    before = bits(model)
    first = None
    for moves in (lambda: phase.jump(4), phase.step, lambda: (phase.step(), phase.jump(2), phase.step())):
        moves()
        assert not same_bits(bits(model), before)
        phase.rollback()
        assert same_bits(bits(model), before) and phase.position == 0
    for _ in range(2):
        phase.step()
        assert first is None or same_bits(bits(model), first)
        first = bits(model)
        phase.rollback()


def test_rollback_needs_a_move():
    _, phase, _ = recorded(3)
    for prepare in (lambda: None, phase.fit, lambda: (phase.step(), phase.rollback())):
        prepare()
        with pytest.raises(ValueError, match="rollback: there was no step or jump since the last snapshot"):
            phase.rollback()


@pytest.mark.parametrize("partition", ["weight", "node"])
def test_steps_that_overflow_keep_their_block(partition):
    model, phase = exploding(partition)
    largest = 0.0
    for _ in range(160):
        phase.step()
        assert all(p.isfinite().all() for p in model.parameters())
        largest = max(largest, model.bias[0].item())
    assert largest > 1e37
    assert (model.bias[1:].abs() < 1e-6).all()


# Where a move starts


def clamped(iterations=9, bound=0.05, **options):
    """A network whose weights are clamped after every step, recorded by the optimizer's hook: before that."""
    model = net()
    phase = KoopmanPhase(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    phase.attach(optimizer)
    for seed in range(iterations):
        trained(model, 1, optimizer=optimizer, seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-bound, bound)
    return model, phase


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"partition": "network"}, {"storage_dtype": torch.bfloat16},
                                     {"partition": "quasi-node", "q": 3}])  # fmt: skip
def test_a_jump_starts_where_the_model_is(options):
    """Not at weights that the loop has changed after they were recorded."""
    model, phase = clamped(**options)
    before = bits(model)
    report = phase.jump(0)
    if not {"window", "storage_dtype"} & set(options):  # else the rest goes to a mean, or to what bfloat16 keeps
        assert same_bits(bits(model), before)
    assert report.drifted and "it began where they were" in str(report)
    phase.rollback()
    assert same_bits(bits(model), before)
    newest = [r.snapshots(phase.snapshots)[-1, :, : r.group.n].clone() for r in phase.parts.recordings]
    start = flat(model)
    phase.jump(2 * phase.every)
    jumped = flat(model)
    phase.rollback()
    phase.step()
    phase.step()
    np.testing.assert_allclose(flat(model), jumped, atol=2e-6)  # and so does a walk
    phase.rollback()
    if not {"window", "storage_dtype"} & set(options):  # and is as long as from the snapshot itself
        with torch.no_grad():
            for recording, rows in zip(phase.parts.recordings, newest, strict=True):
                recording.apply(rows)
        first = flat(model)
        assert not phase.jump(2).drifted
        np.testing.assert_allclose(flat(model) - first, jumped - start, atol=2e-6)


def test_a_walk_that_started_beside_the_snapshot_goes_on_after_a_checkpoint():
    model, phase = clamped()
    phase.step()
    state, here = copy.deepcopy(phase.state_dict()), copy.deepcopy(model.state_dict())
    phase.step()
    expected = bits(model)
    model.load_state_dict(here)
    other = KoopmanPhase(model)
    other.load_state_dict(state)
    other.step()
    assert same_bits(bits(model), expected)


def test_between_two_snapshots_a_move_starts_at_the_older():
    model, phase, trail = recorded(8, every=3)
    report = phase.jump(0)
    assert not report.drifted and np.array_equal(flat(model), trail[5])


@pytest.mark.parametrize("move", ["jump", "step"])
def test_blocks_of_which_the_cutoff_keeps_nothing_stay(move):
    """Their operator knows nothing of them, and would set them to their mean, or to zero."""
    model = nn.Linear(3, 2)
    phase = KoopmanPhase(model, observables=Affine(), cutoff=Rank(1))
    with torch.no_grad():
        model.weight[0], model.bias[0] = torch.tensor([0.1, -0.7, 0.3]), 0.2
    for t in range(7):  # not a power of two: a mean rounds
        with torch.no_grad():
            model.weight[1] = 1.0 + 0.5**t
        phase.record()
    before = [p.detach().clone() for p in model.parameters()]
    if move == "jump":
        assert phase.jump(3).held == {"rank 0": 1}
    else:
        phase.step()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.equal(before[0][1], model.weight[1])
