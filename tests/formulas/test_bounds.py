"""Bounds of the parameters."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import functional
from tests.formulas.arrays import BOTH, F32, F64, INF, MODULES, NAN, normal, same


@BOTH
@MODULES
def test_a_parameter_stays_within_bounds(module, dtype, isa):
    p, g = normal(300, dtype, 1), normal(300, dtype, 2)
    moved = p - dtype(0.5) * g
    optimizer = module.SGD(lr=0.5, bounds=(-0.25, 0.1), ema=0.5)
    optimizer.step(p, g)
    expected = np.minimum(np.maximum(moved, dtype(-0.25)), dtype(0.1))
    assert same([p, optimizer.ema[0]], [expected, expected])  # the average sees the bounded parameter
    assert (p == moved).any()
    for bounds, kept in (((None, 0.1), np.minimum), ((0.1, None), np.maximum)):
        p = normal(300, dtype, 1)
        module.SGD(lr=0.5, bounds=bounds).step(p, g)
        assert same([p], [kept(moved, dtype(0.1))])


@BOTH
@MODULES
def test_bounds_come_after_decay_and_let_nan_through(module, dtype):
    p = np.array([NAN, INF, -INF, 1.0, -1.0, -0.0, 0.0], dtype)
    optimizer = module.SGD(lr=1.0, weight_decay=0.5, decoupled=True, bounds=(-0.75, 0.25))
    optimizer.step(p, np.zeros(7, dtype))
    assert same([p], [np.array([NAN, NAN, NAN, 0.25, -0.5, -0.0, 0.0], dtype)])  # inf - inf is NaN
    p = np.array([INF, -INF, -0.0], dtype)
    module.SGD(lr=1.0, bounds=(-2, 2)).step(p, np.zeros(3, dtype))
    assert same([p], [np.array([2, -2, -0.0], dtype)])
    zeros = np.array([-0.0, 0.0], dtype)
    module.SGD(lr=1.0, bounds=(0.0, 1.0)).step(zeros, np.zeros(2, dtype))
    assert same([zeros], [np.zeros(2, dtype)])  # of two zeros, the bound is taken


@MODULES
def test_a_subnormal_bound_of_float32_is_0(module, isa):
    p, q = np.array([-1.0, 1.0], F32), np.array([-1.0, 1.0])
    module.SGD(lr=0.0, bounds=(-1e-40, 0.5)).step(p, np.zeros(2, F32))
    module.SGD(lr=0.0, bounds=(-1e-40, 0.5)).step(q, np.zeros(2))
    assert same([p, q], [np.array([-0.0, 0.5], F32), np.array([-1e-40, 0.5])])


@MODULES
def test_bounds_are_those_of_the_arithmetic(module):
    """A stored parameter of half precision may be the nearest number beyond the bound; its master is not."""
    p = np.ones(3, ml_dtypes.bfloat16)
    optimizer = module.SGD(lr=1.0, bounds=(None, 0.7), master_weights=True)
    optimizer.step(p, np.zeros(3, ml_dtypes.bfloat16))
    assert (optimizer.state[0]["master"] == F32(0.7)).all()
    assert (p == ml_dtypes.bfloat16(0.7)).all()


@MODULES
def test_bounds_of_single_tensors(module):
    params, grads = {key: np.zeros(4) for key in "abc"}, {key: np.full(4, -3.0) for key in "abc"}
    overrides = {"b": {"bounds": (-1, 2)}, "c": {"bounds": None}}
    module.SGD(lr=1.0, bounds=(0.0, 1.0), overrides=overrides).step(params, grads)
    assert [p[0] for p in params.values()] == [1.0, 2.0, 3.0]


def test_bounds_of_functions():
    p, g = np.zeros(4), np.ones(4)
    functional.sgd(p, g, lr=1.0, bounds=(-0.5, None))
    assert (p == -0.5).all()


def test_bounds_are_checked_and_kept():
    optimizer = fs.Adam(bounds=[-np.inf, np.float32(0.5)])
    assert optimizer.bounds == (None, 0.5)
    optimizer.bounds = (0, 1)
    for bad in ((1, 0), (NAN, 1), (INF, INF), (None, -INF)):
        with pytest.raises(ValueError, match=r"^bounds"):
            optimizer.bounds = bad
    for bad in (1.0, (1,), (0, 1, 2), "01", (0, "1"), (lambda done: 0.0, 1)):
        with pytest.raises(TypeError, match=r"^bounds"):
            optimizer.bounds = bad
    with pytest.raises(ValueError, match=r"^overrides\['w'\]\['bounds'\] is \(2, 1\), expected low <= high"):
        fs.SGD(overrides={"w": {"bounds": (2, 1)}})
    assert optimizer.bounds == (0.0, 1.0)


def test_bounds_are_saved(tmp_path):
    params, grads = {"w": normal(5, F64)}, {"w": normal(5, F64, 1)}
    optimizer = fs.Adam(bounds=(None, 0.5), overrides={"w": {"bounds": (-1, 1)}})
    optimizer.step(params, grads)
    other = fs.Adam()
    other.load_state_dict(optimizer.state_dict())
    fs.save(tmp_path / "file.npz", optimizer, params)
    third = fs.Adam()
    fs.load(tmp_path / "file.npz", third, params)
    for again in (other, third, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again.bounds == (None, 0.5)
        assert again.overrides["w"]["bounds"] == (-1.0, 1.0)
    saved = optimizer.state_dict()
    del saved["hyperparameters"]["bounds"]  # as version 0.1.0 wrote it
    other.load_state_dict(saved, hyperparameters="saved")
    assert other.bounds is None
