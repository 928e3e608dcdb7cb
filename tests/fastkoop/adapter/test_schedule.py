"""KoopmanSchedule: what it does after every step, and what it refuses."""

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule  # noqa: E402


def made(phase_options=(), **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    phase = KoopmanPhase(model, cutoff="jax", **dict(phase_options))
    schedule = KoopmanSchedule(phase, optimizer, **{"burn_in": 3, "record": 4, "jump": 5, "rest": 2, **options})
    return model, optimizer, schedule


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
            if schedule.stage == "record" and len(trail) == 4:
                held = schedule.phase.parts.recordings[0].snapshots(4)[:, :, :4]
                assert torch.equal(held, torch.stack(trail))
            report = schedule.step()
        assert report.steps == 5


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


def test_step_has_to_follow_every_step():
    model, optimizer, schedule = made()
    train(model, optimizer)
    train(model, optimizer)
    with pytest.raises(ValueError, match="the optimizer made 2 steps since the last call"):
        schedule.step()


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
        ({"horizon": "auto"}, {}, "pass guard="),
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


def test_once_done_it_records_no_more():
    model, optimizer, schedule = made(burn_in=0, rest=0, repeats=1)
    run(model, optimizer, schedule, 50)
    assert schedule.stage == "done" and schedule.phase.snapshots == 0
