"""recording_plan: arithmetic for many ranks, which is what recording and exchanging take where they can be measured."""

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.torch_adapter import KoopmanPhase, recording_plan  # noqa: E402


def net(**place):
    return nn.Sequential(nn.Linear(300, 64, **place), nn.LayerNorm(64, **place), nn.Linear(64, 40, **place))


@pytest.mark.parametrize("partition", ["weight", "node", "layer", "network"])
@pytest.mark.parametrize("storage", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("window", [1, 3])
def test_one_rank_is_what_a_phase_takes(partition, storage, window):
    """Bytes of a model on the meta device, against those that a phase of the same model holds once it has recorded."""
    plan = recording_plan(net(device="meta"), partition, 8, 1, storage, window=window)
    phase = KoopmanPhase(net(), partition, capacity=8, storage_dtype=storage, window=window)
    for _ in range(9 * window):
        phase.record()
    held = [t for r in phase.parts.recordings for t in vars(r).values() if isinstance(t, torch.Tensor)]
    assert plan.bytes == pytest.approx(sum(tensor.nbytes for tensor in held), rel=0.05)
    assert plan.bytes == phase.plan().bytes and plan.exchange_bytes == 0


def test_ranks_share_nodes_and_exchange_gram_matrices_of_layers():
    for ranks in (1, 4, 16):
        nodes = recording_plan(net(device="meta"), "node", 8, ranks=ranks)
        assert nodes.plan.groups[0].blocks == -(-64 // ranks) and nodes.exchange_bytes == 0
        assert nodes.bytes == pytest.approx(recording_plan(net(device="meta"), "node", 8).bytes / ranks, rel=0.3)
        layers = recording_plan(net(device="meta"), "layer", 8, ranks=ranks)
        assert layers.exchange_bytes == (0 if ranks == 1 else 3 * 8 * 8**2)


def test_a_seven_billion_parameter_model_needs_no_memory_of_its_own():
    layers = [nn.Linear(4096, 11008, bias=False, device="meta") for _ in range(3 * 32)]
    layers += [nn.Linear(4096, 4096, bias=False, device="meta") for _ in range(4 * 32)]
    layers.append(nn.Embedding(32000, 4096, device="meta"))
    model = nn.Sequential(*layers)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters > 6.5e9
    for partition in ("node", "layer"):
        plan = recording_plan(model, partition, 12, 10, torch.bfloat16, ranks=64)
        snapshots = 12 * 2 * parameters / 64
        assert snapshots < plan.bytes < 1.4 * snapshots
        assert plan.plan.every == 10 and plan.fit_seconds > 0
        assert "a rank of 64: " in str(plan) and "about" in str(plan)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"ranks": 0}, ValueError, "ranks: expected an integer >= 1"),
        ({"capacity": 1}, ValueError, "capacity: expected an integer >= 2"),
        ({"partition": "quasi-node"}, ValueError, "q: the partition"),
        ({"include": "no.*"}, ValueError, "include: the pattern 'no"),
    ],
)
def test_arguments_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        recording_plan(net(device="meta"), **options)
