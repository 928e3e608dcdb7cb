"""KoopmanPhase on a CUDA device against the same on the CPU (pytest -m gpu)."""

import copy

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, Limits, step_cost  # noqa: E402

pytestmark = pytest.mark.gpu


def pair(**options):
    """Phases of a model on the CPU and of its copy on the device, with the same snapshots."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 5))
    there = copy.deepcopy(model).cuda()
    storage = options.pop("storage_device", None)
    near = KoopmanPhase(model, cutoff=1e-3, capacity=10, **options)
    far = KoopmanPhase(there, cutoff=1e-3, capacity=10, storage_device=storage, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    follower = torch.optim.SGD(there.parameters(), lr=0.1, momentum=0.9)
    near.attach(optimizer)
    far.attach(follower)
    far.detach()
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(16, 30)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for own, theirs in zip(there.parameters(), model.parameters(), strict=True):
                own.copy_(theirs)
                follower.state[own] = {"momentum_buffer": optimizer.state[theirs]["momentum_buffer"].cuda()}
        far.record()
    return model, near, there, far


def apart(model, there):
    return max(float((a - b.cpu()).abs().max()) for a, b in zip(model.parameters(), there.parameters(), strict=True))


@pytest.mark.parametrize("partition", ["weight", "node", "layer", "network"])
@pytest.mark.parametrize(
    "options",
    [{}, {"storage_device": "cpu"}, {"storage_dtype": torch.bfloat16},
     {"storage_device": "cpu", "storage_dtype": torch.bfloat16}, {"observables": (fk.Affine(), fk.Delay(2))},
     {"observables": fk.Momentum()}, {"window": 3, "storage_device": "cpu"}],
    ids=str,
)  # fmt: skip
def test_moves_as_on_the_cpu(partition, options):
    model, near, there, far = pair(partition=partition, **dict(options))
    near.jump(6 * near.every)
    far.jump(6 * far.every)
    assert apart(model, there) < 1e-4
    near.rollback()
    far.rollback()
    for ahead in (1, 3, 1):
        near.step(ahead)
        far.step(ahead)
    assert apart(model, there) < 1e-4
    assert all(parameter.is_cuda for parameter in there.parameters())


def test_limits_guards_and_states():
    _, _, there, far = pair()
    values = iter([1.0, 2.0])
    before = [parameter.detach().clone() for parameter in there.parameters()]
    assert far.jump(4, guard=lambda: next(values), limits=Limits(holdout=1e9)).rolled_back
    assert all(torch.equal(a, b) for a, b in zip(before, there.parameters(), strict=True))
    other = KoopmanPhase(there, cutoff=1e-3, capacity=10)
    other.load_state_dict(far.state_dict())
    far.jump(3)
    moved = [parameter.detach().clone() for parameter in there.parameters()]
    far.rollback()
    other.jump(3)
    assert all(torch.equal(a, b) for a, b in zip(moved, there.parameters(), strict=True))


def test_plan_names_both_devices():
    *_, far = pair(storage_device="cpu")
    assert far.plan().storage_device == "cpu" and far.plan().fit_bytes > 0
    assert far.parts.recordings[0].buffer.is_pinned()


class TestNothingIsCopiedToTheHost:
    """PyTorch raises where an operation would make the host wait."""

    @pytest.fixture(autouse=True)
    def strict(self):
        yield
        torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("partition", ["node", "layer"])
    def test_inside_a_step(self, partition):
        *_, far = pair(partition=partition)
        far.step()  # compiles and fits
        torch.cuda.set_sync_debug_mode("error")
        far.step()
        far.step(3)

    def test_inside_a_recording(self):
        *_, far = pair()
        torch.cuda.set_sync_debug_mode("error")
        far.record()

    def test_in_a_profile_of_the_device(self):
        from fastkoop.profile.devices import Gpu

        device = Gpu()
        X = device.put(torch.randn(9, 20, 785).numpy())
        device.kernels.predict(X, 1, ("relative", 1e-6))  # compiles
        torch.cuda.set_sync_debug_mode("error")
        device.kernels.predict(X, 1, ("relative", 1e-6))


def test_step_cost_on_the_device():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 5)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(16, 30, device="cuda")
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    cost = step_cost(model, optimizer, closure, snapshots=5, rounds=2)
    assert cost.step > 0 and cost.in_optimizer_steps("optimizer_step") == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
