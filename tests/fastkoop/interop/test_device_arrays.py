"""Arrays on CUDA devices through stand-ins for CuPy and for PyTorch's tensors: there is no other way without a GPU.

What they prove is what FastKoop asks of the frameworks, and in which order; tests marked gpu prove the rest.
"""

import contextlib
import sys
import types

import numpy as np
import pytest
import torch

import fastkoop as fk
from fastkoop.interop import arrays


class CupyArray:
    """Memory of a device: an array's interface, and CuPy's `device`."""

    def __init__(self, memory, device=0):
        self.memory, self.device = np.asarray(memory), Device(device)

    shape, dtype, strides, ndim = (
        property(lambda self, name=name: getattr(self.memory, name)) for name in ("shape", "dtype", "strides", "ndim")
    )

    def astype(self, dtype):
        return CupyArray(self.memory.astype(dtype), self.device.id)


class Device:
    """cupy.cuda.Device: current inside `with`."""

    log: list

    def __init__(self, ordinal):
        self.id = ordinal

    def __eq__(self, other):
        return self.id == other.id

    def __enter__(self):
        Device.log.append(f"enter device {self.id}")

    def __exit__(self, *_):
        Device.log.append(f"leave device {self.id}")


class ExternalStream:
    """Another framework's stream, taken by its pointer."""

    def __init__(self, pointer, device):
        self.pointer, self.device = pointer, device

    def __enter__(self):
        Device.log.append(f"enter stream {self.pointer}")

    def __exit__(self, *_):
        Device.log.append(f"leave stream {self.pointer}")


class OnDevice(torch.Tensor):
    """A tensor that says it is on cuda:1; its memory is the host's."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, memory):
        return torch.Tensor._make_wrapper_subclass(
            cls, memory.shape, strides=memory.stride(), dtype=memory.dtype, device="cuda:1"
        )

    def __init__(self, memory):
        self.memory = memory

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        assert function is torch.ops.aten.detach.default, function  # neither a copy nor a move
        return cls(arguments[0].memory)


@pytest.fixture
def log(monkeypatch):
    """What is asked of CuPy, in order; `cupy` is a stand-in meanwhile."""
    Device.log = log = []

    @contextlib.contextmanager
    def using_allocator(allocator):
        log.append("enter memory")
        yield
        log.append("leave memory")

    def asarray(tensor):
        log.append("take")
        return CupyArray(tensor.memory.numpy(), tensor.device.index)

    def from_dlpack(exporter):
        log.append("take")
        return CupyArray(exporter.memory, exporter.ordinal)

    cuda = types.SimpleNamespace(
        Device=Device,
        ExternalStream=ExternalStream,
        Stream=types.SimpleNamespace(from_external=lambda stream: ExternalStream(stream.__cuda_stream__()[1], None)),
        PythonFunctionAllocator=lambda take, give: types.SimpleNamespace(malloc=(take, give)),
        using_allocator=using_allocator,
    )
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.cuda, cupy.asarray, cupy.from_dlpack = CupyArray, cuda, asarray, from_dlpack
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    return log


class TestReading:
    def test_cupy(self, log, dtype):
        x = CupyArray(np.ones((2, 3), dtype), device=1)
        source = arrays.read(x)
        assert source.data is x and source.wrap(x) is x
        assert (source.kind, str(source.place), source.dtype) == ("cupy", "cuda:1", "")
        assert log == []
        with source.scope():
            assert log == ["enter device 1"]

    def test_cupy_in_half_precision(self, log):
        source = arrays.read(CupyArray(np.ones((2, 3), np.float16), device=1))
        assert source.data.dtype == np.float32 and source.dtype == "float16" and source.place.ordinal == 1
        assert source.wrap(CupyArray(np.ones(2, np.float32))).dtype == np.float16

    def test_a_tensor_on_its_own_stream(self, log):
        """Its memory is taken, and later everything done, on PyTorch's current stream with PyTorch's memory."""
        memory = torch.arange(12.0).reshape(3, 4)
        source = arrays.read(OnDevice(memory))
        scope = ["enter device 1", "enter stream 77", "enter memory"]
        left = ["leave memory", "leave stream 77", "leave device 1"]
        assert log == [*scope, "take", *left]
        assert source.data.memory.ctypes.data == memory.data_ptr()
        assert (source.kind, source.place) == ("torch", ("cuda", 1))
        log.clear()
        with source.scope():
            assert log == scope
        assert log == [*scope, *left]

    def test_the_stream_is_that_of_each_call(self, log, monkeypatch):
        source = arrays.read(OnDevice(torch.ones(3, 4)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=88))
        log.clear()
        with source.scope():
            assert "enter stream 88" in log

    def test_an_older_cupy(self, log):
        del sys.modules["cupy"].cuda.Stream.from_external  # came with version 14
        source = arrays.read(OnDevice(torch.ones(3, 4)))
        log.clear()
        with source.scope():
            assert "enter stream 77" in log

    def test_an_exporter_is_taken_on_its_device(self, log):
        """The exporter orders our stream after its own: the one that is current when it is asked."""

        class There:
            memory, ordinal = np.ones((2, 3), np.float32), 3

            def __dlpack__(self, **options):
                raise AssertionError("only CuPy may ask")

            def __dlpack_device__(self):
                return 2, self.ordinal

        source = arrays.read(There())
        assert log == ["enter device 3", "take", "leave device 3"]
        assert source.place == ("cuda", 3) and source.data.memory is There.memory


def on(kind, device=None, dtype=np.float32, shape=(3, 6)):
    """An array of a kind on a device, all ones."""
    memory = np.ones(shape, dtype)
    if kind == "cupy":
        return CupyArray(memory, device)
    return memory if kind == "numpy" else (OnDevice if device == 1 else lambda x: x)(torch.from_numpy(memory))


@pytest.mark.parametrize("wanted", [("numpy", None), ("torch", None), ("torch", 1), ("cupy", 0), ("cupy", 1)])
@pytest.mark.parametrize("given", [("numpy", None), ("torch", None), ("torch", 1), ("cupy", 0), ("cupy", 1)])
def test_out_of_another_kind_or_device_is_refused(log, wanted, given):
    like = arrays.read(on(*wanted))
    said = [kind if device is None else f"{kind} cuda:{device}" for kind, device in (wanted, given)]
    if wanted == given:
        assert arrays.check_out(on(*given), (3, 6), like).place == like.place
        assert str(like.place) == ("cpu" if wanted[1] is None else f"cuda:{wanted[1]}")
        return
    with pytest.raises(fk.InputError, match=f"^out: expected a {said[0]} array of .*, got a {said[1]} array"):
        arrays.check_out(on(*given), (3, 6), like)


def test_the_public_door_refuses_mixed_devices(log):
    X = np.ones((3, 6, 4), np.float32)
    for out in (on("cupy", 0), on("torch", 1)):
        with pytest.raises(fk.InputError, match=r"^out: expected a numpy array of .*, got a \w+ cuda:\d array"):
            fk.predict(X, 1, out=out)
        with pytest.raises(fk.InputError, match=r"^out: expected a torch array of .*, got a \w+ cuda:\d array"):
            fk.predict(torch.from_numpy(X), 1, out=out)
