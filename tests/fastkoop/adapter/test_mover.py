"""Mover: few calls for all layers, and parameters that are where they were."""

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from trails import assert_predicted, blocks, flat, mlp_rows, recorded, trained  # noqa: E402

from fastkoop.adapter.mover import Mover, Stays  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402


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
    fitted = list(phase.operators().values())
    assert len(Mover(phase.parts.recordings, fitted, [Stays([None])] * 3).coordinates) == 2  # of three layers


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


def recorded_and_changed(change, **options):
    """A phase whose parameters were changed after the newest snapshot."""
    model, phase, _ = recorded(7, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            change(parameter)
    return model, phase


def one_by_one(phase, monkeypatch):
    """Let every layer go through torch, as where NumPy cannot see the parameters."""
    monkeypatch.setattr(Mover, "_prepared", lambda self: None)


OPTIONS = [{}, {"partition": "network"}, {"partition": "layer"}, {"partition": "quasi-node", "q": 3},
           {"dtype": torch.float64}]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_layers_together_end_where_each_by_itself_does(options, monkeypatch):
    """From beside the newest snapshot, too, to the same bits."""
    runs = []
    for each in (False, True):
        model, phase = recorded_and_changed(lambda parameter: parameter.clamp_(-0.1, 0.1), **options)
        if each:
            one_by_one(phase, monkeypatch)
        start = flat(model)
        for _ in range(3):
            phase.step()
        runs.append(flat(model))
        assert (runs[-1] != start).any()
        phase.rollback()
        assert (flat(model) == start).all()
    assert (runs[0] == runs[1]).all()


@pytest.mark.parametrize("huge", [3.0e38, float("inf"), float("nan")])
def test_a_start_so_far_off_that_sums_overflow(huge, monkeypatch):
    """Blocks without a finite sum stay; the others move, as one by one."""
    runs = []
    for each in (False, True):
        model, phase = recorded_and_changed(lambda parameter: parameter.view(-1)[0].fill_(huge))
        if each:
            one_by_one(phase, monkeypatch)
        phase.step()
        runs.append(flat(model))
    assert runs[0].tobytes() == runs[1].tobytes()


def test_what_is_frozen_meanwhile_stays():
    model, phase = recorded_and_changed(lambda parameter: parameter.clamp_(-0.1, 0.1))
    phase.step()
    model[0].bias.requires_grad_(False)
    before = model[0].bias.detach().clone(), model[0].weight.detach().clone()
    phase.step()
    assert torch.equal(model[0].bias, before[0]) and not torch.equal(model[0].weight, before[1])
