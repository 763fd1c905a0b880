"""Plans of an optimizer that steps several lists of parameters: found again, and never with arrays that are gone."""

import ml_dtypes
import numpy as np
import pytest

import fusedstep as fs
from fusedstep import _cpu, reference
from fusedstep.core import plans
from fusedstep.tools import verify

F32 = np.float32


@pytest.fixture
def made(monkeypatch):
    """Return a list that gets the keys of each plan that is made."""
    keys, plan = [], _cpu.Plan

    def make(rule, params):
        new = plan(rule, params)
        keys.append(list(new.keys))
        return new

    monkeypatch.setattr(_cpu, "Plan", make)
    return keys


def arrays(*keys, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(5).astype(F32) for key in keys}


def agree(opt, ref, params, expected):
    for key, p in params.items():
        known = [opt.state[key][name] for name in ref.state[key]]
        assert verify.difference([p, *known], [expected[key], *ref.state[key].values()]) == 0
        assert opt.t[key] == ref.t[key]


def test_layer_by_layer(made):
    opt, ref = fs.Nadam(), reference.Nadam()
    params, expected = arrays(*range(40)), arrays(*range(40))
    for k in range(4):
        grads = arrays(*range(40), seed=k)
        for key in params:
            opt.step({key: params[key]}, {key: grads[key]})
            ref.step({key: expected[key]}, {key: grads[key]})
        if k == 1:
            assert made[:40] == [[key] for key in range(40)]
            assert len(made) < 80  # plans are given up where there is no more room for step counts
            made.clear()
            opt.lr = ref.lr = 0.5
    assert not made
    agree(opt, ref, params, expected)


def test_lists_in_turn(made):
    opt, ref = fs.Adam(ema=0.5), reference.Adam(ema=0.5)
    actor, critic = arrays("a", "b"), arrays("c", "d", "e")
    expected = arrays("a", "b") | arrays("c", "d", "e")
    for k in range(6):
        for params in (actor, critic, actor | critic):
            grads = arrays(*params, seed=k)
            opt.step(params, grads)
            ref.step({key: expected[key] for key in params}, grads)
        if k == 1:
            made.clear()
        if k == 3:  # arrays of a list are others from now on
            actor = {key: p.copy() for key, p in actor.items()}
    assert not made
    agree(opt, ref, actor | critic, expected)
    opt.overrides = {"a": {"lr": 0.1}}
    for _ in range(3):
        for params in (actor, critic):
            opt.step(params, {key: grads[key] for key in params})
            assert [key for group in opt.groups() for key in group.keys] == list(params)
    assert len(made) == 2


def test_keys_that_appear_late(made):
    opt, ref = fs.Nadam(), reference.Nadam()
    params, expected, grads = (arrays(*range(30)) for _ in range(3))
    for k in range(1, 31):
        for some, other in ((range(k), opt), (range(k), ref)):
            of = params if other is opt else expected
            other.step({key: of[key] for key in some}, {key: grads[key] for key in some})
    assert len(made) == 30
    agree(opt, ref, params, expected)
    late = {"x": np.ones(5, F32), "y": np.ones(5, F32)}
    for _ in range(3):
        opt.step(late, {"y": grads[0]})
    assert len(made) == 31
    for _ in range(3):
        opt.step(late, {"x": grads[0], "y": grads[0]})  # the states of x are yet to be made
    assert len(made) == 32
    assert (opt.t["x"], opt.t["y"]) == (3, 6)


def test_as_many_plans_as_are_kept(made, monkeypatch):
    monkeypatch.setattr(plans, "_MOST", 8)
    opt, ref = fs.Adam(), reference.Adam()
    params, expected = arrays(*range(12)), arrays(*range(12))
    for k in range(3):
        for key, grad in arrays(*range(12), seed=k).items():
            opt.step({key: params[key]}, {key: grad})
            ref.step({key: expected[key]}, {key: grad})
    assert len(opt._progress.plans._by_mark) == 8
    agree(opt, ref, params, expected)


def test_states_that_have_moved_are_not_those_of_another_plan():
    """A parameter that lies in another order of axes takes its states along, which another plan knew."""
    opt, ref = fs.Adam(), reference.Adam()
    p, g = np.arange(6, dtype=F32).reshape(2, 3), np.ones((2, 3), F32)
    q, b, c = p.copy(), np.ones(3, F32), np.ones(3, F32)
    for k in range(4):
        if k == 2:
            p, q = np.asfortranarray(p), np.asfortranarray(q)
        opt.step({"p": p, "b": b}, {"p": g, "b": g[0]})
        ref.step({"p": q, "b": c}, {"p": g, "b": g[0]})
        opt.step({"p": p}, {"p": g * 2})
        ref.step({"p": q}, {"p": g * 2})
    agree(opt, ref, {"p": p, "b": b}, {"p": q, "b": c})


def test_a_master_that_has_been_replaced_is_not_that_of_another_plan():
    opt, ref = fs.Adam(lr=0.01, master_weights=True), reference.Adam(lr=0.01, master_weights=True)
    p, b = np.ones(5, ml_dtypes.bfloat16), np.ones(5, F32)
    q, c = p.copy(), b.copy()
    for k, kind in enumerate([True, "split", True, False, True]):
        opt.master_weights = ref.master_weights = kind
        for _ in range(2):
            grads = arrays("p", "b", seed=k)
            opt.step({"p": p}, {"p": grads["p"]})
            ref.step({"p": q}, {"p": grads["p"]})
        if kind is not True:
            continue
        opt.step({"p": p, "b": b}, grads)
        ref.step({"p": q, "b": c}, grads)
        agree(opt, ref, {"p": p, "b": b}, {"p": q, "b": c})


def test_an_average_follows_a_master_that_another_plan_made():
    options = {"ema": 0.5, "master_weights": "split", "lr": 0.01}
    opt, ref = fs.Adam(**options), reference.Adam(**options)
    params = {"p": np.ones(5, ml_dtypes.bfloat16), "b": np.ones(5, F32)}
    expected = {key: p.copy() for key, p in params.items()}
    grads = arrays("p", "b")
    for both, some in ((True, ["b"]), (False, ["p"]), (True, ["b"])):  # p has an average, then a master
        for step, of in ((opt.step, params), (ref.step, expected)):
            step(of if both else {"p": of["p"]}, {key: grads[key] for key in some})
    assert verify.difference([opt.ema["p"]], [ref.ema["p"]]) == 0
    agree(opt, ref, params, expected)
