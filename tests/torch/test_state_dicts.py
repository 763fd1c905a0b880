"""State dicts go from PyTorch's classes to ours and back, through files, and keep what PyTorch does not have."""

import copy
import pickle

import pytest
import torch

import fusedstep.torch
from tests.torch.pairs import CASES, NAMES, Pair, copied, parameters, random, state_of

FUSED = ["Adagrad", "Adam", "AdamW", "SGD"]  # those that PyTorch has a fused form of


def through_a_file(saved, path):
    torch.save(saved, path)
    return torch.load(path, weights_only=True)


def keys(saved):
    """Return the keys of a state dict: of the state of each parameter, and of each group."""
    return {i: set(some) for i, some in saved["state"].items()}, [set(group) for group in saved["param_groups"]]


def exchanged(name, arguments, source, target, path, **chosen):
    """Make steps with a class of one module, and others with a class of another, beside PyTorch's class alone."""
    alone = Pair(name, parameters(), **arguments)
    first = Pair(name, parameters(), **arguments)
    writer = getattr(source, name)(first.mine, **copy.deepcopy(arguments), **chosen)
    for k in range(5):
        first.done = k
        first.backward()
        writer.step()
    alone.step(5)
    saved = through_a_file(writer.state_dict(), path)
    said = repr(saved)

    second = Pair(name, copied(first.mine), **arguments)
    reader = getattr(target, name)(second.mine, **copy.deepcopy(arguments))
    reader.load_state_dict(saved)
    assert repr(saved) == said
    for k in range(5, 10):
        second.done = k
        second.backward()
        reader.step()
    alone.step(5)
    assert keys(reader.state_dict()) == keys(alone.theirs.state_dict())
    alone.ours, alone.mine = reader, second.mine
    alone.assert_close()


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_run_of_pytorch_goes_on_in_ours(name, arguments, tmp_path):
    exchanged(name, arguments, torch.optim, fusedstep.torch, tmp_path / "run.pt")


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_run_of_ours_goes_on_in_pytorch(name, arguments, tmp_path):
    exchanged(name, arguments, fusedstep.torch, torch.optim, tmp_path / "run.pt")


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_run_of_ours_goes_on_in_ours(name, arguments, tmp_path):
    exchanged(name, arguments, fusedstep.torch, fusedstep.torch, tmp_path / "run.pt")


@pytest.mark.parametrize(("name", "arguments"), [case for case in CASES if case.values[0] in FUSED])
def test_a_fused_run_of_pytorch_goes_on_in_ours(name, arguments, tmp_path):
    exchanged(name, arguments, torch.optim, fusedstep.torch, tmp_path / "run.pt", fused=True)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_copy_goes_on_with_the_same_bits(name, arguments):
    for copies in (copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))):
        pair = Pair(name, parameters(), **arguments)
        pair.step(3)
        other = copies(pair.ours)
        assert type(other) is type(pair.ours)
        params = [p for group in other.param_groups for p in group["params"]]
        assert all(p is not q for p, q in zip(params, pair.mine, strict=True))
        before = [p.detach().clone() for p in params]
        pair.step(2)
        assert all(map(torch.equal, params, before))
        for k in (3, 4):
            pair.done = k
            pair.backward()
            for p, q in zip(params, pair.mine, strict=True):
                p.grad = q.grad
            other.step()
        assert all(map(torch.equal, params, pair.mine))


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_the_attributes_of_pytorch(name):
    pair = Pair(name, parameters())
    pair.step()
    ours, theirs = (pickle.loads(pickle.dumps(each)) for each in (pair.ours, pair.theirs))
    assert {a for a in vars(ours) if a not in ("_buckets", "_seen")} == set(vars(theirs))


@pytest.mark.parametrize("name", NAMES)
def test_loading_into_an_optimizer_that_has_made_steps(name):
    pair = Pair(name, parameters(), lr=0.01)
    pair.step(2)
    saved, before = copy.deepcopy(pair.ours.state_dict()), [p.detach().clone() for p in pair.mine]
    pair.step(3)
    after = [p.detach().clone() for p in pair.mine]
    for p, start in zip(pair.mine, before, strict=True):
        p.data.copy_(start)
    pair.ours.load_state_dict(saved)
    for k in (2, 3, 4):
        pair.done = k
        pair.backward()
        pair.ours.step()
    assert all(map(torch.equal, pair.mine, after))


def test_loading_takes_groups_and_options():
    params = parameters()
    options = {"ema": 0.5, "bounds": (-1.0, None), "clip_norm": 1.0}
    writer = fusedstep.torch.AdamW(params, lr=0.5, weight_decay=0.25, options=options)
    for p in params:
        p.grad = torch.ones_like(p)
    writer.step()
    reader = fusedstep.torch.AdamW(copied(params))
    reader.load_state_dict(writer.state_dict())
    assert {**reader.param_groups[0], "params": None} == {**writer.param_groups[0], "params": None}
    found, expected = state_of(reader), state_of(writer)
    assert found.keys() == expected.keys()
    assert {name for _, name in found} == {"step", "exp_avg", "exp_avg_sq", "ema"}
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("wrong", ["groups", "sizes"])
def test_what_does_not_fit_is_refused(wrong):
    pair = Pair("Adam", parameters())
    pair.step()
    saved = pair.ours.state_dict()
    groups = [{"params": pair.mine[:2]}, {"params": pair.mine[2:]}] if wrong == "groups" else pair.mine[:2]
    with pytest.raises(ValueError, match="loaded state dict"):
        fusedstep.torch.Adam(groups).load_state_dict(saved)


# What PyTorch would cast to the type of the parameter.

KEPT = [
    {"master_weights": True},
    {"master_weights": "split"},
    {"state_dtype": "float32"},
    {"state_dtype": "float32", "ema": 0.75},
    {"state_dtype": "float32", "master_weights": True, "ema": 0.5},
    {"state_dtype": "float32", "master_weights": "split"},
    {"rounding": "stochastic", "seed": 3},
]


def narrow(shift=0):
    return [random(40, seed=shift + i, dtype=torch.bfloat16).requires_grad_() for i in range(3)]


def assert_same_states(found, expected):
    found, expected = state_of(found), state_of(expected)
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        assert found[key].dtype == x.dtype
        assert torch.equal(found[key], x)


def train(optimizer, params, updates):
    for k in updates:
        for i, p in enumerate(params):
            p.grad = random(*p.shape, seed=10 * k + i, dtype=p.dtype)
        optimizer.step()


@pytest.mark.parametrize("options", KEPT, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "SGD"])
def test_half_precision_goes_on_with_the_same_bits(name, options, tmp_path):
    params, others = narrow(), narrow(7)
    writer = getattr(fusedstep.torch, name)(params, lr=0.01, options=options)
    reader = getattr(fusedstep.torch, name)(others, lr=0.01, options=options)
    train(writer, params, range(4))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    reader.load_state_dict(through_a_file(writer.state_dict(), tmp_path / "run.pt"))
    assert_same_states(reader, writer)
    train(writer, params, range(4, 8))
    train(reader, others, range(4, 8))
    assert all(map(torch.equal, params, others))
    assert_same_states(reader, writer)


def test_what_is_loaded_is_a_copy():
    params, others = narrow(), narrow()
    writer, reader = (
        fusedstep.torch.Adam(each, options={"state_dtype": "float32", "master_weights": True, "ema": 0.5})
        for each in (params, others)
    )
    train(writer, params, range(2))
    saved = writer.state_dict()
    before = {key: x.clone() for key, x in state_of(writer).items()}
    reader.load_state_dict(saved)
    train(reader, others, range(3))
    found = state_of(writer)
    assert all(torch.equal(found[key], x) for key, x in before.items())


def test_pytorch_loads_masters_as_states_that_it_does_not_know():
    params = narrow()
    writer = fusedstep.torch.AdamW(params, options={"master_weights": True})
    train(writer, params, range(2))
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(writer.state_dict())
    train(theirs, params, range(2, 4))
    assert all(theirs.state[p]["step"] == 4 for p in params)
