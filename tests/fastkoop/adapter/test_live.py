"""A load changes everything or nothing: states of other things are refused by name, failures are undone bit by bit."""

import copy
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.adapter import generators  # noqa: E402
from fastkoop.adapter.digest import digest  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, load_checkpoint, save_checkpoint  # noqa: E402


def net(width=5, dtype=torch.float32):
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 2)).to(dtype)


def trained(optimizer=torch.optim.Adam, steps=3, seed=0, model=None, **options):
    """A model and its optimizer after some steps."""
    torch.manual_seed(seed)
    model = model or net()
    optimizer = optimizer(model.parameters(), lr=0.01, **options)
    dtype = next(iter(model.parameters())).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 6, dtype=dtype)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def everything(*parts):
    """The bits of states and of the random generators."""
    return digest([[part.state_dict() for part in parts], generators.states()])


def refused(file, match, **parts):
    """The load is refused, and nothing has changed."""
    before = everything(*parts.values())
    with pytest.raises(ValueError, match=match) as error:
        load_checkpoint(file, **parts)
    assert everything(*parts.values()) == before
    assert "\n" not in str(error.value) and str(error.value).startswith(str(file))


class TestRefused:
    @pytest.mark.parametrize(
        ("live", "match"),
        [
            (lambda: net(4), r"model: expected 0\.weight \(4, 6\) in float32, as the live one has, got \(5, 6\) in"),
            (lambda: net(dtype=torch.float64), r"model: expected 0\.weight \(5, 6\) in float64, .* got .* in float32"),
            (lambda: net().append(nn.Linear(2, 2)), r"model: expected '3\.weight'"),
            (lambda: net()[:2], r"model: expected \d+ entries, .* got '2\.weight' beside them"),
            (lambda: nn.Linear(6, 5), r"model: expected 'weight', .* got a state without it"),
        ],
        ids=["layer size", "dtype", "more layers", "fewer layers", "another model"],
    )
    def test_other_models(self, live, match, tmp_path):
        model, optimizer = trained()
        file = save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer)
        live_optimizer = trained(seed=1)[1]  # fits, and is untouched all the same
        refused(file, match, optimizer=live_optimizer, model=live())

    @pytest.mark.parametrize(
        ("saved", "live", "match"),
        [
            ((torch.optim.Adam, {}), (torch.optim.SGD, {}), "expected the state of a SGD, .* got that of a Adam"),
            ((torch.optim.SGD, {}), (torch.optim.Adam, {}), "expected the state of a Adam, .* got that of a SGD"),
            ((torch.optim.Adam, {}), (torch.optim.AdamW, {}), "expected the state of a AdamW"),
            ((torch.optim.RMSprop, {}), (torch.optim.Adagrad, {}), "expected the state of a Adagrad"),
        ],
        ids=["Adam into SGD", "SGD into Adam", "Adam into AdamW", "RMSprop into Adagrad"],
    )
    def test_other_optimizers(self, saved, live, match, tmp_path):
        model, optimizer = trained(saved[0], **saved[1])
        file = save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer)
        refused(file, f"optimizer: {match}", model=trained(seed=1)[0], optimizer=trained(live[0], seed=1, **live[1])[1])

    @pytest.mark.parametrize(
        ("live", "match"),
        [
            (lambda m: torch.optim.Adam(m[0].parameters()), "expected 6 parameters in group 0|expected 2 parameters"),
            (lambda m: torch.optim.Adam([{"params": [p]} for p in m.parameters()]), "expected 6 groups of parameters"),
            (lambda m: torch.optim.Adam(net(4).parameters()), r"expected exp_avg \(4, 6\) in float32 of parameter 0"),
            (lambda m: torch.optim.Adam(net(dtype=torch.float64).parameters()), r"expected exp_avg .* in float64"),
        ],
        ids=["fewer parameters", "groups", "layer size", "dtype"],
    )
    def test_optimizers_of_other_parameters(self, live, match, tmp_path):
        model, optimizer = trained()
        file = save_checkpoint(tmp_path / "last.pt", optimizer=optimizer)
        refused(file, f"optimizer: {match}", optimizer=live(model))

    def test_another_schedulers_state(self, tmp_path):
        _, optimizer = trained()
        schedulers = torch.optim.lr_scheduler
        file = save_checkpoint(tmp_path / "last.pt", scheduler=schedulers.StepLR(optimizer, 3))
        refused(file, "scheduler: expected the state of a CosineAnnealingLR, .* got that of a StepLR",
                scheduler=schedulers.CosineAnnealingLR(optimizer, 3))  # fmt: skip

    def test_another_phase_leaves_model_and_optimizer(self, tmp_path):
        model, optimizer = trained()
        phase = KoopmanPhase(model)
        for _ in range(3):
            phase.record()
        file = save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer, phase=phase)
        other, other_optimizer = trained(seed=1)
        refused(file, "state: expected groups", model=other, optimizer=other_optimizer,
                phase=KoopmanPhase(other, partition="layer"))  # fmt: skip

    @pytest.mark.parametrize("which", ["torch", "numpy", "python"])
    def test_damaged_generators(self, which, tmp_path, monkeypatch):
        """Of a file that is otherwise whole, its checksums and all."""
        model, optimizer = trained()
        states = generators.states()
        states[which] = states[which][:5] if which == "torch" else {} if which == "numpy" else [3, [1, 2], None]
        with monkeypatch.context() as patch:
            patch.setattr(generators, "states", lambda: states)
            file = save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer)
        other, other_optimizer = trained(seed=1)
        refused(file, f"the state of {which}'s random generator is damaged", model=other, optimizer=other_optimizer)


def test_files_of_format_1_are_matched_by_what_they_hold(tmp_path):
    model, optimizer = trained(torch.optim.Adam)
    whole = torch.load(save_checkpoint(tmp_path / "last.pt", optimizer=optimizer), weights_only=True)
    del whole["manifest"]
    torch.save({**whole, "version": 1}, tmp_path / "old.pt")
    live = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning, match="format 1"):
        refused(
            tmp_path / "old.pt",
            r"expected the options of a SGD \(dampening, .* got amsgrad, .*, another",
            optimizer=live,
        )
    with pytest.warns(RuntimeWarning, match="format 1"):
        load_checkpoint(tmp_path / "old.pt", optimizer=torch.optim.Adam(model.parameters()))


class Stubborn:
    """A part that takes a state, draws random numbers and then fails."""

    def __init__(self):
        self.value = 1

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        failing, self.value = self.value == 2, state["value"]
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        if failing:
            raise KeyError("nothing of this is here")


def test_a_part_that_fails_undoes_all_others(tmp_path):
    model, moments = trained()
    schedule = torch.optim.lr_scheduler.StepLR(moments, 2)
    phase = KoopmanPhase(model)
    phase.attach(moments)
    stubborn = Stubborn()
    parts = {"model": model, "moments": moments, "schedule": schedule, "phase": phase, "stubborn": stubborn}
    file = save_checkpoint(tmp_path / "last.pt", **parts)
    stubborn.value = 2
    moments.zero_grad()
    model(torch.randn(8, 6)).square().mean().backward()
    moments.step()
    schedule.step()
    before, held = everything(*parts.values()), [id(p) for p in (*model.parameters(), *model.buffers())]
    moved = [id(value) for entries in moments.state.values() for value in entries.values()]
    with pytest.raises(KeyError, match="nothing of this is here"):
        load_checkpoint(file, **parts)
    stubborn.value = 2
    assert everything(*parts.values()) == before
    assert held == [id(p) for p in (*model.parameters(), *model.buffers())]
    assert moved == [id(value) for entries in moments.state.values() for value in entries.values()]


def test_a_whole_load_is_bit_equal(tmp_path):
    model, optimizer = trained(torch.optim.Adam)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    file = save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer, scheduler=scheduler)
    expected = everything(model, optimizer, scheduler)
    other, other_optimizer = trained(torch.optim.Adam, seed=5, steps=1)
    other_scheduler = torch.optim.lr_scheduler.OneCycleLR(other_optimizer, 0.1, total_steps=20)
    assert load_checkpoint(file, model=other, optimizer=other_optimizer, scheduler=other_scheduler) == {}
    assert everything(other, other_optimizer, other_scheduler) == expected


def test_fresh_and_stateless_optimizers_take_a_state(tmp_path):
    model, optimizer = trained(torch.optim.SGD, momentum=0.9)
    file = save_checkpoint(tmp_path / "last.pt", optimizer=optimizer)
    fresh = torch.optim.SGD(net().parameters(), lr=0.5, momentum=0.1)
    load_checkpoint(file, optimizer=fresh)
    assert digest(fresh.state_dict()) == digest(optimizer.state_dict())
    stateless = torch.optim.SGD(model.parameters(), lr=0.1)
    file = save_checkpoint(tmp_path / "last.pt", optimizer=stateless)
    load_checkpoint(file, optimizer=copy.deepcopy(stateless))


class Extra(nn.Linear):
    """A module with a state beside its tensors."""

    seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_extra_states_come_along(tmp_path):
    model, other = Extra(2, 2), Extra(2, 2)
    model.seen = 7
    load_checkpoint(save_checkpoint(tmp_path / "last.pt", model=model), model=other)
    assert other.seen == 7
