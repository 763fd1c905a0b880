"""Tensors of TensorFlow, which nobody may write to: they are gradients, and variables are assigned to."""

import numpy as np
import pytest

import fusedstep as fs
from tests.peers.beside import step_beside_numpy

tf = pytest.importorskip("tensorflow")


def read(x):
    return x if isinstance(x, np.ndarray) else x.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_gradients(dtype):
    grads = [tf.cast(tf.reshape(tf.linspace(-1.0, 1.0, 12), (4, 3)) + k, dtype) for k in range(3)]
    step_beside_numpy(np.ones((4, 3), np.float32), grads, read)


def test_a_variable_is_assigned():
    v = tf.Variable([1.0, 2.0, 3.0])
    p, opt = v.numpy().copy(), fs.SGD(lr=0.25)
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(v * v)
        opt.step(p, tape.gradient(loss, v))
        v.assign(p)
    assert v.numpy().tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tf.Variable(tf.ones(3)), TypeError, "is of type .*Variable, expected an array"),
        (lambda: tf.ones(3), ValueError, "(is read-only|does not tell .* may be written)"),
    ],
    ids=["variable", "tensor"],
)
def test_parameters_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        fs.SGD().step([np.ones(3, np.float32), make()], [tf.ones(3)] * 2)


def test_rows_are_no_array():
    rows = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0]), tf.constant([3, 2]))
    with pytest.raises(TypeError, match=r"^grad is of type .*IndexedSlices, expected an array"):
        fs.SGD().step(np.ones((3, 2), np.float32), rows)
    w = np.ones((3, 2), np.float32)
    fs.SGD(lr=0.5).step(w, tf.convert_to_tensor(rows))
    assert w.tolist() == [[0.5, 0.5], [1, 1], [1, 1]]
