"""Parameters and states follow those of PyTorch's classes, for all arguments that PyTorch tests and in every layout."""

import pytest
import torch

from tests.torch.pairs import CASES, LAYOUTS, NAMES, TOLERANCE, Pair, parameters


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """The type of parameters, in which PyTorch counts updates and multiplies momenta too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_trajectories(name, arguments, layout, dtype):
    pair = Pair(name, parameters(dtype, layout), **arguments)
    where = [(p.data_ptr(), p.stride()) for p in pair.mine]
    for k in range(8):
        pair.step(without=[1] if k % 3 == 2 else ())
        pair.assert_close(TOLERANCE[dtype])
    assert [(p.data_ptr(), p.stride()) for p in pair.mine] == where


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_that_gets_its_first_gradient_late(name):
    pair = Pair(name, parameters(), lr=0.01)
    pair.step(3, without=[1, 3])
    pair.assert_close()
    pair.step(3, without=[3])
    pair.assert_close()
    pair.step(3)
    pair.assert_close()


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_nothing_happens_without_gradients(name, arguments):
    pair = Pair(name, parameters(), **arguments)
    before = [p.detach().clone() for p in pair.mine]
    pair.step(2, without=range(len(pair.mine)))
    assert all(torch.equal(p, q) for p, q in zip(pair.mine, before, strict=True))
    pair.assert_close(0)
    pair.step()
    after = [p.detach().clone() for p in pair.mine]
    pair.step(2, without=range(len(pair.mine)))
    assert all(torch.equal(p, q) for p, q in zip(pair.mine, after, strict=True))
    pair.assert_close()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_gradients_are_only_read(name, arguments, layout):
    pair = Pair(name, parameters(layout=layout), **arguments)
    for _ in range(2):
        pair.backward()
        grads = [(p.grad, p.grad.clone(), p.grad._version) for p in pair.mine]
        pair.ours.step()
        for p, (grad, values, version) in zip(pair.mine, grads, strict=True):
            assert p.grad is grad
            assert torch.equal(grad, values)
            assert grad._version == version


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near(name, dtype):
    """PyTorch rounds after each operation, fusedstep once."""
    arguments = {"momentum": 0.9} if name == "SGD" else {"eps": 1e-3}
    pair = Pair(name, parameters(dtype), lr=0.01, **arguments)
    pair.step(5)
    for p, q in zip(pair.mine, pair.others, strict=True):
        torch.testing.assert_close(p.detach().float(), q.detach().float(), rtol=0.03, atol=0.03)
