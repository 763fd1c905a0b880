"""Nadam: Adam with Nesterov's momentum on a schedule; the rule keeps the product of the momenta between updates."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from fusedstep import functional, reference
from fusedstep.reference import optimizer as base
from tests.rules.notation import GRADIENTS, f32, mean, squares

DEFAULTS = {"lr": 2e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "schedule_decay": 0.004}
RULES = {"nadam": {}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, eps, schedule_decay):
    t = len(g)
    mu = [beta1 * (1 - Decimal("0.96") ** (schedule_decay * i) / 2) for i in range(1, t + 2)]
    corrected_gradient = g[-1] / (1 - math.prod(mu[:-1]))
    corrected_mean = mean(beta1, g) / (1 - math.prod(mu))
    corrected_square = mean(beta2, squares(g)) / (1 - beta2**t)
    ahead = (1 - mu[t - 1]) * corrected_gradient + mu[t] * corrected_mean
    return lr[-1] * ahead / (corrected_square.sqrt() + eps)


CASES = [
    {},
    *({"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "schedule_decay": decay} for decay in (0.0, 0.004, 1.0, 7.5, math.inf)),
    {"beta1": 0.0, "eps": 0.1},
    {"beta2": 0.0, "eps": 0.1},
]

# Numbers of the second update: the correction of v, the momenta, and what m and g are multiplied by.
C2 = math.sqrt(1 - 0.999 * 0.999)
MU2, MU3 = (0.9 * (1 - 0.5 * r) for r in (0.96 * 0.96, 0.96 * (0.96 * 0.96)))
MU12 = 0.9 * (1 - 0.5 * 0.96) * MU2
CM, CG = 0.1 * MU3 / (1 - MU12 * MU3) * C2, 0.1 * (1 - MU2) / (1 - MU12) * C2
ORDER = [
    (
        {"lr": 0.1, "schedule_decay": 1.0},
        "p",
        lambda p, g, s, n: p - (f32(CM) * n.m + f32(CG) * g) / (np.sqrt(n.v) + f32(1e-8 * C2)),
        lambda p, g, s, n: p - f32(0.1) * ((f32(CM / 0.1) * n.m + f32(CG / 0.1) * g) / (np.sqrt(n.v) + f32(1e-8 * C2))),
    ),
]

ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99), ({}, "v", 1 - 0.999)]


def gains(lr, t, m, v, g, memory):
    p, r, c2 = memory["product"], base.rational_power(0.96, 0.5), math.sqrt(1 - base.power(0.999, t))
    mu, mu1 = 0.9 * (1 - 0.5 * base.power(r, t)), 0.9 * (1 - 0.5 * base.power(r, t + 1))
    cm, cg = lr * mu1 / (1 - p * mu1) * c2, lr * (1 - mu) / (1 - p) * c2
    other = lr * c2 * (mu1 / (1 - p * mu1) * m + (1 - mu) / (1 - p) * g)
    return (cm * m + cg * g) / (math.sqrt(v) + 0.01 * c2), other / (math.sqrt(v) + 0.01 * c2)


SCALARS = [({"schedule_decay": 0.5}, gains)]
VALUES = {"schedule_decay": (0.004, math.inf, 0.0, 2.0)}


def keras2_nadam(p=1.0, lr=0.002, beta_1=0.9, beta_2=0.999, epsilon=1e-7, schedule_decay=0.004):
    m = v = 0.0
    m_schedule = 1.0
    for t, g in enumerate(GRADIENTS, 1):
        momentum_cache = beta_1 * (1.0 - 0.5 * 0.96 ** (t * schedule_decay))
        momentum_cache_next = beta_1 * (1.0 - 0.5 * 0.96 ** ((t + 1) * schedule_decay))
        m_schedule = m_schedule * momentum_cache
        m_schedule_next = m_schedule * momentum_cache_next
        g_prime = g / (1.0 - m_schedule)
        m = beta_1 * m + (1.0 - beta_1) * g
        m_prime = m / (1.0 - m_schedule_next)
        v = beta_2 * v + (1.0 - beta_2) * g**2
        v_prime = v / (1.0 - beta_2**t)
        m_bar = (1.0 - momentum_cache) * g_prime + momentum_cache_next * m_prime
        p = p - lr * m_bar / (math.sqrt(v_prime) + epsilon)
        yield p


def optax_nadam(p=1.0, lr=0.1, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        p = p - lr * m_hat / (math.sqrt(v / (1 - b2**t)) + eps)
        yield p


LOOPS = [(keras2_nadam, {"eps": 1e-7}), (optax_nadam, {"lr": 0.1, "schedule_decay": math.inf})]

TORCH = [
    ({}, "NAdam", {}),
    (
        {"beta1": 0.6, "beta2": 0.7, "eps": 0.1, "schedule_decay": 1.0},
        "NAdam",
        {"betas": (0.6, 0.7), "eps": 0.1, "momentum_decay": 1.0},
    ),
    ({"weight_decay": 0.3, "decoupled": True}, "NAdam", {"weight_decay": 0.3, "decoupled_weight_decay": True}),
]
TORCH_STATES = {"m": "exp_avg", "v": "exp_avg_sq", "product": "mu_product"}


def test_nadam_multiplies_each_momentum_once():
    opt = reference.Nadam(beta1=0.75, schedule_decay=1.0)
    for _ in range(3):
        opt.step(np.ones(2), np.ones(2))
    mu = [Fraction(3, 4) * (1 - Fraction(96, 100) ** t / 2) for t in (1, 2, 3)]
    assert opt.memory[0]["product"] == pytest.approx(float(math.prod(mu)), rel=1e-14)


@pytest.mark.parametrize("product", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_product_that_cannot_be(product):
    with pytest.raises(ValueError, match=r"^product is .*, expected 0 <= product <= 1$"):
        functional.nadam(*np.ones((4, 8)), t=1, product=product, lr=0.1)
