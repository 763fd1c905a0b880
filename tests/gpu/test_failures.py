"""Calls of the CUDA runtime that fail."""

import ctypes
import gc
import sys
from types import ModuleType

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.core import settings
from tests.gpu.arrays import Foreign, pairs, same


def test_a_launch_that_fails_leaves_the_module_usable(cupy, emulator):
    for skip in range(2):
        host, gpu = fs.Adam(), fs.Adam()
        (p, g), (q, h) = pairs(cupy, 2000, 2000)
        host.step(p, g)
        gpu.step(q, h)
        emulator.emulator_fail(b"cudaLaunchKernel", skip, 719)
        with pytest.raises(RuntimeError, match="failed with cudaErrorLaunchFailure: "):
            gpu.step(q, h)
        assert gpu.t == {0: 1}
        host.step(p, g)
        gpu.step(q, h)
        assert gpu.t == {0: 2}
        if skip == 0:
            assert same(q, p)


def test_a_failure_before_a_capture_does_not_get_into_the_graph(cupy, emulator, recorder):
    optimizer = fs.Momentum()
    _, (q, h) = pairs(cupy, 200, 200)

    def failing_step():
        emulator.emulator_fail(b"cudaLaunchKernel", 2, 719)
        with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
            optimizer.step(q, h)

    with recorder:
        optimizer.step(q, h)
        emulator.emulator_fail(b"cudaLaunchKernel", 0, 719)
        with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
            optimizer.step(q, h)
        with pytest.raises(RuntimeError, match="is being captured, expected a step with these params before"):
            recorder.capture(lambda: optimizer.step(q, h))
        optimizer.step(q, h)
        graph, _ = recorder.capture(failing_step)
        emulator.emulator_reset_calls()
        optimizer.step(q, h)
        assert emulator.emulator_calls(b"cudaFree") == 0  # the graph still uses the memory
        del graph
    assert optimizer.t == {0: 3}


def test_waiting_afterwards_may_fail_and_the_step_counts(cupy, emulator):
    host, gpu = fs.Nadam(), fs.Nadam()
    (p, g), (q, h) = pairs(cupy, 200, 200)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    for i in range(4):
        host.step(p, g)
        if i == 2:
            # The third record fails: the first comes before the step, the second marks its end.
            emulator.emulator_fail(b"cudaEventRecord", 2, 719)
            with pytest.raises(RuntimeError, match="cudaErrorLaunchFailure"):
                gpu.step(q, h, stream=stream)
        else:
            gpu.step(q, h, stream=stream)
    stream.synchronize()
    gpu.ema = 0.5
    host.ema = 0.5
    host.step(p, g)
    gpu.step(q, h)
    assert gpu.t == host.t == {0: 5}
    assert same(q, p)


def test_memory_is_given_back_while_somebody_captures(cupy, emulator):
    """Capturing in the global mode forbids every thread to free memory, so it is freed later."""
    optimizer = fs.SGD()
    _, (q, h) = pairs(cupy, 200, 200)
    optimizer.step(q, Foreign(h))
    cupy.cuda.get_current_stream().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    assert emulator.emulator_begin_capture(stream.ptr, 0) == 0
    del optimizer
    gc.collect()
    graph = emulator.emulator_end_capture(stream.ptr)
    assert graph
    emulator.emulator_graph_destroy(graph)


def test_no_memory_for_states(cupy, emulator):
    _, (q, h) = pairs(cupy, 2000, 2000)
    before = q.get()
    optimizer = fs.Adam()
    cupy.set_limit(1)
    with pytest.raises(MemoryError, match="states need 8,000 bytes more than GPU 0 has left: free some"):
        optimizer.step(q, h)
    cupy.set_limit()
    assert not optimizer.state
    assert not optimizer.t
    assert same(q, before)
    emulator.emulator_fail(b"cudaMalloc", 0, 2)
    with pytest.raises(MemoryError, match="the GPU has no memory left for the tables of a step; free some"):
        optimizer.step(q, h)
    assert not optimizer.state
    optimizer.step(q, h)
    assert optimizer.t == {0: 1}


def test_no_gpu_and_no_driver(cupy, emulator, monkeypatch):
    emulator.emulator_set_device_count(0)
    assert fs.info()["cuda"]["devices"] == []
    assert fs.info()["cuda"]["why_none"] == "cudaErrorNoDevice: no CUDA-capable device is detected"
    emulator.emulator_set_device_count(1)
    for has_driver, said in ((True, "cudaErrorInsufficientDriver"), (False, "no driver for NVIDIA GPUs")):
        monkeypatch.setattr(settings, "_has_driver", lambda has_driver=has_driver: has_driver)
        emulator.emulator_fail(b"cudaGetDeviceCount", 0, 35)
        assert said in fs.info()["cuda"]["why_none"]
    info = fs.info()["cuda"]
    assert info["devices"] == ["Emulated GPU, sm_90"]
    assert info["why_none"] is None


def test_an_address_in_host_memory(cupy, emulator):
    _, (q, h) = pairs(cupy, 8, 8)
    emulator.emulator_place(h.data.ptr, 32, 0, 1)
    with pytest.raises(ValueError, match="grad is said to be on a GPU, but its address is in host memory"):
        fs.SGD().step(q, h)
    emulator.emulator_place(h.data.ptr, 32, 0, -1)


def test_an_engine_of_another_build_is_refused(monkeypatch):
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    layout, name = ctypes.create_string_buffer(8), b"fusedstep.Engine"  # an engine begins with its layout
    stale = ModuleType("fusedstep._cuda")
    stale.engine, stale.find_devices = new_capsule(ctypes.addressof(layout), name, None), lambda: (["a GPU"], None)
    monkeypatch.setitem(sys.modules, "fusedstep._cuda", stale)
    there = type("There", (), {"__cuda_array_interface__": dict(np.ones(3).__array_interface__, version=3)})()
    with pytest.raises(RuntimeError, match=r"^fusedstep\._cuda and fusedstep\._cpu are of two builds: install"):
        fs.SGD().step(there, there)
