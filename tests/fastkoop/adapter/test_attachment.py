"""Attachment: every step of an optimizer is noticed once, whatever wraps it."""

import functools

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


class Mine(torch.optim.Adam):
    """Whose step calls its parent's, which PyTorch has wrapped, too."""

    fails = False

    def step(self, closure=None):
        if self.fails:
            super().step(closure)
            raise OSError("power")
        return super().step(closure)


class Twice(Mine):
    """Another layer of it, which steps twice."""

    def step(self, closure=None):
        super().step(closure)
        return super().step(closure)


def attached(optimizer_of):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    torch.optim.Adam(model.parameters())  # its class's step is wrapped from here on
    optimizer = optimizer_of(model.parameters())
    phase = KoopmanPhase(model)
    phase.attach(optimizer)
    return model, optimizer, phase


def train(model, step):
    model(torch.randn(4, 3)).square().sum().backward()
    step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, Mine, Twice])
def test_a_step_that_calls_its_parents_is_recorded_once(kind):
    model, optimizer, phase = attached(kind)
    for _ in range(3):
        train(model, optimizer.step)
    assert phase.snapshots == 3


def test_wrappers_of_the_step_do_not_count():
    model, optimizer, phase = attached(torch.optim.Adam)
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # wraps it
    optimizer.step = functools.partial(optimizer.step)
    for _ in range(3):
        train(model, optimizer.step)
    assert phase.snapshots == 3


def test_a_step_that_failed_is_forgotten():
    model, optimizer, phase = attached(Mine)
    train(model, optimizer.step)
    optimizer.fails = True
    with pytest.raises(OSError, match="power"):
        train(model, optimizer.step)
    optimizer.fails = False
    train(model, optimizer.step)
    assert phase.snapshots == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_step_is_recorded():
    model, optimizer, phase = attached(torch.optim.Adam)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3):
        train(model, step)
    assert phase.snapshots == 3
    assert torch.equal(phase.parts.recordings[0].buffer[2, :, :3], model.weight)


class Wrapper(torch.optim.Optimizer):
    """As accelerate's: an optimizer by kind, without hooks, around another."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_a_wrapped_optimizer_is_followed_inside():
    model, optimizer, phase = attached(lambda p: Wrapper(torch.optim.Adam(p)))
    for _ in range(3):
        train(model, optimizer.step)
    assert phase.snapshots == 3


class Unhooked(torch.optim.Optimizer):
    """That does not call PyTorch's constructor."""

    def __init__(self, parameters):
        self.param_groups, self.state = [{"params": list(parameters), "lr": 0.1}], {}


def test_an_optimizer_without_hooks_is_refused():
    model = nn.Linear(3, 2)
    phase = KoopmanPhase(model)
    with pytest.raises(TypeError, match=r"Unhooked calls no hooks after its steps; call record\(\) after each"):
        phase.attach(Unhooked(model.parameters()))
    assert not phase.attached


def test_of_parameters_that_two_optimizers_train_it_says_so():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.warns(RuntimeWarning, match=r"holds 2 of the 4 parameters .* and not 1\.weight"):
        KoopmanPhase(model).attach(first)
    KoopmanPhase(model, include="0.*").attach(first)
