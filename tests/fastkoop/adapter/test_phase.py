"""KoopmanPhase against the reference on snapshots that the tests keep themselves."""

import copy
import math
import os
import pickle
import time
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import cases  # noqa: E402

from fastkoop import Momentum, Rank  # noqa: E402
from fastkoop import cutoff as rules  # noqa: E402
from fastkoop.adapter.mover import Mover  # noqa: E402
from fastkoop.kernels import reference  # noqa: E402
from fastkoop.kernels.plan import resolution  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, LayerReport  # noqa: E402

GRANULARITIES = [("weight", None), ("quasi-node", 3), ("node", None), ("layer", None), ("network", None)]

EDGE = 1e-5  # a singular value this near the threshold may count or not


# A trajectory kept beside the phase, and the reference's answer to it


def flat(model) -> np.ndarray:
    """All parameters one after another, float64."""
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()]).numpy()


def index(model) -> dict[str, np.ndarray]:
    """For every parameter, the places of its entries in `flat`."""
    places, at = {}, 0
    for name, parameter in model.named_parameters():
        places[name] = np.arange(at, at + parameter.numel()).reshape(tuple(parameter.shape))
        at += parameter.numel()
    return places


def mlp_rows(model) -> list[np.ndarray]:
    """Every linear layer's units as rows of places: the weights that feed one, its bias last."""
    at = index(model)
    names = [name.removesuffix(".weight") for name in at if name.endswith(".weight")]
    return [np.concatenate([at[f"{name}.weight"], at[f"{name}.bias"][:, None]], axis=1) for name in names]


def blocks(rows: list[np.ndarray], granularity: str, q: int | None) -> list[np.ndarray]:
    """The places of every block's weights."""
    if granularity == "network":
        return [np.concatenate([layer.ravel() for layer in rows])]
    if granularity == "layer":
        return [layer.ravel() for layer in rows]
    units = [unit for layer in rows for unit in layer]
    if granularity == "node":
        return units
    q = 1 if granularity == "weight" else q
    return [unit[at : at + q] for unit in units for at in range(0, len(unit), q)]


def candidates(X: np.ndarray, cutoff) -> list[tuple[str, float]]:
    """The cutoff as the reference takes it; also the ranks to either side of a value on the threshold's edge."""
    rule = rules.resolve(cutoff, X.shape[0], X.shape[1] - 1, X.dtype)
    if rule[0] in ("rank", "energy"):
        return [rule]
    s = np.linalg.svd(X[:, :-1].astype(np.float64), compute_uv=False)
    limit = reference.threshold(s, rule, X.dtype) if s[0] else 0.0
    ranks = {int((s > limit * (1 - EDGE)).sum()), int((s > limit * (1 + EDGE)).sum())}
    return [rule] + [("rank", rank) for rank in ranks if rank and len(ranks) > 1]


def assert_predicted(got, trail, places, steps, dtype=torch.float32, cutoff="array_api"):
    """`got` (flat) holds K^steps x_last of every block of the snapshots `trail`, a list of flat vectors."""
    snapshots = np.stack(trail, axis=1).astype(np.float32 if dtype == torch.float32 else np.float64)
    assert len(np.unique(np.concatenate(places))) == sum(map(len, places)) == len(got)
    for place in places:
        X = snapshots[place]
        shares = []
        for rule in candidates(X, cutoff):
            expected = cases.truth(X, steps, rule)
            bound = cases.error_bound(X, steps, rule, expected)
            # no bound so loose that a wrong answer could hide behind it; an exact zero is rounding to the reference
            bound = min(bound, 1e-2 * np.linalg.norm(expected) + 64 * cases.EPS64 * np.linalg.norm(X))
            bound += np.finfo(X.dtype).smallest_normal
            shares.append(np.linalg.norm(got[place] - expected) / bound)
        assert min(shares) <= 1.0, f"weights {place}: off by {min(shares):.3g} times the bound"


def net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).to(dtype)


def trained(model, iterations, *, optimizer=None, inputs=(6,), seed=1):
    """Train on random batches; the parameters after every step."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    trail = []
    for _ in range(iterations):
        x = torch.randn(8, *inputs, generator=generator).to(dtype)
        optimizer.zero_grad()
        (model(x) - x.flatten(1)[:, :1]).square().mean().backward()
        optimizer.step()
        trail.append(flat(model))
    return trail


def recorded(iterations=9, dtype=torch.float32, **options):
    """A trained network, its phase and the trail."""
    model = net(dtype)
    phase = KoopmanPhase(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    phase.attach(optimizer)
    return model, phase, trained(model, iterations, optimizer=optimizer)


def scripted(model, phase, iterations, seed=0, scale=1.0):
    """Record parameters set to multiples of 6/8, of which means of 1, 2 or 3 are exact."""
    generator = torch.Generator().manual_seed(seed)
    trail = []
    for _ in range(iterations):
        with torch.no_grad():
            for parameter in model.parameters():
                values = torch.randint(-8, 9, parameter.shape, generator=generator) * (0.75 * scale)
                parameter.copy_(values)
        phase.record()
        trail.append(flat(model))
    return trail


def bits(model) -> list[np.ndarray]:
    """The bytes of every parameter, so that -0.0 and NaN compare too."""
    return [p.detach().contiguous().flatten().view(torch.uint8).numpy().copy() for p in model.parameters()]


def same_bits(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Predictions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("iterations", [5, 14], ids=["tall nodes", "wide nodes"])
@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
@pytest.mark.parametrize("steps", [1, 5])
def test_jump_and_steps_equal_the_reference(partition, q, iterations, dtype, steps):
    model, phase, trail = recorded(iterations, dtype, partition=partition, q=q)
    places = blocks(mlp_rows(model), partition, q)
    start = bits(model)
    report = phase.jump(steps)
    assert_predicted(flat(model), trail, places, steps, dtype)
    assert not same_bits(bits(model), start)
    assert sum(layer.blocks for layer in report.layers) == len(places)
    assert sum(layer.kept for layer in report.layers) == 0
    phase.rollback()
    for done in range(1, steps + 1):
        phase.step()
        assert_predicted(flat(model), trail, places, done, dtype)


@pytest.mark.parametrize("cutoff", [0.05, "jax", rules.Rank(2), rules.Energy(0.9)])
def test_cutoff_reaches_every_block(cutoff):
    model, phase, trail = recorded(8, cutoff=cutoff)
    phase.jump(3)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 3, cutoff=cutoff)


def test_partition_by_pattern():
    model, phase, trail = recorded(8, partition={"0.*": "quasi-node", "2.*": "layer", "*": "weight"}, q=4)
    first, second, third = mlp_rows(model)
    places = blocks([first], "quasi-node", 4) + blocks([second], "layer", None) + blocks([third], "weight", None)
    phase.jump(4)
    assert_predicted(flat(model), trail, places, 4)


def test_clip_holds_an_exploding_trajectory():
    model = nn.Linear(1, 1, bias=False)
    phase = KoopmanPhase(model, stabilize="clip")
    for t in range(6):
        with torch.no_grad():
            model.weight.fill_(2.0**t)
        phase.record()
    report = phase.jump(50)
    assert model.weight.item() == pytest.approx(32.0, rel=1e-6)
    assert report.layers[0].spectral_radius == pytest.approx(1.0)


def test_step_and_jump_mix():
    model, phase, trail = recorded(8)
    places = blocks(mlp_rows(model), "node", None)
    moves = [
        (lambda: phase.jump(3), 3), (phase.step, 4), (phase.step, 5), (lambda: phase.jump(2), 7),
        (lambda: phase.jump(0), 7), (phase.step, 8),
    ]  # fmt: skip
    for move, position in moves:
        move()
        assert phase.position == position
        assert_predicted(flat(model), trail, places, position)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
def test_looking_ahead_changes_no_bit(partition, q, dtype):
    model, phase, _ = recorded(9, dtype, partition=partition, q=q, every=2)
    states = []
    for _ in range(12):
        phase.step()
        states.append(bits(model))
    phase.rollback()
    for done, ahead in enumerate((1, 4, 1, 1, 1, 7, 2, 2, 1, 1, 1, 3)):
        phase.step(ahead=ahead)
        assert phase.position == 2 * (done + 1)
        assert same_bits(bits(model), states[done]), done
    phase.jump(4)
    phase.step(ahead=3)
    assert phase.position == 30


def test_ahead_is_checked():
    _, phase, _ = recorded(4)
    with pytest.raises(ValueError, match="ahead: expected an integer >= 1, got 0"):
        phase.step(ahead=0)


def test_layers_with_equal_blocks_share_their_kernel_calls():
    """Both hidden layers have nodes of 4 weights and a bias; each still gets its own operators' states."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    phase = KoopmanPhase(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    phase.attach(optimizer)
    trail = trained(model, 9, optimizer=optimizer)
    for done in range(1, 4):
        phase.step()
        assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), done)
    assert len(Mover(phase.parts.recordings, list(phase.operators().values())).coordinates) == 2  # of three layers


def test_a_step_is_seen_by_autograd():
    """Weights that moved between forward and backward make its gradients wrong: torch must be able to tell."""
    model, phase, _ = recorded(4)
    loss = model(torch.ones(2, 6)).square().sum()
    phase.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_whose_memory_changed_are_still_moved():
    model, phase, trail = recorded(6)
    phase.step()
    old = model[0].weight.data
    model[0].weight.data = model[0].weight.detach().clone()
    before = old.clone()
    phase.step()
    assert torch.equal(old, before)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 2)


def test_jump_over_nothing_goes_to_the_newest_snapshot():
    model, phase, trail = recorded(8, every=3)
    assert not np.array_equal(flat(model), trail[5])
    report = phase.jump(0)
    assert report.steps == 0
    assert np.array_equal(flat(model), trail[5])


def test_fit_twice_gives_the_same_bits():
    model, phase, _ = recorded(8)
    phase.jump(4)
    once = bits(model)
    phase.fit()
    assert phase.position == 4  # the parameters are where they were moved to, whatever is fitted
    phase.rollback()
    phase.jump(4)
    assert same_bits(bits(model), once)


def test_a_fit_after_a_move_does_not_forget_it():
    model, phase, _ = recorded(8)
    before = bits(model)
    phase.jump(50)
    phase.fit()
    phase.record()
    assert (phase.snapshots, phase.position) == (1, 0)  # no pair across the move
    model, phase, _ = recorded(8)
    phase.jump(50)
    phase.fit()
    phase.rollback()
    assert same_bits(bits(model), before)


def test_one_recording_can_be_fitted_in_several_ways():
    model, phase, trail = recorded(8, cutoff="array_api")
    phase.jump(3)
    usual = bits(model)
    phase.rollback()
    phase.fit(cutoff=Rank(1))
    assert all((op.rank == 1).all() for ops in phase.operators().values() for op in ops)
    phase.jump(3)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 3, cutoff=Rank(1))
    phase.rollback()
    phase.fit(cutoff="array_api")
    phase.jump(3)
    assert same_bits(bits(model), usual)
    with pytest.raises(TypeError, match="fit: expected cutoff, observables, stabilize, out_of_span, got every"):
        phase.fit(every=2)
    with pytest.raises(ValueError, match="is decided when a phase is made"):
        phase.fit(observables=Momentum())


def test_going_to_the_newest_snapshot_is_a_move():
    """With windows it is a mean, which the next iterate does not follow."""
    model, phase, _ = recorded(8, window=4)
    before = bits(model)
    phase.jump(0)
    assert not same_bits(bits(model), before)
    phase.record()
    assert (phase.iterations, phase.snapshots) == (1, 0)


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


# Which snapshots


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


def mlp_rows_of_one(linear) -> list[np.ndarray]:
    at = index(linear)
    return [np.concatenate([at["weight"], at["bias"][:, None]], axis=1)]


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


# Which parameters


def test_frozen_excluded_and_not_included_parameters_stay():
    for options, moved in (
        ({}, {"2.weight", "2.bias", "4.weight", "4.bias"}),
        ({"exclude": "*.bias"}, {"2.weight", "4.weight"}),
        ({"include": ["2.*", "4.bias"]}, {"2.weight", "2.bias", "4.bias"}),
        ({"include": "4.*", "exclude": ["*.weight"]}, {"4.bias"}),
    ):
        model = net()
        model[0].requires_grad_(False)
        phase = KoopmanPhase(model, **options)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
        phase.attach(optimizer)
        trained(model, 6, optimizer=optimizer)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        phase.jump(3)
        assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == moved
        assert {p.parameter.name for g in phase.groups for p in g.pieces} == moved


def test_tied_weights_are_taken_once_and_stay_tied():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    phase = KoopmanPhase(model)
    trail = scripted(model, phase, 6)
    assert [(g.name, g.rows, g.n) for g in phase.groups] == [("0", 7, 4), ("1", 4, 5)]
    at = index(model)
    unit = np.concatenate([at["1.weight"], at["1.bias"][:, None]], axis=1)
    phase.jump(2)
    assert_predicted(flat(model), trail, [*at["0.weight"], *unit], 2)
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_recorded_in_float32(dtype):
    model = net(dtype)
    phase = KoopmanPhase(model)
    assert phase.plan().bytes_per_snapshot == KoopmanPhase(net()).plan().bytes_per_snapshot
    trail = trained(model, 6, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    for state in trail:
        put(model, state)
        phase.record()
    phase.jump(0)
    assert np.array_equal(flat(model), trail[-1])
    phase.jump(2)
    assert all(p.dtype == dtype for p in model.parameters())
    for place in blocks(mlp_rows(model), "node", None):
        X = np.stack(trail, axis=1)[place].astype(np.float32)
        ref = reference.predict(X, 2, rules.resolve("array_api", len(X), 5, X.dtype))
        rounding = torch.finfo(dtype).eps * np.abs(ref) + torch.finfo(dtype).tiny
        assert (np.abs(flat(model)[place] - ref) <= rounding).all()


def put(model, state: np.ndarray) -> None:
    """Set the parameters to a flat vector."""
    with torch.no_grad():
        for (_, parameter), place in zip(model.named_parameters(), index(model).values(), strict=True):
            parameter.copy_(torch.from_numpy(state[place.ravel()].reshape(place.shape)))


@pytest.mark.parametrize("storage", [torch.float32, torch.float64], ids=["in float32", "in float64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_storage_dtype(dtype, storage):
    model, phase, trail = recorded(6, dtype, storage_dtype=storage)
    lane = 16 // storage.itemsize
    wide = [-(-row.shape[1] // lane) * lane * len(row) for row in mlp_rows(model)]
    assert phase.plan().bytes_per_snapshot == sum(wide) * storage.itemsize
    phase.jump(2)
    lower = min(dtype, storage, key=lambda d: d.itemsize)
    if lower == storage:
        assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 2, storage)
    else:  # fitted in float64, rounded to float32 once
        for place in blocks(mlp_rows(model), "node", None):
            X = np.stack(trail, axis=1)[place]
            rule = rules.resolve("array_api", len(X), 5, X.dtype)
            ref = reference.predict(X, 2, rule)
            # the contract's share of the displacement; and of two blocks, s1 / s_r = 1e7 and more, the reference
            # itself is no better known than to what float64's resolution of the snapshots moves it
            allowed = 1e-9 * np.linalg.norm(ref - X[:, -1])
            allowed += cases.sensitivity(X, 2, rule, resolution(len(X), 5, X.dtype).svd)
            rounding = 2.0**-24 * np.linalg.norm(ref)
            assert np.linalg.norm(flat(model)[place] - ref) <= allowed + rounding * (1 + 2**-20), place


def _conv(channels_last=False):
    model = nn.Conv2d(3, 4, 2)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _conv_units(at):
    return np.concatenate([at["weight"].reshape(4, -1), at["bias"][:, None]], axis=1)


def _transposed_units(at):
    return np.concatenate([at["weight"].transpose(1, 0, 2, 3).reshape(4, -1), at["bias"][:, None]], axis=1)


MODULES = {
    "conv": (_conv, _conv_units),
    "channels_last conv": (lambda: _conv(True), _conv_units),
    "transposed conv": (lambda: nn.ConvTranspose2d(3, 4, 2), _transposed_units),
    "channels_last transposed conv": (
        lambda: nn.ConvTranspose2d(3, 4, 2).to(memory_format=torch.channels_last),
        _transposed_units,
    ),
    "batch norm": (lambda: nn.BatchNorm1d(5), lambda at: np.stack([at["weight"], at["bias"]], axis=1)),
    "embedding": (lambda: nn.Embedding(6, 4), lambda at: at["weight"]),
    "bilinear": (
        lambda: nn.Bilinear(2, 3, 4),
        lambda at: np.concatenate([at["weight"].reshape(4, -1), at["bias"][:, None]], axis=1),
    ),
    "prelu": (lambda: nn.PReLU(3), lambda at: at["weight"][:, None]),
}


@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
@pytest.mark.parametrize("module", MODULES)
def test_modules(module, partition, q):
    make, units = MODULES[module]
    torch.manual_seed(0)
    model = make()
    memory = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    phase = KoopmanPhase(model, partition=partition, q=q)
    trail = scripted(model, phase, 5)
    places = blocks([units(index(model))], partition, q)
    phase.jump(0)
    assert np.array_equal(flat(model), trail[-1])
    phase.jump(2)
    assert_predicted(flat(model), trail, places, 2)
    phase.rollback()
    assert np.array_equal(flat(model), trail[-1])
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == memory


class Odd(nn.Module):
    """Parameters of no and of zero size beside ordinary ones."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.single = nn.Parameter(torch.ones(1))
        self.matrix = nn.Parameter(torch.ones(3, 2))


@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
def test_scalars_and_empty_parameters(partition, q):
    model = Odd()
    phase = KoopmanPhase(model, partition=partition, q=q)
    trail = scripted(model, phase, 5)
    at = index(model)
    vectors = np.array([[int(at["scale"]), int(at["single"][0])]])
    phase.jump(2)
    assert_predicted(flat(model), trail, blocks([vectors, at["matrix"]], partition, q), 2)
    phase.step()
    phase.rollback()
    assert np.array_equal(flat(model), trail[-1])


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager"), nn.Sequential])
def test_wrapped_models(wrap):
    inner = net()
    phase = KoopmanPhase(wrap(inner))
    trail = scripted(inner, phase, 6)
    phase.jump(2)
    assert_predicted(flat(inner), trail, blocks(mlp_rows(inner), "node", None), 2)
    assert {(g.rows, g.n) for g in phase.groups} == {(5, 7), (4, 6), (3, 5)}


def test_a_copy_of_the_model_is_left_alone():
    model, phase, _ = recorded(6)
    twin = copy.deepcopy(model)
    before = bits(twin)
    phase.jump(5)
    assert same_bits(bits(twin), before)
    assert not same_bits(bits(model), before)


def test_moves_inside_inference_mode_leave_a_trainable_model():
    model, phase, trail = recorded(6)
    with torch.inference_mode():
        phase.jump(2)
        phase.step()
    phase.step()
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 4)
    phase.rollback()
    assert np.array_equal(flat(model), trail[-1])
    trained(model, 2)


def test_recording_inside_inference_mode_goes_on_outside():
    model = net()
    phase = KoopmanPhase(model, capacity=3)
    with torch.inference_mode():
        phase.record()
    trail = scripted(model, phase, 4)
    phase.jump(1)
    assert_predicted(flat(model), trail[-3:], blocks(mlp_rows(model), "node", None), 1)


def test_recording_under_another_default_device():
    """Under `torch.device("cuda")` or "meta" new tensors would go there."""
    model = net()
    phase = KoopmanPhase(model)
    with torch.device("meta"):
        phase.record()
        phase.record()
    before = flat(model)
    phase.jump(0)
    assert np.array_equal(flat(model), before)


@pytest.mark.parametrize("replace", ["assign", "load_state_dict"])
def test_replaced_parameters_are_noticed(replace):
    """The phase would go on recording, and move, tensors that the model no longer uses."""
    model, phase, _ = recorded(5)
    if replace == "assign":
        model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    else:
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match=r"model: .*(0|2)\.weight.* replaced"):
        phase.jump(1)


# Buffers


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


def test_fit_reads_the_buffer_without_a_copy():
    _, phase, _ = recorded(4, partition="quasi-node", q=4)
    for recording, ops in zip(phase.parts.recordings, phase.operators().values(), strict=True):
        assert all(np.shares_memory(op._X, recording.buffer.numpy()) for op in ops)


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


# Going back


def test_rollback_is_bit_exact():
    model, phase, _ = recorded(6, torch.float32, every=2)
    trained(model, 1)
    with torch.no_grad():
        model[0].bias[0] = -0.0
    before = bits(model)
    first = None
    for moves in (lambda: phase.jump(4), phase.step, lambda: (phase.step(), phase.jump(2), phase.step())):
        moves()
        assert not same_bits(bits(model), before)
        phase.rollback()
        assert same_bits(bits(model), before) and phase.position == 0
    for _ in range(2):
        phase.step()
        assert first is None or same_bits(bits(model), first)
        first = bits(model)
        phase.rollback()


def test_rollback_needs_a_move():
    _, phase, _ = recorded(3)
    for prepare in (lambda: None, phase.fit, lambda: (phase.step(), phase.rollback())):
        prepare()
        with pytest.raises(ValueError, match="rollback: there was no step or jump since the last snapshot"):
            phase.rollback()


def test_guard_keeps_an_improvement():
    model, phase, trail = recorded(6)
    values = iter([2.0, 1.5])
    report = phase.jump(2, guard=lambda: next(values))
    assert (report.before, report.after, report.rolled_back, phase.position) == (2.0, 1.5, False, 2)
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), 2)
    assert "guard 2 -> 1.5, kept" in str(report)
    phase.rollback()
    assert np.array_equal(flat(model), trail[-1])


def test_guard_sees_the_model_before_and_after():
    model, phase, trail = recorded(6)
    seen = []
    phase.jump(2, guard=lambda: seen.append(flat(model)) or 0.0)
    assert np.array_equal(seen[0], trail[-1])
    assert np.array_equal(seen[1], flat(model))
    assert len(seen) == 2 and not np.array_equal(*seen)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1.0, 1.5), (1.0, math.nan), (1.0, math.inf), (math.nan, 1.0), (math.nan, math.nan),
        (math.inf, math.inf), (1.0, -math.inf),
    ],
)  # fmt: skip
@pytest.mark.parametrize("moved", [False, True])
def test_guard_puts_back(before, after, moved):
    model, phase, trail = recorded(6)
    if moved:
        phase.jump(3)
    kept, position = bits(model), phase.position
    values = iter([before, after])
    report = phase.jump(2, guard=lambda: next(values))
    assert report.rolled_back
    assert same_bits(bits(model), kept) and phase.position == position
    assert "worse: rolled back" in str(report)
    phase.step()
    assert_predicted(flat(model), trail, blocks(mlp_rows(model), "node", None), position + 1)


def test_guard_that_fails_puts_back():
    model, phase, _ = recorded(6)
    before, values = bits(model), iter([1.0])
    with pytest.raises(StopIteration):
        phase.jump(2, guard=lambda: next(values))
    assert same_bits(bits(model), before) and phase.position == 0


# What is not finite


def exploding(partition, q=None, dtype=torch.float32, rows=(0,), base=2.0, **options):
    """A recorded layer whose given rows double at every step while the others halve."""
    model = nn.Linear(5, 3).to(dtype)
    phase = KoopmanPhase(model, partition=partition, q=q, **options)
    for t in range(6):
        for row in range(3):
            with torch.no_grad():
                rate = base if row in rows else 1 / base
                model.weight[row] = torch.arange(1.0, 6.0).to(dtype) * rate**t
                model.bias[row] = 7.0 * rate**t
        phase.record()
    return model, phase


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


@pytest.mark.parametrize("partition", ["weight", "node"])
def test_steps_that_overflow_keep_their_block(partition):
    model, phase = exploding(partition)
    largest = 0.0
    for _ in range(160):
        phase.step()
        assert all(p.isfinite().all() for p in model.parameters())
        largest = max(largest, model.bias[0].item())
    assert largest > 1e37
    assert (model.bias[1:].abs() < 1e-6).all()


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_snapshots_are_refused_by_layer(value):
    model, phase, _ = recorded(4)
    with torch.no_grad():
        model[2].weight[1, 0] = value
    phase.record()
    before = bits(model)
    for act in (phase.fit, phase.step, lambda: phase.jump(1)):
        with pytest.raises(ValueError, match=r"layer 2: X: block \(1,\) holds a NaN or an infinity"):
            act()
    assert same_bits(bits(model), before)


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


# Reports


def test_report_says_what_the_operators_are():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    phase = KoopmanPhase(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    phase.attach(optimizer)
    trail = trained(model, 9, optimizer=optimizer)
    report = phase.jump(3)
    assert report.steps == 3 and report.seconds > 0
    assert (report.before, report.after, report.rolled_back) == (None, None, False)
    assert [layer.name for layer in report.layers] == ["0", "2"] == list(phase.operators())
    for layer, units in zip(report.layers, mlp_rows(model), strict=True):
        ranks, radii, residuals = [], [], []
        for unit in units:
            X = np.stack(trail, axis=1)[unit]
            rule = rules.resolve("array_api", len(unit), 8, X.dtype)
            K = reference.fit(X, rule)
            ranks.append(len(reference.truncated_svd(X[:, :-1], rule)[1]))
            radii.append(np.abs(np.linalg.eigvals(K)).max())
            miss = np.linalg.norm(K @ X[:, -2] - X[:, -1])
            residuals.append(miss / np.linalg.norm(X[:, -1] - X[:, -2]))
            assert np.isfinite(residuals[-1])  # no unit of this network is dead
        assert layer.rank == (min(ranks), np.median(ranks), max(ranks))
        assert (layer.granularity, layer.blocks, layer.weights) == ("node", len(units), units.size)
        assert layer.spectral_radius == pytest.approx(max(radii), rel=1e-6)
        assert layer.residual == pytest.approx(np.sort(residuals)[(len(residuals) - 1) // 2], rel=1e-4, abs=1e-6)
    lines = str(report).splitlines()
    assert lines[0].startswith("jump over 3 steps in")
    assert lines[1].startswith("0: 5 node blocks, rank ")


def test_seconds_of_a_jump_are_without_its_report(monkeypatch):
    """The residual's pass over the recording is the report's, not the jump's."""
    _, phase, _ = recorded(6)
    phase.jump(2)
    phase.rollback()
    report = LayerReport.of

    def slowly(*arguments):
        time.sleep(0.2)
        return report(*arguments)

    monkeypatch.setattr(LayerReport, "of", slowly)
    assert phase.jump(2).seconds < 0.2


def test_report_of_uneven_ranks():
    """Smallest, median and largest; the blocks that stand still have no residual."""
    model = nn.Linear(4, 3)
    phase = KoopmanPhase(model)
    for seed in range(9):
        with torch.no_grad():
            model.weight[0], model.bias[0] = 0.0, 0.0
            model.weight[1], model.bias[1] = 0.5, 0.25
            model.weight[2] = torch.randn(4, generator=torch.Generator().manual_seed(seed))
            model.bias[2] = 0.1 * (-1) ** (seed // 2)
        phase.record()
    [layer] = phase.jump(1).layers
    assert layer.rank == (0, 1.0, 5)
    assert 0.0 < layer.residual


def test_operators_by_layer_hold_both_sizes_of_quasi_nodes():
    _, phase, _ = recorded(5, partition="quasi-node", q=3)
    shapes = {name: [tuple(op.rank.shape) for op in ops] for name, ops in phase.operators().items()}
    assert shapes == {"0": [(5, 2), (5,)], "2": [(4, 2)], "4": [(3, 1), (3,)]}


class Scaled(nn.Module):
    """A matrix beside two vectors that are not its bias."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))
        self.scale = nn.Parameter(torch.ones(4))
        self.shift = nn.Parameter(torch.ones(4))


def test_operators_of_every_layer_are_there():
    model = nn.Sequential(Scaled())
    phase = KoopmanPhase(model)
    scripted(model, phase, 4)
    assert len(phase.operators()) == len(phase.groups) == 2


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


def test_reports_of_any_number_of_blocks(monkeypatch):
    """torch.quantile refuses more than 2^24 values, as a weight-wise embedding has them."""
    _, phase, _ = recorded(4, partition="weight")

    def refuse(*_, **__):
        raise RuntimeError("quantile() input tensor is too large")

    monkeypatch.setattr(torch, "quantile", refuse)
    monkeypatch.setattr(torch.Tensor, "quantile", refuse)
    assert phase.jump(2).layers[0].rank == (1, 1.0, 1)


def test_seconds_are_counted():
    _, phase, _ = recorded(4)
    assert phase.record_seconds > 0 and phase.fit_seconds == 0
    phase.fit()
    assert phase.fit_seconds > 0


# Errors


@pytest.mark.parametrize("snapshots", [0, 1])
def test_too_few_snapshots(snapshots):
    model = net()
    phase = KoopmanPhase(model)
    scripted(model, phase, snapshots)
    for act in (phase.fit, phase.step, lambda: phase.jump(1), phase.operators):
        with pytest.raises(ValueError, match=f"fit: expected at least 2 snapshots, got {snapshots}; train with"):
            act()


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


def test_frozen_model():
    with pytest.raises(ValueError, match="the model has no parameters to record"):
        KoopmanPhase(net().requires_grad_(False))


def test_exclude_may_name_frozen_parameters():
    model = net()
    model[0].requires_grad_(False)
    phase = KoopmanPhase(model, exclude="0.*")
    assert [g.name for g in phase.groups] == ["2", "4"]


def test_complex_parameters():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"model: expected float parameters, but weight is torch\.complex64; see exc"):
        KoopmanPhase(model)


def test_parameters_elsewhere():
    with pytest.raises(TypeError, match=r"model: expected parameters on the CPU or CUDA, but 0\.weight is on meta"):
        KoopmanPhase(nn.Sequential(nn.Linear(2, 2, device="meta")))


def test_lazy_parameters():
    with pytest.raises(ValueError, match=r"model: .*weight.* uninitialized"):
        KoopmanPhase(nn.LazyLinear(3))


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


# MNIST


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
