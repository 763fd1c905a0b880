"""Adamax: the mean of the gradients divided by the largest of them, which fades."""

import numpy as np
import pytest

from fusedstep import reference
from tests.rules.notation import GRADIENTS, f32, mean

DEFAULTS = {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_mode": "max"}
RULES = {"adamax": {}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, eps, eps_mode):
    inner, outer = (eps, 0) if eps_mode == "max" else (0, eps)
    largest = max(beta2**age * (abs(x) + inner) if age else abs(x) + inner for age, x in enumerate(reversed(g)))
    return lr[-1] / (1 - beta1 ** len(g)) * mean(beta1, g) / (largest + outer)


CASES = [
    {},
    {"beta1": 0.7, "beta2": 0.6, "eps": 0.1},
    {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": "outside"},
    {"beta1": 0.0, "eps": 0.1},
    {"beta2": 0.0, "eps": 0.1},
]

C1 = 1 - 0.9 * 0.9  # bias correction of the second update
ORDER = [
    (
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - (f32(0.1 / C1) * n.m) / n.w,
        lambda p, g, s, n: p - f32(0.1 / C1) * (n.m / n.w),
    ),
]

ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99)]


def keras2_adamax(p=1.0, lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    m = u = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        rate = lr / (1.0 - beta_1**t)
        m = beta_1 * m + (1.0 - beta_1) * g
        u = max(beta_2 * u, abs(g))
        p = p - rate * m / (u + epsilon)
        yield p


LOOPS = [(keras2_adamax, {"eps": 1e-7, "eps_mode": "outside"})]

TORCH = [
    ({}, "Adamax", {}),
    ({"beta1": 0.6, "beta2": 0.7, "eps": 0.1}, "Adamax", {"betas": (0.6, 0.7), "eps": 0.1}),
]
TORCH_STATES = {"m": "exp_avg", "w": "exp_inf"}


def test_bias_corrections_count_from_1():
    opt, p = reference.Adamax(lr=0.25, eps=0.0), np.array([1.0])
    path = []
    for _ in range(4):
        opt.step(p, np.array([-3.0]))
        path.append(p.item())
    assert path == pytest.approx([1.25, 1.5, 1.75, 2.0], rel=1e-12)


def test_nan_passes_the_largest_gradient():
    opt = reference.Adamax()
    for g in (1.0, np.nan, 1.0):
        p = np.ones(2, f32)
        opt.step(p, f32([1.0, g]))
    assert np.isnan(opt.state[0]["w"]).tolist() == [False, True]
    assert np.isnan(p).tolist() == [False, True]
