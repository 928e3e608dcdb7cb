"""Empty batches and empty matrices, as NumPy, SciPy and PyTorch answer them."""

import numpy as np
import pytest
import scipy.linalg
import torch
from cases import Exporter

import fastkoop as fk

jax = pytest.importorskip("jax")
KINDS = {"numpy": np.asarray, "torch": torch.from_numpy, "jax": jax.numpy.asarray, "exporter": Exporter}
EMPTY = ((0, 3), (3, 0), (0, 0), (2, 0, 0), (2, 0, 3), (0, 3, 0), (2, 3, 0, 4), (0, 2, 3))


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_inverses(shape, kind, dtype):
    with jax.enable_x64(True):
        F = KINDS[kind](np.zeros(shape, dtype))
        got = fk.pinv(F)
    expected = (*shape[:-2], shape[-1], shape[-2])
    assert tuple(got.shape) == expected == tuple(torch.linalg.pinv(torch.zeros(shape)).shape)
    assert str(got.dtype).removeprefix("torch.") == str(dtype)
    if kind != "exporter":
        assert type(got) is type(F)
    if len(shape) == 2:
        assert scipy.linalg.pinv(np.zeros(shape, dtype)).shape == expected


@pytest.mark.parametrize(
    "rule", ["array_api", "svht", "jax", "matlab", "numpy", 0.1, fk.Rank(2), fk.Energy(0.9)], ids=str
)
def test_every_rule(rule):
    assert fk.pinv(np.zeros((0, 3)), cutoff=rule).shape == (3, 0)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_inverses_into_out(make, shape, dtype):
    out = make(np.empty((*shape[:-2], shape[-1], shape[-2]), dtype))
    assert fk.pinv(make(np.zeros(shape, dtype)), out=out) is out
    with pytest.raises(ValueError, match=r"^out: expected a .* shape"):
        fk.pinv(make(np.zeros(shape, dtype)), out=make(np.empty((7, 7), dtype)))


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("batch", [(0,), (0, 5), (5, 0), (2, 0, 3)], ids=str)
def test_empty_batches_into_out(make, batch, dtype):
    X = make(np.zeros((*batch, 5, 4), dtype))
    for shape in ((*batch, 5), (*batch, 4, 5)):
        call = (lambda X, out: fk.predict(X, 1, out=out)) if len(shape) == len(batch) + 1 else fk.pinv
        for out in (np.empty(shape, dtype), np.broadcast_to(np.empty((), dtype), shape).copy()):
            out = make(out)
            assert (call(X, out=out) if call is fk.pinv else call(X, out)) is out
    view = make(np.zeros((*batch, 10), dtype))[..., ::2]
    assert fk.predict(X, 3, out=view) is view


def test_inside_traced_code():
    compiled = torch.compile(lambda F: fk.pinv(F), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(2, 0, 3)).shape == (2, 3, 0)
    assert jax.jit(lambda F: fk.pinv(F))(jax.numpy.zeros((0, 3))).shape == (3, 0)
