"""Walker: one predicted state after another, and back."""

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
    recorded,
    same_bits,
    trained,
)


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
