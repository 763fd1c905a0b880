"""AdaBelief: the mean of the gradients divided by how far they are from it."""

import math

import numpy as np
import pytest

from fusedstep import reference
from tests.rules.notation import GRADIENTS, f32, fading, mean, prefixes

DEFAULTS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-16}
RULES = {"adabelief": {}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, eps):
    t, surprises = len(g), [some[-1] - mean(beta1, some) for some in prefixes(g)]
    s = fading(beta2, [(1 - beta2) * d * d + eps for d in surprises])
    return lr[-1] * mean(beta1, g) / (1 - beta1**t) / ((s / (1 - beta2**t)).sqrt() + eps)


CASES = [
    {},
    {"beta1": 0.7, "beta2": 0.6, "eps": 0.1},
    {"beta1": 0.5, "beta2": 0.0, "eps": 0.1},
    {"beta1": 0.0, "eps": 0.1},  # then only eps is left in s
]

C1, C2 = 1 - 0.9 * 0.9, math.sqrt(1 - 0.999 * 0.999)  # bias corrections of the second update
ORDER = [
    (
        {"eps": 0.01},
        "s",
        lambda p, g, s, n: f32(0.999) * s.s + f32(1 - 0.999) * ((g - n.m) * (g - n.m)) + f32(0.01),
        lambda p, g, s, n: f32(0.999) * s.s + (f32(1 - 0.999) * ((g - n.m) * (g - n.m)) + f32(0.01)),
    ),
    (
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(0.1 * C2 / C1) * n.m) / (np.sqrt(n.s) + f32(0.01 * C2)),
        lambda p, g, s, n: p - f32(0.1 * C2 / C1) * (n.m / (np.sqrt(n.s) + f32(0.01 * C2))),
    ),
]

ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99)]


def authors(p=1.0, lr=0.001, beta1=0.9, beta2=0.999, eps=1e-16):
    """The update of the authors' program, with its names: eps is added to the variance in place."""
    exp_avg = exp_avg_var = 0.0
    for step, grad in enumerate(GRADIENTS, 1):
        bias_correction1 = 1 - beta1**step
        bias_correction2 = 1 - beta2**step
        exp_avg = exp_avg * beta1 + grad * (1 - beta1)
        grad_residual = grad - exp_avg
        exp_avg_var = exp_avg_var * beta2 + grad_residual * grad_residual * (1 - beta2)
        exp_avg_var += eps
        denom = math.sqrt(exp_avg_var) / math.sqrt(bias_correction2) + eps
        p -= lr / bias_correction1 * exp_avg / denom
        yield p


def large_eps():
    return authors(eps=1e-3)


LOOPS = [(authors, {}), (large_eps, {"eps": 1e-3})]

TORCH = None
TORCH_STATES = {"m": "exp_avg", "s": "exp_avg_var"}


@pytest.mark.parametrize("t", [1, 2, 40])
def test_a_constant_gradient_is_what_it_believes_in(t):
    """With beta1 = 0 the mean is the gradient, nothing is left of the difference, and s is a sum of eps alone."""
    opt, p = reference.AdaBelief(lr=0.5, beta1=0.0, beta2=0.5, eps=1e-6), np.zeros(1)
    for _ in range(t):
        before = p.item()
        opt.step(p, np.array([3.0]))
    s = 1e-6 * (2 - 0.5 ** (t - 1))
    assert opt.state[0]["s"].item() == pytest.approx(s, rel=1e-12)
    assert before - p.item() == pytest.approx(1.5 / (math.sqrt(s / (1 - 0.5**t)) + 1e-6), rel=1e-12)
