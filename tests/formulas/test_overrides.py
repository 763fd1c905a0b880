"""Overrides: which parameters they concern, and that a change reaches every row of the table that it concerns."""

import copy

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
