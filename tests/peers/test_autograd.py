"""Gradients of HIPS autograd: arrays of NumPy in the containers of the parameters, or Python's own numbers."""

from typing import NamedTuple

import numpy as np
import pytest

import fusedstep as fs

autograd = pytest.importorskip("autograd")


class Line(NamedTuple):
    W: np.ndarray
    b: np.ndarray


def test_a_flat_vector():
    x, gradient = np.zeros(3), autograd.grad(lambda x: ((x - autograd.numpy.array([1.0, 2.0, 3.0])) ** 2).sum())
    opt = fs.Adam(lr=0.1)
    for _ in range(300):
        opt.step(x, gradient(x))
    assert np.allclose(x, [1, 2, 3], atol=0.01)


def loss(params):
    (w, b), scale = params["layers"][0], params["scale"]
    return (autograd.numpy.dot(np.ones((5, 3)), w) + b).mean() * scale


def test_containers_in_containers():
    params = {"layers": [(np.ones((3, 2)), np.ones(2))], "scale": np.ones(())}
    grads = autograd.grad(loss)(params)
    assert isinstance(grads["scale"], (float, np.floating, np.ndarray))
    opt = fs.SGD(lr=0.5)
    opt.step(params, grads)
    assert (params["layers"][0][0] == 1 - 0.5 * 0.5).all()
    assert (params["layers"][0][1] == 1 - 0.5 * 0.5).all()
    assert params["scale"] == 1 - 0.5 * 4
    assert list(opt.t) == ["layers/0/0", "layers/0/1", "scale"]
