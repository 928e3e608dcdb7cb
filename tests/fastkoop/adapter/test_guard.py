"""Guard: a function that judges a model, and leaves no trace in its training."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import adam_recorded  # noqa: E402


def numbers():
    """What the generators would draw next."""
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002


@pytest.mark.parametrize("horizon", [None, "auto"])
def test_modes_and_generators_are_put_back(horizon):
    model, phase, _ = adam_recorded(model=nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 2)))
    model[1].eval()
    seen = []

    def guard():
        model.eval()
        model[1].train()
        seen.append(numbers())
        return 1.0

    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    phase.jump(4, guard=guard, horizon=horizon)
    after = numbers()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])
    assert after == numbers()
    assert all(draw == seen[0] for draw in seen)  # every candidate meets the same draws
    assert [module.training for module in model] == [True, False, True]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "None"), ("0.5", "a str"), ([1.0], "a list"), (torch.ones(2), "a Tensor")],
)
def test_what_is_no_number_names_the_guard(value, shown):
    model, phase, _ = adam_recorded()
    before = [p.detach().clone() for p in model.parameters()]

    def validation():
        model.eval()
        return value

    with pytest.raises(TypeError, match=f"guard: expected validation to return a number, .* got {shown}; return the"):
        phase.jump(2, guard=validation)
    assert model.training and phase.position == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("value", [1, np.float32(1.0), torch.tensor([1.0]), torch.tensor(1.0)])
def test_numbers_of_every_kind(value):
    _, phase, _ = adam_recorded()
    assert phase.jump(2, guard=lambda: value).before == 1.0
