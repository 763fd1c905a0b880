"""Arrays of Dr.Jit, which does not say by DLPack whether they may be written: they are gradients, and NumPy's views of
them parameters.
"""

import numpy as np
import pytest

import fusedstep as fs
from tests.peers.beside import step_beside_numpy

dr = pytest.importorskip("drjit")
llvm = pytest.importorskip("drjit.llvm")
if not dr.has_backend(dr.JitBackend.LLVM):
    pytest.skip("needs LLVM", allow_module_level=True)


def test_gradients():
    grads = [llvm.Float([1.0, -2.0, 3.0]) * k for k in range(1, 4)]
    step_beside_numpy(np.ones(3, np.float32), grads)


def test_gradients_of_tensors():
    grads = [llvm.TensorXf(np.arange(6, dtype=np.float32).reshape(2, 3)) + k for k in range(3)]
    step_beside_numpy(np.ones((2, 3), np.float32), grads)


def test_a_derivative():
    p = llvm.ad.Float([1.0, 2.0, 3.0])
    dr.enable_grad(p)
    dr.backward(dr.sum(p * p))
    view = dr.detach(p).numpy()
    fs.SGD(lr=0.25).step(view, dr.grad(p))
    assert view.tolist() == p.numpy().tolist() == [0.5, 1.0, 1.5]


def test_numpy_views_are_parameters():
    p = llvm.Float([1.0, 2.0, 3.0])
    step_beside_numpy(p.numpy(), [llvm.Float([1.0, 1.0, 1.0])] * 3)
    assert p.numpy().tolist() != [1.0, 2.0, 3.0]


@pytest.mark.parametrize("kind", ["Float", "Float64", "Float16"])
def test_parameters_are_refused(kind):
    p = getattr(llvm, kind)([1.0, 2.0])
    with pytest.raises(ValueError, match=r"^param does not tell by its DLPack that it may be written, .*NumPy's view"):
        fs.SGD().step(p, np.ones(2))
    assert p.numpy().tolist() == [1.0, 2.0]
