"""The CUDA device through a stand-in for CuPy that notes what is asked of it: there is no other way without a GPU."""

import contextlib
import types

import numpy as np
import pytest

from fastkoop.checks import InputError
from fastkoop.profile.devices import Gpu, Host, open_device


class Runtime:
    """Events, streams, graphs and memory, noted in the order they are used."""

    def __init__(self):
        log = self.log = []

        class Event:
            def record(self):
                log.append("event")

            def synchronize(self):
                log.append("synchronize")

        class Stream:
            def __init__(self, non_blocking):
                assert non_blocking

            def __enter__(self):
                log.append("enter stream")

            def __exit__(self, *_):
                log.append("leave stream")

            def synchronize(self):
                log.append("synchronize stream")

            def begin_capture(self):
                log.append("begin capture")

            def end_capture(self):
                log.append("end capture")
                return types.SimpleNamespace(launch=lambda: log.append("replay"))

        @contextlib.contextmanager
        def using_allocator(allocator):
            log.append("own pool")
            yield
            log.append("usual pool")

        class Filled:
            nbytes = 4 * 1000

            def fill(self, value):
                log.append("fill")

        attributes = {"L2CacheSize": 1000}
        cuda = types.SimpleNamespace(
            Device=lambda ordinal: types.SimpleNamespace(attributes=attributes),
            Event=Event,
            Stream=Stream,
            MemoryPool=lambda: types.SimpleNamespace(malloc=None),
            using_allocator=using_allocator,
            get_elapsed_time=lambda start, stop: 3.0,
            runtime=types.SimpleNamespace(deviceSynchronize=lambda: log.append("wait"), memGetInfo=lambda: (5, 9)),
        )
        xp = types.SimpleNamespace(cuda=cuda, empty=lambda *_: Filled(), uint8=np.uint8)
        self.kernels = types.SimpleNamespace(xp=xp, driver=types.SimpleNamespace(ordinal=0))


@pytest.fixture
def runtime(monkeypatch):
    """A stand-in, and a device on it that gets a head start of two fills."""
    monkeypatch.setattr(Gpu, "head_start", 8000)
    return Runtime()


def test_a_call_is_timed_between_events_after_a_head_start(runtime):
    gpu = Gpu(runtime.kernels)
    assert gpu.timer(lambda: runtime.log.append("call")) == 0.003
    assert runtime.log == ["fill", "fill", "event", "call", "event", "synchronize"]
    assert gpu.batch_bytes == 8000 and gpu.rotate_bytes == 4000 and gpu.free_memory() == 5.0


def test_libraries_with_streams_of_their_own_are_timed_on_the_wall(runtime):
    assert Gpu(runtime.kernels).waiting_timer(lambda: runtime.log.append("call")) > 0
    assert runtime.log == ["wait", "call"]


def test_a_graph_is_captured_once_in_memory_of_its_own(runtime):
    replay = Gpu(runtime.kernels).captured(lambda: runtime.log.append("call") or "result")
    assert runtime.log == [
        "wait", "own pool", "enter stream", "call", "synchronize stream", "begin capture", "call", "end capture",
        "leave stream", "usual pool",
    ]  # fmt: skip
    assert replay() == replay() == "result" and runtime.log[-2:] == ["replay", "replay"]


def test_a_capture_that_fails_is_ended(runtime):
    calls = iter([None])
    with pytest.raises(StopIteration):
        Gpu(runtime.kernels).captured(lambda: next(calls))
    assert "end capture" in runtime.log


def test_compiled_kernels_are_counted_in_cupys_cache(runtime, monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new"))
    with Gpu(runtime.kernels).compiling() as compiled:
        assert not compiled()
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "kernel.cubin").touch()
        assert compiled()


def test_the_host_is_a_device_too():
    host = open_device("cpu")
    array = np.ones(3)
    assert isinstance(host, Host) and host.put(array) is array and host.host(array) is array
    assert host.timer(lambda: None) >= 0 and host.free_memory() > 0 and host.abreast >= 1
    host.release()


def test_no_device_is_one_sentence(monkeypatch):
    def broken(ordinal):
        raise RuntimeError("cudaErrorNoDevice")

    monkeypatch.setattr("fastkoop.kernels.cuda.backend", broken)
    with pytest.raises(InputError, match=r'device: "cuda" finds no usable device \(cudaErrorNoDevice\); name "cpu"'):
        open_device("cuda")
