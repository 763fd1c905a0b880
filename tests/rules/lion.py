"""Lion: the sign of a mean of the gradients; its weight decay is always decoupled."""

import numpy as np

from fusedstep import reference
from tests.rules.notation import f32, mean

DEFAULTS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99}
OPTIONS = {"decoupled": True}
RULES = {"lion": {}}
FAMILY = "gradient, its mean, or the mean's sign"


def formula(g, lr, beta1, beta2):
    *before, now = g
    mixed = beta1 * mean(beta2, before) + (1 - beta1) * now
    return lr[-1] * ((mixed > 0) - (mixed < 0))


CASES = [{}, {"beta1": 0.6, "beta2": 0.7}, {"beta1": 0.0}, {"beta2": 0.0}]

ORDER = [
    (
        {},
        "m",
        lambda p, g, s, n: f32(0.99) * s.m + f32(1 - 0.99) * g,
        lambda p, g, s, n: s.m + f32(1 - 0.99) * (g - s.m),
    ),
    (
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - f32(0.1) * np.sign(f32(0.9) * s.m + f32(1 - 0.9) * g),
        lambda p, g, s, n: p - f32(0.1) * np.sign(f32(0.9) * n.m + f32(1 - 0.9) * g),
    ),
]

ROUNDED = [({}, "m", 1 - 0.99)]

TORCH = None  # PyTorch has no Lion
TORCH_STATES = {"m": "exp_avg"}


def test_lion_signs():
    tiny = 2.0**-130
    g = np.array([3.0, -3.0, 0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny], f32)
    p = np.zeros_like(g)
    reference.Lion(lr=0.5, beta1=0.0).step(p, g)
    expected = [-0.5, 0.5, 0.0, 0.0, -0.5, 0.5, np.nan, 0.0, 0.0]
    np.testing.assert_array_equal(p, expected)
    assert not np.signbit(p[[2, 3, 7, 8]]).any()
