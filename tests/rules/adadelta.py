"""Adadelta: steps as long as the root mean square of the past steps."""

import math

import numpy as np

from fusedstep import reference
from tests.rules.notation import GRADIENTS, f32, mean, prefixes, root, squares

DEFAULTS = {"lr": 1.0, "rho": 0.9, "eps": 1e-6}
RULES = {"adadelta": {}}
FAMILY = "gradient, each coordinate scaled"


def formula(g, lr, rho, eps):
    moves = []
    for some in prefixes(g):
        rms_of_moves, rms_of_gradients = (root(mean(rho, squares(x)), eps, "inside") for x in (moves, some))
        moves.append(rms_of_moves / rms_of_gradients * some[-1])
    return lr[-1] * moves[-1]


CASES = [{}, {"rho": 0.6, "eps": 0.1}, {"rho": 0.0, "eps": 0.1}]

ORDER = [
    (
        {},
        "p",
        lambda p, g, s, n: p - np.sqrt((s.x + f32(1e-6)) / (n.v + f32(1e-6))) * g,
        lambda p, g, s, n: p - np.sqrt(s.x + f32(1e-6)) / np.sqrt(n.v + f32(1e-6)) * g,
    ),
    (
        {},
        "x",
        lambda p, g, s, n: (
            f32(0.9) * s.x + f32(1 - 0.9) * np.square(np.sqrt((s.x + f32(1e-6)) / (n.v + f32(1e-6))) * g)
        ),
        lambda p, g, s, n: s.x + f32(1 - 0.9) * (np.square(np.sqrt((s.x + f32(1e-6)) / (n.v + f32(1e-6))) * g) - s.x),
    ),
]

ROUNDED = [({"rho": 0.999}, "v", 1 - 0.999)]


def keras2_adadelta(p=1.0, lr=1.0, rho=0.95, epsilon=1e-7):
    a = delta = 0.0
    for g in GRADIENTS:
        a = rho * a + (1.0 - rho) * g**2
        update = g * math.sqrt(delta + epsilon) / math.sqrt(a + epsilon)
        p = p - lr * update
        delta = rho * delta + (1 - rho) * update**2
        yield p


LOOPS = [(keras2_adadelta, {"rho": 0.95, "eps": 1e-7})]

TORCH = [
    ({}, "Adadelta", {}),
    ({"rho": 0.7, "eps": 0.1}, "Adadelta", {"rho": 0.7, "eps": 0.1}),
]
TORCH_STATES = {"v": "square_avg", "x": "acc_delta"}


def test_adadelta_stands_still_for_huge_gradients_in_float32():
    p = np.zeros(2, f32)
    reference.Adadelta().step(p, f32([1e15, 1e17]))
    assert p[0] < 0
    assert p[1] == 0
