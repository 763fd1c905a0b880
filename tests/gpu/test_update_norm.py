"""The norm of what a step subtracts, measured on a GPU, also in graphs and on two: the bits of the reference."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify
from tests.bits.test_gradients import FLOATS, in_order, numbers
from tests.bits.test_update_norm import OPTIONS, SIZES
from tests.gpu.arrays import F32, pairs, same
from tests.gpu.test_gradients import agree


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_bits_are_those_of_the_reference(cupy, dtype, options):
    for place in (cupy.asarray, np.asarray):
        rng = np.random.default_rng(1)
        found, wanted = fs.Adam(measure="update", **options), reference.Adam(measure="update", **options)
        p = [numbers(rng, (n,), dtype, 0.0) for n in SIZES]
        q = [place(each.copy()) for each in p]
        for _ in range(3):
            g = [numbers(rng, (n,), dtype, 0.0) for n in SIZES]
            h = [place(each.copy()) for each in g]
            a, b = found.step(q, h), wanted.step(p, g)
            assert verify.difference([np.float64(a.update_norm)], [np.float64(b.update_norm)]) == 0
            assert a.grad_norm == b.grad_norm
            assert all(map(same, q + h, p + g))
        assert all(same(found.state[i][name], wanted.state[i][name]) for i in range(len(p)) for name in "mv")


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradients_of_any_layout(cupy, dtype):
    rng = np.random.default_rng(2)
    p = [in_order(numbers(rng, (30, 50), dtype, 0.0), axes) for axes in ((0, 1), (1, 0))]
    g = [numbers(rng, (50, 30), other, 0.0).T for other in FLOATS[:2]]
    agree(cupy, "Momentum", {"measure": "update", "clip_norm": 1.0}, p, g)


def test_steps_that_update_nothing(cupy):
    (_, _), (q, h) = pairs(cupy, 2000, 2000)
    optimizer = fs.SGD(measure="update", skip_nonfinite=True)
    assert optimizer.step(q, h).update_norm > 0
    bad = h.copy()
    bad[1500:1501] = np.inf
    result = optimizer.step(q, bad)
    assert (result.skipped, result.update_norm) == (True, 0)
    plain = fs.SGD(measure="update")
    assert plain.step([q], [None]).update_norm == 0
    assert plain.step([q[:0]], [h[:0]]).update_norm == 0
    result = plain.step([q], [h])
    assert (result.grad_norm, result.skipped, result.nonfinite) == (None, False, None)
    plain.measure, plain.skip_nonfinite = "needed", True
    result = plain.step([q], [h])
    assert result.update_norm is None
    assert result.grad_norm > 0


def test_large_tensors(cupy):
    """More than 1024 * 1024 elements need three levels of sums."""
    (p, g), (q, h) = pairs(cupy, 1024 * 1025 + 7, 1024 * 1025 + 7)
    options = {"measure": "update", "clip_global_norm": 1.0}
    a, b = fs.SGD(**options).step([q], [h]), fs.SGD(**options).step([p], [g])
    assert (a.update_norm, a.grad_norm) == (b.update_norm, b.grad_norm)
    assert same(q, p)


def test_two_devices(cupy, devices):
    rng = np.random.default_rng(8)
    sizes = (3000, 5, 1100, 0)
    p, g = ([rng.standard_normal(n).astype(F32) for n in sizes] for _ in "pg")
    q, h = [], []
    for i, (each, grad) in enumerate(zip(p, g, strict=True)):
        with devices[i % 2]:
            q.append(cupy.asarray(each))
            h.append(cupy.asarray(grad))
    for options in ({}, {"clip_global_norm": 1.0}):
        host, gpu = fs.Adam(measure="update", **options), fs.Adam(measure="update", **options)
        for _ in range(3):
            a, b = gpu.step(q, h), host.step(p, g)
            assert (a.update_norm, a.grad_norm) == (b.update_norm, b.grad_norm)


def test_a_captured_step(cupy, recorder):
    (p, g), (q, h) = pairs(cupy, 3000, 3000)
    host, gpu = fs.Adam(measure="update"), fs.Adam(measure="update")
    with recorder:
        gpu.step(q, h)
        host.step(p, g)
        graph, result = recorder.capture(lambda: gpu.step(q, h))
        for _ in range(2):
            recorder.replay(graph)
            recorder.stream.synchronize()
            assert result.update_norm == host.step(p, g).update_norm
        other = gpu.step(q, h)
        assert other.update_norm == host.step(p, g).update_norm != result.update_norm
