"""Wrapped models and optimizers: torch.compile, data parallelism and accelerate change no name, state or number."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.adapter.wrappers import raw_optimizer, without_prefixes  # noqa: E402
from fastkoop.torch_adapter import (  # noqa: E402
    KoopmanPhase,
    KoopmanSchedule,
    load_checkpoint,
    save_checkpoint,
    step_cost,
)  # fmt: skip


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Sequential(nn.Tanh(), nn.Linear(5, 2)))


class Named(nn.Module):
    """A model that has a child called module, which is no wrapper's."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(6, 2)

    def forward(self, x):
        return self.module(x)


def partly_compiled():
    model = net()
    model[2] = torch.compile(model[2], backend="eager")
    return model


FORMS = {
    "raw": net, "compiled": lambda: torch.compile(net(), backend="eager"), "partly compiled": partly_compiled,
    "data parallel": lambda: nn.DataParallel(net()),
    "both": lambda: torch.compile(nn.DataParallel(net()), backend="eager"),
}  # fmt: skip


def trained(model, steps=5, **options):
    phase = KoopmanPhase(model, cutoff="jax", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    phase.attach(optimizer)
    torch.manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        next(iter(model.buffers())).add_(0.1)
        optimizer.step()
    phase.detach()
    return phase, optimizer


def values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("form", FORMS)
class TestForms:
    def test_names_are_the_raw_models(self, form):
        phase = KoopmanPhase(FORMS[form](), include="0.*", partition={"0.weight": "layer", "*": "node"})
        assert [group.name for group in phase.groups] == ["0", "0.bias"]
        assert list(KoopmanPhase(FORMS[form]()).parts.parameters.names) == list(dict(net().named_parameters()))
        KoopmanPhase(FORMS[form](), include="_orig_mod.0.*", exclude="module.2.*")

    @pytest.mark.parametrize("other", FORMS)
    def test_a_checkpoint_fits_every_other_form(self, form, other, tmp_path):
        model = FORMS[form]()
        phase, optimizer = trained(model)
        file = save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer, phase=phase)
        again = FORMS[other]()
        second, fresh = trained(again, steps=1)
        load_checkpoint(file, model=again, optimizer=fresh, phase=second)
        assert torch.equal(values(again), values(model))
        assert all(torch.equal(a, b) for a, b in zip(again.buffers(), model.buffers(), strict=True))
        phase.jump(3)
        second.jump(3)
        assert torch.equal(values(again), values(model))


def test_a_child_that_is_called_module_keeps_its_name(tmp_path):
    model = Named()
    assert KoopmanPhase(model).parts.parameters.names == ["module.weight", "module.bias"]
    file = save_checkpoint(tmp_path / "last.pt", model=model)
    load_checkpoint(file, model=nn.DataParallel(Named()))


def test_prefixes():
    for name in ("0.*", "module.0.*", "_orig_mod.0.*", "module._orig_mod.0.*"):
        assert without_prefixes(name) == "0.*"
    assert without_prefixes("head.module.weight") == "head.module.weight"


class Wrapper(torch.optim.Optimizer):
    """As accelerate's AcceleratedOptimizer: an optimizer by name, which holds another and has no hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=None):
        self.optimizer.zero_grad()


class Plain:
    """As mixed-precision wrappers of other libraries: no optimizer by name."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state

    def step(self, closure=None):
        self.optimizer.step(closure)


@pytest.mark.parametrize("wrap", [Wrapper, Plain, lambda optimizer: Wrapper(Plain(optimizer))])
class TestOptimizers:
    def test_are_attached_to_beneath(self, wrap):
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        wrapped = wrap(optimizer)
        assert raw_optimizer(wrapped) is optimizer
        phase = KoopmanPhase(model)
        phase.attach(wrapped)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            wrapped.step()
        assert phase.snapshots == 4
        phase.jump(2, optimizer_state="reset")
        assert not optimizer.state

    def test_schedules_and_costs(self, wrap):
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        wrapped = wrap(optimizer)
        options = {"guard": lambda: 1.0}
        schedule = KoopmanSchedule(KoopmanPhase(model), wrapped, burn_in=1, record=3, jump=2, **options)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.randn(8, 6)).square().mean()
            loss.backward()
            return loss

        reports = []
        for _ in range(4):
            closure()
            wrapped.step()
            reports.append(schedule.step())
        assert [report is not None for report in reports] == [False, False, False, True]
        schedule.close()
        assert step_cost(model, wrapped, closure, snapshots=3, rounds=1).step > 0

    def test_their_states_are_saved(self, wrap, tmp_path):
        model = net()
        optimizer = torch.optim.Adam(model.parameters())
        file = save_checkpoint(tmp_path / "last.pt", optimizer=optimizer)
        if hasattr(wrap(optimizer), "load_state_dict"):
            load_checkpoint(file, optimizer=wrap(optimizer))


def test_what_is_no_optimizer_is_not_looked_beneath():
    model = net()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 2)
    with pytest.raises(TypeError, match=r"optimizer: expected a torch\.optim\.Optimizer, got StepLR"):
        KoopmanPhase(model).attach(scheduler)


def test_a_compiled_step_records():
    """torch.compile of a function that steps an optimizer to which a phase is attached, with the default backend."""
    torch._dynamo.reset()
    model = nn.Linear(6, 2)
    phase = KoopmanPhase(model, partition="layer")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    phase.attach(optimizer)
    trail = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what compiling says of its own
        step = torch.compile(lambda: optimizer.step())
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            step()
            trail.append(values(model).sort().values)
    recorded = [recording.snapshots(4)[:, :, : recording.group.n].flatten(1) for recording in phase.parts.recordings]
    assert np.array_equal(torch.cat(recorded, dim=1).sort(dim=1).values, torch.stack(trail))
