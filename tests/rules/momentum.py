"""Momentum: gradient descent along a fading sum of the gradients."""

import numpy as np

from fusedstep import reference
from tests.rules.keras2 import sgd as keras2_sgd
from tests.rules.keras2 import slowing
from tests.rules.notation import GRADIENTS, f32, fading, fused, products

DEFAULTS = {"lr": 0.01, "momentum": 0.9, "dampening": 0.0, "dampen_first": False, "velocity": "grad"}
RULES = {"momentum": {}}
FAMILY = "gradient, its mean, or the mean's sign"


def formula(g, lr, momentum, dampening, dampen_first, velocity):
    kept = [1 - dampening for _ in g]
    kept[0] = 1 - dampening if dampen_first else 1
    if velocity == "step":
        return fading(momentum, products(kept, products(lr, g)))
    return lr[-1] * fading(momentum, products(kept, g))


CASES = [
    {},
    {"velocity": "step"},
    {"dampening": 0.3},
    {"dampening": 0.3, "velocity": "step"},
    {"dampening": 0.3, "dampen_first": True},
    {"dampening": 0.3, "dampen_first": True, "velocity": "step"},
    {"momentum": 0.0},
    {"momentum": 1.0, "dampening": 1.0},
]

ORDER = [
    (
        {"lr": 0.1, "dampening": 0.3, "velocity": "step"},
        "b",
        lambda p, g, s, n: f32(0.9) * s.b + f32((1 - 0.3) * 0.1) * g,
        lambda p, g, s, n: f32(0.9) * s.b + f32(0.1) * (f32(1 - 0.3) * g),
    ),
    (
        {"lr": 0.1},
        "b",
        lambda p, g, s, n: f32(0.9) * s.b + g,
        lambda p, g, s, n: fused(f32(0.9), s.b, g),
    ),
]

ROUNDED = [
    ({"dampening": 0.99, "dampen_first": True}, "b", 1 - 0.99),
    ({"velocity": "step", "lr": 0.1, "dampening": 0.99, "dampen_first": True}, "b", (1 - 0.99) * 0.1),
]


def averaged_momentum(p=1.0, lr=0.1, beta=0.8):
    v = 0.0
    for g in GRADIENTS:
        v = beta * v + (1 - beta) * g
        p = p - lr * v
        yield p


LOOPS = [
    (averaged_momentum, {"lr": 0.1, "momentum": 0.8, "dampening": 0.8, "dampen_first": True}),
    (keras2_sgd, {"lr": slowing, "velocity": "step"}),
]
PARABOLA = [
    ({"lr": 0.1, "velocity": "step"}, 0.04399870600000133),
    ({"lr": 0.1, "velocity": "grad"}, 0.04399870600000133),
]

TORCH = [
    ({}, "SGD", {"lr": 0.01, "momentum": 0.9}),
    ({"dampening": 0.4}, "SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.4}),
]
TORCH_STATES = {"b": "momentum_buffer"}


def test_first_momentum_step():
    for velocity, factor in (("grad", 1.0), ("step", 0.5)):
        opt, damped = (
            reference.Momentum(lr=0.5, dampening=0.75, dampen_first=first, velocity=velocity) for first in (False, True)
        )
        for some, b in ((opt, 4.0), (damped, 1.0)):
            some.step(np.zeros(1), np.full(1, 4.0))
            assert some.state[0]["b"] == factor * b
    opt = reference.Momentum()
    opt.step(np.zeros(1), np.full(1, -0.0))
    assert not np.signbit(opt.state[0]["b"])
