"""Adam: the mean of the gradients divided by the root of the mean of their squares; also AMSGrad."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from fusedstep import reference
from fusedstep.reference import optimizer as base
from tests.rules.notation import GRADIENTS, f32, mean, prefixes, root, squares

DEFAULTS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_mode": "outside", "amsgrad": False}
RULES = {"adam": {}, "amsgrad": {"amsgrad": True}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, eps, eps_mode, amsgrad):
    t = len(g)
    corrected_mean = mean(beta1, g) / (1 - beta1**t)
    v = [mean(beta2, squares(some)) for some in prefixes(g)]
    corrected_square = (max(v) if amsgrad else v[-1]) / (1 - beta2**t)
    if eps_mode == "hat":  # eps beside the root of the raw v
        return lr[-1] * corrected_mean / (corrected_square.sqrt() + eps / (1 - beta2**t).sqrt())
    return lr[-1] * corrected_mean / root(corrected_square, eps, eps_mode)


CASES = [
    {},
    {"amsgrad": True},
    {"beta1": 0.0, "eps": 0.1},
    {"beta2": 0.0, "eps": 0.1},
    *(
        {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": eps_mode, "amsgrad": amsgrad}
        for eps_mode in ("outside", "hat", "inside")
        for amsgrad in (False, True)
    ),
]

C1, C2 = 1 - 0.9 * 0.9, math.sqrt(1 - 0.999 * 0.999)  # bias corrections of the second update
ORDER = [
    (
        {},
        "v",
        lambda p, g, s, n: f32(0.999) * s.v + f32(1 - 0.999) * (g * g),
        lambda p, g, s, n: f32(0.999) * s.v + (f32(1 - 0.999) * g) * g,
    ),
    (
        {},
        "m",
        lambda p, g, s, n: f32(0.9) * s.m + f32(1 - 0.9) * g,
        lambda p, g, s, n: s.m + f32(1 - 0.9) * (g - s.m),
    ),
    (
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(0.1 * C2 / C1) * n.m) / (np.sqrt(n.v) + f32(0.01 * C2)),
        lambda p, g, s, n: p - f32(0.1 * C2 / C1) * (n.m / (np.sqrt(n.v) + f32(0.01 * C2))),
    ),
    (
        {"lr": 0.1, "eps": 0.01, "amsgrad": True, "beta2": 0.999},
        "p",
        lambda p, g, s, n: p - (f32(0.1 * C2 / C1) * n.m) / (np.sqrt(np.maximum(s.w, n.v)) + f32(0.01 * C2)),
        lambda p, g, s, n: p - (f32(0.1 / C1) * n.m) / (np.sqrt(np.maximum(s.w, n.v)) / f32(C2) + f32(0.01)),
    ),
]

ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99), ({}, "v", 1 - 0.999)]


def eps_outside(lr, t, m, v, g, memory):
    c1, c2 = 1 - base.power(0.9, t), math.sqrt(1 - base.power(0.999, t))
    return (lr * c2 / c1 * m) / (math.sqrt(v) + 0.01 * c2), lr / c1 * m / (math.sqrt(v) / c2 + 0.01)


def eps_inside(lr, t, m, v, g, memory):
    c1, c2 = 1 - base.power(0.9, t), math.sqrt(1 - base.power(0.999, t))
    return (lr * c2 / c1 * m) / math.sqrt(v + 0.01 * c2 * c2), (lr * c2 / c1 * m) / math.sqrt(v + 0.01 * (c2 * c2))


SCALARS = [({}, eps_outside), ({"eps_mode": "inside"}, eps_inside)]


def keras2_adam(p=1.0, lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False):
    m = v = largest = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        rate = lr * (math.sqrt(1.0 - beta_2**t) / (1.0 - beta_1**t))
        m = beta_1 * m + (1.0 - beta_1) * g
        v = beta_2 * v + (1.0 - beta_2) * g**2
        largest = max(largest, v)
        p = p - rate * m / (math.sqrt(largest if amsgrad else v) + epsilon)
        yield p


def keras2_amsgrad():
    return keras2_adam(amsgrad=True)


LOOPS = [
    (keras2_adam, {"eps": 1e-7, "eps_mode": "hat"}),
    (keras2_amsgrad, {"eps": 1e-7, "eps_mode": "hat", "amsgrad": True}),
]
PARABOLA = [({"lr": 0.1}, 9.003496535489624)]

TORCH = [
    ({}, "Adam", {}),
    ({"beta1": 0.6, "beta2": 0.7, "eps": 0.1}, "Adam", {"betas": (0.6, 0.7), "eps": 0.1}),
    ({"amsgrad": True}, "Adam", {"amsgrad": True}),
    ({"beta2": 0.6, "eps": 0.1, "amsgrad": True}, "Adam", {"betas": (0.9, 0.6), "eps": 0.1, "amsgrad": True}),
    ({"weight_decay": 0.01, "decoupled": True}, "AdamW", {"weight_decay": 0.01}),
]
TORCH_STATES = {"m": "exp_avg", "v": "exp_avg_sq", "w": "max_exp_avg_sq"}


def test_bias_corrections_count_from_1():
    opt, p = reference.Adam(lr=0.25, eps=0.0), np.array([1.0])
    path = []
    for _ in range(4):
        opt.step(p, np.array([-3.0]))
        path.append(p.item())
    assert path == pytest.approx([1.25, 1.5, 1.75, 2.0], rel=1e-12)


@pytest.mark.parametrize("t", [10**5, 2**24 + 1])
def test_late_updates(t):
    beta1, beta2, lr, eps, m, v = 0.99999, 0.999999, 0.5, 1e-3, 0.25, 0.5
    opt, p = reference.Adam(lr=lr, beta1=beta1, beta2=beta2, eps=eps), np.zeros(1)
    opt.state[0], opt.t[0] = {"m": np.array([m]), "v": np.array([v])}, t - 1
    opt.step(p, np.array([2.0]))
    with localcontext(prec=50):
        m = Decimal(beta1) * Decimal(m) + (1 - Decimal(beta1)) * 2
        v = Decimal(beta2) * Decimal(v) + (1 - Decimal(beta2)) * 4
        corrected = m / (1 - Decimal(beta1) ** t), v / (1 - Decimal(beta2) ** t)
        expected = -Decimal(lr) * corrected[0] / (corrected[1].sqrt() + Decimal(eps))
    assert p.item() == pytest.approx(float(expected), rel=1e-10)


def test_nan_passes_the_largest_square():
    opt = reference.Adam(amsgrad=True)
    for g in (1.0, np.nan, 1.0):
        p = np.ones(2, f32)
        opt.step(p, f32([1.0, g]))
    assert np.isnan(opt.state[0]["w"]).tolist() == [False, True]
    assert np.isnan(p).tolist() == [False, True]
