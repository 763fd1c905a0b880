"""Drift, an optimizer of the tests alone: its mean of the gradients is divided by the largest of them, which fades."""

import numpy as np

from fusedstep import reference
from tests.rules.notation import GRADIENTS, f32, mean

DEFAULTS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
RULES = {"drift": {}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, eps):
    largest = max(beta2**age * abs(x) if age else abs(x) for age, x in enumerate(reversed(g)))
    return lr[-1] / (1 - beta1 ** len(g)) * mean(beta1, g) / (largest + eps)


CASES = [{}, {"beta1": 0.7, "beta2": 0.6, "eps": 0.1}, {"beta1": 0.0, "eps": 0.1}, {"beta2": 0.0, "eps": 0.1}]

C1 = 1 - 0.9 * 0.9  # bias correction of the second update
ORDER = [
    (
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(0.1 / C1) * n.m) / (n.v + f32(0.01)),
        lambda p, g, s, n: p - f32(0.1 / C1) * (n.m / (n.v + f32(0.01))),
    ),
]
ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99)]


def keras_like(p=1.0, lr=0.1, beta_1=0.9, beta_2=0.99, epsilon=1e-7):
    m = u = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        m = beta_1 * m + (1.0 - beta_1) * g
        u = max(beta_2 * u, abs(g))
        p = p - lr / (1.0 - beta_1**t) * m / (u + epsilon)
        yield p


LOOPS = [(keras_like, {"lr": 0.1, "eps": 1e-7})]
TORCH = None
TORCH_STATES = {"m": "exp_avg", "v": "exp_inf"}


def test_the_first_drift_is_as_long_as_the_rate():
    p = np.zeros(2)
    reference.Drift(lr=0.5, eps=0.0).step(p, np.array([3.0, -1e-3]))
    np.testing.assert_allclose(p, [-0.5, 0.5], rtol=1e-15)
