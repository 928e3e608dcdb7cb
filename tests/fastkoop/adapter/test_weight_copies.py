"""Optimizers that keep weights of their own: copies that are known move along, a jump that is undone is reported."""

import warnings

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. 2019, as commonly written: slow weights in a state of its own, the inner optimizer inside."""

    def __init__(self, optimizer, k=3, alpha=0.5):
        super().__init__([p for group in optimizer.param_groups for p in group["params"]], {"k": k})
        self.optimizer, self.k, self.alpha, self.calls = optimizer, k, alpha, 0
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    def step(self, closure=None):
        self.optimizer.step()
        self.calls += 1
        if self.calls % self.k == 0:
            with torch.no_grad():
                for p in (p for group in self.param_groups for p in group["params"]):
                    slow = self.state[p]["slow"]
                    slow.add_(p - slow, alpha=self.alpha)
                    p.copy_(slow)


class Beside(torch.optim.SGD):
    """Lookahead whose slow weights lie beside the inner optimizer's momentum."""

    calls = 0

    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p].setdefault("slow", p.detach().clone())
        super().step()
        self.calls += 1
        if self.calls % 3 == 0:
            with torch.no_grad():
                for p in (p for group in self.param_groups for p in group["params"]):
                    p.copy_(self.state[p]["slow"].lerp_(p, 0.5))


class Masters(torch.optim.Optimizer):
    """Steps float32 masters of bfloat16 parameters, and writes them into the model."""

    def __init__(self, params, lr=0.05, hide=False):
        super().__init__(params, {"lr": lr})
        held = [p for group in self.param_groups for p in group["params"]]
        masters = [p.detach().float().clone() for p in held]
        if hide:
            self.steps = lambda: zip(held, masters, strict=True)
        else:
            self.masters = masters
            self.steps = lambda: zip(held, self.masters, strict=True)

    @torch.no_grad()
    def step(self, closure=None):
        for p, master in self.steps():
            master.sub_(p.grad.float(), alpha=self.defaults["lr"])
            p.copy_(master)


def trained(make, dtype=torch.float32, steps=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    optimizer = make(model)
    phase = KoopmanPhase(model, partition="layer", cutoff=0.2)
    phase.attach(optimizer)
    train(model, optimizer, steps)
    return model, optimizer, phase


def train(model, optimizer, steps):
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(3)).to(next(model.parameters()).dtype)
    for _ in range(steps):
        model.zero_grad()
        (model(x) - 3.0).square().mean().backward()
        optimizer.step()


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


KINDS = {
    "Lookahead": (lambda model: Lookahead(sgd(model)), torch.float32),
    "slow weights beside momentum": (lambda model: Beside(model.parameters(), lr=0.02, momentum=0.9), torch.float32),
    "masters in bfloat16": (lambda model: Masters(model.parameters()), torch.bfloat16),
    "masters": (lambda model: Masters(model.parameters()), torch.float32),
}


@pytest.mark.parametrize("choice", ["keep", "reset"])
@pytest.mark.parametrize("kind", KINDS)
class TestKnown:
    def test_copies_move_along(self, kind, choice):
        model, optimizer, phase = trained(*KINDS[kind])
        before = flat(model)
        report = phase.jump(40, optimizer_state=choice)
        phase.detach()
        moved = flat(model) - before
        train(model, optimizer, 12)
        left = float((flat(model) - before) @ moved / (moved @ moved))
        assert left > 0.8 and not report.undone

    def test_and_come_back(self, kind, choice):
        model, optimizer, phase = trained(*KINDS[kind])
        before = flat(model)
        phase.jump(40, optimizer_state=choice)
        moved = flat(model) - before
        phase.rollback()
        assert torch.equal(flat(model), before)
        phase.detach()
        with torch.no_grad():  # nothing but what the optimizer writes of its own
            for _ in range(3):
                for p in model.parameters():
                    p.grad = torch.zeros_like(p)
                for entries in optimizer.state.values():
                    entries.pop("momentum_buffer", None)
                getattr(optimizer, "optimizer", optimizer).state.clear() if kind == "Lookahead" else None
                optimizer.step()
        assert float((flat(model) - before) @ moved / (moved @ moved)) < 0.2


def test_a_jump_that_is_undone_is_reported():
    model, optimizer, phase = trained(lambda model: Masters(model.parameters(), hide=True))
    report = phase.jump(40)
    assert not report.undone
    with pytest.warns(RuntimeWarning, match=r"jump: the optimizer took back \d+% of it in one step"):
        train(model, optimizer, 6)
    assert report.undone and "undone by the optimizer" in str(report)


@pytest.mark.parametrize("make", [sgd, lambda model: torch.optim.Adam(model.parameters(), lr=0.02)])
@pytest.mark.parametrize("steps", [1, 5, 60])
def test_an_ordinary_optimizer_undoes_nothing(make, steps):
    model, optimizer, phase = trained(make)
    report = phase.jump(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 14)
    assert not report.undone and not report.rolled_back


def test_a_rollback_is_no_undoing():
    model, optimizer, phase = trained(sgd)
    report = phase.jump(40)
    phase.rollback()
    train(model, optimizer, 8)
    assert not report.undone


def test_a_watch_that_ends_leaves_other_hooks_alone():
    """PyTorch refuses hooks that are removed while it calls them."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    phase = KoopmanPhase(model)
    phase.attach(optimizer)
    calls = []

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()

    train(6)
    phase.jump(2)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(30)
    assert len(calls) == 30
    phase.jump(2)
    assert len(optimizer._optimizer_step_post_hooks) == 3
