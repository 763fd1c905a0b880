"""Several GPUs."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional
from tests.gpu.arrays import pairs, same


def spread(cupy, devices, arrays):
    """Return arrays on one device and the other in turn."""
    spread = []
    for i, array in enumerate(arrays):
        with devices[i % len(devices)]:
            spread.append(cupy.asarray(array))
    return spread


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_global_norm": 1.0}, {"clip_norm": 0.5, "ema": 0.9}, {"skip_nonfinite": True, "clip_global_norm": 2.0}],
    ids=str,
)
def test_one_step_on_two_gpus(cupy, devices, options):
    host, gpu = fs.Nadam(**options), fs.Nadam(**options)
    p, _ = pairs(cupy, 5, 2100, 0, 3000)
    q = spread(cupy, devices, p)
    for i in range(5):
        g, _ = pairs(cupy, 5, 2100, 0, 3000, seed=i)
        if i == 2 and "skip_nonfinite" in options:
            g[3][2000] = np.nan
        a, b = host.step(p, g), gpu.step(q, spread(cupy, devices, g))
        assert (a.skipped, a.nonfinite) == (b.skipped, b.nonfinite)
        assert a.grad_norm == b.grad_norm or a.grad_norm != a.grad_norm
    host.step(p, g := [x.copy() for x in p])
    gpu.step(q, spread(cupy, devices, g))
    # The second GPU is read first: nobody has waited for it.
    assert all(same(x, y) for x, y in zip(p[::-1], q[::-1], strict=True))
    assert gpu.t == host.t
    assert [gpu.state[i]["m"].device.id for i in range(4)] == [0, 1, 0, 1]


def test_two_gpus_where_one_is_wanted(cupy, devices):
    p, _ = pairs(cupy, 8, 8)
    q, r = spread(cupy, devices, p)
    optimizer = fs.SGD()
    with pytest.raises(ValueError, match="grad is on GPU 1, expected it on GPU 0 like param"):
        optimizer.step(q, r)
    with pytest.raises(ValueError, match=r"p\[1\] is on GPU 1, expected it on GPU 0 like p\[0\]"):
        functional.sgd([q, r], [q.copy(), r], lr=0.1)
    grads = spread(cupy, devices, p)
    with pytest.raises(ValueError, match="stream is given, expected None with params on 2 GPUs"):
        optimizer.step([q, r], grads, stream=cupy.cuda.Stream(non_blocking=True))
    with pytest.raises(ValueError, match="is on GPU 0, expected a number, or all of params there"):
        fs.SGD(lr=cupy.asarray(np.ones(()))).step([q, r], grads)
    numbers = spread(cupy, devices, [np.ones(()), np.ones(())])
    with pytest.raises(ValueError, match="is on GPU 1, and another number on GPU 0, expected all on one GPU"):
        fs.Momentum(lr=numbers[0], momentum=numbers[1]).step(q, grads[0])
    assert all(map(same, (q, r), p))


def test_states_follow_a_parameter_to_another_gpu(cupy, devices):
    host, gpu = fs.Adam(), fs.Adam()
    (p, g), (q, h) = pairs(cupy, 800, 800)
    for i in range(4):
        host.step(p, g)
        if i == 2:
            _, q = spread(cupy, devices, [q.get()] * 2)
            _, h = spread(cupy, devices, [h.get()] * 2)
        gpu.step(q, h)
    assert same(q, p)
    assert gpu.state[0]["m"].device.id == 1
