"""Averages of the parameters."""

import pickle

import numpy as np
import pytest

import fusedstep as fs
from tests.formulas.arrays import BOTH, F32, INF, MODULES, NAN, copies, normal, same


@BOTH
@MODULES
def test_the_first_average_is_a_copy(module, dtype):
    p, g = np.array([-0.0, 0.0, NAN, INF, 3.0], dtype), np.array([0.0, -0.0, 1.0, 1.0, 1.0], dtype)
    optimizer = module.SGD(lr=1.0, ema=0.5)
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [p])
    assert np.signbit(p[0])
    optimizer.step(p, g)
    assert same([optimizer.ema[0][4:]], [np.array([1.5], dtype)])


def test_averages_off_and_on_again():
    p, g = normal(50), normal(50, seed=1)
    optimizer = fs.SGD(lr=0.1)
    optimizer.step(p, g)
    assert not optimizer.ema
    optimizer.ema = 0.75
    optimizer.step(p, g)
    e = p.copy()
    assert same([optimizer.ema[0]], [e])
    optimizer.ema = None
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [e])
    optimizer.ema = 0.25
    optimizer.step(p, g)
    assert same([optimizer.ema[0]], [F32(0.25) * e + F32(0.75) * p])
    again = pickle.loads(pickle.dumps(optimizer))
    q = p.copy()
    optimizer.step(p, g)
    again.step(q, g)
    assert same([p, optimizer.ema[0]], [q, again.ema[0]])


def test_averages_that_began_at_different_times():
    start = [normal(20, seed=i) for i in range(4)]
    params, alone = copies(start), copies(start)
    optimizer = fs.SGD(lr=0.5)
    for ema, present in ((None, (0, 2)), (0.75, (1, 3)), (0.75, range(4)), (0.75, range(4))):
        optimizer.ema = ema
        optimizer.step(params, [start[i] if i in present else None for i in range(4)])
    expected = []
    for i, p in enumerate(alone):
        path = []
        for _ in range(3):
            p[...] = p - F32(0.5) * start[i]
            path.append(p.copy())
        e = path[i % 2 == 0]
        for q in path[1 + (i % 2 == 0) :]:
            e = F32(0.75) * e + F32(0.25) * q
        expected.append(e)
    assert same(params, alone)
    assert same([optimizer.ema[i] for i in range(4)], expected)


def test_the_mapping_of_averages():
    p, g = np.ones(4, F32), np.ones(4, F32)
    optimizer = fs.SGD(lr=1.0, ema=0.5)
    assert dict(optimizer.ema) == {}
    assert optimizer.ema.decay == 0.5
    optimizer.step({"w": p}, {"w": g})
    with pytest.raises(TypeError):
        optimizer.ema["w"] = p
    with pytest.raises(TypeError):
        del optimizer.ema["w"]
    optimizer.ema["w"][:] = 8
    optimizer.step({"w": p}, {"w": g})
    assert (optimizer.ema["w"] == 0.5 * 8 - 0.5).all()
    assert list(optimizer.ema) == ["w"]
    for bad in (optimizer.ema["w"], optimizer.ema["w"][1:3]):
        with pytest.raises(ValueError, match=r"^ema\['w'\] overlaps params\['v'\]|^params\['v'\] overlaps ema\['w'\]"):
            optimizer.step({"w": p, "v": bad}, {"w": g, "v": np.ones(bad.size, F32)})
        with pytest.raises(ValueError, match=r"ema\['w'\]"):
            optimizer.step({"w": p}, {"w": optimizer.ema["w"]})
    optimizer.ema = lambda done: 0.25
    assert optimizer.ema.decay(3) == 0.25


def test_the_decay_of_the_averages_is_not_set_in_vain():
    optimizer = fs.SGD(ema=0.5)
    with pytest.raises(AttributeError):  # `optimizer.ema` can be set, its attribute cannot
        optimizer.ema.decay = 0.25


@MODULES
def test_averages_of_some_tensors(module):
    params, grads = {k: normal(9, seed=i) for i, k in enumerate("abc")}, {k: normal(9, seed=5) for k in "abc"}
    optimizer = module.Adam(ema=0.5, overrides={"b": {"ema": None}, "c": {"ema": lambda done: 0.1 * done}})
    for gone in (None, "a", "c", None):
        kept = optimizer.ema[gone].copy() if gone else None
        optimizer.step(params, {k: g for k, g in grads.items() if k != gone})
        assert gone is None or same([optimizer.ema[gone]], [kept])
    assert sorted(optimizer.ema) == ["a", "c"]
