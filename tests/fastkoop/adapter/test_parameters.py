"""Which parameters a phase takes, of which modules, and the buffers beside them."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import cases  # noqa: E402
from trails import (  # noqa: E402
    GRANULARITIES,
    adam_recorded,
    assert_predicted,
    bits,
    bits_of,
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

from fastkoop import cutoff as rules  # noqa: E402
from fastkoop.kernels import reference  # noqa: E402
from fastkoop.kernels.plan import resolution  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


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


@pytest.mark.parametrize(("partition", "q"), GRANULARITIES, ids=[g for g, _ in GRANULARITIES])
@pytest.mark.parametrize("include", [None, "2.*"])
def test_what_is_frozen_by_the_time_of_a_move_stays(partition, q, include):
    """Though its blocks have other weights that move."""
    model, phase, _ = recorded(8, partition=partition, q=q, include=include)
    model[2].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = phase.jump(3)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    trained = set(before) - {"2.weight"} if include is None else {"2.bias"}
    assert moved == trained and report.frozen == ["2.weight"] and "frozen, and not moved: 2.weight" in str(report)
    jumped = bits(model)
    phase.rollback()
    for _ in range(3):
        phase.step()
    assert torch.equal(model[2].weight, before["2.weight"]) and not torch.equal(model[2].bias, before["2.bias"])
    model[2].weight.requires_grad_(True)
    phase.rollback()
    phase.jump(3)
    assert not torch.equal(model[2].weight, before["2.weight"]) and not same_bits(bits(model), jumped)


def test_all_that_is_included_may_be_frozen():
    model, phase, _ = recorded(8, include="2.*")
    model[2].requires_grad_(False)
    before = bits(model)
    assert phase.jump(3).frozen == ["2.weight", "2.bias"]
    phase.step()
    assert same_bits(bits(model), before)


def test_frozen_model():
    for options in ({}, {"include": "0.*"}):
        with pytest.raises(ValueError, match=r"all 6 parameters are frozen \(0.weight, .*has no parameters to record"):
            KoopmanPhase(net().requires_grad_(False), **options)


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


class TestBuffers:
    def model(self):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))

    def test_batchnorm_is_recalibrated_on_request(self):
        model, phase, _ = adam_recorded(model=self.model())
        batches = [torch.randn(32, 6) + 3.0 for _ in range(4)]
        stale = bits_of([model[1].running_mean, model[1].running_var])
        phase.jump(5)
        assert same_bits(bits_of([model[1].running_mean, model[1].running_var]), stale)
        phase.rollback()
        phase.jump(5, update_bn=batches)
        with torch.no_grad():
            hidden = torch.cat([model[0](x) for x in batches])
        np.testing.assert_allclose(model[1].running_mean, hidden.mean(dim=0), rtol=1e-4, atol=1e-5)
        assert model.training

    def test_a_guarded_jump_goes_back_with_its_buffers(self):
        """The guard runs the model in training mode, and so moves statistics before and after the jump."""
        model, phase, _ = adam_recorded(model=self.model())
        before = bits_of([*model.parameters(), *model.buffers()])
        x, losses = torch.randn(16, 6), iter([1.0, 2.0])

        def guard():
            with torch.no_grad():
                model(x)
            return next(losses)

        report = phase.jump(5, guard=guard, update_bn=[x, x])
        assert report.rolled_back
        assert same_bits(bits_of([*model.parameters(), *model.buffers()]), before)

    def test_rollback_has_the_buffers_of_a_jump_that_was_kept(self):
        model, phase, _ = adam_recorded(model=self.model())
        before = bits_of([*model.parameters(), *model.buffers()])
        phase.jump(5, update_bn=[torch.randn(16, 6)])
        assert not same_bits(bits_of(model.buffers()), before[-3:])
        phase.rollback()
        assert same_bits(bits_of([*model.parameters(), *model.buffers()]), before)

    def test_batches_have_to_last(self):
        model, phase, _ = adam_recorded(model=self.model())
        before = bits_of([*model.parameters(), *model.buffers()])
        with pytest.raises(ValueError, match="batches that can be gone through again, got generator"):
            phase.jump(4, update_bn=(torch.randn(8, 6) for _ in range(3)))
        assert same_bits(bits_of([*model.parameters(), *model.buffers()]), before)

    def test_frozen_norms_modes_and_momenta_stay(self):
        model, phase, _ = adam_recorded(model=self.model())
        model[1].eval()
        model[1].momentum = 0.25
        frozen = bits_of(model[1].buffers())
        phase.jump(4, update_bn=[torch.randn(16, 6)])
        assert same_bits(bits_of(model[1].buffers()), frozen)
        assert not model[1].training and model[1].momentum == 0.25 and model[0].training

        class Broken:
            def __iter__(self):
                yield torch.randn(8, 6)
                raise OSError("disk")

        before = bits_of([*model.parameters(), *model.buffers()])
        with pytest.raises(OSError, match="disk"):
            phase.jump(4, update_bn=Broken())
        assert model[1].momentum == 0.25 and not model[1].training and model[0].training
        assert same_bits(bits_of([*model.parameters(), *model.buffers()]), before)

    def test_horizon_ends_with_the_statistics_of_what_it_kept(self):
        model, phase, _ = adam_recorded(model=self.model())
        batch = [torch.randn(64, 6)]
        values = iter([9.0, 5.0, 1.0, 4.0, 6.0])
        report = phase.jump(4, horizon="auto", guard=lambda: next(values), update_bn=batch)
        assert report.steps == 1
        with torch.no_grad():
            np.testing.assert_allclose(model[1].running_mean, model[0](batch[0]).mean(dim=0), rtol=1e-4, atol=1e-5)
