"""Overrides: which parameters they concern, and that a change reaches every row of the table that it concerns."""

import copy
import pickle

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.core import overrides
from tests.formulas.arrays import bits, normal

KEYS = [f"w{i}" for i in range(8)]


def falling(done):
    return 0.1 / (1 + done)


OWN = {
    "w0": {"lr": 0.5},
    "w1": {"weight_decay": 0.25},
    "w2": {"eps": 0.125},
    "w3": {"beta1": 0.5, "clip_value": 0.5},
    "w[34]": {"maximize": True},
    "w5": {"lr": falling},
    "w6": {"beta2": falling, "ema": None},
}
CHANGES = [
    {"lr": 0.25},
    {"beta1": 0.75},
    {"lr": falling, "weight_decay": 0.5},
    {"clip_value": 0.25},
    {"lr": 0.125, "ema": 0.25},
    {"eps": 0.5, "weight_decay": falling},
    {"clip_value": None, "decoupled": True},
    {"maximize": True, "zero_grad": True},
]


@pytest.mark.parametrize("cls", [c for c in fs.optimizers.classes() if {"lr", "beta1", "eps"} <= vars(c).keys()])
def test_a_change_reaches_every_row(cls):
    """An optimizer that is copied has no table yet, so what it does next is right."""
    opt, params = cls(ema=0.5, overrides=OWN), {key: normal(9, seed=i) for i, key in enumerate(KEYS)}
    modes = [{"eps_mode": mode} for mode in ("inside", "outside") if cls is fs.Adam]
    for step, change in enumerate(CHANGES + modes):
        for name, value in change.items():
            setattr(opt, name, value)
        grads = {key: normal(9, seed=100 * step + i) for i, key in enumerate(KEYS) if (step + i) % 3}
        other, twins, others = copy.deepcopy((opt, params, grads))
        opt.step(params, grads)
        other.step(twins, others)
        assert bits([params, grads]) == bits([twins, others])
        assert sorted(bits(opt.state)) == sorted(bits(other.state))
        assert sorted(bits(opt.ema)) == sorted(bits(other.ema))


def test_a_change_of_the_rate_matches_and_makes_nothing_anew(monkeypatch):
    opt = fs.Adam(overrides={"w*": {"weight_decay": 0.1}, "w0": {"lr": 0.5}, "w1": {"l1": 0.5}})
    params, grads = ({key: np.ones(3) for key in KEYS} for _ in range(2))
    opt.step(params, grads)
    for name in ("Layer", "fnmatchcase", "check_clips"):
        monkeypatch.setattr(overrides, name, None)
    opt.lr = 0.25
    opt.step(params, grads)
    opt.lr = falling
    opt.step(params, grads)


def test_a_value_that_clashes_with_an_override_is_refused_when_it_is_set():
    for opt, name, value, message in (
        (fs.RMSprop(overrides={"b": {"momentum": 0.0}}), "momentum", 0.9, "asks for the rule rmsprop, expected"),
        (fs.RMSprop(overrides={"b": {"centered": False}}), "centered", True, "asks for the rule rmsprop, expected"),
        (fs.Adam(overrides={"b": {"amsgrad": False}}), "amsgrad", True, "asks for the rule adam, expected"),
        (fs.Adam(overrides={"b": {"clip_value": 1.0}}), "clip_norm", 1.0, "clip_norm stands beside clip_value"),
    ):
        before = getattr(opt, name)
        with pytest.raises(ValueError, match=message):
            setattr(opt, name, value)
        assert getattr(opt, name) == before


# Functions, and what may fit none.


def is_vector(key, p):
    return p.ndim < 2


def params_and_grads():
    shapes = {"w": (3, 2), "b": (2,), "head/w": (2, 2), "head/b": (2,)}
    return ({key: np.ones(shape) for key, shape in shapes.items()} for _ in range(2))


def test_a_function_finds_the_parameters():
    params, grads = params_and_grads()
    asked = []
    function = fs.where(lambda key, p: asked.append((key, p)) or p.ndim < 2)
    opt = fs.SGD(lr=1.0, overrides={"*": {"lr": 0.5}, function: {"lr": 0.25}, "head/*": {"lr": 0.125}, "w": {"lr": 0}})
    for _ in range(3):
        opt.step(params, grads)
        opt.maximize = not opt.maximize
    assert [(key, p is params[key]) for key, p in asked] == [(key, True) for key in params]  # asked once
    assert {key: p.flat[0] for key, p in params.items()} == {"w": 1, "b": 0.75, "head/w": 0.875, "head/b": 0.875}
    opt.step({key: params[key] for key in reversed(params)}, grads)
    assert len(asked) == 8


@pytest.mark.parametrize("make", [list, lambda arrays: arrays[0]])
def test_a_function_is_asked_of_sequences_and_of_one_array(make):
    opt = fs.SGD(lr=1.0, overrides={fs.where(lambda key, p: key == 0 and p.shape == (4, 3)): {"lr": 0.5}})
    params, grads = (make([np.ones((4, 3)), np.ones(3)]) for _ in range(2))
    opt.step(params, grads)
    assert opt.groups()[0] == ({"lr": 0.5}, [0])


def test_new_functions_are_asked_in_the_next_step():
    params, grads = params_and_grads()
    opt = fs.SGD(lr=1.0)
    opt.step(params, grads)
    opt.overrides = {fs.where(is_vector): {"lr": 0.5}}
    opt.step(params, grads)
    assert {key: p.flat[0] for key, p in params.items()} == {"w": -1, "b": -0.5, "head/w": -1, "head/b": -0.5}


def test_a_function_that_fails_changes_nothing():
    def crash(key, p):
        raise KeyError(key)

    for function, error, message in (
        (crash, ValueError, r"^overrides\[where\(.*crash\)\] asked of params\['w'\] raised KeyError: 'w'$"),
        (lambda key, p: p > 1, TypeError, r"asked of params\['w'\] is of type ndarray, expected True or False$"),
        (lambda key, p: None, TypeError, r"is of type NoneType, expected True or False$"),
        (lambda key, p: False, ValueError, r"^overrides\[where\(.*<lambda>\)\] fits no parameter, expected a function"),
    ):
        params, grads = params_and_grads()
        opt = fs.Adam(overrides={fs.where(function): {"lr": 0.5}})
        for _ in range(2):
            with pytest.raises(error, match=message):
                opt.step(params, grads)
        assert all((p == 1).all() for p in params.values())
        assert not opt.t
        opt.overrides = {}
        opt.step(params, grads)


def test_what_may_fit_none():
    params, grads = params_and_grads()
    none = {fs.where("x*", optional=True): {"lr": 0}, fs.where(lambda key, p: False, True): {"lr": 0}}
    opt = fs.SGD(lr=1.0, overrides=none | {fs.where("b", optional=True): {"lr": 0.5}, "?": {"lr": 0.25}})
    opt.step(params, grads)
    assert {key: p.flat[0] for key, p in params.items()} == {"w": 0.75, "b": 0.5, "head/w": 0, "head/b": 0}
    for key in ("x*", fs.where("x*"), "x", fs.where("x"), is_vector):
        with pytest.raises(ValueError, match=r"fits no parameter, expected one of 'w', .* where\(function\)"):
            fs.SGD(overrides={key: {"lr": 0.5}}).step(params, grads)
    with pytest.raises(TypeError, match=r"^optional is 1, expected True or False"):
        fs.where("x", 1)


def test_a_function_that_fitted_an_earlier_parameter_may_fit_none_now():
    opt = fs.SGD(overrides={fs.where(is_vector): {"lr": 0.5}})
    opt.step({"b": np.ones(2)}, {"b": np.ones(2)})
    opt.step({"w": np.ones((2, 2))}, {"w": np.ones((2, 2))})
    with pytest.raises(ValueError, match="fits no parameter"):
        fs.SGD(overrides={fs.where(is_vector): {"lr": 0.5}}).step({"w": np.ones((2, 2))}, {"w": np.ones((2, 2))})


def test_groups():
    params, grads = params_and_grads()
    opt = fs.AdamW(overrides={fs.where(is_vector): {"weight_decay": 0}, "*b": {"lr": 1e-3}, "head/b": {"eps": 0.5}})
    assert opt.groups() == []
    expected = [
        ({}, ["w", "head/w"]),
        ({"weight_decay": 0.0}, ["b"]),
        ({"weight_decay": 0.0, "eps": 0.5}, ["head/b"]),
    ]
    assert opt.groups(params) == expected
    assert opt.groups() == []
    opt.step(params, grads)
    assert opt.groups() == expected
    assert fs.SGD().groups(np.ones(3)) == [({}, [0])]
    with pytest.raises(ValueError, match="fits no parameter"):
        opt.groups({"w": np.ones((2, 2))})


@pytest.mark.parametrize("way", ["pickle", "copy", "state_dict", ".npz", ".safetensors"])
def test_functions_are_kept(way, tmp_path):
    params, grads = params_and_grads()
    own = {fs.where(is_vector): {"lr": 0.5}, fs.where("x", optional=True): {"lr": 1.0}}
    opt = fs.SGD(overrides=own)
    opt.step(params, grads)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(opt))
    elif way == "copy":
        other = copy.deepcopy(opt)
    else:
        other = fs.SGD(overrides={fs.where(is_vector): {"lr": 0.25}})
        if way == "state_dict":
            other.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())), hyperparameters="saved")
        else:
            fs.save(tmp_path / f"x{way}", opt)
            fs.load(tmp_path / f"x{way}", other, hyperparameters="file")
            with pytest.raises(ValueError, match=r"overrides\[where\(.*is_vector.*\)\] was a function that cannot be"):
                fs.load(tmp_path / f"x{way}", fs.SGD(overrides={fs.where(falling): {"lr": 0.25}}))
    assert other.overrides == own
    other.step(params, grads)


def test_functions_of_one_name_are_told_apart_by_their_place():
    functions = [fs.where(lambda key, p, d=d: p.ndim == d) for d in (1, 2)]
    opt = fs.SGD(overrides={function: {"lr": 0.25 * i} for i, function in enumerate(functions)})
    other = fs.SGD(overrides={function: {"lr": 1.0} for function in functions})
    other.load_state_dict(pickle.loads(pickle.dumps(opt.state_dict())), hyperparameters="saved")
    assert other.overrides == opt.overrides


# The value in force.


def test_the_value_in_force():
    params, grads = params_and_grads()
    own = {fs.where(is_vector): {"weight_decay": 0.0}, "head/*": {"lr": falling}, "b": {"lr": 0.5}}
    opt = fs.AdamW(lr=lambda done: 1.0 / (1 + done), weight_decay=0.125, overrides=own, ema=0.9)
    assert (opt.now("lr"), opt.now("ema"), opt.now("eps_mode"), opt.now("clip_norm")) == (1.0, 0.9, "outside", None)
    with pytest.raises(KeyError, match=r"'w' had no part in the last step, expected one of none"):
        opt.now("lr", "w")
    for _ in range(3):
        opt.step(params, grads)
    opt.step(params, {"head/w": grads["head/w"]})
    assert [opt.now("lr", key) for key in params] == [0.25, 0.5, falling(4), falling(3)]
    assert opt.now("lr") == 0.2
    assert [opt.now("weight_decay", key) for key in params] == [0.125, 0.0, 0.125, 0.0]
    opt.lr, opt.overrides = 0.75, {"w": {"eps": 0.5}}
    assert [opt.now("lr", key) for key in params] == [0.75] * 4
    assert [opt.now("eps", key) for key in ("w", "b")] == [0.5, 1e-8]
    with pytest.raises(TypeError, match=r"^learning_rate is no hyperparameter of AdamW, expected lr"):
        opt.now("learning_rate")
    opt.step({None: np.ones(2), "w": params["w"]}, {})
    assert opt.now("lr", None) == 0.75
    opt.lr, opt.overrides = 0.5, {"w": {"lr": 0.25}}
    assert opt.groups() == [({}, [None]), ({"lr": 0.25}, ["w"])]
    opt.forget("w")
    with pytest.raises(KeyError, match=r"'w' had no part in the last step"):
        opt.now("lr", "w")
