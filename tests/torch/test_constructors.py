"""Constructors, their errors and what optimizers look like are PyTorch's; options are checked like hyperparameters."""

import inspect
import re

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

import fusedstep as fs
import fusedstep.torch
from tests.rules import entries
from tests.torch.pairs import CASES, INPUTS, NAMES, Pair, parameters, random

ERRORS = [
    pytest.param(name, error, id=f"{name}-{number}: {error.optimizer_error_input.desc}")
    for name in NAMES
    for number, error in enumerate(INPUTS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32))
]


@pytest.mark.parametrize("name", NAMES)
def test_a_class_is_a_subclass_of_its_namesake(name):
    ours, theirs = getattr(fusedstep.torch, name), getattr(torch.optim, name)
    assert issubclass(ours, theirs)
    assert ours.__name__ == name
    positional = [parameters()[:1], 0.5]
    assert ours(*positional).defaults == theirs(*positional).defaults


@pytest.mark.parametrize("name", NAMES)
def test_a_class_has_the_signature_of_its_namesake(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fusedstep.torch, torch.optim))
    assert [*ours.values()][:-1] == [*theirs.values()]
    assert [*ours][-1] == "options"


def test_a_class_of_a_user_has_its_own_signature():
    class Mine(fusedstep.torch.Adam):
        def __init__(self, params, rate):
            super().__init__(params, lr=rate)

    assert [*inspect.signature(Mine).parameters] == ["params", "rate"]
    assert Mine(parameters(), 0.5).defaults["lr"] == 0.5


def test_there_is_a_class_for_all_that_fusedstep_has_of_pytorch():
    assert set(NAMES) == {other for _, _, other, _ in entries("TORCH")}


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_groups_and_appearance(name, arguments):
    pair = Pair(name, parameters(), **arguments)
    ours, theirs = pair.ours.param_groups, pair.theirs.param_groups
    assert [{**group, "params": None} for group in ours] == [{**group, "params": None} for group in theirs]
    assert pair.ours.defaults == pair.theirs.defaults
    assert repr(pair.ours) == repr(pair.theirs)
    assert pair.ours.state_dict().keys() == pair.theirs.state_dict().keys()


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_errors(name, error):
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    given = error.optimizer_error_input
    params = parameters()[:1] if given.params is None else given.params
    messages = []
    for module in (torch.optim, fusedstep.torch):
        with pytest.raises(error.error_type, match=error.error_regex) as found:  # a warning is an error here
            getattr(module, name)(params, **given.kwargs)
        messages.append(re.sub("0x[0-9a-f]+", "", str(found.value)))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_given_as_pytorch_takes_them(name):
    cls = getattr(fusedstep.torch, name)
    with pytest.raises(ValueError, match="empty parameter list"):
        cls([])
    with pytest.raises(ValueError, match="non-leaf"):
        cls([torch.ones(2, requires_grad=True) * 2])
    with pytest.raises(TypeError, match="unexpected keyword argument 'lrr'"):
        cls(parameters(), lrr=1.0)
    assert len(cls(iter(parameters())).param_groups[0]["params"]) == len(parameters())


@pytest.mark.parametrize("name", NAMES)
def test_named_parameters(name):
    model = torch.nn.Linear(3, 2)
    optimizer = getattr(fusedstep.torch, name)(model.named_parameters())
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@pytest.mark.parametrize("names", [["foreach"], ["fused"], ["capturable"], ["foreach", "maximize"]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_chooses_an_implementation_of_pytorch_has_no_meaning(name, names):
    """It stays in the groups, which state dicts carry, and the bits are the same."""
    accepted = inspect.signature(getattr(torch.optim, name)).parameters
    arguments = dict.fromkeys(names, True)
    if not arguments.keys() <= accepted.keys() or (name == "Adagrad" and "capturable" in names):
        pytest.skip(f"{name} has no {names[0]}")
    plain, pair = Pair(name, parameters(), maximize="maximize" in names), Pair(name, parameters(), **arguments)
    plain.step(3)
    for k in range(3):
        pair.done = k
        pair.backward()
        pair.ours.step()
    assert all(map(torch.equal, plain.mine, pair.mine))
    assert pair.ours.param_groups[0][names[0]] is True


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_is_refused(name):
    cls, params = getattr(fusedstep.torch, name), parameters()
    with pytest.raises(ValueError, match=r"^differentiable is True, expected False: the step is no part of a graph"):
        cls(params, differentiable=True)
    with pytest.raises(ValueError, match=r"^differentiable is True"):
        cls([{"params": params[:1]}, {"params": params[1:], "differentiable": True}])
    optimizer = cls(params[:1])
    with pytest.raises(ValueError, match=r"^differentiable is True"):
        optimizer.add_param_group({"params": params[1:], "differentiable": True})


# Options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip": 1.0}, TypeError, "options has 'clip', expected some of clip_value, clip_norm"),
        ({"lr": 1.0}, TypeError, "options has 'lr', expected some of"),
        ({"ema": 2.0}, ValueError, "ema is 2.0, expected 0 <= ema <= 1"),
        ({"l1": "a"}, TypeError, "l1 is 'a', expected a number"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, ValueError, "clip"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
        ({"rounding": "up"}, ValueError, "rounding is 'up', expected"),
        ({"master_weights": "whole"}, (TypeError, ValueError), "master_weights is 'whole', expected"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, error, message):
    params = parameters()
    with pytest.raises(error, match=message):
        fusedstep.torch.Adam(params, options=options)
    with pytest.raises(error, match=message):
        fusedstep.torch.Adam([{"params": params[:1]}, {"params": params[1:], "options": options}])
    optimizer = fusedstep.torch.Adam(params[:1])
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": params[1:], "options": options})


def test_groups_have_options_of_their_own():
    p, q, r = (random(4).requires_grad_() for _ in range(3))
    optimizer = fusedstep.torch.SGD(
        [{"params": [p]}, {"params": [q], "options": {"bounds": (0.0, None)}}], lr=1.0, options={"clip_value": 0.5}
    )
    optimizer.add_param_group({"params": [r]})
    assert [group["options"] for group in optimizer.param_groups] == [
        {"clip_value": 0.5},
        {"bounds": (0.0, None)},
        {"clip_value": 0.5},
    ]
    expected = p.detach() - 0.5
    for each in (p, q, r):
        each.grad = torch.full((4,), 2.0)
    start = q.detach().clone()
    optimizer.step()
    assert torch.equal(p.detach(), expected)
    assert torch.equal(q.detach(), (start - 2).clamp(min=0))
    assert torch.equal(r.detach(), expected)


def test_a_global_norm_of_groups_of_several_rules_is_refused():
    p, q = parameters()[:2]
    groups = [{"params": [p], "momentum": 0.0}, {"params": [q], "momentum": 0.9}]
    optimizer = fusedstep.torch.SGD(groups, options={"clip_global_norm": 1.0})
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with pytest.raises(ValueError, match="clip_global_norm stands in options, expected parameters of one rule"):
        optimizer.step()


def test_a_rate_may_be_a_tensor():
    p, lr = torch.ones(3, requires_grad=True), torch.tensor(0.25)
    optimizer = fusedstep.torch.SGD([p], lr=lr)
    p.grad = torch.ones(3)
    optimizer.step()
    assert p.tolist() == [0.75] * 3
    lr.fill_(0.5)
    optimizer.step()
    assert p.tolist() == [0.25] * 3
    optimizer.param_groups[0]["lr"] = torch.tensor(0.125, dtype=torch.float64)
    optimizer.step()
    assert p.tolist() == [0.125] * 3


def test_betas_may_be_tensors():
    betas = torch.tensor(0.8), torch.tensor(0.9)
    pair = Pair("Adam", parameters(), lr=torch.tensor(0.1), betas=betas, foreach=False)
    pair.step(3)
    pair.assert_close()


def test_what_fusedstep_has_and_pytorch_has_not_is_told_where_it_belongs():
    p = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match=r"ema is an argument of its own, expected it in options: options=\{'ema': "):
        fusedstep.torch.AdamW([p], ema=0.9)
    with pytest.raises(TypeError, match=r"lr is a schedule, expected a number: torch.optim.lr_scheduler changes it"):
        fusedstep.torch.AdamW([p], lr=fs.schedules.cosine(1e-2, 10))
