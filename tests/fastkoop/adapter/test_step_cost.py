"""step_cost: its figures, and that nothing of the caller's has changed afterwards."""

import copy
import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.torch_adapter import StepCost, step_cost  # noqa: E402

QUICK = {"snapshots": 4, "rounds": 2, "ahead": 3}


def trainer(optimizer=torch.optim.Adam, model=None, **options):
    """A model with buffers and dropout, an optimizer with state, and a closure with random batches."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    model = model or nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 2))
    made = optimizer(model.parameters(), **options)

    def closure():
        made.zero_grad()
        loss = model(torch.randn(8, 6) + np.random.rand() + random.random()).square().mean()  # noqa: NPY002
        loss.backward()
        return loss

    made.step(closure)
    return model, made, closure


def everything(model, optimizer):
    """What must come back bit by bit."""
    return copy.deepcopy(
        (
            list(model.state_dict().values()), [p.grad for p in model.parameters()], optimizer.state_dict(),
            torch.get_rng_state(), np.random.get_state(), random.getstate(),  # noqa: NPY002
        )
    )  # fmt: skip


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


OPTIMIZERS = [
    (torch.optim.Adam, {}), (torch.optim.Adadelta, {}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=[kind.__name__ for kind, _ in OPTIMIZERS])
def test_figures_are_positive_and_nothing_changed(optimizer, options):
    model, made, closure = trainer(optimizer, **options)
    memory = [(id(p), p.data_ptr()) for p in model.parameters()]
    before = everything(model, made)
    cost = step_cost(model, made, closure, **QUICK)
    assert same(everything(model, made), before)
    assert [(id(p), p.data_ptr()) for p in model.parameters()] == memory
    assert isinstance(cost, StepCost)
    figures = cost.as_dict()
    assert all(value > 0 for value in figures["seconds"].values()) and cost.pays_after > 0
    assert figures["optimizer_steps"]["optimizer_step"] == 1.0
    assert figures["optimizer_steps"]["jump"] == cost.jump / cost.optimizer_step
    assert (cost.snapshots, cost.rounds, cost.ahead, cost.jump_steps, cost.every) == (4, 2, 3, 4, 1)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(figures)) == figures


def test_training_goes_on_as_if_nothing_had_been():
    ends = []
    for measured in (False, True):
        model, made, closure = trainer()
        if measured:
            step_cost(model, made, closure, **QUICK)
        for _ in range(3):
            made.step(closure)
        ends.append(everything(model, made))
    assert same(*ends)


def test_an_optimizer_that_has_not_stepped_yet():
    model = nn.Linear(6, 2)
    made = torch.optim.Adam(model.parameters())

    def closure():
        made.zero_grad()
        loss = model(torch.ones(3, 6)).square().mean()
        loss.backward()
        return loss

    step_cost(model, made, closure, **QUICK)
    assert not made.state and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "layer"}, {"partition": "weight", "cutoff": "jax"}, {"partition": "quasi-node", "q": 3},
        {"every": 3}, {"window": 2}, {"partition": {"0.*": "layer", "*": "node"}}, {"stabilize": "clip"},
        {"jump_steps": 0}, {"include": "0.*"},
    ],
)  # fmt: skip
def test_options_reach_the_phase(options):
    model, made, closure = trainer()
    cost = step_cost(model, made, closure, **{**QUICK, **options})
    assert cost.every == max(options.get("every", 1), options.get("window", 1))
    assert cost.jump_steps == options.get("jump_steps", 4 * cost.every)


def test_the_table_is_readable():
    lines = str(step_cost(*trainer(), **QUICK)).splitlines()
    assert "57 parameters, partition node, 4 snapshots, every=1; medians over 2 rounds" == lines[0]
    starts = ("optimizer step", "record", "fit", "first step", "step, one", "step, 3 at a time", "jump over 4 iter")
    assert all(line.startswith(start) for line, start in zip(lines[2:9], starts, strict=True))
    assert lines[2].split()[-1] == "1" and lines[9].startswith("one jump pays from")
    assert len({len(line) - len(line.split()[-1]) for line in lines[2:9]}) == 1  # columns


class Stop(Exception):
    pass


@pytest.mark.parametrize("calls", [1, 3, 9, 20])
def test_everything_is_put_back_after_an_exception(calls):
    model, made, closure = trainer()
    before, left = everything(model, made), iter(range(calls))

    def failing():
        loss = closure()
        if next(left, None) is None:
            raise Stop
        return loss

    with pytest.raises(Stop):
        step_cost(model, made, failing, **QUICK)
    assert same(everything(model, made), before)


@pytest.mark.parametrize("loss", [None, "loss", torch.ones(3), []])
def test_a_closure_without_a_loss(loss):
    model, made, closure = trainer()
    before = everything(model, made)
    with pytest.raises(ValueError, match="closure: expected it to return the loss, one number, got"):
        step_cost(model, made, lambda: closure() is None or loss, **QUICK)
    assert same(everything(model, made), before)


def test_a_closure_without_backward():
    model, made, _ = trainer()
    made.zero_grad()
    with pytest.raises(ValueError, match=r"closure: no parameter of the model has a gradient .*backward\(\)"):
        step_cost(model, made, lambda: model(torch.ones(4, 6)).sum(), **QUICK)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"closure": None}, TypeError, "closure: expected a function that returns the loss, got NoneType"),
        ({"optimizer": "adam"}, TypeError, r"optimizer: expected a torch\.optim\.Optimizer, got str"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, ValueError, "holds none of the model's param"),
        ({"snapshots": 1}, ValueError, "snapshots: expected an integer >= 2, got 1"),
        ({"rounds": 0}, ValueError, "rounds: expected an integer >= 1, got 0"),
        ({"ahead": 0}, ValueError, "ahead: expected an integer >= 1, got 0"),
        ({"capacity": 9}, ValueError, "capacity: step_cost holds as many snapshots as it records"),
        ({"every": 3, "jump_steps": 4}, ValueError, "jump_steps: expected a multiple of every=3, got 4"),
        ({"partition": "nodes"}, ValueError, "partition: expected one of"),
    ],
)
def test_bad_arguments(change, error, match):
    model, optimizer, closure = trainer()
    arguments = {"optimizer": optimizer, "closure": closure, **QUICK, **change}
    with pytest.raises(error, match=match):
        step_cost(model, **arguments)


def test_a_closure_whose_training_diverges_names_the_layer():
    model, made, closure = trainer(torch.optim.SGD, lr=1e30)
    before = everything(model, made)
    with pytest.raises(ValueError, match=r"layer .*: X: .* holds a NaN or an infinity"):
        step_cost(model, made, closure, **QUICK)
    assert same(everything(model, made), before)
