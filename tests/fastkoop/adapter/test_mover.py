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
