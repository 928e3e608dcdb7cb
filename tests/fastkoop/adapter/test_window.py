"""The ring's Gram matrices against those of the snapshots themselves, however often they are looked at."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fastkoop.adapter.window import Window  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase  # noqa: E402

SLOTS = 6


def phase_of(partition, dtype, q=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 3)).to(dtype)
    return model, KoopmanPhase(model, partition=partition, q=q, capacity=SLOTS)


def wander(model, scale=1e-3):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)


def centred(gram):
    """Of snapshots about their mean: what does not depend on the origin."""
    c = gram.shape[-1]
    away = np.eye(c) - 1 / c
    return away @ gram @ away


@pytest.mark.parametrize(("partition", "q"), [("layer", None), ("node", None), ("quasi-node", 3), ("network", None)])
@pytest.mark.parametrize("between", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_snapshots_own(partition, q, between, dtype):
    model, phase = phase_of(partition, dtype, q)
    recorder = phase.parts.recorder
    windows = [Window(recording) for recording in phase.parts.recordings]
    for _ in range(7):
        for _ in range(between):
            wander(model)
            phase.record()
        held = recorder.snapshots
        for window, recording in zip(windows, recorder.recordings, strict=True):
            gram = window.gram(recorder.taken, recorder.allocated).numpy()
            order = [(recorder.taken - held + k) % SLOTS for k in range(held)]
            blocks = [view.double().numpy() for view in recording.blocks(SLOTS)]
            X = [view[order].reshape(held, -1, view.shape[-1]) for view in blocks]
            X = [view - view[0] for view in X]  # exact, as snapshots lie close together
            truth = centred(np.concatenate([np.einsum("tbn,sbn->bts", view, view) for view in X]))
            rounding = 8 * torch.finfo(dtype).eps * np.abs(gram).max()  # about an origin, before it is centred
            np.testing.assert_allclose(centred(gram), truth, rtol=0, atol=rounding)


def test_a_second_look_reads_nothing():
    model, phase = phase_of("layer", torch.float32)
    window = Window(phase.parts.recordings[0])
    for _ in range(4):
        wander(model)
        phase.record()
    first = window.gram(4, SLOTS)
    with torch.no_grad():
        phase.parts.recordings[0].buffer.fill_(torch.nan)
    assert torch.equal(window.gram(4, SLOTS), first)


def test_roots_have_the_gram_matrices_and_damage_stays_in_its_block():
    model, phase = phase_of("node", torch.float32)
    for step in range(5):
        wander(model)
        if step == 2:
            with torch.no_grad():
                model[0].weight[1, 2] = torch.inf
        phase.record()
    [window] = [Window(recording) for recording in phase.parts.recordings[:1]]
    gram, roots = window.gram(5, SLOTS).numpy(), window.roots(5, SLOTS)
    assert np.isnan(roots[1]).all() and np.isfinite(roots[[0, 2, 3]]).all()
    fine = [0, 2, 3]
    np.testing.assert_allclose(
        roots[fine].swapaxes(1, 2) @ roots[fine], gram[fine], rtol=0, atol=1e-14 * np.abs(gram[fine]).max()
    )
