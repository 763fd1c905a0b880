"""Arrays of JAX, which nobody may write to: they are gradients."""

import numpy as np
import pytest

import fusedstep as fs
from tests.peers.beside import step_beside_numpy

jax = pytest.importorskip("jax")
jnp = jax.numpy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("param_dtype", [np.float32, np.float64])
def test_gradients(dtype, param_dtype):
    grads = [jnp.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4).T + k for k in range(3)]
    step_beside_numpy(np.ones((4, 3), param_dtype), grads)


def test_complex_gradients():
    step_beside_numpy(np.ones(3, np.complex64), [jnp.array([1j, 2, 3 - 1j]) * k for k in range(3)])


def loss(params, x):
    return ((x @ params["layers"][0]["W"] + params["layers"][0]["b"]) ** 2).mean() * params["scale"]


def test_the_gradients_of_a_tree():
    layer = {"W": np.ones((3, 2), np.float32), "b": np.ones(2, np.float32)}
    params = {"layers": [layer], "scale": np.ones((), np.float32)}
    opt, gradient = fs.Adam(lr=0.05), jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(20):
        value, grads = gradient(params, np.ones((5, 3), np.float32))
        opt.step(params, grads)
        losses.append(float(value))
    assert losses == sorted(losses, reverse=True)
    assert dict(opt.t) == {"layers/0/W": 20, "layers/0/b": 20, "scale": 20}


def test_what_jax_has_read_does_not_change():
    """JAX may keep the memory of a NumPy array that it was given, and would see a step in what it calls constant."""
    p = np.ones(1000, np.float32)
    seen = jnp.array(p)  # jnp.asarray may share the memory
    fs.SGD(lr=0.5).step(p, seen)
    assert (seen == 1).all()


@pytest.mark.parametrize("make", [jnp.ones, lambda n: np.asarray(jnp.ones(n))], ids=["JAX", "NumPy's view"])
def test_parameters_are_refused(make):
    first, p = np.ones(3, np.float32), make(3)
    with pytest.raises(ValueError, match=r"^params\[1\] (is read-only|does not tell .* may be written)"):
        fs.SGD().step([first, p], [jnp.ones(3)] * 2)
    assert (first == 1).all()
    assert (p == 1).all()


def test_gradients_cannot_be_zeroed():
    with pytest.raises(ValueError, match=r"^grad .* may be written, .*, or zero_grad=False"):
        fs.SGD(zero_grad=True).step(np.ones(3), jnp.ones(3))


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"^grad is int32, expected float32"):
        fs.SGD().step(np.ones(3), jnp.ones(3, int))
