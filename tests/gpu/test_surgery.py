"""Parameters on a GPU that begin anew, leave, lose rows or get more of them."""

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep.core import plans
from tests.gpu.arrays import F32, pairs, same


def known(opt, key):
    return [*opt.state[key].values(), *([opt.ema[key]] if key in opt.ema else [])]


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, F32),
        ({"ema": 0.5, "initial_accumulator": 0.25}, F32),
        ({"master_weights": True}, ml_dtypes.bfloat16),
        ({"ema": 0.5, "state_dtype": "same"}, ml_dtypes.bfloat16),
    ],
    ids=str,
)
def test_rows_come_and_go(cupy, options, dtype):
    """States stay on the GPU, with the bits of those on the host."""
    host, gpu = (fs.Adagrad(lr=0.1, **options) for _ in range(2))
    (p, r), (q, s) = pairs(cupy, 40, 9, dtype=dtype)
    p, q = p.reshape(10, 4), q.reshape(10, 4)
    index = [3, 3, 9, 0, 5]
    for k in range(9):
        (g, h), (there, further) = pairs(cupy, p.size, 9, dtype=dtype, seed=k)
        host.step([p, r], [g.reshape(p.shape), h])
        gpu.step([q, s], [there.reshape(q.shape), further])
        if k == 2:
            host.take(0, index)
            gpu.take(0, cupy.asarray(np.array(index)))
            p = p[index]
            q = cupy.asarray(p)
        if k == 4:
            new, _ = pairs(cupy, 8, dtype=dtype)
            rows = new[0].reshape(2, 4)
            host.grow(0, 2, average=rows if "ema" in options else None)
            gpu.grow(0, 2, average=cupy.asarray(rows) if "ema" in options else None)
            p = np.concatenate([p, rows])
            q = cupy.asarray(p)
        if k == 6:
            host.reset(1)
            gpu.reset(1)
    assert same(p, q)
    assert same(r, s)
    assert dict(gpu.t) == dict(host.t) == {0: 9, 1: 2}
    for key in range(2):
        assert all(isinstance(array, cupy.ndarray) for array in known(gpu, key))
        assert all(map(same, known(host, key), known(gpu, key)))
    gpu.forget(0)
    gpu.step({1: s}, {1: further})
    host.step({1: r}, {1: h})
    assert same(r, s)
    assert dict(gpu.t) == {1: 3}


def test_rows_stay_on_their_device(cupy, devices):
    optimizer = fs.Adam()
    with devices[1]:
        _, (q,) = pairs(cupy, 12)
        _, (h,) = pairs(cupy, 12, seed=1)
        optimizer.step(q, h)
    optimizer.take(0, [0, 5])
    optimizer.grow(0, 1)
    assert all(state.device == devices[1] for state in known(optimizer, 0))


def test_a_graph_outlives_the_states_that_it_uses(cupy, recorder):
    """A graph that was captured before goes on with the old states, which stay alive for it."""
    optimizer = fs.Momentum()
    _, (q, h) = pairs(cupy, 3000, 3000)
    with recorder:
        optimizer.step([q], [h])
        graph, _ = recorder.capture(lambda: optimizer.step([q], [h]))
        optimizer.grow(0, 7)
        longer, gradient = (cupy.asarray(np.concatenate([x.get(), np.ones(7, F32)])) for x in (q, h))
        optimizer.step([longer], [gradient])
        before, others = q.get(), [cupy.asarray(np.ones(3000, F32)) for _ in range(3)]
        recorder.replay(graph)
    assert not same(q, before)
    assert all(same(other, np.ones(3000, F32)) for other in others)
    assert optimizer.t[0] == 2


def test_a_graph_outlives_a_new_parameter(cupy, recorder):
    optimizer = fs.Momentum()
    _, (q, h, r) = pairs(cupy, 3000, 3000, 5)
    with recorder:
        optimizer.step([q], [h])
        graph, _ = recorder.capture(lambda: optimizer.step([q], [h]))
        for k in range(9):
            optimizer.step({f"{k}": r}, {f"{k}": cupy.asarray(np.ones(5, F32))})
        before = q.get()
        recorder.replay(graph)
    assert not same(q, before)


def test_a_graph_outlives_a_plan_that_made_room(cupy, recorder, monkeypatch):
    monkeypatch.setattr(plans, "_MOST", 2)
    optimizer = fs.Momentum()
    _, (q, h, r, s) = pairs(cupy, 3000, 3000, 5, 5)
    with recorder:
        for key in ("x", "y", "z"):  # room for their step counts
            optimizer.step({key: r}, {key: s})
        optimizer.step([q], [h])
        graph, _ = recorder.capture(lambda: optimizer.step([q], [h]))
        for key in ("x", "y", "z"):
            optimizer.step({key: r}, {key: s})
        before = q.get()
        recorder.replay(graph)
    assert not same(q, before)
