"""Types of parameters: complex, several at once, and counters in the default type of PyTorch."""

import pytest
import torch

import fusedstep.torch
from tests.torch.pairs import CASES, NAMES, Pair, copied, parameters, random


def random_complex(*shape, seed, dtype=torch.complex64):
    return torch.complex(random(*shape, seed=seed), random(*shape, seed=seed + 1)).to(dtype)


@pytest.mark.parametrize("conjugated", [False, True])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_complex_parameters_are_pairs_of_real_ones(name, arguments, conjugated):
    pair = Pair(name, [random_complex(5, 3, seed=1).requires_grad_()], **arguments)
    real = [torch.view_as_real(pair.mine[0].detach()).clone().requires_grad_()]
    beside = Pair(name, real, **arguments)
    for k in range(4):
        grad = random_complex(5, 3, seed=10 + k)
        if conjugated:
            grad = grad.conj()
            assert grad.is_conj()
        pair.mine[0].grad, pair.others[0].grad = grad, grad.resolve_conj().clone()
        real[0].grad = torch.view_as_real(grad.resolve_conj()).clone()
        for optimizer in (pair.ours, pair.theirs, beside.ours):
            optimizer.step()
        assert pair.mine[0].grad is grad
    assert torch.equal(torch.view_as_real(pair.mine[0].detach()), real[0].detach())
    pair.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_of_complex_parameters(name):
    for source, target in [(torch.optim, fusedstep.torch), (fusedstep.torch, torch.optim)]:
        pair = Pair(name, [random_complex(5, 3, seed=1).requires_grad_()])
        first = getattr(source, name)(pair.mine)
        for k in range(6):
            if k == 3:
                second = getattr(target, name)(pair.mine)
                second.load_state_dict(first.state_dict())
            grad = random_complex(5, 3, seed=10 + k)
            pair.mine[0].grad, pair.others[0].grad = grad, grad.clone()
            (first if k < 3 else second).step()
            pair.theirs.step()
        pair.ours = second
        pair.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_several_types_in_one_optimizer(name):
    dtypes = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
    params = [torch.ones(3, dtype=dtype, requires_grad=True) for dtype in dtypes]
    arguments = {} if name == "SGD" else {"eps": 1e-3}
    pair = Pair(name, params, lr=0.01, **arguments)
    for _ in range(4):
        for p, q in zip(pair.mine, pair.others, strict=True):
            p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        pair.ours.step()
        pair.theirs.step()
    for p, q in zip(pair.mine, pair.others, strict=True):
        tolerance = 0.02 if p.dtype in (torch.float16, torch.bfloat16) else 1e-6
        torch.testing.assert_close(p.detach(), q.detach(), rtol=tolerance, atol=tolerance)
    for x, y in zip(pair.ours.state.values(), pair.theirs.state.values(), strict=True):
        assert {name: x[name].dtype for name in x} == {name: y[name].dtype for name in y}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_counters_have_the_default_type(name, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        pair = Pair(name, parameters())
        pair.step(2)
        for p, q in zip(pair.mine, pair.others, strict=True):
            for counter in pair.ours._counters:
                assert pair.ours.state[p][counter].dtype is pair.theirs.state[q][counter].dtype is dtype
                assert pair.ours.state[p][counter].shape == ()
        for optimizer, params in pair.both:
            for p in params:
                for counter in pair.ours._counters:
                    optimizer.state[p][counter].mul_(0.5)
        pair.step(2)
        pair.assert_close()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "NAdam"])
def test_float64_beside_counters_in_float32(name):
    """NAdam is left out, whose product of momenta PyTorch keeps in float32 then."""
    pair = Pair(name, parameters(torch.float64))
    pair.step(5)
    pair.assert_close(1e-12)


def negated(x):
    return torch._neg_view(-x)


def expanded(x):
    return x[:1].expand_as(x)


def transposed(x):
    return x.T.contiguous().T


def strided(x):
    return torch.stack([x, x], -1)[..., 0]


@pytest.mark.parametrize("as_seen", [negated, expanded, transposed, strided])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_lie_otherwise_than_parameters(name, as_seen):
    pair = Pair(name, [random(6, 4).requires_grad_()], lr=0.01)
    for k in range(4):
        grad = as_seen(random(6, 4, seed=k))
        pair.mine[0].grad, pair.others[0].grad = grad, grad.clone()
        pair.ours.step()
        pair.theirs.step()
        assert pair.mine[0].grad is grad
    pair.assert_close()


def test_a_subclass_of_tensor_may_be_a_parameter():
    class Own(torch.Tensor):
        pass

    p = torch.nn.Parameter(torch.ones(3).as_subclass(Own))
    assert isinstance(p, Own)
    optimizer = fusedstep.torch.SGD([p], lr=0.5)
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.tolist() == [0.5] * 3


def test_a_module_can_be_trained_in_channels_last():
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Tanh(), torch.nn.Conv2d(8, 4, 3))
        model = model.to(memory_format=torch.channels_last)
        optimizer = module.AdamW(model.parameters(), lr=0.01)
        for k in range(3):
            optimizer.zero_grad()
            model(random(2, 3, 8, 8, seed=k).to(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
        state = optimizer.state[model[0].weight]["exp_avg"]
        assert state.is_contiguous(memory_format=torch.channels_last)
        outcomes.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-5)


def test_parameters_of_a_copy_are_steps_of_their_own():
    params = parameters()
    first = fusedstep.torch.Adam(params)
    second = fusedstep.torch.Adam(copied(params))
    for p in params:
        p.grad = torch.ones_like(p)
    first.step()
    assert not second.state
