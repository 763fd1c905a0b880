"""An optimizer moves from the host to a GPU and back, also through files."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from tests.gpu.arrays import F32, pairs, same


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "state_dtype": "same"}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize("dtype", [F32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("way", ["file", "state_dict", "pickle", "live"])
def test_training_goes_on_elsewhere(cupy, way, options, dtype, tmp_path):
    """Training that moves from the host to a GPU and back has the bits of training that never moved."""

    def moved(optimizer, params):
        if way == "file":
            fs.save(tmp_path / "a.npz", optimizer, params)
            optimizer = fs.Nadam(**options)
            into = [p.copy() for p in params]
            fs.load(tmp_path / "a.npz", optimizer, into)
            assert all(map(same, into, params))
        elif way == "state_dict":
            state = optimizer.state_dict()
            assert all(isinstance(a, np.ndarray) for some in state["state"].values() for a in some.values())
            optimizer = fs.Nadam(**options)
            optimizer.load_state_dict(state)
        elif way == "pickle":
            optimizer = pickle.loads(pickle.dumps(optimizer))
        return optimizer

    straight, around = fs.Nadam(**options), fs.Nadam(**options)
    p, _ = pairs(cupy, 5, 1100, dtype=dtype)
    there = [x.copy() for x in p]
    for i in range(6):
        g, h = pairs(cupy, 5, 1100, dtype=dtype, seed=i)
        straight.step(p, g)
        if i == 2:
            around, there = moved(around, there), [cupy.asarray(x) for x in there]
        elif i == 4:
            around, there = moved(around, there), [x.get() for x in there]
        around.step(there, h if 2 <= i < 4 else g)
        kind = cupy.ndarray if 2 <= i < 4 else np.ndarray
        assert all(type(a) is kind for some in around.state.values() for a in some.values())
    assert all(map(same, p, there))
    assert around.t == straight.t
    for key in straight.state:
        assert all(same(around.state[key][name], straight.state[key][name]) for name in straight.state[key])


def test_a_gradient_may_be_missing_where_states_have_yet_to_follow(cupy):
    (p, g), _ = pairs(cupy, 50, 50)
    p2 = p.copy()
    optimizer = fs.Adam()
    optimizer.step([p, p2], [g, g.copy()])
    moved = pickle.loads(pickle.dumps(optimizer))
    q, q2 = cupy.asarray(p), cupy.asarray(p2)
    for grads in ([g, None], [None, g], [g, g.copy()]):
        optimizer.step([p, p2], grads)
        moved.step([q, q2], [None if x is None else cupy.asarray(x) for x in grads])
    assert same(q, p)
    assert same(q2, p2)


@pytest.mark.parametrize("to_gpu", [True, False])
@pytest.mark.parametrize("cls", [fs.SGD, fs.Adam])
def test_the_first_parameter_does_not_move_alone(cupy, cls, to_gpu):
    """Parameters that have not changed since the last step are refused too, once the first one has left them."""
    host, gpu = pairs(cupy, 50, 60, 50, 60)
    start, other = (host, gpu) if to_gpu else (gpu, host)
    optimizer, twin = cls(), cls()
    twins = [p.copy() for p in start]
    for _ in range(2):
        optimizer.step(start[:2], start[2:])
        twin.step(twins[:2], twins[2:])
    where = ("in host memory", "on GPU 0") if to_gpu else ("on GPU 0", "in host memory")
    with pytest.raises(TypeError, match=r"^params\[1\] is {}, expected it {} like params\[0\]$".format(*where)):
        optimizer.step([other[0], start[1]], [other[2], start[3]])
    assert optimizer.t == twin.t
    assert all(map(same, start, twins))
    optimizer.step(start[:2], start[2:])
    twin.step(twins[:2], twins[2:])
    assert all(map(same, start, twins))


@pytest.mark.parametrize("to_gpu", [True, False])
@pytest.mark.parametrize("cls", [fs.SGD, fs.Adam])
def test_a_parameter_without_a_gradient_may_be_anywhere(cupy, cls, to_gpu):
    host, gpu = pairs(cupy, 50, 60, 50, 60)
    start, other = (host, gpu) if to_gpu else (gpu, host)
    optimizer, twin = cls(), cls()
    twins = [p.copy() for p in start]
    for first in (start[0], other[0], start[0]):
        for key in (0, 1):
            grads = [start[2], None] if key == 0 and first is start[0] else [None, start[3]]
            optimizer.step([first, start[1]], grads)
            twin.step(twins[:2], [None if g is None else twins[2 + i] for i, g in enumerate(grads)])
        assert optimizer.t == twin.t
        assert all(map(same, start, twins))


def test_what_is_saved_is_of_one_moment(cupy):
    """States are saved as they are after the last step, though that may be still under way in another stream."""
    host, gpu = fs.Momentum(), fs.Momentum()
    (p, g), (q, h) = pairs(cupy, 3000, 3000)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    for _ in range(2):
        host.step(p, g)
        with stream:
            gpu.step(q, h)
        assert same(gpu.state_dict()["state"][0]["b"], host.state[0]["b"])
        assert pickle.loads(pickle.dumps(gpu)).t == host.t


def test_loading_fills_the_arrays_that_are_there(cupy, tmp_path):
    (p, g), (q, h) = pairs(cupy, 8, 8)
    optimizer = fs.Adam()
    optimizer.step(q, h)
    fs.save(tmp_path / "a.npz", optimizer, q)
    saved = q.get()
    m, state = optimizer.state[0]["m"], optimizer.state[0]["m"].get()
    optimizer.step(q, h)
    fs.load(tmp_path / "a.npz", optimizer, q)
    assert optimizer.state[0]["m"].data.ptr == m.data.ptr
    assert same(m, state)
    assert same(q, saved)
    assert optimizer.t == {0: 1}
    host = fs.Adam()
    for _ in range(2):
        host.step(p, g)
    optimizer.step(q, h)
    assert same(q, p)


def test_targets_of_a_file_that_overlap_on_a_gpu(cupy, tmp_path):
    (p, g), (q, h) = pairs(cupy, 8, 8)
    fs.save(tmp_path / "a.npz", None, [p, g])
    memory = cupy.zeros(16, F32)
    before = memory.get()
    for wrong in ([memory[:8], memory[7:15]], [memory[1:9], memory[:8]]):
        with pytest.raises(ValueError, match=r"^params\[0\] overlaps params\[1\] in memory, expected separate arrays$"):
            fs.load(tmp_path / "a.npz", None, wrong)
        assert same(memory, before)
    fs.load(tmp_path / "a.npz", None, [memory[8:], memory[:8]])
    assert same(memory[8:], p)
    assert same(memory[:8], g)
    optimizer = fs.Momentum()
    optimizer.step([q, h], [cupy.asarray(g), cupy.asarray(p)])
    fs.save(tmp_path / "b.npz", optimizer, [q, h])
    with pytest.raises(ValueError, match=r"^params\[0\] overlaps state\[1\]\['b'\] in memory, expected separate"):
        fs.load(tmp_path / "b.npz", optimizer, [optimizer.state[1]["b"], h])
