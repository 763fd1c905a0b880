"""Adagrad: every coordinate divided by the root of the sum of its squared gradients."""

import math

import numpy as np

from fusedstep import reference
from tests.rules.notation import GRADIENTS, f32, fused, root, squares

DEFAULTS = {"lr": 0.01, "eps": 1e-10, "eps_mode": "outside", "initial_accumulator": 0.0}
RULES = {"adagrad": {}}
FAMILY = "gradient, each coordinate scaled"


def formula(g, lr, eps, eps_mode, initial_accumulator):
    return lr[-1] * g[-1] / root(initial_accumulator + sum(squares(g)), eps, eps_mode)


CASES = [
    {},
    {"eps": 0.1},
    {"eps": 0.1, "eps_mode": "inside"},
    {"eps": 0.1, "initial_accumulator": 0.7},
    {"eps": 0.1, "eps_mode": "inside", "initial_accumulator": 0.7},
]

ORDER = [
    ({}, "a", lambda p, g, s, n: s.a + g * g, lambda p, g, s, n: fused(g, g, s.a)),
    (
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(n.a) + f32(0.01)),
        lambda p, g, s, n: p - f32(0.1) * (g / (np.sqrt(n.a) + f32(0.01))),
    ),
    (
        {"lr": 0.1, "eps": 0.01, "eps_mode": "inside"},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / np.sqrt(n.a + f32(0.01)),
        lambda p, g, s, n: p - f32(0.1) / np.sqrt(n.a + f32(0.01)) * g,
    ),
]


def keras2_adagrad(p=1.0, lr=0.01, epsilon=1e-7):
    a = 0.0
    for g in GRADIENTS:
        a = a + g**2
        p = p - lr * g / (math.sqrt(a) + epsilon)
        yield p


LOOPS = [(keras2_adagrad, {"eps": 1e-7})]
PARABOLA = [({"lr": 1.0, "eps": 1e-8}, 5.537312004775913)]

TORCH = [
    ({}, "Adagrad", {}),
    ({"eps": 0.1, "initial_accumulator": 0.5}, "Adagrad", {"eps": 0.1, "initial_accumulator_value": 0.5}),
    ({"lr": lambda done: 0.1 / (1 + 0.2 * done)}, "Adagrad", {"lr": 0.1, "lr_decay": 0.2}),
]
TORCH_STATES = {"a": "sum"}


def test_squares_overflow_and_flush_in_float32():
    edge_high, edge_low = f32(2.0**64), f32(2.0**-63)
    g = np.array([np.nextafter(edge_high, f32(0)), edge_high, edge_low, np.nextafter(edge_low, f32(0))])
    p, opt = np.zeros_like(g), reference.Adagrad(lr=1.0, eps=0.0)
    opt.step(p, g)
    a = opt.state[0]["a"]
    assert np.isfinite(a).tolist() == [True, False, True, True]
    assert (a == 0).tolist() == [False, False, False, True]
    assert p.tolist() == [-1.0, 0.0, -1.0, -np.inf]
