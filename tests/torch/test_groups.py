"""Groups, schedulers that change them, and what is edited in groups and states between steps."""

from collections import defaultdict
from inspect import signature

import pytest
import torch
from torch.optim import lr_scheduler

import fusedstep.torch
from tests.torch.pairs import CASES, NAMES, Pair, parameters, random


def three_groups(params):
    return [{"params": params[:2], "lr": 0.01}, {"params": params[2:4], "weight_decay": 0.1}, {"params": params[4:]}]


def one_cycle(optimizer):
    has_momentum = "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))
    return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12, cycle_momentum=has_momentum)


SCHEDULERS = {
    "none": None,
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.5),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "OneCycleLR": one_cycle,
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "LinearLR": lr_scheduler.LinearLR,
    "CyclicLR": lambda optimizer: lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-2, cycle_momentum=False),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, [lambda k, i=i: 0.5 ** (k * i) for i in range(3)]),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", NAMES)
def test_schedulers_with_three_groups(name, scheduler):
    make = SCHEDULERS[scheduler]
    pair = Pair(name, parameters(), three_groups, lr=1e-3)
    schedulers = [make(optimizer) for optimizer, _ in pair.both] if make else []
    for _ in range(10):
        pair.step()
        for each in schedulers:
            each.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
        ours, theirs = pair.ours.param_groups, pair.theirs.param_groups
        assert [{**group, "params": None} for group in ours] == [{**group, "params": None} for group in theirs]
        pair.assert_close()


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_groups_may_be_added(name, arguments):
    pair = Pair(name, parameters(), lambda params: params[:2], **arguments)
    pair.step(3)
    for optimizer, params in pair.both:
        optimizer.add_param_group({"params": params[2:4], "lr": 0.05})
    pair.step(2)
    pair.assert_close()
    for optimizer, params in pair.both:
        optimizer.add_param_group({"params": params[4:], "weight_decay": 0.5})
    pair.step(3)
    pair.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_many_groups_are_one_call(name, monkeypatch):
    """A group for each tensor, as programs make them that set a rate for each layer."""
    shapes = [(3,)] * 465

    def groups(params):
        return [{"params": [p], "lr": 0.001 * (1 + i)} for i, p in enumerate(params)]

    pair = Pair(name, parameters(shapes=shapes), groups)
    pair.step(3)
    pair.assert_close()
    assert len(pair.ours._present_buckets()) == 1


@pytest.mark.parametrize("option", ["clip_global_norm", "skip_nonfinite"])
def test_options_that_look_at_all_gradients_look_at_all_groups(option):
    outcomes = []
    for groups in (list, three_groups):
        pair = Pair("RMSprop", parameters(), groups)
        for group in pair.ours.param_groups:
            group |= {"lr": 0.01, "weight_decay": 0.0, "options": {option: 1.0 if "clip" in option else True}}
        for k in range(4):
            pair.done = k
            pair.backward()
            if k == 2 and option == "skip_nonfinite":
                pair.mine[3].grad[0] = torch.nan
            pair.ours.step()
        outcomes.append(pair.mine)
    assert all(map(torch.equal, *outcomes))
    assert all(p.isfinite().all() for p in outcomes[0])


GROUPS_OF_RULES = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{}, {"amsgrad": True}],
    "RMSprop": [{}, {"centered": True}, {"momentum": 0.5}, {"centered": True, "momentum": 0.5}],
}


@pytest.mark.parametrize("name", GROUPS_OF_RULES)
def test_groups_of_several_rules(name):
    def groups(params):
        return [{"params": [p], **GROUPS_OF_RULES[name][i % len(GROUPS_OF_RULES[name])]} for i, p in enumerate(params)]

    pair = Pair(name, parameters(), groups, lr=0.01)
    pair.step(4, without=[1])
    pair.step(2)
    pair.assert_close()


EDITS = {
    "weight_decay": {"weight_decay": 0.25},
    "lr": {"lr": 0.125},
    "maximize": {"maximize": True},
    "betas": {"betas": (0.5, 0.75)},
    "eps": {"eps": 0.01},
    "momentum": {"momentum": 0.5},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "alpha": {"alpha": 0.5},
    "rho": {"rho": 0.5},
    "lr_decay": {"lr_decay": 0.5},
    "momentum_decay": {"momentum_decay": 0.5},
    "decoupled_weight_decay": {"decoupled_weight_decay": True, "weight_decay": 0.25},
}


def edits(name):
    """Return the edits that a class has arguments for; PyTorch makes a buffer of RMSprop at the first step only."""
    has = signature(getattr(torch.optim, name)).parameters.keys() - ({"momentum"} if name == "RMSprop" else set())
    return [edit for edit in EDITS if EDITS[edit].keys() <= has]


@pytest.mark.parametrize(("name", "edit"), [(name, edit) for name in NAMES for edit in edits(name)])
def test_groups_may_be_edited_between_steps(name, edit):
    pair = Pair(name, parameters(), three_groups, lr=0.01)
    pair.step(2)
    for optimizer, _ in pair.both:
        optimizer.param_groups[1].update(EDITS[edit])
    pair.step(2)
    pair.assert_close()


def test_options_may_be_edited_between_steps():
    p = torch.ones(2, requires_grad=True)
    optimizer = fusedstep.torch.SGD([p], lr=1.0, options={"clip_value": 0.5})
    p.grad = torch.full((2,), 4.0)
    optimizer.step()
    assert p.tolist() == [0.5] * 2
    optimizer.param_groups[0]["options"] = {"clip_value": 0.25}
    optimizer.step()
    assert p.tolist() == [0.25] * 2
    optimizer.param_groups[0]["options"]["clip_value"] = 0.125
    optimizer.step()
    assert p.tolist() == [0.125] * 2


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("options", [{"ema": 0.5}, {"master_weights": True}, {"master_weights": "split"}], ids=str)
def test_options_that_need_memory_may_come_later(options, in_place):
    p = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    q = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    optimizer = fusedstep.torch.SGD([p], lr=2.0**-10, options={"zero_grad": False})
    judge = fusedstep.torch.SGD([q], lr=2.0**-10, options=options)
    p.grad, q.grad = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)
    optimizer.step()
    judge.step()
    if in_place:
        optimizer.param_groups[0]["options"].update(options)
    else:
        optimizer.param_groups[0]["options"] = options
    p.grad.fill_(1)
    q.grad.fill_(1)
    for _ in range(5):
        optimizer.step()
        judge.step()
    assert torch.equal(p, q)
    assert set(optimizer.state[p]) == set(judge.state[q])


def another_list_of_groups(optimizer, params):
    optimizer.param_groups = [{**group, "lr": 0.25} for group in optimizer.param_groups]


def another_group(optimizer, params):
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.25}


def another_list_of_parameters(optimizer, params):
    optimizer.param_groups[0]["params"] = list(optimizer.param_groups[0]["params"])


def one_more_parameter(optimizer, params):
    params.append(torch.full((4,), 0.5, requires_grad=True))
    optimizer.param_groups[0]["params"].append(params[-1])


def one_parameter_less(optimizer, params):
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop(), None)


def another_parameter(optimizer, params):
    params[0] = torch.full((4,), 0.5, requires_grad=True)
    optimizer.state.pop(optimizer.param_groups[0]["params"][0], None)
    optimizer.param_groups[0]["params"][0] = params[0]


def fewer_rows(optimizer, params):
    """Prune a parameter and its states, as programs do that fit clouds of points."""
    own = optimizer.state.pop(params[0], None)
    params[0] = params[0].detach()[:5].clone().requires_grad_()
    optimizer.param_groups[0]["params"][0] = params[0]
    if own is not None:
        optimizer.state[params[0]] = {name: x[:5].clone() if x.dim() else x for name, x in own.items()}


def same_states_for_another_parameter(optimizer, params):
    own = optimizer.state.pop(params[0], None)
    params[0] = params[0].detach().clone().requires_grad_()
    optimizer.param_groups[0]["params"][0] = params[0]
    if own is not None:
        optimizer.state[params[0]] = own


CHANGES = [
    another_list_of_groups,
    another_group,
    another_list_of_parameters,
    one_more_parameter,
    one_parameter_less,
    another_parameter,
    fewer_rows,
    same_states_for_another_parameter,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "Adagrad"])  # makes sums in its constructor only
def test_groups_and_their_parameters_may_be_replaced(name, alone, change):
    shapes = [(10, 5)] if alone else [(10, 5), (10,), (3,)]
    pair = Pair(name, parameters(shapes=shapes), list, lr=0.01)
    pair.step(3)
    for optimizer, params in pair.both:
        change(optimizer, params)
    pair.step(3)
    pair.assert_close()


# States.


def zeroed(optimizer, params):
    for p in params:
        optimizer.state[p]["exp_avg"].zero_()


def counted_anew(optimizer, params):
    for i, p in enumerate(params):
        optimizer.state[p]["step"].fill_(1.0 + i)


def replaced(optimizer, params):
    for p in params:
        optimizer.state[p]["exp_avg_sq"] = torch.ones_like(p)


def replaced_counters(optimizer, params):
    for p in params:
        optimizer.state[p]["step"] = torch.tensor(5.0)


def with_other_memory(optimizer, params):
    for p in params:
        optimizer.state[p]["exp_avg"].data = torch.full_like(p, 0.5)


def laid_out_otherwise(optimizer, params):
    for p in params:
        if p.dim() == 2:
            optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].T.contiguous().T


def one_forgotten(optimizer, params):
    del optimizer.state[params[1]]


def cleared(optimizer, params):
    optimizer.state.clear()


def another_dictionary(optimizer, params):
    optimizer.state = defaultdict(dict)


def other_dictionaries(optimizer, params):
    for p in params:
        optimizer.state[p] = dict(optimizer.state[p])


def other_dictionaries_with_other_tensors(optimizer, params):
    for p in params:
        optimizer.state[p] = {**optimizer.state[p], "exp_avg": torch.full_like(p.detach(), 0.5)}


@pytest.mark.parametrize(
    "edit",
    [
        zeroed,
        counted_anew,
        replaced,
        replaced_counters,
        with_other_memory,
        laid_out_otherwise,
        one_forgotten,
        cleared,
        another_dictionary,
        other_dictionaries,
        other_dictionaries_with_other_tensors,
    ],
)
@pytest.mark.parametrize("name", ["Adam", "NAdam"])
def test_states_may_be_edited_between_steps(name, edit):
    pair = Pair(name, parameters(), lr=0.01)
    pair.step(3)
    for optimizer, params in pair.both:
        edit(optimizer, params)
    pair.step(3)
    pair.assert_close()


@pytest.mark.parametrize("name", ["NAdam"])
def test_a_product_of_momenta_may_be_edited(name):
    pair = Pair(name, parameters(), lr=0.01)
    pair.step(3)
    for optimizer, params in pair.both:
        for p in params:
            optimizer.state[p]["mu_product"].fill_(0.5)
    pair.step(3)
    pair.assert_close()


def test_a_buffer_of_momentum_that_is_none_is_made():
    """As it stands in state dicts of older versions of PyTorch."""
    pair = Pair("SGD", parameters(), lr=0.01, momentum=0.9, dampening=0.5)
    pair.step(2)
    for optimizer, params in pair.both:
        for p in params:
            optimizer.state[p]["momentum_buffer"] = None
    pair.step(3)
    pair.assert_close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_sums_of_adagrad_begin_anew_with_their_initial_value(dtype):
    params = [torch.ones(3, dtype=dtype, requires_grad=True)]
    pair = Pair("Adagrad", params, lr=0.5, initial_accumulator_value=4.0)
    for clears in (False, True):
        for optimizer, own in pair.both:
            if clears:
                optimizer.state.clear()
            own[0].grad = torch.ones_like(own[0])
            optimizer.step()
        pair.assert_close()


# Parameters.


def data_replaced(params):
    for p in params:
        p.data = p.data.clone()


def data_of_other_layout(params):
    for p in params:
        if p.dim() == 2:
            p.data = p.data.T.contiguous().T


def shared(params):
    for p in params:
        p.share_memory_()


def edited(params):
    with torch.no_grad():
        for p in params:
            p.mul_(0.5)


@pytest.mark.parametrize("layout", ["contiguous", "with gaps"])
@pytest.mark.parametrize("change", [data_replaced, data_of_other_layout, shared, edited])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_may_change_between_steps(name, change, layout):
    pair = Pair(name, parameters(layout=layout), lr=0.01)
    pair.step(2)
    for _, params in pair.both:
        change(params)
    pair.step(2)
    pair.assert_close()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_may_change_its_type(name):
    """PyTorch leaves the states as they are; here they are of the type of the parameters or refused."""
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = getattr(module, name)(model.parameters(), lr=0.01)
        model.double()
        for k in range(3):
            optimizer.zero_grad()
            model(random(4, 3, seed=k, dtype=torch.float64)).square().sum().backward()
            if name == "Adagrad":
                for p in model.parameters():
                    optimizer.state[p]["sum"] = optimizer.state[p]["sum"].double()
            optimizer.step()
        model.to("cpu", memory_format=torch.contiguous_format)
        outcomes.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*outcomes, rtol=1e-6, atol=1e-7)


def test_shared_memory_of_a_model():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).share_memory()
    optimizer = fusedstep.torch.Adagrad(model.parameters(), lr=0.1)
    optimizer.share_memory()
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    assert all(p.is_shared() for p in model.parameters())
    assert all(optimizer.state[p]["sum"].is_shared() for p in model.parameters())
    assert not any(map(torch.equal, before, model.parameters()))


def test_tied_parameters_are_one():
    outcomes = []
    for module in (torch.optim, fusedstep.torch):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        model[2].weight = model[0].weight
        optimizer = module.AdamW(model.parameters())
        for k in range(3):
            optimizer.zero_grad()
            model(random(2, 4, seed=k)).square().sum().backward()
            optimizer.step()
        assert len(optimizer.state) == 2
        outcomes.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_stay(name):
    """A parameter is frozen after some steps, and thawed later."""
    pair = Pair(name, parameters(), lr=0.01)
    pair.step(2)
    for _, params in pair.both:
        params[0].requires_grad_(False)
    before = pair.mine[0].detach().clone()
    pair.step(2, without=[0])
    assert torch.equal(pair.mine[0], before)
    for _, params in pair.both:
        params[0].requires_grad_(True)
    pair.step(2)
    pair.assert_close()


def test_random_bits_do_not_depend_on_other_rules():
    """Two rules in one optimizer number their parameters together: equal parameters get different random bits."""
    p, q = (torch.ones(2000, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    groups = [{"params": [p], "momentum": 0.0}, {"params": [q], "momentum": 1e-30}]
    optimizer = fusedstep.torch.SGD(groups, lr=1e-3, options={"rounding": "stochastic", "seed": 5})
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    assert 0 < (p != q).sum() < 1500
