"""RAdam: Adam whose step is rectified, and which does not adapt before the variance of its step is known."""

import math

import numpy as np
import pytest

import fusedstep
from fusedstep import reference
from fusedstep.reference import optimizer as base
from tests.rules.notation import f32, mean, squares

DEFAULTS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
RULES = {"radam": {}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, eps):
    t, last = len(g), 2 / (1 - beta2) - 1
    length = last - 2 * t * beta2**t / (1 - beta2**t)
    corrected = mean(beta1, g) / (1 - beta1**t)
    if length <= 5:
        return lr[-1] * corrected
    rectified = ((length - 4) * (length - 2) * last / ((last - 4) * (last - 2) * length)).sqrt()
    adapted = (1 - beta2**t).sqrt() / (mean(beta2, squares(g)).sqrt() + eps)
    return lr[-1] * corrected * rectified * adapted


CASES = [
    {"beta2": 0.99},
    {"beta1": 0.7, "beta2": 0.9, "eps": 0.1},
    {"beta1": 0.0, "beta2": 0.9, "eps": 0.1},
    {"beta2": 0.6, "eps": 0.1},  # never rectified
    {"beta2": 0.0},
]

# Scalars of update 6, the first that is rectified.
LAST, B2 = 2 / (1 - 0.999) - 1, base.power(0.999, 6)
LENGTH = LAST - 2 * 6 * B2 / (1 - B2)
R = math.sqrt(((LENGTH - 4) * (LENGTH - 2) * LAST) / ((LAST - 4) * (LAST - 2) * LENGTH))
ORDER = [
    (
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - (f32(0.1 / (1 - 0.9 * 0.9)) * n.m) / f32(1),
        lambda p, g, s, n: p - f32(0.1) * (n.m / f32(1 - 0.9 * 0.9)),
    ),
]

ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99), ({}, "v", 1 - 0.999)]


def rectified(lr, t, m, v, g, memory):
    o2, b2, c1 = 1 - 0.999, base.power(0.999, t), 1 - base.power(0.9, t)
    last = 2 / o2 - 1
    length = last - 2.0 * t * b2 / (1 - b2)
    if length <= 5:
        return lr / c1 * m, lr * (m / c1)
    r = math.sqrt(((length - 4) * (length - 2) * last) / ((last - 4) * (last - 2) * length))
    right = (lr * r * math.sqrt(1 - b2) / c1 * m) / (math.sqrt(v) + 0.01)
    return right, lr * (r * (m / c1)) * (math.sqrt(1 - b2) / (math.sqrt(v) + 0.01))


SCALARS = [({}, rectified)]

TORCH = [
    ({}, "RAdam", {}),
    ({"beta1": 0.6, "beta2": 0.9, "eps": 0.1}, "RAdam", {"betas": (0.6, 0.9), "eps": 0.1}),
    ({"beta2": 0.5}, "RAdam", {"betas": (0.9, 0.5)}),
    ({"weight_decay": 0.01}, "RAdam", {"weight_decay": 0.01}),
    ({"weight_decay": 0.01, "decoupled": True}, "RAdam", {"weight_decay": 0.01, "decoupled_weight_decay": True}),
]
TORCH_STATES = {"m": "exp_avg", "v": "exp_avg_sq"}


def test_the_first_five_updates_do_not_adapt():
    opt, p = reference.RAdam(lr=0.25, beta1=0.0, eps=0.0), np.array([0.0])
    for _ in range(5):
        before = p.item()
        opt.step(p, np.array([-3.0]))
        assert p.item() - before == 0.75  # the gradient times lr
    before = p.item()
    opt.step(p, np.array([-3.0]))
    assert p.item() - before == pytest.approx(0.25 * R, rel=1e-12)  # the sign of the gradient times lr, rectified
    assert LENGTH > 5 >= LAST - 2 * 5 * 0.999**5 / (1 - 0.999**5)


@pytest.mark.parametrize("classes", [fusedstep, reference], ids=["fusedstep", "reference"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_in_v_does_not_leak_into_steps_that_do_not_adapt(classes, bad):
    opt, p = classes.RAdam(lr=0.5), np.zeros(9, f32)
    opt.step(p, np.ones(9, f32))
    opt.state[0]["v"][...] = bad
    before = p.copy()
    opt.step(p, np.ones(9, f32))
    assert np.isfinite(p).all()
    assert (p < before).all()
