"""What is refused, with the reason; a refused step changes nothing."""

import subprocess
import sys
import warnings

import pytest
import torch

import fusedstep.torch
from tests.torch.pairs import NAMES, parameters, random, state_of


def snapshot(optimizer, params):
    return [p.detach().clone() for p in params], state_of(optimizer)


def assert_unchanged(optimizer, params, before):
    assert all(torch.equal(p, q) for p, q in zip(params, before[0], strict=True))
    found = state_of(optimizer)
    assert found.keys() == before[1].keys()
    for key, x in before[1].items():
        assert torch.equal(found[key], x), key


@pytest.mark.parametrize("name", NAMES)
def test_sparse_gradients_are_refused(name):
    table = torch.nn.Embedding(5, 3, sparse=True)
    params = [*parameters(), table.weight]
    optimizer = getattr(fusedstep.torch, name)(params)
    for p in params[:-1]:
        p.grad = torch.ones_like(p)
    table(torch.tensor([1, 2])).sum().backward()
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match=r"gradient is sparse, expected dense ones: sparse gradients are not supp"):
        optimizer.step()
    assert_unchanged(optimizer, params, before)
    table.weight.grad = None
    optimizer.step()
    table(torch.tensor([1, 2])).sum().backward()
    before = snapshot(optimizer, params)
    with pytest.raises(RuntimeError, match="sparse gradients are not supported"):
        optimizer.step()
    assert_unchanged(optimizer, params, before)


def overlapping():
    memory = random(7)
    return [memory[:4].requires_grad_(), memory[3:].requires_grad_()]


def of_integers():
    return [torch.ones(3, dtype=torch.int32)]


def without_memory():
    return [torch.ones(3, device="meta", requires_grad=True)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (overlapping, ValueError, "overlap"),
        (of_integers, TypeError, "int32, expected float32"),
        (without_memory, (TypeError, RuntimeError), "memory"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_cannot_be_stepped(name, make, error, message):
    if make is without_memory and name == "Adagrad":
        return  # its constructor makes tensors without memory too
    good = random(4).requires_grad_()
    bad = make()
    params = [good, *bad]
    optimizer = getattr(fusedstep.torch, name)(params)
    for p in params:
        p.grad = torch.ones_like(p)
    readable = [good] if make is without_memory else params
    before = snapshot(optimizer, readable)
    for _ in range(2):
        with pytest.raises(error, match=message):
            optimizer.step()
        assert_unchanged(optimizer, readable, before)
    for p in bad:
        p.grad = None
    if make is overlapping:
        optimizer.step()
        assert not torch.equal(good, before[0][0])


@pytest.mark.parametrize("make", [overlapping, of_integers])
def test_groups_of_several_rules_are_checked_before_the_first_write(make):
    good, bad = random(4).requires_grad_(), make()
    optimizer = fusedstep.torch.SGD([{"params": [good], "momentum": 0.0}, {"params": bad, "momentum": 0.5}], lr=0.1)
    for p in (good, *bad):
        p.grad = torch.ones_like(p)
    before = snapshot(optimizer, [good, *bad])
    with pytest.raises((TypeError, ValueError)):
        optimizer.step()
    assert_unchanged(optimizer, [good, *bad], before)


def test_parameters_of_several_rules_that_overlap():
    memory = random(7)
    p, q = memory[:4].requires_grad_(), memory[3:].requires_grad_()
    optimizer = fusedstep.torch.SGD([{"params": [p], "momentum": 0.0}, {"params": [q], "momentum": 0.5}], lr=0.1)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    before = snapshot(optimizer, [p, q])
    with pytest.raises(ValueError, match="overlap"):
        optimizer.step()
    assert_unchanged(optimizer, [p, q], before)


def test_an_overlap_is_refused_again():
    """Also where both parameters have been stepped before, and one has moved since."""
    memory = random(7)
    p, q = memory[:4].requires_grad_(), random(4).requires_grad_()
    groups = [{"params": [p], "momentum": 0.5}, {"params": [q], "momentum": 0.5, "nesterov": True}]
    optimizer = fusedstep.torch.SGD(groups, lr=0.1)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    q.data = memory[3:]
    before = snapshot(optimizer, [p, q])
    for _ in range(3):
        with pytest.raises(ValueError, match="overlap"):
            optimizer.step()
        assert_unchanged(optimizer, [p, q], before)


def of_another_shape(own, name):
    own[name] = torch.zeros(7)


def of_another_type(own, name):
    own[name] = torch.zeros(own[name].shape, dtype=torch.int64)


STATES = {
    "SGD": "momentum_buffer",
    "Adadelta": "acc_delta",
    "Adagrad": "sum",
    "Adam": "exp_avg_sq",
    "AdamW": "exp_avg",
    "Adamax": "exp_inf",
    "NAdam": "exp_avg",
    "RAdam": "exp_avg",
    "RMSprop": "square_avg",
}


@pytest.mark.parametrize("spoil", [of_another_shape, of_another_type])
@pytest.mark.parametrize("name", NAMES)
def test_wrong_states_change_nothing(name, spoil):
    params = parameters()
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(fusedstep.torch, name)(params, **arguments)
    for k, p in enumerate(params):
        p.grad = torch.ones_like(p) * (k + 1)
    optimizer.step()
    right = optimizer.state[params[3]][STATES[name]]
    spoil(optimizer.state[params[3]], STATES[name])
    before = snapshot(optimizer, params)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match="expected"):
            optimizer.step()
        assert_unchanged(optimizer, params, before)
    optimizer.state[params[3]][STATES[name]] = right
    optimizer.step()
    assert not torch.equal(params[0], before[0][0])


def test_a_wrong_state_at_the_first_step_leaves_no_others():
    params = parameters()[:3]
    optimizer = fusedstep.torch.Adam(params)
    optimizer.state[params[2]] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(7), "exp_avg_sq": torch.zeros(())}
    for p in params:
        p.grad = torch.ones_like(p)
    before = snapshot(optimizer, params)
    with pytest.raises(ValueError, match=r"^state exp_avg has shape \(7,\), expected \(\)"):
        optimizer.step()
    assert_unchanged(optimizer, params, before)


def test_a_gradient_of_another_type_of_number_is_refused():
    p, q = random(3).requires_grad_(), torch.complex(random(3), random(3)).requires_grad_()
    optimizer = fusedstep.torch.Adam([p, q])
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    before = snapshot(optimizer, [p, q])
    q.grad.data = torch.ones(3)
    with pytest.raises((TypeError, ValueError), match="complex"):
        optimizer.step()
    assert_unchanged(optimizer, [p, q], before)


def test_a_parameter_that_stands_twice_is_refused():
    p = torch.ones(3, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns, and steps twice
        optimizer = fusedstep.torch.Adam([p, p])
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match="overlap"):
        optimizer.step()
    assert p.tolist() == [1.0] * 3


@pytest.mark.parametrize("wrong", [{"clip_nrm": 1.0}, {"clip_value": -1.0}, {"ema": 2.0}], ids=str)
def test_wrong_options_that_are_set_later_are_refused(wrong):
    p = torch.ones(3, requires_grad=True)
    optimizer = fusedstep.torch.SGD([p], options={"clip_value": 1.0})
    p.grad = torch.ones(3)
    optimizer.param_groups[0]["options"] = wrong
    before = snapshot(optimizer, [p])
    with pytest.raises((TypeError, ValueError)):
        optimizer.step()
    assert_unchanged(optimizer, [p], before)


def test_a_closure_that_fails_leaves_the_optimizer_as_it_is():
    params = parameters()
    optimizer = fusedstep.torch.Adam(params)
    before = snapshot(optimizer, params)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert_unchanged(optimizer, params, before)


def test_fusedstep_imports_no_pytorch():
    code = "import sys, fusedstep; fusedstep.Adam; assert not [name for name in sys.modules if 'torch' in name]"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, fusedstep.torch; assert 'torch' in sys.modules; fusedstep.torch.Adam"
    subprocess.run([sys.executable, "-c", code], check=True)
