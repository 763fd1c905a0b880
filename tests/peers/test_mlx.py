"""Arrays of MLX, whose operations never write in place: they are gradients."""

import numpy as np
import pytest

import fusedstep as fs
from tests.peers.beside import step_beside_numpy

mx = pytest.importorskip("mlx.core", exc_type=ImportError)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gradients(dtype):
    grads = [mx.arange(12).reshape(3, 4).astype(getattr(mx, dtype)).T + k for k in range(3)]
    step_beside_numpy(np.ones((4, 3), np.float32), grads)


def test_bfloat16_gradients():
    p = np.ones(3, np.float32)
    fs.SGD(lr=0.5).step(p, mx.ones(3, mx.bfloat16))
    assert (p == 0.5).all()


def test_a_derivative():
    p, opt = np.ones(3, np.float32), fs.SGD(lr=0.25)
    gradient = mx.grad(lambda p: (p * p).sum())
    for _ in range(2):
        opt.step(p, gradient(mx.array(p)))
    assert (p == 0.25).all()


def test_parameters_are_refused():
    p = mx.ones(3)
    with pytest.raises(ValueError, match=r"^param (is read-only|does not tell .* may be written)"):
        fs.SGD().step(p, np.ones(3))
    assert (np.asarray(p) == 1).all()
