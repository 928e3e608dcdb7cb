"""A phase whose kernels run on a device, on the CPU: what is launched there, and that nothing waits for it."""

import math
import sys

import pytest

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import fastkoop as fk  # noqa: E402
from bench.common.devices import emulator  # noqa: E402
from fastkoop.adapter import step_cost, walker  # noqa: E402
from fastkoop.adapter.buffers import GroupBuffer  # noqa: E402
from fastkoop.kernels.cuda import Cuda  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_to_copy")  # on a GPU


class Noted(TorchDispatchMode):
    """Names of PyTorch's operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))

    @property
    def waiting(self):
        """Those that make the host wait for a GPU."""
        return [name for name in self.names if name in WAITING]


@pytest.fixture
def device(monkeypatch):
    """The kernels of an emulated device for every tensor; `waits` counts what the host fetches from it."""
    module = emulator()
    if module.COMPILER is None:
        pytest.skip("the emulation needs a C++ compiler")
    cuda = Cuda(module.Emulated())
    host, cuda.driver.waits = cuda.driver.host, 0

    def fetched(array):
        cuda.driver.waits += 1
        return host(array)

    monkeypatch.setattr(cuda.driver, "host", fetched)
    for name, module in list(sys.modules.items()):
        if name.startswith("fastkoop.") and hasattr(module, "backend_for") and name != "fastkoop.backends":
            monkeypatch.setattr(module, "backend_for", lambda array: cuda)
    monkeypatch.setattr(walker, "Mover", walker.Walks)  # as where tensors are on a GPU
    monkeypatch.setattr(GroupBuffer, "waits", property(lambda recording: recording._spread is not None))
    return cuda


def trained(**options):
    """A phase that has recorded 10 iterations of a small network."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    phase = KoopmanPhase(model, cutoff=1e-3, capacity=10, **options)
    x = torch.randn(16, 12)
    for _ in range(10):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        phase.record()
    return model, phase


def parameters(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("partition", ["node", "layer"])
@pytest.mark.parametrize("options", [{}, {"observables": fk.Affine()}], ids=str)
def test_steps_are_launched_and_nothing_waits(device, partition, options):
    model, phase = trained(partition=partition, **options)
    phase.step()  # fits
    device.driver.launched.clear()
    device.driver.waits = 0
    with Noted() as noted:
        phase.step()
        phase.step()
    assert device.driver.waits == 0 and noted.waiting == []
    assert any("combine" in name for name, *_ in device.driver.launched)
    there = parameters(model)
    phase.rollback()
    phase.jump(3 * phase.every)
    for a, b in zip(there, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


def test_only_on_a_gpu_the_host_does_not_look(monkeypatch):
    _, phase = trained(partition="node")
    [recording] = phase.parts.recordings[:1]
    assert recording.waits is True
    monkeypatch.setattr(recording, "device", torch.device("cuda"))
    assert recording.waits is False


def test_moves_ask_for_no_gradient():
    _, phase = trained(partition="node")
    [recording] = phase.parts.recordings[:1]
    with torch.enable_grad():
        recording.move([torch.zeros(recording.group.rows, recording.group.n)])
    assert not recording.current().any()


def test_blocks_that_are_not_finite_keep_their_value(device):
    _, phase = trained(partition="node")
    [recording] = phase.parts.recordings[:1]
    states = [torch.full((recording.group.rows, recording.group.n), 2.0)]
    states[0][1, 0] = torch.nan
    before = recording.current().clone()
    held = torch.zeros(recording.group.rows, dtype=torch.bool)
    held[0] = True
    expected, _ = recording.checked(states, [held])
    recording.move(states, [held])
    assert torch.equal(recording.current(), expected)
    assert torch.equal(expected[:2], before[:2]) and bool((expected[2:] == 2.0).all())


@pytest.mark.parametrize("options", [{}, {"observables": fk.Affine()}], ids=str)
def test_forecasts_gates_and_limits_are_those_of_the_host(request, options):
    """Told and moved on the host first, and then by the kernels of a device."""

    def told():
        model, phase = trained(partition="layer", stabilize=0.9, **options)
        forecast = phase.forecast()
        report = phase.jump(4, gate="forecast")
        if phase.position:
            phase.rollback()
        phase.jump(math.inf)
        return forecast, report.held, parameters(model)

    expected, held, there = told()
    device = request.getfixturevalue("device")
    forecast, held_there, moved = told()
    assert device.driver.launched and held_there == held
    for name, layer in forecast.items():
        for report in ("error", "baseline", "apart", "overshoot"):
            torch.testing.assert_close(getattr(layer, report), getattr(expected[name], report), rtol=1e-3, atol=1e-6)
        assert torch.equal(layer.pays, expected[name].pays)
    for a, b in zip(moved, there, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_recording_waits_for_nothing(device):
    _, phase = trained()
    with Noted() as noted:
        phase.record()
    assert noted.waiting == [] and device.driver.waits == 0


def test_the_clock_of_step_cost_waits_for_every_gpu_before_and_after(monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append(str(device)))
    clock = step_cost.Clock([torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)])
    assert clock.seconds(lambda: said.append("work")) >= 0.0
    assert said == ["cuda:0", "cuda:1", "work", "cuda:0", "cuda:1"]


def test_the_clock_of_step_cost_waits_for_nothing_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    assert step_cost.Clock([torch.device("cpu")]).seconds(lambda: None) >= 0.0
