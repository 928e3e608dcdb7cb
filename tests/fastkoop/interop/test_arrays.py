"""Arrays of any supported kind in, the same memory to the kernels, the same kind out."""

import numpy as np
import pytest
import torch

from fastkoop.interop import arrays


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x[::-1], lambda x: x.T, lambda x: x[:, ::2]])
def test_numpy_is_not_copied(make, dtype):
    x = make(np.arange(12, dtype=dtype).reshape(3, 4))
    source = arrays.read(x)
    assert source.kind == "numpy"
    assert np.shares_memory(source.data, x)
    assert source.data.strides == x.strides
    assert source.wrap(x) is x


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.T, lambda x: x[:, ::2], lambda x: x[:1].expand(3, 4)])
def test_torch_is_not_copied(make, dtype):
    x = make(torch.from_numpy(np.arange(12, dtype=dtype).reshape(3, 4)))
    source = arrays.read(x)
    assert source.kind == "torch"
    assert source.data.__array_interface__["data"][0] == x.data_ptr()
    assert [stride // dtype.itemsize for stride in source.data.strides] == list(x.stride())
    assert source.data.dtype == dtype
    back = source.wrap(source.data)
    assert isinstance(back, torch.Tensor)
    assert back.data_ptr() == x.data_ptr()


def test_a_negated_view_is_read_right():
    x = torch.tensor([[1 + 2j, 3 + 4j]], dtype=torch.complex128).conj().imag
    assert x.is_neg()
    np.testing.assert_array_equal(arrays.read(x).data, [[-2, -4]])


def test_the_argument_is_named():
    with pytest.raises(TypeError, match=r"^F: expected float32 or float64"):
        arrays.read(np.arange(3), "F")
    with pytest.raises(TypeError, match=r"^out: expected an array of NumPy, CuPy or JAX"):
        arrays.check_out([1], (1,), arrays.read(np.zeros(1)))


def test_parameters_need_detaching_only_where_gradients_are_taken():
    x = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"pass X\.detach\(\), or call under torch\.no_grad\(\)"):
        arrays.read(x)
    with torch.no_grad():
        assert arrays.read(x).data.shape == (2, 3)
    assert arrays.read(x.detach()).data.shape == (2, 3)


def test_other_frameworks_are_recognised_by_name():
    class Array:
        pass

    Array.__module__ = "somewhere"
    with pytest.raises(TypeError, match=r"got Array; pass np\.asarray"):
        arrays.read(Array())


def test_check_out(dtype):
    like = arrays.read(np.zeros((2, 3), dtype))
    out = np.zeros(4, dtype)
    assert arrays.check_out(None, (4,), like) is None
    assert np.shares_memory(arrays.check_out(out, (4,), like).data, out)
    with pytest.raises(ValueError, match=r"shape \(4,\), got a numpy array of float\d\d and shape \(5,\)"):
        arrays.check_out(np.zeros(5, dtype), (4,), like)


def test_an_emptied_array_is_not_copied_first():
    """Of rows with padding between them it was: all of a recording, to keep nothing of it."""
    data = np.broadcast_to(np.float32(1.0), (1 << 20, 1 << 20))  # four tebibytes, if they were
    emptied = arrays.read(data).emptied()
    assert emptied.data.size == 0 and emptied.data.dtype == np.float32 and emptied.kind == "numpy"
    assert not np.shares_memory(emptied.data, data)
