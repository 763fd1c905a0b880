"""What a step asks of a GPU, in which stream, and how long it holds on to arrays."""

import gc
import weakref

import numpy as np
import pytest

import fusedstep as fs
from tests.gpu.arrays import F32, pairs, same


def test_a_step_in_steady_state_only_starts_kernels(cupy, emulator):
    """A step allocates, copies, awaits and reads nothing, also with all options on."""
    for options, launches in (({}, 2), ({"clip_global_norm": 1.0, "skip_nonfinite": True, "ema": 0.9}, 5)):
        optimizer = fs.AdamW(**options)
        _, q = pairs(cupy, 5000, 3, 0)
        _, h = pairs(cupy, 5000, 3, 0, seed=1)
        for _ in range(2):
            optimizer.step(q, h)
        emulator.emulator_reset_calls()
        for _ in range(3):
            optimizer.step(q, h)
        calls = emulator.emulator_calls
        assert calls(b"cudaLaunchKernel") == 3 * launches
        for name in ("Malloc", "MallocAsync", "Free", "FreeAsync", "Memcpy", "MemcpyAsync", "Memset", "MemsetAsync"):
            assert calls(f"cuda{name}".encode()) == 0, name
        for name in ("DeviceSynchronize", "StreamSynchronize", "EventSynchronize", "EventQuery"):
            assert calls(f"cuda{name}".encode()) == 0, name


def test_thousand_tensors_are_one_launch(cupy, emulator):
    optimizer = fs.Adam()
    arrays = [cupy.asarray(np.ones(64, F32)) for _ in range(1000)]
    grads = [cupy.asarray(np.ones(64, F32)) for _ in range(1000)]
    for _ in range(2):
        optimizer.step(arrays, grads)
    emulator.emulator_reset_calls()
    optimizer.step(arrays, grads)
    assert emulator.emulator_calls(b"cudaLaunchKernel") == 2  # one kernel derives the scalars, one updates


def test_new_gradients_are_told_to_the_gpu(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    p, q = pairs(cupy, 500, 3)
    kept = []
    for i in range(5):
        g, h = pairs(cupy, 500, 3, seed=i)
        kept.append(h[i % 2])  # the address of the other gradient may be used again
        host.step(p, g)
        gpu.step(q, h)
    assert all(map(same, p, q))


def test_a_gradient_may_be_freed_right_after_the_step(cupy):
    host, gpu = fs.Momentum(), fs.Momentum()
    p, q = pairs(cupy, 5000)
    for i in range(3):
        g, h = pairs(cupy, 5000, seed=i)
        host.step(p, g)
        gpu.step(q, h)
        del h
        gc.collect()
        cupy.full((5000,), np.nan, F32)  # most likely takes the memory that the gradient had
    assert same(q[0], p[0])


def test_a_plan_holds_neither_parameters_nor_gradients(cupy):
    optimizer = fs.SGD()
    p, g = cupy.asarray(np.ones(5, F32)), cupy.asarray(np.ones(5, F32))
    optimizer.step(p, g)
    references = [weakref.ref(p), weakref.ref(g)]
    del p, g
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("how", ["current", "argument"])
def test_a_step_is_ordered_in_its_stream(cupy, how):
    """The gradient is made in the stream just before the step, and the parameter read in it right after."""
    stream = cupy.cuda.Stream(non_blocking=True)
    host, gpu = fs.Adam(), fs.Adam()
    p, q = pairs(cupy, 3000)
    g = np.ones(3000, F32)
    h = cupy.asarray(g)
    cupy.cuda.get_current_stream().synchronize()
    for i in range(3):
        g[...] = i
        if how == "current":
            with stream:
                h.fill(i)
                gpu.step(q[0], h)
                found = q[0].copy()
                h.fill(np.nan)
        else:
            with stream:
                h.fill(i)
            gpu.step(q[0], h, stream=stream)
            with stream:
                h.fill(np.nan)
            found = q[0].copy()  # copied in the current stream, which waits for the step
        host.step(p[0], g)
    stream.synchronize()
    assert same(found, p[0])


def test_one_optimizer_in_one_stream_after_another(cupy):
    """The tables of an optimizer are not written in one stream while another stream still reads them."""
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    host, gpu = fs.Adam(lr=0.1), fs.Adam(lr=0.1)
    p, q = pairs(cupy, 3000)
    g, h = pairs(cupy, 3000, seed=1)
    cupy.cuda.get_current_stream().synchronize()
    for i in range(6):
        host.lr = gpu.lr = 0.1 / (i + 1)
        host.step(p, g)
        with streams[i % 2]:
            gpu.step(q, h)
    for stream in streams:
        stream.synchronize()
    assert same(q[0], p[0])


def test_two_optimizers_in_two_streams(cupy):
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    hosts, gpus = ([fs.Adam(clip_norm=1.0), fs.Lion(lr=0.1)] for _ in range(2))
    p, q = pairs(cupy, 3000, 3000)
    g, h = pairs(cupy, 3000, 3000, seed=1)
    cupy.cuda.get_current_stream().synchronize()
    for _ in range(3):
        for i in range(2):
            hosts[i].step(p[i], g[i])
            with streams[i]:
                gpus[i].step(q[i], h[i])
    for stream in streams:
        stream.synchronize()
    assert all(map(same, p, q))


def test_bad_streams(cupy):
    q = cupy.asarray(np.ones(3, F32))
    optimizer = fs.SGD()
    for stream in (7, object(), "stream"):
        with pytest.raises(TypeError, match=r"stream is of type .*, expected an object whose __cuda_stream__"):
            optimizer.step(q, q.copy(), stream=stream)
    with pytest.raises(TypeError, match="stream is given, expected None with params in host memory"):
        optimizer.step(np.ones(3), np.ones(3), stream=cupy.cuda.Stream(non_blocking=True))
    assert not optimizer.t[0] if 0 in optimizer.t else True
    assert same(q, np.ones(3, F32))
