"""KoopmanPhase: which iterates it records, what it refuses, and real data."""

import copy
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import (  # noqa: E402
    GRANULARITIES,
    assert_predicted,
    bits,
    blocks,
    flat,
    index,
    mlp_rows,
    net,
    recorded,
    same_bits,
    scripted,
    trained,
)

from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copies_record_and_move_on_their_own(how):
    model, phase, _ = recorded(6)
    if how == "copy":
        other_model, other = copy.deepcopy((model, phase))
    else:
        phase.detach()
        other_model, other = pickle.loads(pickle.dumps((model, phase)))
    assert not other.attached
    for _ in range(3):
        with torch.no_grad():
            for parameter in other_model.parameters():
                parameter += 0.1
        other.record()
    assert (phase.snapshots, other.snapshots) == (6, 9)
    newest = other.parts.recordings[0].buffer[8]
    assert torch.equal(newest[:, : other.groups[0].n], other.parts.recordings[0].current()) and newest.abs().max() > 0
    before = bits(model)
    other.jump(2)
    assert same_bits(bits(model), before) and all(p.abs().max() > 0 for p in other_model.parameters())


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double])
def test_another_dtype_is_noticed(change):
    model, phase, _ = recorded(6)
    change(model)
    before = bits(model)
    for call in (phase.record, lambda: phase.jump(2)):
        with pytest.raises(ValueError, match="when this phase was made and is torch"):
            call()
    assert same_bits(bits(model), before)


def test_an_optimizer_of_other_parameters_is_refused():
    _, phase, _ = recorded(3)
    phase.detach()
    with pytest.raises(ValueError, match="optimizer: it holds none of the parameters that this phase records"):
        phase.attach(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("every", "window", "interval"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (3, 2, 3), (3, 3, 3), (1, 2, 2), (1, 3, 3)]
)
@pytest.mark.parametrize("capacity", [None, 4])
def test_every_and_window_choose_the_snapshots(every, window, interval, capacity):
    model = net(torch.float64)
    phase = KoopmanPhase(model, every=every, window=window, capacity=capacity)
    iterates = scripted(model, phase, 6 * interval + (interval - 1))
    means = [np.mean(iterates[at - window : at], axis=0) for at in range(interval, len(iterates) + 1, interval)]
    held = means[-4:] if capacity else means
    assert (phase.every, phase.snapshots, phase.iterations) == (interval, len(held), len(iterates))
    phase.jump(0)
    assert np.array_equal(flat(model), held[-1])
    places = blocks(mlp_rows(model), "node", None)
    phase.jump(2 * interval)
    assert_predicted(flat(model), held, places, 2, torch.float64)
    phase.step()
    assert phase.position == 3 * interval
    assert_predicted(flat(model), held, places, 3, torch.float64)


def test_recording_drops_the_operators():
    model, phase, trail = recorded(6)
    phase.fit()
    phase.record()
    trail.append(flat(model))
    phase.jump(1)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 1)


def test_recording_after_a_move_begins_anew():
    """The pair (before the jump, after it) is no optimizer step and must not enter F."""
    model, phase, _ = recorded(6)
    phase.jump(2)
    phase.record()
    assert (phase.position, phase.snapshots, phase.iterations) == (0, 1, 1)
    with pytest.raises(ValueError, match="rollback: there was no step or jump since the last snapshot"):
        phase.rollback()
    trail = [flat(model), *scripted(model, phase, 4)]
    phase.step()
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 1)


def test_clear_starts_over():
    model, phase, _ = recorded(5, every=2, window=2)
    phase.jump(2)
    phase.clear()
    assert (phase.snapshots, phase.iterations, phase.position) == (0, 0, 0)
    assert (phase.record_seconds, phase.fit_seconds) == (0.0, 0.0)
    trail = scripted(model, phase, 4)
    phase.jump(0)
    assert np.array_equal(flat(model), (trail[2] + trail[3]) / 2)


def test_detach_stops_recording():
    model = net()
    phase = KoopmanPhase(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    phase.attach(optimizer)
    trained(model, 3, optimizer=optimizer)
    phase.detach()
    phase.detach()
    trained(model, 2, optimizer=optimizer)
    assert phase.snapshots == 3
    phase.attach(optimizer).remove()
    trained(model, 2, optimizer=optimizer)
    assert phase.snapshots == 3


def test_attach_again_after_the_handle_removed_the_hook():
    model = net()
    phase = KoopmanPhase(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = phase.attach(optimizer)
    assert phase.attached
    handle.remove()
    assert not phase.attached
    phase.attach(optimizer)
    trained(model, 2, optimizer=optimizer)
    assert phase.snapshots == 2 and phase.attached
    phase.detach()
    assert not phase.attached


def test_lbfgs_records_once_a_step():
    model = net()
    phase = KoopmanPhase(model, partition="layer")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    phase.attach(optimizer)
    x, calls, trail = torch.randn(16, 6), [], []

    def closure():
        calls.append(0)
        optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
        trail.append(flat(model))
    assert len(calls) > 4 == phase.snapshots
    phase.jump(2)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "layer", None), 2)


def test_optimizer_with_groups_of_parameters():
    model = net()
    phase = KoopmanPhase(model)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2:].parameters()}], lr=0.01, momentum=0.9
    )
    phase.attach(optimizer)
    trail = trained(model, 7, optimizer=optimizer)
    phase.jump(2)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 2)


@pytest.mark.parametrize("options", [{}, {"every": 2}, {"window": 2}, {"partition": "network", "capacity": 3}])
def test_recording_does_not_disturb_training(options):
    plain, watched = net(), net()
    phase = KoopmanPhase(watched, **options)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.02) for model in (plain, watched)]
    phase.attach(optimizers[1])
    trained(plain, 12, optimizer=optimizers[0])
    state = torch.get_rng_state()
    trained(watched, 12, optimizer=optimizers[1])
    assert same_bits(bits(plain), bits(watched))
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(*(o.state.values() for o in optimizers), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert all(p.requires_grad and p.grad is not None for p in watched.parameters())


@pytest.mark.parametrize("capacity", [None, 4])
@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
def test_average_is_the_mean_of_the_snapshots(partition, q, capacity):
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Linear(5, 4), nn.BatchNorm1d(4))
    phase = KoopmanPhase(model, partition=partition, q=q, capacity=capacity)
    trail = scripted(model, phase, 6)
    mean = np.mean(trail[-4:] if capacity else trail, axis=0)
    average = phase.average()
    assert list(average) == [name for name, _ in model.named_parameters()]
    for name, place in index(model).items():
        assert average[name].dtype == torch.float32 and not average[name].requires_grad
        assert average[name].numpy() == pytest.approx(mean[place], rel=1e-6, abs=1e-6)
    assert np.array_equal(flat(model), trail[-1])


def test_seconds_are_counted():
    _, phase, _ = recorded(4)
    assert phase.record_seconds > 0 and phase.fit_seconds == 0
    phase.fit()
    assert phase.fit_seconds > 0


def test_average_of_nothing():
    with pytest.raises(ValueError, match="average: nothing has been recorded"):
        KoopmanPhase(net()).average()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"partition": "nodes"}, ValueError, "partition: expected one of"),
        ({"partition": "quasi-node"}, ValueError, "q: the partition"),
        ({"q": 3}, ValueError, "q: only the partition"),
        ({"every": 0}, ValueError, "every: expected an integer >= 1, got 0"),
        ({"every": 1.5}, TypeError, "every: expected an integer, got 1.5"),
        ({"window": 0}, ValueError, "window: expected an integer >= 1, got 0"),
        ({"every": 2, "window": 3}, ValueError, "window: expected at most every=2 iterates, got 3"),
        ({"capacity": 1}, ValueError, "capacity: expected an integer >= 2, got 1"),
        ({"capacity": 8.0}, TypeError, "capacity: expected an integer"),
        ({"storage_dtype": torch.float16}, ValueError, "storage_dtype: expected torch.float32"),
        ({"storage_device": "cuda"}, ValueError, "storage_device: expected None, the parameters' own device cpu"),
        ({"storage_device": "nowhere"}, ValueError, "storage_device: "),
        ({"include": "9.*"}, ValueError, r"include: the pattern '9\.\*' matches no parameter"),
        ({"exclude": ["0.*", "9.*"]}, ValueError, r"exclude: the pattern '9\.\*' matches no parameter"),
        ({"include": 3}, TypeError, "include: "),
        ({"exclude": "*"}, ValueError, "the model has no parameters to record; see include= and exclude="),
        ({"stabilize": "clamp"}, ValueError, "stabilize: expected one of 'clip', 'project', got 'clamp'"),
        ({"stabilize": -1.0}, ValueError, "stabilize: expected a radius > 0"),
        ({"stabilize": True}, TypeError, "stabilize: expected None"),
        ({"cutoff": "scipy"}, ValueError, "cutoff: expected one of"),  # before an hour of recording, not after
        ({"cutoff": None}, TypeError, "cutoff: expected a name"),
        ({"observables": "cubic"}, ValueError, "observables: expected"),
    ],
)
def test_options_are_checked_when_the_phase_is_made(options, error, match):
    with pytest.raises(error, match=match):
        KoopmanPhase(net(), **options)


def test_attach_twice():
    _, phase, _ = recorded(2)
    with pytest.raises(ValueError, match=r"attach: this phase is attached already; call detach\(\) first"):
        phase.attach(torch.optim.SGD(net().parameters(), lr=0.1))


@pytest.mark.parametrize("thing", [None, "adam", net()])
def test_attach_to_no_optimizer(thing):
    with pytest.raises(TypeError, match=r"optimizer: expected a torch\.optim\.Optimizer"):
        KoopmanPhase(net()).attach(thing)


def test_steps_must_be_a_multiple_of_every():
    model, phase, _ = recorded(9, every=3)
    before = bits(model)
    with pytest.raises(ValueError, match="steps: expected a multiple of every=3, got 10; the nearest are 9 and 12"):
        phase.jump(10)
    assert same_bits(bits(model), before)


@pytest.mark.parametrize(
    ("steps", "error", "match"),
    [
        (-1, ValueError, "steps: expected an integer >= 0, got -1"),
        (2.0, TypeError, "steps: expected an integer, got 2.0"),
        (True, TypeError, "steps: expected an integer, got True"),
        (None, TypeError, "steps: expected an integer"),
        (10**30, ValueError, "steps: "),
    ],
)
def test_steps_out_of_range(steps, error, match):
    _, phase, _ = recorded(4)
    with pytest.raises(error, match=match):
        phase.jump(steps)


@pytest.fixture(scope="module")
def mnist():
    """The report's network after 20 iterations, recorded over 40 more at two capacities, and the trail."""
    if not os.environ.get("FASTKOOP_DATA_DIR"):
        pytest.skip("needs the real MNIST files in FASTKOOP_DATA_DIR")
    from fastkoop.experiments.problems.datasets import load

    data = load("mnist")
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    torch.manual_seed(0)
    sizes = (784, 20, 20, 20, 10)
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1], nn.LogSoftmax(dim=1))
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    phases = {m: KoopmanPhase(model, capacity=m + 1) for m in (8, 32)}
    generator, trail = torch.Generator().manual_seed(0), []
    for iteration in range(60):
        if iteration == 20:
            for phase in phases.values():  # attach takes one optimizer each, the optimizer any number of phases
                phase.attach(optimizer)
        batch = torch.randint(len(images), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.nll_loss(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        trail.append(flat(model))
    return model, phases, trail


@pytest.mark.mnist
@pytest.mark.parametrize("steps", [1, 5])
def test_mnist_nodes_equal_the_reference(mnist, steps):
    model, phases, trail = mnist
    deficient = wide = 0
    for m, phase in phases.items():
        assert phase.snapshots == m + 1
        report = phase.jump(steps)
        assert_predicted(flat(model), trail[-m - 1 :], blocks(mlp_rows(model), "node", None), steps)
        phase.rollback()
        assert np.array_equal(flat(model), trail[-1])
        for layer in report.layers:
            n = layer.weights // layer.blocks
            wide += layer.blocks * (n <= m)
            deficient += sum(int((op.rank < min(n, m)).sum()) for op in layer.operators)
    assert deficient >= 1 and wide >= 1, (deficient, wide)
