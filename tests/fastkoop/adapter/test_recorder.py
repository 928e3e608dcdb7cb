"""Recording real training: memory that is planned, half-precision storage, skipped steps, closures, compiled models."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
from fastkoop.adapter.recording_plan import size  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def held(phase):
    """Every snapshot as it will be fitted, (time, weights)."""
    parts = [r.snapshots(phase.snapshots)[:, :, : r.group.n].flatten(1) for r in phase.parts.recordings]
    return torch.cat(parts, dim=1).double()


def tensors(phase):
    """Memory that the phase holds for its recording."""
    found = [t for r in phase.parts.recordings for t in vars(r).values() if isinstance(t, torch.Tensor)]
    return sum(t.nbytes for t in found)


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("options", [{}, {"window": 3}, {"capacity": 4}, {"every": 2}])
    def test_distances_from_the_first_snapshot_keep_8_bits(self, dtype, options):
        model = net(dtype)
        exact = KoopmanPhase(model, partition="layer", **options)
        phase = KoopmanPhase(model, partition="layer", storage_dtype=torch.bfloat16, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        exact.attach(optimizer)
        phase.attach(optimizer)
        for _ in range(12):
            step(model, optimizer, torch.randn(8, 6, dtype=dtype))
        exact.jump(0)
        phase.jump(0)
        true, kept = held(exact), held(phase)
        first = torch.cat(
            [recording.base.flatten()[: recording.group.n] for recording in phase.parts.recordings]
        ).double()
        rounding = torch.finfo(torch.float32).eps * true.abs() if dtype != torch.float64 else 0.0
        assert ((kept - true).abs() <= 2.0**-8 * (true - first).abs() + rounding).all()
        assert dtype == torch.bfloat16 or ((kept - true).abs() > 0).any()
        assert [r.buffer.dtype for r in phase.parts.recordings] == [torch.bfloat16] * 2

    def test_takes_half_and_says_what_a_fit_takes(self):
        model = nn.Linear(64, 32)
        phase = KoopmanPhase(model, capacity=20, storage_dtype=torch.bfloat16)
        plan = phase.plan()
        assert plan.bytes_per_snapshot * 2 == KoopmanPhase(model).plan().bytes_per_snapshot
        assert plan.fit_bytes == 20 * 2 * plan.bytes_per_snapshot
        assert plan.bytes == 20 * plan.bytes_per_snapshot + 2 * 2 * plan.bytes_per_snapshot == tensors_after(phase, 20)
        assert "bfloat16" in str(plan) and "a fit takes" in str(plan)

    def test_operators_hold_no_decoded_snapshots(self):
        model = net()
        phase = KoopmanPhase(model, storage_dtype=torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        phase.attach(optimizer)
        for _ in range(6):
            step(model, optimizer, torch.randn(8, 6))
        report = phase.jump(2)
        ops = [op for layer in report.layers for op in layer.operators]
        ops += [op for fitted in phase.fits.operators for op in fitted]
        assert all(op._X is None and op._readout.snapshots is None for op in ops)
        assert all(np.isfinite(layer.residual) and layer.spectral_radius > 0 for layer in report.layers)
        moved = flat(model)
        phase.rollback()
        phase.step()
        phase.step()
        assert torch.allclose(flat(model), moved, rtol=0, atol=1e-6)
        assert phase.operators()["0"][0].predict(1).shape == (5, 7)

    def test_moves_as_if_the_stored_snapshots_were_the_training(self):
        model = net()
        phase = KoopmanPhase(model, partition="layer", storage_dtype=torch.bfloat16, cutoff="jax")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        phase.attach(optimizer)
        for _ in range(8):
            step(model, optimizer, torch.randn(8, 6))
        X = [r.snapshots(8)[:, :, : r.group.n].numpy().copy() for r in phase.parts.recordings]
        phase.jump(5)
        expected = np.concatenate([fk.fit(x, time_axis=0, cutoff="jax").predict(5).ravel() for x in X])
        got = np.concatenate([r.current().numpy().ravel() for r in phase.parts.recordings])
        np.testing.assert_array_equal(got, expected)


def tensors_after(phase, count):
    for _ in range(count):
        phase.record()
    return tensors(phase)


class TestPlan:
    @pytest.mark.parametrize("partition", ["node", "layer", "network"])
    @pytest.mark.parametrize(
        "options",
        [{}, {"window": 4}, {"storage_dtype": torch.bfloat16}, {"storage_dtype": torch.bfloat16, "window": 2},
         {"storage_dtype": torch.float64}, {"observables": fk.Momentum()}],
    )  # fmt: skip
    def test_is_what_it_takes(self, partition, options):
        model = net()
        phase = KoopmanPhase(model, partition=partition, capacity=6, **options)
        optimizer = torch.optim.Adam(model.parameters())
        phase.attach(optimizer)
        for _ in range(7 * phase.every):
            step(model, optimizer, torch.randn(8, 6))
        assert phase.plan().bytes == tensors(phase)

    def test_is_a_table(self):
        text = str(KoopmanPhase(net(), capacity=100, every=5).plan())
        assert text.splitlines()[0].startswith("a snapshot every 5 iterations, ")
        assert "in float32 on cpu; 100 of them" in text
        assert "0: 5 node blocks, 35 weights" in text
        assert "grows as needed" in str(KoopmanPhase(net()).plan())

    @pytest.mark.parametrize("how", ["attach", "record"])
    def test_refuses_up_front_what_cannot_fit(self, how, monkeypatch):
        monkeypatch.setattr("fastkoop.adapter.recorder.free_memory", lambda: 100_000.0)
        model = nn.Linear(99, 10)
        phase = KoopmanPhase(model, capacity=1000)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        match = r"capacity: 1000 snapshots of 4 kB take 4 MB on cpu, where 100 kB are free; capacity=25 fits; every=k"
        with pytest.raises(ValueError, match=match):
            phase.attach(optimizer) if how == "attach" else phase.record()
        assert phase.snapshots == 0 and not phase.parts.recorder.allocated
        KoopmanPhase(model, capacity=25).record()
        with pytest.raises(ValueError, match="capacity=23 fits"):  # a window's sum takes room, too
            KoopmanPhase(model, capacity=25, window=2).record()

    def test_a_buffer_that_grows_is_refused_before_it_is_lost(self, monkeypatch):
        model = nn.Linear(3, 2)
        phase = KoopmanPhase(model)
        for _ in range(64):
            phase.record()
        monkeypatch.setattr("fastkoop.adapter.recorder.free_memory", lambda: 10.0)
        with pytest.raises(ValueError, match="not even two fit"):
            phase.record()
        assert phase.snapshots == phase.iterations == 64
        monkeypatch.undo()
        phase.record()
        assert phase.snapshots == phase.iterations == 65

    @pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (126e6, "126 MB"),
                                                  (2.5e12, "2.5 TB")])  # fmt: skip
    def test_sizes(self, count, words):
        assert size(count) == words


class TestTraining:
    def test_gradient_accumulation_is_one_iteration(self):
        model = net()
        phase = KoopmanPhase(model)
        optimizer = torch.optim.Adam(model.parameters())
        phase.attach(optimizer)
        for micro in range(12):
            model(torch.randn(4, 6)).square().mean().backward()
            if micro % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
        assert phase.iterations == phase.snapshots == 3

    @pytest.mark.parametrize("fused", [False, True])
    def test_steps_that_a_scaler_skipped_are_not_recorded(self, fused):
        """A fused optimizer is called all the same, and tells by found_inf."""
        model = net()
        phase = KoopmanPhase(model)
        optimizer = torch.optim.Adam(model.parameters(), fused=fused)
        phase.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        trail = []
        for i in range(6):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(4, 6)).float().square().mean() * (float("inf") if i in (1, 4) else 1.0)
            scaler.scale(loss).backward()
            before = flat(model)
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before, flat(model)) == (i in (1, 4))
            if i not in (1, 4):
                trail.append(flat(model))
        assert phase.snapshots == 4
        assert torch.equal(held(phase).sort(dim=1).values, torch.stack(trail).sort(dim=1).values)

    @pytest.mark.parametrize("whole", [False, True])
    def test_compiled_models(self, whole):
        torch._dynamo.reset()
        model = net()
        compiled = torch.compile(model, backend="eager") if whole else model
        if not whole:
            model.compile(backend="eager")
        phase = KoopmanPhase(compiled, cutoff="jax")
        optimizer = torch.optim.Adam(compiled.parameters(), lr=0.01)
        phase.attach(optimizer)
        for _ in range(6):
            step(compiled, optimizer, torch.randn(8, 6))
        before = compiled(torch.ones(1, 6))
        phase.jump(3)
        assert not torch.equal(compiled(torch.ones(1, 6)), before)
        torch.testing.assert_close(compiled(torch.ones(1, 6)), model[2](torch.tanh(model[0](torch.ones(1, 6)))))

    def test_a_compiled_optimizer_step(self):
        torch._dynamo.reset()
        model = net()
        phase = KoopmanPhase(model)
        optimizer = torch.optim.Adam(model.parameters())
        phase.attach(optimizer)
        move = torch.compile(lambda: optimizer.step(), backend="eager")
        trail = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what compiling says of its own
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.randn(8, 6)).square().mean().backward()
                move()
                trail.append(flat(model))
        assert phase.snapshots == 4
        assert torch.equal(held(phase).sort(dim=1).values, torch.stack(trail).sort(dim=1).values)

    def test_parameters_added_later_are_refused(self):
        model = net()
        phase = KoopmanPhase(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        phase.attach(optimizer)
        step(model, optimizer, torch.randn(8, 6))
        model.append(nn.Linear(2, 2))
        step(model, optimizer, torch.randn(8, 6))
        with pytest.raises(ValueError, match=r"model: 3\.weight was added, or set to require grad, after this phase"):
            phase.fit()
        optimizer.add_param_group({"params": list(model[3].parameters())})
        with pytest.raises(ValueError, match=r"model: 3\.weight was added"):
            step(model, optimizer, torch.randn(8, 6))
        phase.detach()
        left_out = KoopmanPhase(model, exclude="3.*")
        left_out.attach(optimizer)
        for _ in range(2):
            step(model, optimizer, torch.randn(8, 6))
        left_out.jump(1)

    def test_unfrozen_later_is_added_later(self):
        model = net()
        model[2].requires_grad_(False)
        phase = KoopmanPhase(model)
        for _ in range(3):
            phase.record()
        model[2].requires_grad_(True)
        with pytest.raises(ValueError, match=r"model: 2\.weight was added"):
            phase.jump(1)

    def test_several_groups_schedulers_and_frozen_layers(self):
        model = net()
        model[0].bias.requires_grad_(False)
        optimizer = torch.optim.SGD(
            [{"params": [model[0].weight], "lr": 0.1}, {"params": model[2].parameters(), "momentum": 0.9}], lr=0.01
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        phase = KoopmanPhase(model)
        phase.attach(optimizer)
        frozen = model[0].bias.detach().clone()
        for _ in range(6):
            step(model, optimizer, torch.randn(8, 6))
            scheduler.step()
        phase.jump(4)
        assert phase.snapshots == 6 and torch.equal(model[0].bias, frozen)

    def test_devices_of_a_model_have_to_be_one(self):
        class Elsewhere(nn.Linear):
            pass

        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
        with pytest.raises(TypeError, match=r"1\.weight is on meta"):
            KoopmanPhase(model)
