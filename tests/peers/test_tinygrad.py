"""Tensors of tinygrad, which show no memory by a protocol: they are refused, and their NumPy copies are gradients."""

import numpy as np
import pytest

import fusedstep as fs

tinygrad = pytest.importorskip("tinygrad")


def test_tensors_are_refused():
    x = tinygrad.Tensor([1.0, 2.0], device="CPU")
    with pytest.raises(TypeError, match=r"^params\[0\] is of type tinygrad.*Tensor, expected an array"):
        fs.SGD().step([x], [np.ones(2)])
    with pytest.raises(TypeError, match=r"^grad is of type tinygrad.*Tensor, expected an array"):
        fs.SGD().step(np.ones(2), x)


def test_copies_are_gradients():
    p = np.ones(2, np.float32)
    fs.SGD(lr=0.5).step(p, tinygrad.Tensor([1.0, 2.0], device="CPU").numpy())
    assert p.tolist() == [0.5, 0.0]
