"""KoopmanSchedule: what it does after every step, and what it refuses."""

import copy
import math

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule  # noqa: E402


def made(phase_options=(), **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    phase = KoopmanPhase(model, cutoff="jax", **dict(phase_options))
    schedule = KoopmanSchedule(
        phase, optimizer, **{"burn_in": 3, "record": 4, "jump": 5, "rest": 2, "guard": fair, **options}
    )
    return model, optimizer, schedule


def fair():
    """A guard that lets every jump pass."""
    return 0.0


def train(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()


def run(model, optimizer, schedule, steps):
    """(stage before, whether it jumped) of every step."""
    found = []
    for _ in range(steps):
        stage = schedule.stage
        train(model, optimizer)
        found.append((stage, schedule.step() is not None))
    return found


def test_burns_in_records_jumps_and_rests():
    found = run(*made(), 3 + 4 + 2 + 4 + 1)
    stages = ["burn in"] * 3 + ["record"] * 4 + ["rest"] * 2 + ["record"] * 4 + ["rest"]
    assert [stage for stage, _ in found] == stages
    assert [i for i, (_, jumped) in enumerate(found) if jumped] == [6, 12]


@pytest.mark.parametrize(("burn_in", "rest", "repeats", "jumps"), [(0, 0, None, [3, 7, 11]), (0, 0, 2, [3, 7]),
                                                                   (5, 1, 1, [8])])  # fmt: skip
def test_jumps_when_it_should(burn_in, rest, repeats, jumps):
    model, optimizer, schedule = made(burn_in=burn_in, rest=rest, repeats=repeats)
    found = run(model, optimizer, schedule, 14)
    assert [i for i, (_, jumped) in enumerate(found) if jumped][: len(jumps)] == jumps
    if repeats:
        assert schedule.stage == "done" and schedule.jumps == repeats


def test_every_jump_is_fitted_to_its_own_recording():
    model, optimizer, schedule = made(burn_in=0, rest=0)
    for _ in range(3):
        trail = []
        for _ in range(4):
            train(model, optimizer)
            trail.append(model.weight.detach().clone())
            report = schedule.step()
        assert report.steps == 5
        assert torch.equal(schedule.phase.parts.recordings[0].snapshots(4)[:, :, :4], torch.stack(trail))


def test_the_guard_and_the_rest_reach_the_jump():
    values = iter([1.0, 2.0])
    model, optimizer, schedule = made(guard=lambda: next(values), horizon=None)
    before = None
    for _ in range(7):
        train(model, optimizer)
        before = model.weight.detach().clone()
        report = schedule.step()
    assert report.rolled_back and torch.equal(model.weight, before)


def test_skipped_steps_do_not_count():
    model, optimizer, schedule = made(burn_in=1, record=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    jumped = []
    for i in range(6):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean() * (float("inf") if i in (1, 2) else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        jumped.append(schedule.step() is not None)
    assert jumped == [False, False, False, False, True, False]
    assert schedule.steps == 4


def test_several_steps_of_an_optimizer_are_one_iteration():
    """As a discriminator's are that is trained more often than its generator."""
    model, optimizer, schedule = made(burn_in=0, rest=0)
    for i in range(8):
        for _ in range(3):
            train(model, optimizer)
        jumped = schedule.step() is not None
        assert jumped == (i % 4 == 3)
    assert schedule.steps == 8


def test_batches_that_only_accumulate_are_no_iterations():
    model, optimizer, schedule = made(burn_in=0, record=3, rest=0)
    jumped = []
    for i in range(12):
        model(torch.randn(8, 4)).square().mean().backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
        jumped.append(schedule.step() is not None)
    assert schedule.steps == 6 and [i for i, jump in enumerate(jumped) if jump] == [5, 11]


def test_closed_it_takes_no_note():
    model, optimizer, schedule = made(burn_in=0)
    schedule.close()
    assert run(model, optimizer, schedule, 10)[-1] == ("record", False)
    assert schedule.steps == 0


def test_state_of_another_schedule_is_refused():
    _, _, schedule = made()
    with pytest.raises(ValueError, match=r"expected burn_in, record, jump, rest, repeats = \[3, 4, 5, 2, None\]"):
        schedule.load_state_dict(made(rest=1)[2].state_dict())


@pytest.mark.parametrize(
    ("options", "phase", "match"),
    [
        ({"burn_in": -1}, {}, "burn_in: expected an integer >= 0"),
        ({"record": 1}, {}, "record: expected an integer >= 2"),
        ({"jump": 0}, {}, "jump: expected an integer >= 1"),
        ({"jump": 5}, {"every": 2}, "jump: expected a multiple of every=2, got 5"),
        ({"record": 5, "jump": 4}, {"every": 2}, "record: expected a multiple of every=2, got 5"),
        ({"rest": -1}, {}, "rest: expected an integer >= 0"),
        ({"repeats": 0}, {}, "repeats: expected an integer >= 1"),
        ({"horizon": "auto", "guard": None}, {}, "pass guard="),
    ],
)
def test_refusals(options, phase, match):
    with pytest.raises(ValueError, match=match):
        made(phase, **options)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="unexpected keyword"):
        made(speed=3)


def test_a_jump_that_fails_ends_its_recording_too():
    def guard():
        raise OSError("no data")

    model, optimizer, schedule = made(burn_in=0, rest=0, guard=guard)
    for _ in range(3):
        train(model, optimizer)
        schedule.step()
    for _ in range(2):
        train(model, optimizer)
        with pytest.raises(OSError, match="no data"):
            schedule.step()
        assert schedule.phase.snapshots == 0
        for _ in range(3):
            train(model, optimizer)
            assert schedule.step() is None
    assert schedule.jumps == 2


def test_a_jump_can_be_looked_at_until_the_next_recording():
    model, optimizer, schedule = made(burn_in=0, rest=2)
    phase, trail = schedule.phase, []
    for _ in range(6):
        train(model, optimizer)
        trail.append(model.weight.detach().clone())
        schedule.step()
    assert schedule.stage == "record" and phase.snapshots == 4
    assert phase.record_seconds > 0 and phase.fit_seconds > 0
    torch.testing.assert_close(phase.average()["weight"], torch.stack(trail[:4]).mean(dim=0))
    phase.rollback()
    assert torch.equal(model.weight, trail[3])
    train(model, optimizer)
    schedule.step()
    assert phase.snapshots == 1


def test_once_done_it_records_no_more_and_gives_its_memory_back():
    model, optimizer, schedule = made(burn_in=0, rest=0, repeats=1)
    run(model, optimizer, schedule, 50)
    phase = schedule.phase
    assert schedule.stage == "done" and phase.snapshots == 4
    phase.release()
    assert phase.snapshots == 0 and all(recording.buffer is None for recording in phase.parts.recordings)
    with pytest.raises(ValueError, match="rollback: there was no step or jump"):
        phase.rollback()


def test_clamped_weights_are_recorded_as_the_loop_left_them():
    """As a WGAN's critic is: clamped after every optimizer step."""
    model, optimizer, schedule = made(burn_in=0, record=6, jump=1, rest=0)
    for _ in range(5):
        train(model, optimizer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.05, 0.05)
        schedule.step()
    assert schedule.phase.parts.recordings[0].snapshots(5).abs().max() <= 0.05
    schedule.phase.jump(0)
    assert max(float(p.detach().abs().max()) for p in model.parameters()) <= 0.05


class HalfSteps(torch.optim.SGD):
    """As SAM is used: two half steps, and never `step`."""

    def first_step(self):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.data.add_(0.01 * parameter.grad)

    def second_step(self):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.data.sub_(0.02 * parameter.grad)


class Unhooked(torch.optim.Optimizer):
    """As optimizers are that do not call PyTorch's constructor."""

    def __init__(self, parameters):
        self.param_groups, self.state = [{"params": list(parameters), "lr": 0.01}], {}

    def step(self, closure=None):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.data.sub_(0.01 * parameter.grad)


@pytest.mark.parametrize("kind", ["half steps", "no hooks"])
def test_optimizers_that_tell_of_no_step_are_counted_all_the_same(kind):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = HalfSteps(model.parameters(), lr=0.01) if kind == "half steps" else Unhooked(model.parameters())
    schedule = KoopmanSchedule(KoopmanPhase(model), optimizer, burn_in=2, record=4, jump=2, guard=fair)
    jumped = []
    for i in range(12):
        model.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        if i != 3:  # a batch that is skipped
            (optimizer.second_step if kind == "half steps" else optimizer.step)()
        jumped.append(schedule.step() is not None)
    assert schedule.steps == 11 and [i for i, jump in enumerate(jumped) if jump] == [6, 10]


@pytest.mark.parametrize("after", ["optimizer.step", "schedule.step"])
def test_resumed_from_between_the_optimizers_step_and_its_own(after):
    """A checkpoint may fall anywhere; the run goes on bit by bit."""

    def loop(model, optimizer, schedule, first, last, generator):
        for i in range(first, last):
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=generator)).square().mean().backward()
            optimizer.step()
            if i < last - 1 or after == "schedule.step":
                schedule.step()

    whole = made({"every": 2}, burn_in=1, record=4, jump=4, rest=1)
    generator = torch.Generator().manual_seed(0)
    loop(*whole, 0, 4, generator)
    states = [copy.deepcopy(part.state_dict()) for part in (*whole, whole[2].phase)]
    other = made({"every": 2}, burn_in=1, record=4, jump=4, rest=1)
    for part, state in zip((*other, other[2].phase), states, strict=True):
        part.load_state_dict(state)
    here = generator.get_state()
    for model, optimizer, schedule in (whole, other):
        generator.set_state(here)
        if after == "optimizer.step":
            schedule.step()
        loop(model, optimizer, schedule, 4, 15, generator)
    assert whole[2].jumps == other[2].jumps >= 2
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), other[0].parameters(), strict=True))


def test_without_a_guard_the_forecast_is_the_gate():
    """Noise does not let its own end be foretold: nothing moves, and the report counts what stayed."""
    model, optimizer, schedule = made(burn_in=0, record=12, jump=1000, rest=0, guard=None)
    for i in range(24):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 4))
        optimizer.step()
        before = [p.detach().clone() for p in model.parameters()]
        report = schedule.step()
        if i % 12 == 11:
            assert report.held == {"forecast": 2} and report.candidate == "none" and report.steps == 0
            assert not report.rolled_back and "held by forecast 2" in str(report)
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert schedule.jumps == 2


def test_neither_guard_nor_gate_warns_once():
    with pytest.warns(RuntimeWarning, match="None without a guard jumps wherever the operators lead") as caught:
        model, optimizer, schedule = made(guard=None, gate=None)
    assert len(caught) == 1
    run(model, optimizer, schedule, 13)
    assert schedule.jumps == 2


def test_a_schedule_may_jump_to_the_limit():
    _, optimizer, schedule = made(burn_in=0, jump=math.inf, rest=0)
    assert schedule.jump == math.inf
    with pytest.raises(ValueError, match="schedulers: the limit stands for no number of iterations"):
        made(jump=math.inf, schedulers=[torch.optim.lr_scheduler.ConstantLR(optimizer)])
