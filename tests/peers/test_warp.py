"""Arrays of Warp on the CPU, which describe their memory by __array_interface__."""

import numpy as np
import pytest

import fusedstep as fs
from tests.peers.beside import step_beside_numpy

wp = pytest.importorskip("warp")


def array(numbers, dtype=None, **options):
    return wp.array(np.asarray(numbers), dtype=dtype or wp.float32, device="cpu", **options)


def read(x):
    return x.numpy()


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_parameters_and_gradients(name):
    dtype = getattr(wp, name)
    grads = [array(np.linspace(-1, 1, 12).reshape(4, 3) + k, dtype) for k in range(3)]
    step_beside_numpy(array(np.ones((4, 3)), dtype), grads, read)


def test_vectors_are_further_axes():
    points, forces = array(np.ones((5, 3)), wp.vec3), array(np.arange(15).reshape(5, 3), wp.vec3)
    step_beside_numpy(points, [forces], read)


def test_a_tape():
    """The loop of Warp's own optimizers, which take flattened arrays, and of kernels that are differentiated."""
    w = array(np.ones((4, 3)), requires_grad=True)
    expected = np.ones((4, 3), np.float32)
    opt, other = fs.Adam(lr=0.1, zero_grad=True), fs.Adam(lr=0.1)
    for k in range(3):
        w.grad.assign(np.full((4, 3), k + 1, np.float32))
        opt.step([w.flatten()], [w.grad.flatten()])
        other.step(expected, np.full((4, 3), k + 1, np.float32))
        assert not w.grad.numpy().any()
    assert (w.numpy() == expected).all()


def test_a_view_of_numpy_is_updated():
    p = np.ones(3, np.float32)
    held = wp.array(p, dtype=wp.float32, device="cpu", copy=False)
    fs.SGD(lr=0.5).step(held, array(np.ones(3)))
    assert held.numpy().tolist() == p.tolist() == [0.5, 0.5, 0.5]


def test_a_slice_is_no_dense_memory():
    whole = array(np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"^param has gaps or negative strides"):
        fs.SGD().step(whole[:, ::2], array(np.ones((4, 2))))
    w = np.ones((4, 2), np.float32)
    fs.SGD(lr=0.5).step(w, whole[:, ::2])
    assert (w == 0.5).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: array(np.ones(3), wp.int32), "^param is int32, expected float32"),
        (lambda: array(np.ones(3), wp.bfloat16), "^param is uint16, expected float32"),
        (lambda: wp.indexedarray(array(np.ones(9)), [array([0, 4, 8], wp.int32)]), "is of type .*indexedarray"),
    ],
    ids=["int32", "bfloat16", "indexed"],
)
def test_other_arrays_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        fs.SGD().step(make(), np.ones(3))
