"""Recordings: rings, padding, plans, and states that do not fit."""

import numpy as np
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
    mlp_rows_of_one,
    net,
    recorded,
    same_bits,
    scripted,
)

from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


@pytest.mark.parametrize("capacity", [2, 5, 7])
@pytest.mark.parametrize("extra", [-1, 0, 1, 3, 7])
def test_ring_holds_the_newest_snapshots_in_order(capacity, extra):
    model, phase, trail = recorded(capacity + extra if capacity + extra > 1 else 2, capacity=capacity)
    held = trail[-capacity:]
    assert phase.snapshots == len(held)
    phase.jump(2)
    assert_predicted(flat(model), held, blocks(mlp_rows(model), "node", None), 2)


def test_ring_goes_on_after_a_fit():
    """Fitting turns the ring; recording must go on at its new seam."""
    model = net()
    phase = KoopmanPhase(model, partition="layer", capacity=5)
    trail = []
    for seed, iterations in enumerate((8, 1, 3, 5, 7)):
        trail += scripted(model, phase, iterations, seed, scale=2.0**-seed)
        phase.jump(1)
        assert phase.snapshots == 5
        assert_predicted(flat(model), trail[-5:], blocks(mlp_rows(model), "layer", None), 1)
        phase.rollback()


@pytest.mark.parametrize("turned", [1, 3, 4])
def test_turning_a_ring_takes_little_memory(turned, monkeypatch):
    """plan() does not count a second buffer."""
    import tracemalloc

    import fastkoop.adapter.buffers

    monkeypatch.setattr(fastkoop.adapter.buffers, "TURNED", 1 << 12)
    model = nn.Linear(400, 50)
    phase = KoopmanPhase(model, capacity=5)
    trail = scripted(model, phase, 5 + turned)
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        phase.parts.recorder.put_in_order()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profiled.events() or ())
    assert allocated == 0
    assert peak < phase.plan().bytes / 4
    held = np.stack([row.ravel() for row in phase.parts.recordings[0].buffer[:, :, :401].numpy()])
    places = mlp_rows_of_one(model)[0].ravel()
    assert np.array_equal(held, np.stack(trail[-5:])[:, places])


@pytest.mark.parametrize("iterations", [63, 64, 65, 130])
def test_recording_grows_without_a_capacity(iterations):
    model = nn.Linear(2, 2)
    phase = KoopmanPhase(model, partition="layer")
    trail = scripted(model, phase, iterations)
    assert phase.snapshots == iterations
    phase.jump(1)
    assert_predicted(flat(model), trail, blocks(mlp_rows_of_one(model), "layer", None), 1)


@pytest.mark.parametrize(("partition", "q"), GRANULARITIES[:3], ids=[g for g, _ in GRANULARITIES[:3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_one_padded_time_major_buffer_a_layer(partition, q, dtype):
    model, phase, trail = recorded(4, dtype, partition=partition, q=q, capacity=4)
    rows = mlp_rows(model)
    buffers = [recording.buffer for recording in phase.parts.recordings]
    assert len(buffers) == len(rows)
    for buffer, group, units in zip(buffers, phase.groups, rows, strict=True):
        assert buffer.is_contiguous() and buffer.dtype == dtype
        assert buffer.shape[:2] == (4, len(units))
        row_bytes = buffer.shape[2] * dtype.itemsize
        assert row_bytes % 16 == 0 and row_bytes - 16 < units.shape[1] * dtype.itemsize <= row_bytes
        assert np.array_equal(buffer[:, :, : group.n].double().numpy(), np.stack(trail)[:, units])
        assert not buffer[:, :, group.n :].any()
        start, end = buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes
        assert all(start <= view.data_ptr() < end for view in group.blocks(buffer))


@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
@pytest.mark.parametrize("options", [{}, {"every": 2}, {"window": 2}, {"storage_dtype": torch.float64}])
def test_plan_is_what_recording_takes(partition, q, options):
    model = net()
    phase = KoopmanPhase(model, partition=partition, q=q, capacity=3, **options)
    plan = phase.plan()
    scripted(model, phase, 8)
    tensors = [t for r in phase.parts.recordings for t in vars(r).values() if isinstance(t, torch.Tensor)]
    assert plan.capacity == 3
    assert plan.bytes_per_snapshot == sum(r.buffer[0].nbytes for r in phase.parts.recordings)
    assert plan.bytes == sum(tensor.nbytes for tensor in tensors)


def test_plan_without_a_capacity():
    plan = KoopmanPhase(net()).plan()
    assert (plan.capacity, plan.bytes) == (None, None)
    assert plan.bytes_per_snapshot == 4 * (5 * 8 + 4 * 8 + 3 * 8)  # rows of 7, 6 and 5 padded to 8


@pytest.mark.parametrize(
    ("partition", "q", "kept"), [("weight", None, 6), ("quasi-node", 4, 2), ("quasi-node", 2, 3), ("node", None, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_predictions_that_overflow_keep_their_block(partition, q, kept, dtype):
    model, phase = exploding(partition, q, dtype)
    before = [p.detach().clone() for p in model.parameters()]
    report = phase.jump(2000)
    assert [layer.kept for layer in report.layers] == [kept]
    assert f"kept {kept}" in str(report)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter[0], old[0])
        assert parameter.isfinite().all()
        assert (parameter[1:].abs() < 1e-6).all() and (old[1:] > 0).all()  # the others went on


@pytest.mark.parametrize("partition", ["layer", "network"])
def test_one_bad_weight_keeps_its_whole_block(partition):
    model, phase = exploding(partition)
    before = bits(model)
    report = phase.jump(2000)
    assert [layer.kept for layer in report.layers] == [1]
    assert same_bits(bits(model), before)


@pytest.mark.parametrize("steps", [20, 122])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_parameters_stay_finite(dtype, steps):
    """A prediction that float32 holds may overflow float16, and at its very top round out of bfloat16."""
    model, phase = exploding("node", dtype=dtype)
    before = [p.detach().clone() for p in model.parameters()]
    kept = int(7.0 * 2.0 ** (5 + steps) > torch.finfo(dtype).max)
    assert [layer.kept for layer in phase.jump(steps).layers] == [kept]
    assert all(torch.equal(p[0], old[0]) == bool(kept) for p, old in zip(model.parameters(), before, strict=True))
    phase.rollback()
    for done in range(steps):
        phase.step()
        assert all(p.isfinite().all() for p in model.parameters()), done


def test_predictions_beyond_the_parameters_dtype_keep_their_block():
    """Stored and predicted in float64, 2^205 does not fit a float32 parameter."""
    model, phase = exploding("node", storage_dtype=torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    assert [layer.kept for layer in phase.jump(200).layers] == [1]
    assert all(torch.equal(p[0], old[0]) for p, old in zip(model.parameters(), before, strict=True))


def test_a_kept_block_keeps_its_bits_under_a_smaller_storage_dtype():
    model, phase = exploding("node", dtype=torch.float64, base=1 + 1 / 3, storage_dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    assert [layer.kept for layer in phase.jump(4000).layers] == [1]
    assert all(torch.equal(p[0], old[0]) for p, old in zip(model.parameters(), before, strict=True))


def test_dead_and_zero_units():
    """A constant row stays to rounding; an all-zero one predicts zero."""
    model = nn.Linear(4, 3)
    phase = KoopmanPhase(model)
    with torch.no_grad():
        model.weight[0], model.bias[0] = 0.0, 0.0
        model.weight[1], model.bias[1] = torch.tensor([0.1, -0.7, 0.3, 1e-3]), 0.2
    constant = model.weight[1].detach().clone()
    for t in range(9):
        with torch.no_grad():
            model.weight[2] = torch.arange(4.0) * 0.9**t + 0.5**t
        phase.record()
    report = phase.jump(50)
    assert report.layers[0].rank[0] == 0 and report.layers[0].kept == 0
    assert not model.weight[0].any() and not model.bias[0].any()
    torch.testing.assert_close(model.weight[1].detach(), constant, rtol=2**-22, atol=0.0)
