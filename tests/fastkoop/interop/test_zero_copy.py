"""No copy in or out, proved by pointers: what the kernels see is the caller's memory, what they made is the result."""

import numpy as np
import pytest
import torch
from cases import Exporter, orbit, strided_views

import fastkoop as fk

jax = pytest.importorskip("jax")


KINDS = {  # name -> (the kind's array of a NumPy one, the address of its first number)
    "numpy": (lambda x: x, lambda x: x.__array_interface__["data"][0]),
    "torch": (torch.from_numpy, lambda x: x.data_ptr()),
    "jax": (jax.numpy.asarray, lambda x: x.unsafe_buffer_pointer()),
    "exporter": (Exporter, lambda x: getattr(x, "array", x).__array_interface__["data"][0]),
}


@pytest.fixture(params=KINDS)
def kind(request):
    with jax.enable_x64(True):
        yield KINDS[request.param]


class Seen:
    """What went into the kernels and came out of them."""

    def __init__(self, monkeypatch):
        self.went_in, self.came_out = [], []
        for name in ("predict", "pinv", "fit", "reconstruct", "combine"):
            monkeypatch.setattr(fk.kernels, name, self.watch(getattr(fk.kernels, name)))

    def watch(self, function):
        def watched(X, *rest, **options):
            self.went_in.append(X)
            result = function(X, *rest, **options)
            self.came_out.append(result[0] if isinstance(result, tuple) else result)
            return result

        return watched

    def address_in(self):
        return self.went_in[-1].__array_interface__["data"][0]

    def address_out(self):
        return self.came_out[-1].__array_interface__["data"][0]


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


@pytest.mark.parametrize("time_axis", [0, 1, -1])
def test_in_and_out(kind, time_axis, seen, dtype, rng):
    make, address = kind
    X = make(np.ascontiguousarray(np.moveaxis(orbit(rng, 9, 4, dtype, batch=(3, 2)), -1, time_axis)))
    begin = address(X)
    states = fk.predict(X, 2, time_axis=time_axis)
    assert seen.address_in() == begin and seen.address_out() == address(states)
    assert seen.went_in[-1].shape == (5, 3, 2, 9)
    op = fk.fit(X, time_axis=time_axis)
    assert seen.address_in() == begin
    for steps in (3, [2, 5], range(1, 4)):
        states = op.predict(steps)
        assert begin <= seen.address_in() < begin + 5 * 3 * 2 * 9 * dtype.itemsize  # all snapshots, or F, or Fp
        assert seen.address_out() == address(states)
        assert tuple(states.shape)[:3] == (3, 2, 9)
    inverses = fk.pinv(X)
    assert seen.address_in() == begin and seen.address_out() == address(inverses)


@pytest.mark.parametrize("name", ["C order", "time last", "weights first", "padded", "spaced", "all backwards"])
def test_any_strides(name, seen, dtype, rng):
    X = orbit(rng, 9, 4, dtype, batch=(3,))
    view = strided_views(np.moveaxis(X, -1, 0))[name]
    arrays = [view]
    if min(view.strides) >= 0:
        arrays.append(torch.from_numpy(view))
        arrays.append(Exporter(view))
    for array in arrays:
        for call in (lambda X: fk.predict(X, 1, time_axis=0), lambda X: fk.fit(X, time_axis=0)):
            call(array)
            assert seen.went_in[-1].strides == view.strides
            assert seen.address_in() == view.__array_interface__["data"][0]
        fk.pinv(array)
        assert sorted(seen.went_in[-1].strides) == sorted(view.strides)
        assert seen.address_in() == view.__array_interface__["data"][0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_repeated_axis(axis, seen, rng):
    X = orbit(rng, 9, 4, np.float32, batch=(3,))
    once = np.take(X, [0], axis)
    for view in (np.broadcast_to(once, X.shape), torch.from_numpy(once).expand(X.shape)):
        fk.predict(view, 1)
        assert seen.went_in[-1].strides[(1, 2, 0)[axis]] == 0
        assert seen.address_in() == once.ctypes.data


def everything(X, **axis):
    """Every public function and every method, report and table of an operator."""
    for steps in (0, 1, 3):
        fk.predict(X, steps, **axis)
    fk.pinv(X)
    for options in ({}, {"refine": True}, {"stabilize": "clip"}):
        op = fk.fit(X, cutoff=1e-6, **axis, **options)
        op.predict(2), op.predict([3, 0, 1]), op.matrix(), op.check(), op.summary(), repr(op)
        walk = op.walk()
        walk.step(), walk.step(2, ahead=3)
        for name in (
            "eigenvalues", "modes", "rank", "threshold", "condition", "residual", "holdout", "spectral_radius",
            "eigenvector_condition", "edge", "route",
        ):  # fmt: skip
            getattr(op, name)


@pytest.mark.parametrize(("n", "m"), [(12, 5), (5, 12), (1, 4), (110, 100)])
def test_inputs_are_never_written_to(n, m, dtype, rng):
    """Read-only memory is taken by everything; and where it could be written to it is not."""
    X = np.stack([orbit(rng, n, m, np.float64), np.zeros((n, m + 1)), np.full((n, m + 1), 0.1)]).astype(dtype)
    kept = X.tobytes()
    everything(X)
    everything(torch.from_numpy(X))
    with jax.enable_x64(True):
        everything(jax.numpy.asarray(X))
    X.flags.writeable = False
    everything(X)
    everything(np.moveaxis(X, -1, 0), time_axis=0)
    assert X.tobytes() == kept


class Wrapped(np.ndarray):
    """An array of somebody else's class."""


def test_numpy_subclasses_are_arrays(seen, tmp_path, rng):
    X = orbit(rng, 9, 4, np.float64, batch=(3,))
    expected = fk.predict(X, 2)
    mapped = np.memmap(tmp_path / "X", X.dtype, "w+", shape=X.shape)
    mapped[...] = X
    for view in (X.view(Wrapped), mapped):
        states = fk.predict(view, 2)
        assert type(states) is np.ndarray and np.array_equal(states, expected)
        assert np.shares_memory(seen.went_in[-1], view)
    out = np.empty((3, 9)).view(Wrapped)
    assert fk.predict(X, 2, out=out) is out and np.array_equal(out, expected)


def test_tensors_of_inference_mode(rng):
    X = orbit(rng, 9, 4, np.float64, batch=(3,))
    expected = fk.fit(X)
    with torch.inference_mode():
        there = torch.from_numpy(X).clone()
        assert there.is_inference()
        op = fk.fit(there)
        assert np.array_equal(op.predict(2), expected.predict(2)) and np.array_equal(fk.pinv(there), fk.pinv(X))
        assert np.array_equal(op.residual, expected.residual)
    assert np.array_equal(fk.predict(there, 2), fk.predict(X, 2))
    assert np.array_equal(fk.predict(torch.from_numpy(X), 2, out=there[..., 0]), fk.predict(X, 2))


def test_parameters_and_subclasses_of_tensors_give_tensors(rng):
    X = torch.from_numpy(orbit(rng, 9, 4, np.float64, batch=(3,)))
    for view in (torch.nn.Parameter(X, requires_grad=False), X.as_subclass(type("Named", (torch.Tensor,), {}))):
        assert type(fk.predict(view, 2)) is torch.Tensor
        assert torch.equal(fk.predict(view, 2), fk.predict(X, 2))
