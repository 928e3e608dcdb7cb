"""Where a comparison runs: times between events, batches that are moved once, nothing that comes back in a step.

Without a device a stand-in notes events and waits, and models on the meta device show what would be copied to the host:
PyTorch refuses to read their numbers.
"""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fastkoop.experiments.averages import Line, Mean, Moving  # noqa: E402
from fastkoop.experiments.devices import Account, Stopwatch, to_device  # noqa: E402
from fastkoop.experiments.paths import WeightWatch  # noqa: E402
from fastkoop.experiments.problems.checked import CheckedProblem  # noqa: E402

THERE = torch.device("cuda")


class StandIn:
    """Events that note in `calls` what is asked of them, 0.25 s apart; `over`: whether the device has passed them."""

    def __init__(self, over=False):
        calls = self.calls = []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                calls.append("record")

            def query(self):
                return over

            def synchronize(self):
                calls.append("wait")

            def elapsed_time(self, last):
                return 250.0

        self.Event = Event


def test_times_on_a_device_are_those_between_its_events():
    """A step waits for nothing, its end is waited for afterwards."""
    cuda = StandIn()
    watch = Stopwatch(THERE, cuda)
    assert watch.time(lambda: cuda.calls.append("step")) == (None, 0.25)
    assert cuda.calls == ["record", "step", "record", "wait"]


@pytest.mark.parametrize("over", [False, True])
def test_an_account_waits_once_and_only_where_it_is_read(over):
    cuda = StandIn(over)
    account = Account(THERE, cuda)
    for _ in range(3):
        with account:
            cuda.calls.append("add")
    assert cuda.calls == ["record", "add", "record"] * 3
    assert account.seconds == 0.75 and account.seconds == 0.75
    assert cuda.calls[9:] == ([] if over else ["wait"])


@pytest.mark.parametrize("make", [Mean, Moving, Line])
def test_averages_are_timed_by_events(make, monkeypatch):
    cuda = StandIn()
    monkeypatch.setattr("fastkoop.experiments.averages.Account", lambda device: Account(THERE, cuda))
    model, average = nn.Linear(3, 2), make()
    assert average.seconds == 0.0
    for _ in range(4):
        average.add(model)
    assert cuda.calls == ["record", "record"] * 4
    assert average.seconds == 1.0 and average.count == 4 and cuda.calls[8:] == ["wait"]


def test_nothing_is_copied_to_the_host_inside_a_step():
    """A step of training, the averages and the watched weights, on a model whose numbers cannot be read."""

    class Far:
        def make_model(self, seed):
            return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))

        def loss(self, model, batch):
            return (model(batch) - 1).square().mean()

        batches = evaluate = make_model  # which a step has no use for

    problem = CheckedProblem(Far())
    near = problem.problem.make_model(0)
    watch = WeightWatch(near, [parameter.detach() + 1 for parameter in near.parameters()])
    model, batch = copy.deepcopy(near).to("meta"), torch.ones(8, 4, device="meta")
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adadelta):
        optimizer = kind(model.parameters(), lr=0.1)
        averages = [Mean(), Moving(), Line()]
        for _ in range(3):
            loss = problem.train_step(model, optimizer, batch)
            for average in averages:
                average.add(model)
            assert watch.read(model).device.type == loss.device.type == "meta"
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        float(loss)  # what the stand-in refuses


def test_batches_are_moved_whole_and_only_where_they_have_to_be():
    batch = {"x": torch.ones(1), "y": (torch.ones(1), [torch.ones(1)], "name")}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].device.type == moved["y"][1][0].device.type == "meta" and moved["y"][2] == "name"
    assert to_device(batch, torch.device("cpu")) is batch
