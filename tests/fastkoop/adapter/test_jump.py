"""Jumping safely: horizons, limits on blocks, BatchNorm, the optimizer's state, the way back."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
from fastkoop.adapter.jump import horizon_steps  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, Limits  # noqa: E402


def bits(tensors):
    return [t.detach().contiguous().flatten().view(torch.uint8).numpy().copy() for t in tensors]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def recorded(iterations=12, model=None, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    phase = KoopmanPhase(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    phase.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(iterations):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        (model(x).sum(dim=1, keepdim=True) - x[:, :1]).square().mean().backward()
        optimizer.step()
    return model, phase, optimizer


class TestHorizon:
    @pytest.mark.parametrize(
        ("steps", "every", "tried"),
        [(0, 1, [0]), (1, 1, [0, 1]), (2, 1, [0, 1, 2]), (8, 1, [0, 1, 2, 4, 8]), (9, 1, [0, 1, 2, 4, 8, 9]),
         (30, 5, [0, 5, 10, 20, 30])],
    )  # fmt: skip
    def test_steps(self, steps, every, tried):
        assert horizon_steps(steps, every) == tried

    @pytest.mark.parametrize("best", [0, 1, 2, 4, 8, 10])
    @pytest.mark.parametrize("partition", ["node", "layer"])
    def test_keeps_what_the_guard_likes_best(self, best, partition):
        model, phase, _ = recorded(partition=partition)
        tried = [0, 1, 2, 4, 8, 10]
        states = {}
        for steps in tried:
            phase.jump(steps)
            states[steps] = bits(model.parameters())
            phase.rollback()
        values = iter([5.0] + [1.0 if steps == best else 2.0 + steps for steps in tried])
        report = phase.jump(10, horizon="auto", guard=lambda: next(values))
        assert report.steps == best == phase.position and not report.rolled_back
        assert [steps for steps, _ in report.tried] == tried
        assert (report.before, report.after) == (5.0, 1.0)
        assert same(bits(model.parameters()), states[best])
        assert f"{best}: 1" in str(report)

    def test_is_one_factorisation(self, monkeypatch):
        _, phase, _ = recorded()
        fits = []
        monkeypatch.setattr("fastkoop.adapter.fits.fit", lambda *a, **k: fits.append(1) or fk.fit(*a, **k))
        phase.jump(8, horizon="auto", guard=lambda: 1.0)
        assert len(fits) == 2  # layers

    @pytest.mark.parametrize(
        "values", [[1.0, 2.0, 3.0, 4.0], [1.0, math.nan, math.inf, math.nan], [math.nan, 1.0, 1.0, 1.0]]
    )
    def test_goes_back_if_nothing_is_better(self, values):
        model, phase, _ = recorded()
        before, each = bits(model.parameters()), iter(values)
        report = phase.jump(2, horizon="auto", guard=lambda: next(each))
        assert report.rolled_back and report.steps == 0 and phase.position == 0
        assert same(bits(model.parameters()), before)

    def test_of_two_equals_the_shorter(self):
        _, phase, _ = recorded()
        values = iter([2.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        assert phase.jump(8, horizon="auto", guard=lambda: next(values)).steps == 1

    def test_no_better_than_now_is_not_kept(self):
        """Buffers that the guard moved come back, and the optimizer's state is left alone."""
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
        model, phase, optimizer = recorded(model=model)
        state = [own["exp_avg"].clone() for own in optimizer.state.values()]
        before, x = bits([*model.parameters(), *model.buffers()]), torch.randn(16, 6)

        def guard():
            with torch.no_grad():
                model(x)
            return 1.0

        report = phase.jump(8, horizon="auto", guard=guard, optimizer_state=0.5)
        assert report.rolled_back and report.steps == 0
        assert same(bits([*model.parameters(), *model.buffers()]), before)
        assert all(torch.equal(a, own["exp_avg"]) for a, own in zip(state, optimizer.state.values(), strict=True))

    def test_blocks_that_stay_keep_what_they_had_before_the_first_try(self):
        model = nn.Linear(1, 2, bias=False)
        phase = KoopmanPhase(model, "weight")
        for step in range(4):
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[10.0 ** (6 * step)], [0.5**step]]))
            phase.record()
        values = iter([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
        report = phase.jump(8, horizon="auto", guard=lambda: next(values))
        assert report.steps == 8 and report.layers[0].kept == 1
        assert model.weight[0] == 1e18 and model.weight[1] == 0.5**11

    def test_a_guard_that_fails_puts_back(self):
        model, phase, _ = recorded()
        before, calls = bits(model.parameters()), iter([1.0, 0.9])
        with pytest.raises(StopIteration):
            phase.jump(8, horizon="auto", guard=lambda: next(calls))
        assert same(bits(model.parameters()), before) and phase.position == 0

    @pytest.mark.parametrize(("horizon", "guard", "match"), [("all", lambda: 0.0, 'expected None or "auto"'),
                                                             ("auto", None, "pass guard=")])  # fmt: skip
    def test_refusals(self, horizon, guard, match):
        _, phase, _ = recorded(3)
        with pytest.raises(ValueError, match=match):
            phase.jump(2, guard=guard, horizon=horizon)


class TestLimits:
    @pytest.mark.parametrize("name", ["residual", "holdout", "spectral_radius"])
    @pytest.mark.parametrize("storage", [None, torch.bfloat16])
    @pytest.mark.parametrize(("partition", "q"), [("node", None), ("quasi-node", 3), ("layer", None)])
    def test_blocks_beyond_keep_their_weights(self, name, storage, partition, q):
        _, phase, _ = recorded(partition=partition, q=q, cutoff=1e-2, storage_dtype=storage)
        values = {layer: [getattr(op, name) for op in ops] for layer, ops in phase.operators().items()}
        every = torch.cat([value.flatten() for each in values.values() for value in each])
        bound = float(every[~every.isnan()].median())
        assert (every > bound).any()
        before = {layer: phase.groups[i] for i, layer in enumerate(values)}
        rows = {layer: phase.parts.recordings[i].current() for i, layer in enumerate(values)}
        report = phase.jump(3, limits=Limits(**{name: bound}))
        for i, layer in enumerate(values):
            now, at = phase.parts.recordings[i].current(), 0
            for value in values[layer]:
                beyond = (value > bound).reshape(before[layer].rows, -1)
                width = beyond.shape[1] * (3 if partition == "quasi-node" and at == 0 else 0) or now.shape[1] - at
                stayed = (now == rows[layer])[:, at : at + width].reshape(*beyond.shape, -1).all(dim=-1)
                assert torch.equal(stayed, beyond), layer
                at += width
            held = sum(int((value > bound).sum()) for value in values[layer])
            assert report.layers[i].held == ({name: held} if held else {})
        assert f"held by {name}" in str(report)

    def test_what_is_not_beyond_moves_as_without(self):
        model, phase, _ = recorded()
        phase.jump(3)
        free = bits(model.parameters())
        phase.rollback()
        phase.jump(3, limits=Limits(residual=1e9, holdout=1e9, spectral_radius=1e9))
        assert same(bits(model.parameters()), free)

    def test_a_dead_unit_is_within_every_limit(self):
        model = nn.Linear(3, 2)
        phase = KoopmanPhase(model)
        for step in range(6):
            with torch.no_grad():
                model.weight[1] += 0.1 * step
            phase.record()
        [[op]] = phase.operators().values()
        assert op.residual[0].isnan()
        report = phase.jump(2, limits=Limits(residual=0.5, holdout=0.5))
        assert sum(report.layers[0].held.values()) <= 2  # the unit that moves, by one limit or both; not the dead one

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [({"residual": 0}, ValueError, "residual > 0, got 0"), ({"holdout": "1"}, TypeError, "expected a number"),
         ({"spectral_radius": True}, TypeError, "expected a number"), ({"residual": math.nan}, ValueError, "> 0")],
    )  # fmt: skip
    def test_refusals(self, options, error, match):
        with pytest.raises(error, match=match):
            Limits(**options)

    def test_of_another_kind(self):
        _, phase, _ = recorded(3)
        with pytest.raises(TypeError, match=r"limits: expected Limits\(...\), got dict"):
            phase.jump(1, limits={"residual": 1.0})


class TestBuffers:
    def model(self):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))

    def test_batchnorm_is_recalibrated_on_request(self):
        model, phase, _ = recorded(model=self.model())
        batches = [torch.randn(32, 6) + 3.0 for _ in range(4)]
        stale = bits([model[1].running_mean, model[1].running_var])
        phase.jump(5)
        assert same(bits([model[1].running_mean, model[1].running_var]), stale)
        phase.rollback()
        phase.jump(5, update_bn=batches)
        with torch.no_grad():
            hidden = torch.cat([model[0](x) for x in batches])
        np.testing.assert_allclose(model[1].running_mean, hidden.mean(dim=0), rtol=1e-4, atol=1e-5)
        assert model.training

    def test_a_guarded_jump_goes_back_with_its_buffers(self):
        """The guard runs the model in training mode, and so moves statistics before and after the jump."""
        model, phase, _ = recorded(model=self.model())
        before = bits([*model.parameters(), *model.buffers()])
        x, losses = torch.randn(16, 6), iter([1.0, 2.0])

        def guard():
            with torch.no_grad():
                model(x)
            return next(losses)

        report = phase.jump(5, guard=guard, update_bn=[x, x])
        assert report.rolled_back
        assert same(bits([*model.parameters(), *model.buffers()]), before)

    def test_rollback_has_the_buffers_of_a_jump_that_was_kept(self):
        model, phase, _ = recorded(model=self.model())
        before = bits([*model.parameters(), *model.buffers()])
        phase.jump(5, update_bn=[torch.randn(16, 6)])
        assert not same(bits(model.buffers()), before[-3:])
        phase.rollback()
        assert same(bits([*model.parameters(), *model.buffers()]), before)

    def test_batches_have_to_last(self):
        model, phase, _ = recorded(model=self.model())
        before = bits([*model.parameters(), *model.buffers()])
        with pytest.raises(ValueError, match="batches that can be gone through again, got generator"):
            phase.jump(4, update_bn=(torch.randn(8, 6) for _ in range(3)))
        assert same(bits([*model.parameters(), *model.buffers()]), before)

    def test_frozen_norms_modes_and_momenta_stay(self):
        model, phase, _ = recorded(model=self.model())
        model[1].eval()
        model[1].momentum = 0.25
        frozen = bits(model[1].buffers())
        phase.jump(4, update_bn=[torch.randn(16, 6)])
        assert same(bits(model[1].buffers()), frozen)
        assert not model[1].training and model[1].momentum == 0.25 and model[0].training

        class Broken:
            def __iter__(self):
                yield torch.randn(8, 6)
                raise OSError("disk")

        before = bits([*model.parameters(), *model.buffers()])
        with pytest.raises(OSError, match="disk"):
            phase.jump(4, update_bn=Broken())
        assert model[1].momentum == 0.25 and not model[1].training and model[0].training
        assert same(bits([*model.parameters(), *model.buffers()]), before)

    def test_horizon_ends_with_the_statistics_of_what_it_kept(self):
        model, phase, _ = recorded(model=self.model())
        batch = [torch.randn(64, 6)]
        values = iter([9.0, 5.0, 1.0, 4.0, 6.0])
        report = phase.jump(4, horizon="auto", guard=lambda: next(values), update_bn=batch)
        assert report.steps == 1
        with torch.no_grad():
            np.testing.assert_allclose(model[1].running_mean, model[0](batch[0]).mean(dim=0), rtol=1e-4, atol=1e-5)


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
            model, phase, optimizer = recorded()
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
        model, phase, optimizer = recorded()
        values = iter([1.0, 2.0])
        phase.jump(3, guard=lambda: next(values), optimizer_state="reset")
        assert len(optimizer.state) == len(list(model.parameters()))

    def test_schedulers_are_told(self):
        _, phase, optimizer = recorded()
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
            ({"optimizer_state": "forget"}, ValueError, 'expected "keep", "reset" or a factor'),
            ({"optimizer_state": 1.0}, ValueError, r"expected a factor in \(0, 1\), got 1.0"),
            ({"optimizer_state": True}, ValueError, "optimizer_state: expected"),
            ({"schedulers": [3]}, TypeError, "schedulers: expected learning-rate schedulers, got int"),
            ({"schedulers": [PLATEAU]}, TypeError, "ReduceLROnPlateau steps by a metric"),
            ({"guard": 3.0}, TypeError, "guard: expected a function"),
        ],
    )
    def test_refusals(self, options, error, match):
        model, phase, _ = recorded(4)
        before = bits(model.parameters())
        with pytest.raises(error, match=match):
            phase.jump(1, **options)
        assert same(bits(model.parameters()), before)

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
        before = bits(model.parameters())
        with pytest.raises(ValueError, match='Adadelta keeps no velocity to decay; pass "keep" or "reset"'):
            phase.jump(1, optimizer_state=0.5)
        assert same(bits(model.parameters()), before) and phase.position == 0

    def test_a_scheduler_that_fails_leaves_all_as_it_was(self):
        model, phase, optimizer = recorded()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
        optimizer.step()
        scheduler.step()
        for _ in range(4):
            phase.record()
        before, rate, at = bits(model.parameters()), optimizer.param_groups[0]["lr"], scheduler.last_epoch
        with pytest.raises(ValueError, match="Tried to step"):
            phase.jump(7, schedulers=[scheduler])
        assert same(bits(model.parameters()), before) and phase.position == 0
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


class TestObservables:
    @pytest.mark.parametrize(("partition", "q"), [("weight", None), ("quasi-node", 2), ("node", None), ("layer", None),
                                                  ("network", None)])  # fmt: skip
    @pytest.mark.parametrize(("observables", "stabilize"), [(fk.Affine(), "project"),
                                                            ((fk.Delay(2), fk.Affine()), "clip")])  # fmt: skip
    def test_jump_and_step_are_fit_and_predict(self, partition, q, observables, stabilize):
        _, phase, _ = recorded(partition=partition, q=q, observables=observables, cutoff=1e-3, stabilize=stabilize,
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
        optimizer = torch.optim.Adadelta(model.parameters())
        phase.attach(optimizer)
        model(torch.ones(1, 3)).sum().backward()
        with pytest.raises(ValueError, match=r"Momentum\(\) finds no velocity of weight in Adadelta"):
            optimizer.step()

    def test_too_few_snapshots_for_them(self):
        _, phase, _ = recorded(3, observables=(fk.Delay(3), fk.Affine()))
        with pytest.raises(ValueError, match=r"at least 5 snapshots for Delay\(3\) with Affine\(\), got 3"):
            phase.fit()
