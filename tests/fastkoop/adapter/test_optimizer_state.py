"""The optimizer's state across a jump: kept, reset, decayed, or put back."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import adam_recorded, bits_of, same_bits  # noqa: E402

import fastkoop as fk  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, Limits  # noqa: E402

PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)], lr=0.1))


class TestOptimizerState:
    @pytest.mark.parametrize(
        ("make", "velocities"),
        [
            (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), ["momentum_buffer"]),
            (lambda p: torch.optim.Adam(p, lr=0.01), ["exp_avg"]),
            (lambda p: torch.optim.AdamW(p, lr=0.01), ["exp_avg"]),
            (lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5), ["momentum_buffer"]),
        ],
    )
    def test_keep_reset_decay(self, make, velocities):
        for choice in ("keep", "reset", 0.25):
            torch.manual_seed(0)
            model = nn.Linear(4, 3)
            optimizer = make(model.parameters())
            phase = KoopmanPhase(model)
            phase.attach(optimizer)
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.randn(8, 4)).square().sum().backward()
                optimizer.step()
            before = {p: {k: v.clone() if torch.is_tensor(v) else v for k, v in own.items()}
                      for p, own in optimizer.state.items()}  # fmt: skip
            phase.jump(2, optimizer_state=choice)
            if choice == "reset":
                assert not optimizer.state
                continue
            for parameter, own in optimizer.state.items():
                for name, value in own.items():
                    factor = choice if choice != "keep" and name in velocities else 1.0
                    torch.testing.assert_close(value, before[parameter][name] * factor, rtol=0, atol=0)
            assert velocities[0] in own

    def test_training_goes_on_after_each(self):
        for choice in ("keep", "reset", 0.5):
            model, phase, optimizer = adam_recorded()
            phase.jump(3, optimizer_state=choice)
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            assert all(torch.isfinite(p).all() for p in model.parameters())

    def test_only_what_moved_is_reset(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
        phase = KoopmanPhase(model, include="0.*")
        optimizer = torch.optim.Adam(model.parameters())
        phase.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
        phase.jump(1, optimizer_state="reset")
        assert set(optimizer.state) == set(model[1].parameters())

    def test_a_jump_that_went_back_leaves_it(self):
        model, phase, optimizer = adam_recorded()
        values = iter([1.0, 2.0])
        phase.jump(3, guard=lambda: next(values), optimizer_state="reset")
        assert len(optimizer.state) == len(list(model.parameters()))

    def test_schedulers_are_told(self):
        _, phase, optimizer = adam_recorded()
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=1000)
        optimizer.step()
        scheduler.step()
        phase.record()
        for _ in range(3):
            phase.record()
        phase.jump(7)
        assert scheduler.last_epoch == 1  # it is not, unless it is passed
        phase.rollback()
        phase.jump(7, schedulers=[scheduler])
        assert scheduler.last_epoch == 8
        phase.rollback()
        values = iter([1.0, 2.0])
        phase.jump(7, schedulers=[scheduler], guard=lambda: next(values))
        assert scheduler.last_epoch == 8  # it went back

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"optimizer_state": "forget"}, ValueError, 'expected "keep", "reset", "predict" or a factor'),
            ({"optimizer_state": 1.0}, ValueError, r"expected a factor in \(0, 1\), got 1.0"),
            ({"optimizer_state": True}, ValueError, "optimizer_state: expected"),
            ({"schedulers": [3]}, TypeError, "schedulers: expected learning-rate schedulers, got int"),
            ({"schedulers": [PLATEAU]}, TypeError, "ReduceLROnPlateau steps by a metric"),
            ({"guard": 3.0}, TypeError, "guard: expected a function"),
        ],
    )
    def test_refusals(self, options, error, match):
        model, phase, _ = adam_recorded(4)
        before = bits_of(model.parameters())
        with pytest.raises(error, match=match):
            phase.jump(1, **options)
        assert same_bits(bits_of(model.parameters()), before)

    def test_needs_the_optimizer(self):
        model = nn.Linear(2, 2)
        phase = KoopmanPhase(model)
        with pytest.raises(ValueError, match=r"needs the optimizer; call attach\(optimizer\) first"):
            phase.jump(1, optimizer_state="reset")

    def test_nothing_to_decay(self):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.Adadelta(model.parameters())
        phase = KoopmanPhase(model)
        phase.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
        before = bits_of(model.parameters())
        with pytest.raises(ValueError, match='Adadelta keeps no velocity to decay; pass "keep" or "reset"'):
            phase.jump(1, optimizer_state=0.5)
        assert same_bits(bits_of(model.parameters()), before) and phase.position == 0

    def test_a_scheduler_that_fails_leaves_all_as_it_was(self):
        model, phase, optimizer = adam_recorded()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
        optimizer.step()
        scheduler.step()
        for _ in range(4):
            phase.record()
        before, rate, at = bits_of(model.parameters()), optimizer.param_groups[0]["lr"], scheduler.last_epoch
        with pytest.raises(ValueError, match="Tried to step"):
            phase.jump(7, schedulers=[scheduler])
        assert same_bits(bits_of(model.parameters()), before) and phase.position == 0
        assert (optimizer.param_groups[0]["lr"], scheduler.last_epoch) == (rate, at)

    def test_lbfgs_is_reset_whole(self):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), torch.randn(8, 4)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
        phase = KoopmanPhase(model, exclude="0.*")
        phase.attach(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        phase.jump(1, optimizer_state="reset")
        assert not optimizer.state


def quadratic(kind, partition="network", **options):
    """Full-batch regression, whose weights and velocities follow a linear map, recorded over 30 steps."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x, target = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    if kind == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    def train():
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()

    usual = {"observables": (fk.Affine(), fk.Momentum()), "cutoff": 1e-11}
    phase = KoopmanPhase(model, partition, **{**usual, **options})
    phase.attach(optimizer)
    for _ in range(30):
        train()
    phase.detach()
    return model, optimizer, phase, train


class TestPredict:
    @pytest.mark.parametrize("partition", ["node", "layer", "network"])
    @pytest.mark.parametrize("horizon", [None, [40]])
    def test_training_goes_on_as_if_it_had_been_there(self, partition, horizon):
        model, optimizer, phase, train = quadratic("SGD", partition)
        start, buffer = model.weight.detach().clone(), optimizer.state[model.weight]["momentum_buffer"].clone()
        for _ in range(40):
            train()
        there, velocity = model.weight.detach().clone(), optimizer.state[model.weight]["momentum_buffer"].clone()
        train()
        after = model.weight.detach().clone()
        with torch.no_grad():
            model.weight.copy_(start)
            optimizer.state[model.weight]["momentum_buffer"].copy_(buffer)
        values = iter([1.0, 0.5])
        guard = None if horizon is None else lambda: next(values)
        phase.jump(40, optimizer_state="predict", horizon=horizon, guard=guard)
        moved = optimizer.state[model.weight]["momentum_buffer"]
        torch.testing.assert_close(model.weight.detach(), there, rtol=0, atol=1e-8)
        torch.testing.assert_close(moved, velocity, rtol=0, atol=1e-7)
        assert (moved - buffer).abs().max() > 10 * (moved - velocity).abs().max()
        train()
        torch.testing.assert_close(model.weight.detach(), after, rtol=0, atol=1e-8)

    def test_adams_first_moments(self):
        model, optimizer, phase, _ = quadratic("Adam", cutoff=1e-3)
        [op] = phase.operators()["network"]
        expected = op.velocities(4).reshape(2, 3) / 0.02
        second = optimizer.state[model.weight]["exp_avg_sq"].clone()
        phase.jump(4, optimizer_state="predict")
        torch.testing.assert_close(optimizer.state[model.weight]["exp_avg"], expected)
        assert torch.equal(optimizer.state[model.weight]["exp_avg_sq"], second)

    @pytest.mark.parametrize("candidate", ["mean", "line"])
    def test_at_the_mean_and_on_the_line_nothing_moves(self, candidate):
        model, optimizer, phase, _ = quadratic("SGD")
        values = iter([1.0, 0.5])
        report = phase.jump(4, guard=lambda: next(values), candidates=(candidate,), optimizer_state="predict")
        assert report.candidate == candidate
        assert not optimizer.state[model.weight]["momentum_buffer"].any()

    def test_blocks_that_stay_keep_their_velocities(self):
        model, optimizer, phase, _ = quadratic("SGD", "node")
        radii = torch.cat([op.residual for ops in phase.operators().values() for op in ops])
        before, buffer = model.weight.detach().clone(), optimizer.state[model.weight]["momentum_buffer"].clone()
        bound = float(radii.mean())
        report = phase.jump(9, limits=Limits(residual=bound), optimizer_state="predict")
        assert report.held == {"residual": 1}
        stayed, now = radii > bound, optimizer.state[model.weight]["momentum_buffer"]
        assert torch.equal((model.weight == before).all(dim=1), stayed)
        assert torch.equal((now == buffer).all(dim=1), stayed)

    def test_a_jump_that_went_back_leaves_them(self):
        model, optimizer, phase, _ = quadratic("SGD")
        buffer, values = optimizer.state[model.weight]["momentum_buffer"].clone(), iter([1.0, 2.0])
        assert phase.jump(9, guard=lambda: next(values), optimizer_state="predict").rolled_back
        assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], buffer)

    @pytest.mark.parametrize("kind", ["SGD", "Adam"])
    @pytest.mark.parametrize("candidate", ["koopman", "mean"])
    def test_rolling_back_puts_them_back_bit_for_bit(self, kind, candidate):
        model, optimizer, phase, _ = quadratic(kind, cutoff=1e-3)
        name = "momentum_buffer" if kind == "SGD" else "exp_avg"
        before, buffer = model.weight.detach().clone(), optimizer.state[model.weight][name].clone()
        for _ in range(2):  # the second from where the first came to
            values = iter([1.0, 0.5])
            phase.jump(3, guard=lambda: next(values), candidates=(candidate,), optimizer_state="predict")  # noqa: B023
            assert not torch.equal(optimizer.state[model.weight][name], buffer)
            if candidate == "mean":
                break
        state = phase.state_dict()
        phase.rollback()
        assert torch.equal(model.weight, before) and torch.equal(optimizer.state[model.weight][name], buffer)
        phase.load_state_dict(state)  # the way back is saved, too
        optimizer.state[model.weight][name].zero_()
        phase.rollback()
        assert torch.equal(optimizer.state[model.weight][name], buffer)

    def test_a_jump_that_fails_puts_them_back(self, monkeypatch):
        from fastkoop.adapter.walker import Walker

        model, optimizer, phase, _ = quadratic("SGD")
        before, buffer = model.weight.detach().clone(), optimizer.state[model.weight]["momentum_buffer"].clone()
        monkeypatch.setattr(Walker, "velocities", property(lambda walker: 1 / 0, lambda walker, value: None), False)
        with pytest.raises(ZeroDivisionError):
            phase.jump(9, optimizer_state="predict")
        assert torch.equal(model.weight, before)
        assert torch.equal(optimizer.state[model.weight]["momentum_buffer"], buffer)

    def test_refusals(self):
        _, phase, _ = adam_recorded(4)
        with pytest.raises(ValueError, match=r'"predict" moves the velocities that Momentum\(\) records'):
            phase.jump(1, optimizer_state="predict")
        model, optimizer, phase, _ = quadratic("SGD")
        optimizer.param_groups[0]["lr"] = 0.0
        before = model.weight.detach().clone()
        with pytest.raises(ValueError, match='"predict" divides by the learning rate, which is 0 for weight'):
            phase.jump(1, optimizer_state="predict")
        assert torch.equal(model.weight, before)
        op = fk.fit(np.ones((2, 3)))
        with pytest.raises(ValueError, match=r"velocities: expected an operator that observes Momentum\(\)"):
            op.velocities(1)

    @pytest.mark.parametrize("wide", [False, True])
    @pytest.mark.parametrize("extra", [(), (fk.Affine(),), (fk.Delay(2),)])
    def test_velocities_are_the_other_half_of_the_state(self, rng, wide, extra):
        n, count = (2, 13) if wide else (9, 6)
        X = rng.normal(size=(3, 2 * n, count)).cumsum(axis=-1)
        op = fk.fit(X, observables=(fk.Momentum(), *extra), cutoff=1e-6)
        turned = fk.fit(np.concatenate([X[:, n:], X[:, :n]], axis=1), observables=(fk.Momentum(), *extra), cutoff=1e-6)
        for steps in (0, 1, 3):
            np.testing.assert_allclose(op.velocities(steps), turned.predict(steps), rtol=1e-6, atol=1e-8)
