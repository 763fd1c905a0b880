"""Hyperparameters whose numbers are on a GPU."""

import copy
import weakref

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional
from tests.gpu.arrays import F32, Foreign, pairs, same


def test_hyperparameters_may_be_on_the_gpu(cupy):
    host, gpu = fs.AdamW(), fs.AdamW()
    numbers = {name: cupy.asarray(np.zeros(())) for name in ("lr", "beta1", "weight_decay", "clip_global_norm", "eps")}
    for name, number in numbers.items():
        setattr(gpu, name, number)
    scale = cupy.asarray(np.ones(1))
    p, q = pairs(cupy, 50)
    for i in range(4):
        g, h = pairs(cupy, 50, seed=i)
        now = {
            "lr": 0.1 / (i + 1),
            "beta1": 0.5 + i / 10,
            "weight_decay": i / 10,
            "clip_global_norm": i + 1.0,
            "eps": 0.1,
        }
        for name, value in now.items():
            setattr(host, name, value)
            numbers[name].fill(value)
        scale.fill(i + 0.5)
        host.step(p, g, grad_scale=i + 0.5)
        gpu.step(q, h, grad_scale=scale)
        assert same(q[0], p[0])
    assert gpu.state_dict()["hyperparameters"]["lr"] == host.lr
    assert copy.deepcopy(gpu).beta1 == host.beta1
    assert gpu.t == host.t == {0: 4}


def test_a_number_on_the_gpu_may_be_float32(cupy):
    """It is the float32 number that counts, not the one of float64 that was rounded to it."""
    host, gpu = fs.Adam(), fs.Adam(lr=cupy.asarray(np.full((), 0.1, F32)), beta1=cupy.asarray(np.full((), 0.8)))
    host.lr, host.beta1 = float(F32(0.1)), 0.8
    (p, g), (q, h) = pairs(cupy, 50, 50)
    scale = cupy.asarray(np.full(1, 0.3, F32))
    for _ in range(3):
        host.step(p, g, grad_scale=float(F32(0.3)))
        gpu.step(q, h, grad_scale=scale)
    assert same(q, p)


def test_a_momentum_on_the_gpu_may_be_0(cupy):
    host, gpu = fs.RMSprop(momentum=0.5), fs.RMSprop(momentum=cupy.asarray(np.zeros(())))
    (p, g), (q, h) = pairs(cupy, 9, 9)
    gpu.step(q, h)
    host.momentum = lambda done: 0.0
    host.step(p, g)
    assert same(q, p)
    assert set(gpu.state[0]) == {"v", "b"}


def test_a_refused_hyperparameter_stays_refused(cupy):
    _, (q, h) = pairs(cupy, 9, 9)
    optimizer = fs.SGD()
    optimizer.step(q, h)
    optimizer.lr = cupy.asarray(np.ones(1, np.float16))
    for _ in range(2):
        with pytest.raises(TypeError, match="lr is an array on a GPU, expected float64 or float32, and one element"):
            optimizer.step(q, h)
    assert optimizer.t == {0: 1}


def test_arrays_on_the_host_take_no_number_of_other_libraries_on_the_gpu(cupy):
    class Number(Foreign):
        __hash__ = object.__hash__

    p = np.ones(3, F32)
    with pytest.raises(TypeError, match=r"lr is .*, expected a number"):
        functional.sgd(p, p.copy(), lr=Number(cupy.asarray(np.ones(()))))


def test_numbers_that_the_host_needs_are_read_from_the_gpu(cupy):
    p, number = np.ones(3, F32), cupy.asarray(np.full((), 0.25))
    fs.SGD(lr=lambda done: number).step(p, np.ones(3, F32))
    assert (p == 0.75).all()
    assert fs.Adagrad(initial_accumulator=number).initial_accumulator == 0.25


def test_foreign_numbers_on_the_gpu_are_waited_for_and_kept(cupy):
    theirs = cupy.cuda.Stream(non_blocking=True)
    (p, g), (q, h) = pairs(cupy, 9, 9)
    scale, lr = cupy.zeros((), np.float64), cupy.zeros((), np.float64)
    cupy.cuda.get_current_stream().synchronize()
    with theirs:
        scale.fill(2.0)
        lr.fill(0.5)
    number = Foreign(scale, stream=theirs.ptr)
    alive = weakref.ref(number)
    optimizer = fs.SGD(lr=Foreign(lr, stream=theirs.ptr))
    optimizer.step(q, h, grad_scale=number)
    del number
    if hasattr(cupy, "emulator"):  # the emulated GPU does its work only when somebody waits for it
        assert alive() is not None
    fs.SGD(lr=0.5).step(p, g, grad_scale=2.0)
    assert same(q, p)


def test_numbers_on_the_gpu_that_cannot_be(cupy):
    number = cupy.asarray(np.ones(()))
    with pytest.raises(TypeError, match=r"maximize is .*, expected True or False"):
        fs.Adam(maximize=number)
    q = cupy.asarray(np.ones(3, F32))
    with pytest.raises(TypeError, match="lr is an array on a GPU, expected float64 or float32, and one element"):
        fs.Adam(lr=cupy.asarray(np.ones(2))).step(q, q.copy())
    with pytest.raises(
        TypeError, match="grad_scale is an array on a GPU, expected float64 or float32, and one element"
    ):
        fs.Adam().step(q, q.copy(), grad_scale=cupy.asarray(np.ones(1, np.float16)))
    for optimizer, scale in ((fs.Adam(lr=number), 1.0), (fs.Adam(), number)):
        with pytest.raises(TypeError, match="a hyperparameter or grad_scale is on a GPU, expected a number"):
            optimizer.step(np.ones(3), np.ones(3), grad_scale=scale)
        assert not optimizer.state
