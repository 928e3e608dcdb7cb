"""Where jumps pay, where the gate keeps them from harm, and what it misses: facts that would show a lost regime."""

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule  # noqa: E402

DECAY = 1e-3
BUDGET = 800  # gradients; a guard's evaluation costs a third of one
HORIZON = [1, 10, 100, 1000, 10**4, 10**9]


@pytest.fixture(scope="module")
def digits():
    """Images of digits, their labels, and the least loss of softmax regression on them."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.from_numpy(data.data[:1200] / 16), torch.from_numpy(data.target[:1200])
    model = nn.Linear(64, 10).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=0.0, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        return value

    optimizer.step(closure)
    return x, y, float(loss(model, x, y).detach())


def loss(model, x, y):
    """Of softmax regression, in its weights convex and smooth."""
    decay = sum(parameter.square().sum() for parameter in model.parameters())
    return nn.functional.cross_entropy(model(x), y) + 0.5 * DECAY * decay


def gap(digits, momentum=0.0, partition=None, record=17, budget=BUDGET, **options):
    """Above the optimum after the budget, with jumps if there is a partition."""
    x, y, least = digits
    torch.manual_seed(0)
    model = nn.Linear(64, 10).double()
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    rate = 1.0 / (0.5 * float(torch.linalg.eigvalsh(ones.T @ ones / len(x))[-1]) + DECAY)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    spent, schedule = 0.0, None

    def guard():
        nonlocal spent
        spent += 1 / 3
        with torch.no_grad():
            return float(loss(model, x, y))

    if partition is not None:
        state = options.pop("optimizer_state", "keep")
        phase = KoopmanPhase(model, partition, preset="smooth", **options)
        schedule = KoopmanSchedule(
            phase, optimizer, burn_in=20, record=record, jump=10**9, guard=guard, horizon=HORIZON,
            optimizer_state=state,
        )  # fmt: skip
    while spent + 1 <= budget:
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
        spent += 1
        if schedule is not None:
            schedule.step()
    with torch.no_grad():
        return float(loss(model, x, y)) - least


def test_full_batches_of_gradient_descent_are_left_far_behind(digits):
    assert 0.04 < gap(digits) < 0.15
    assert abs(gap(digits, partition="network")) <= 1e-6
    assert abs(gap(digits, partition="node")) <= 1e-4


def test_with_momentum_the_whole_state_has_to_move(digits):
    both = (fk.Affine(), fk.Momentum())
    options = {"momentum": 0.9, "partition": "network", "budget": 400}
    moved = gap(digits, observables=both, cutoff=fk.Rank(16), optimizer_state="predict", **options)
    assert abs(moved) <= 1e-5
    assert gap(digits, **options) > 10 * abs(moved)


def dropout_net():
    """A small classifier whose training is noisy."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(32, 10),
    )  # fmt: skip


@pytest.mark.parametrize("cutoff", ["jax", "array_api"])
def test_without_a_guard_noisy_training_comes_to_no_harm(digits, cutoff):
    """Ungated jumps of the same schedule destroy it: the gate lets none of them pass."""
    x, y, _ = digits
    x = x.float()

    def trained(gate):
        model = dropout_net()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        phase = KoopmanPhase(model, "node", cutoff=cutoff)
        schedule = None
        if gate == "forecast":
            schedule = KoopmanSchedule(phase, optimizer, burn_in=40, record=30, jump=60, rest=10)
        elif gate == "none":
            with pytest.warns(RuntimeWarning, match="None without a guard"):
                schedule = KoopmanSchedule(
                    phase, optimizer, burn_in=40, record=30, jump=60, rest=10, repeats=1, gate=None
                )
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            batch = torch.randint(len(x), (32,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        model.eval()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x), y)), schedule and schedule.jumps

    alone, _ = trained(None)
    gated, jumps = trained("forecast")
    assert jumps == 4 and gated <= 1.05 * alone
    if cutoff == "jax":
        assert trained("none")[0] > 10 * alone


def at_a_large_rate(digits, lr, seed, jumps):
    """Loss, and jumps that the gate let pass, of a network that gradient descent trains at the edge of stability.

    Far ahead of a recording the loss is sharper than the rate allows: the jump itself lowers the loss, and training
    that goes on from there diverges.
    """
    x, y, _ = digits
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    optimizer, schedule = torch.optim.SGD(model.parameters(), lr=lr), None
    if jumps:
        phase = KoopmanPhase(model, "layer", preset="smooth")
        schedule = KoopmanSchedule(phase, optimizer, burn_in=20, record=17, jump=3000, rest=10)
    passed = 0
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        report = None if schedule is None else schedule.step()
        passed += report is not None and report.steps > 0
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y)), passed


@pytest.mark.parametrize("seed", [1, 2])
def test_jumps_that_lead_to_the_edge_of_stability_are_held(digits, seed):
    """Recordings foretell their own end; operators of the part and of the whole lead to different places."""
    gated, passed = at_a_large_rate(digits, 1.0, seed, jumps=True)
    assert passed and gated <= 1.05 * at_a_large_rate(digits, 1.0, seed, jumps=False)[0]


def test_what_the_gate_misses(digits):
    """A known failure: at another rate and seed a jump passes that training does not recover from."""
    gated, passed = at_a_large_rate(digits, 0.5, 3, jumps=True)
    assert passed and gated > 2 * at_a_large_rate(digits, 0.5, 3, jumps=False)[0]
