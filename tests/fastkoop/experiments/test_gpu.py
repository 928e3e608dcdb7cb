"""`compare` on a CUDA device against the same on the CPU (pytest -m gpu)."""

import pytest

torch = pytest.importorskip("torch")

import fastkoop  # noqa: E402

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]  # fmt: skip


class Line:
    """Least squares with weights of its own on whatever device the model is."""

    name, epochs, preset = "line", (20, 60, 40), "smooth"

    def make_model(self, seed):
        torch.manual_seed(seed)
        return torch.nn.Linear(3, 1, dtype=torch.float64)

    def batches(self, seed):
        x = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return [(x, x.sum(1, keepdim=True))]

    def loss(self, model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model):
        return (model.weight - 1).square().sum() + model.bias.square().sum()


@pytest.mark.parametrize(
    ("problem", "tolerance", "options"),
    [
        (Line(), 1e-6, {"optimizer": "sgd"}), ("softmax", 1e-4, {"t1": 20, "t2": 60, "T": 100, "eval_every": 50}),
        ("digits", 0.05, {"t1": 1, "t2": 3, "T": 1, "validation": 100, "horizon": "auto"}),
    ],
    ids=["line", "softmax", "digits"],
)  # fmt: skip
def test_a_device_ends_where_the_cpu_does(problem, tolerance, options):
    near, far = (fastkoop.compare(problem, device=device, **options)["runs"][0] for device in ("cpu", "cuda"))
    for side in ("optimizer", "koopman"):
        assert far[side]["iteration"] == near[side]["iteration"]
        assert far[side]["test_loss"][-1] == pytest.approx(near[side]["test_loss"][-1], rel=tolerance, abs=1e-12)
        assert all(seconds > 0 for seconds in far[side]["step_seconds"])
    assert far["koopman"]["jumped"]["test_loss"] == pytest.approx(
        near["koopman"]["jumped"]["test_loss"], rel=tolerance, abs=1e-12
    )
    assert set(far["baselines"]) == set(near["baselines"])
    assert all(entry["seconds"] > 0 for key, entry in far["baselines"].items() if key != "start")
    assert far["koopman"]["record_seconds"] > 0 and far["koopman"]["fit_seconds"] > 0


def test_a_step_waits_for_nothing():
    """PyTorch raises where a step, a snapshot or an average would copy to the host."""
    from fastkoop.experiments.averages import Line as Fitted
    from fastkoop.experiments.averages import Mean, Moving
    from fastkoop.experiments.config import Config, prepare
    from fastkoop.torch_adapter import KoopmanPhase

    setup = prepare(Config.of(problem="digits", device="cuda", out=None))
    training = setup.training(0)
    phase, averages = KoopmanPhase(training.model, capacity=8), [Mean(), Moving(), Fitted()]
    batches = [next(training.stream) for _ in range(8)]
    for batch in batches[:2]:  # optimizer states and buffers
        training.step(batch)
        phase.record()
        for average in averages:
            average.add(training.model)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[2:]:
            training.step(batch)
            phase.record()
            for average in averages:
                average.add(training.model)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert phase.snapshots == 8
