"""Steps that are captured in a graph and replayed."""

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, functional
from tests.gpu.arrays import pairs, same

CLASSES = fs.optimizers.classes()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_captured_step_is_replayed_with_other_numbers(cupy, recorder, cls):
    """A replayed step counts, and reads learning rate, limit and scale from the GPU."""
    host, gpu = cls(clip_global_norm=1.0), cls(clip_global_norm=1.0)
    lr, clip, scale = (cupy.asarray(np.zeros(())) for _ in range(3))
    gpu.lr, gpu.clip_global_norm = lr, clip
    p, q = pairs(cupy, 3000, 5)
    g, h = pairs(cupy, 3000, 5, seed=1)
    graph, results = None, []
    for i in range(6):
        host.lr, host.clip_global_norm = 0.1 / (i + 1), 0.5 + i
        with recorder:
            for number, value in ((lr, host.lr), (clip, host.clip_global_norm), (scale, 1.0 + i)):
                number.fill(value)
            for x, y in zip(g, h, strict=True):
                x += 1
                y.set(x)
            if i == 2:
                graph, captured = recorder.capture(lambda: gpu.step(q, h, grad_scale=scale))
            if graph:
                recorder.replay(graph)
                recorder.stream.synchronize()
                results.append(captured.grad_norm)
            else:
                gpu.step(q, h, grad_scale=scale)
        found = host.step(p, g, grad_scale=1.0 + i)
        assert not results or results[-1] == found.grad_norm
    assert all(map(same, p, q))
    assert gpu.t == host.t == {0: 6, 1: 6}

    # A plain step, with other gradients, between two replays.
    h2 = [cupy.asarray(x) for x in g]
    with recorder:
        gpu.step(q, h2, grad_scale=scale)
        recorder.replay(graph)
        gpu.step(q, h2, grad_scale=scale)
    for _ in range(3):
        host.step(p, g, grad_scale=6.0)
    assert all(map(same, p, q))
    assert gpu.t == host.t == {0: 9, 1: 9}


def test_a_graph_may_be_captured_in_another_stream_than_the_current_one(cupy, recorder):
    host, gpu = fs.Momentum(), fs.Momentum()
    (p, g), (q, h) = pairs(cupy, 3000, 3000)
    other = cupy.cuda.Stream(non_blocking=True)
    with recorder:
        gpu.step(q, h)
        graph, _ = recorder.capture(lambda: gpu.step(q, h, stream=other))
        for _ in range(2):
            recorder.replay(graph)
    for _ in range(3):
        host.step(p, g)
    assert same(q, p)
    assert gpu.t == host.t == {0: 3}


def test_results_of_graphs_and_of_other_steps_do_not_mix(cupy, recorder):
    optimizer = fs.SGD(lr=0.0, clip_norm=1.0)
    _, (q, h) = pairs(cupy, 40, 40)
    with recorder:
        optimizer.step(q, h)
        graph, captured = recorder.capture(lambda: optimizer.step(q, h))
        assert np.isnan(captured.grad_norm)  # no replay has computed the norm yet
        assert not captured.skipped
        found = []
        for i in range(_cpu.tickets + 5):
            h.fill(i)
            found.append(optimizer.step(q, h))
        h.fill(1000)
        recorder.replay(graph)
    norms = [result.grad_norm for result in found]
    assert np.allclose(norms, [i * np.sqrt(40) for i in range(len(found))])
    assert captured.grad_norm == pytest.approx(1000 * np.sqrt(40))
    h.fill(1)
    with recorder:
        recorder.replay(graph)
    assert captured.grad_norm == pytest.approx(np.sqrt(40))
    assert [result.grad_norm for result in found] == norms


def test_a_graph_outlives_changes_of_hyperparameters(cupy, recorder):
    host, gpu = fs.SGD(lr=0.1), fs.SGD(lr=0.1)
    p, q = pairs(cupy, 3000, 5)
    g, h = pairs(cupy, 3000, 5, seed=1)
    with recorder:
        gpu.step(q, h)
        graph, _ = recorder.capture(lambda: gpu.step(q, h))
        gpu.overrides = {1: {"lr": 0.5}}
        gpu.step(q, h)
        recorder.replay(graph)
        gpu.step(q, h)
    for overrides in ({}, {1: {"lr": 0.5}}, {}, {1: {"lr": 0.5}}):
        host.overrides = overrides
        host.step(p, g)
    assert all(map(same, p, q))


def test_a_graph_has_the_hyperparameters_of_its_capture(cupy, recorder):
    """Other steps have their own hyperparameters, though a replay came in between."""
    host, gpu = fs.SGD(lr=0.1), fs.SGD(lr=0.1)
    (p, g), (q, h) = pairs(cupy, 3000, 3000)
    with recorder:
        gpu.step(q, h)
        graph, _ = recorder.capture(lambda: gpu.step(q, h))
        gpu.lr = 0.5
        for _ in range(2):
            gpu.step(q, h)
            recorder.replay(graph)
    for lr in (0.1, 0.5, 0.1, 0.5, 0.1):
        host.lr = lr
        host.step(p, g)
    assert same(q, p)


def test_nothing_moves_to_the_host_amid_a_capture(cupy, recorder):
    """A parameter that moves takes its step count along, which cannot be read from the GPU then."""
    optimizer = fs.SGD(skip_nonfinite=True)
    (p, g), (q, h) = pairs(cupy, 40, 40)
    before = p.copy()

    def move():
        with pytest.raises(RuntimeError, match="the step count is on a GPU, and cannot be read while its stream"):
            optimizer.step([p], [g])

    with recorder:
        optimizer.step([q], [h])
        recorder.capture(move)
        assert same(p, before)
        optimizer.step([q], [h])
    assert optimizer.t == {0: 2}
    optimizer.step([p], [g])
    assert optimizer.t == {0: 3}


def test_a_schedule_cannot_be_captured_twice(cupy, recorder):
    optimizer = fs.SGD(lr=fs.schedules.step(0.1, 0.5, every=2))
    _, (q, h) = pairs(cupy, 40, 40)

    def twice():
        optimizer.step(q, h)
        with pytest.raises(RuntimeError, match="the step count is on a GPU, and cannot be read while its stream"):
            optimizer.step(q, h)

    with recorder:
        optimizer.step(q, h)
        graph, _ = recorder.capture(twice)
    assert graph is not None


def test_a_graph_outlives_the_plan_of_its_step(cupy, recorder):
    host, gpu = fs.Momentum(), fs.Momentum()
    p, q = pairs(cupy, 3000)
    g, h = pairs(cupy, 3000, seed=1)
    with recorder:
        gpu.step(q, h)
        graph, _ = recorder.capture(lambda: gpu.step(q, h))
        gpu.ema = 0.9  # an average needs another plan
        gpu.step(q, h)
        recorder.replay(graph)
    for _ in range(3):
        host.step(p, g)
    assert same(q[0], p[0])


@pytest.mark.parametrize("made", [False, True])
def test_a_first_step_cannot_be_captured(cupy, recorder, made):
    optimizer = fs.Adam()
    _, q = pairs(cupy, 30)
    _, h = pairs(cupy, 30, seed=1)
    before = q[0].get()
    if made:
        optimizer.step(q[0], h[0])  # with other keys
        before = q[0].get()
    message = "is being captured, expected a step with these params before"
    with recorder, pytest.raises(RuntimeError, match=message):
        recorder.capture(lambda: optimizer.step({"w": q[0]}, {"w": h[0]}))
    assert same(q[0], before)
    assert "w" not in optimizer.t


def test_functions_may_be_captured(cupy, recorder):
    p, q = pairs(cupy, 3000)
    g, h = pairs(cupy, 3000, seed=1)
    with recorder:
        graph, _ = recorder.capture(lambda: functional.sgd(q[0], h[0], lr=0.1, clip_norm=1.0))
        recorder.replay(graph)
        recorder.replay(graph)
    for _ in range(2):
        functional.sgd(p[0], g[0], lr=0.1, clip_norm=1.0)
    assert same(q[0], p[0])
