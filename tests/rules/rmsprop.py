"""RMSprop: every coordinate divided by the root mean square of its gradients; also centered, with momentum, or both."""

import math

import numpy as np

from fusedstep import reference
from tests.rules.notation import GRADIENTS, f32, fading, fused, mean, prefixes, products, root, squares

DEFAULTS = {
    "lr": 0.01,
    "rho": 0.99,
    "eps": 1e-8,
    "eps_mode": "outside",
    "momentum": 0.0,
    "velocity": "grad",
    "centered": False,
    "initial_accumulator": 0.0,
}
RULES = {
    "rmsprop": {},
    "rmsprop_centered": {"centered": True},
    "rmsprop_momentum": {"momentum": 0.9},
    "rmsprop_centered_momentum": {"centered": True, "momentum": 0.9},
}
FAMILY = "gradient, each coordinate scaled"


def formula(g, lr, rho, eps, eps_mode, momentum, velocity, centered, initial_accumulator):
    def normalised(g):
        variance = rho ** len(g) * initial_accumulator + mean(rho, squares(g))
        if centered:
            variance -= mean(rho, g) ** 2
        return g[-1] / root(variance, eps, eps_mode)

    past = [normalised(some) for some in prefixes(g)]
    return fading(momentum, products(lr, past)) if velocity == "step" else lr[-1] * fading(momentum, past)


CASES = [
    {},
    {"rho": 0.0, "eps": 0.1},
    *(
        {"rho": 0.8, "eps": 0.1, "eps_mode": eps_mode, "centered": centered, "initial_accumulator": start}
        | {"momentum": mu, "velocity": velocity}
        for eps_mode in ("outside", "inside")
        for centered in (False, True)
        for start in (0.0, 1.0)
        for mu in (0.0, 0.7)
        for velocity in ("grad", "step")
        if mu or velocity == "grad"
    ),
]

ORDER = [
    (
        {"rho": 0.9},
        "v",
        lambda p, g, s, n: f32(0.9) * s.v + f32(1 - 0.9) * (g * g),
        lambda p, g, s, n: f32(0.9) * s.v + (f32(1 - 0.9) * g) * g,
    ),
    (
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(n.v) + f32(1e-8)),
        lambda p, g, s, n: p - f32(0.1) * (g / (np.sqrt(n.v) + f32(1e-8))),
    ),
    (
        {"lr": 0.1, "centered": True},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(np.fmax(n.v - n.m * n.m, f32(0))) + f32(1e-8)),
        lambda p, g, s, n: p - (f32(0.1) * g) / (np.sqrt(np.fmax(fused(n.m, -n.m, n.v), f32(0))) + f32(1e-8)),
    ),
    (
        {"lr": 0.1, "momentum": 0.9, "velocity": "step"},
        "b",
        lambda p, g, s, n: f32(0.9) * s.b + (f32(0.1) * g) / (np.sqrt(n.v) + f32(1e-8)),
        lambda p, g, s, n: f32(0.9) * s.b + f32(0.1) * (g / (np.sqrt(n.v) + f32(1e-8))),
    ),
]

ROUNDED = [
    ({"rho": 0.999, "centered": True}, "v", 1 - 0.999),
    ({"rho": 0.999, "centered": True}, "m", 1 - 0.999),
]


def rmsprop_eps_inside(p=1.0, lr=0.1, beta=0.9, eps=1e-8):
    s = 0.0
    for g in GRADIENTS:
        s = beta * s + (1 - beta) * g**2
        p = p - lr * g / math.sqrt(s + eps)
        yield p


def keras2_rmsprop(p=1.0, lr=0.001, rho=0.9, epsilon=1e-7):
    a = 0.0
    for g in GRADIENTS:
        a = rho * a + (1.0 - rho) * g**2
        p = p - lr * g / (math.sqrt(a) + epsilon)
        yield p


LOOPS = [
    (rmsprop_eps_inside, {"lr": 0.1, "rho": 0.9, "eps_mode": "inside"}),
    (keras2_rmsprop, {"lr": 1e-3, "rho": 0.9, "eps": 1e-7}),
]
PARABOLA = [({"lr": 0.1, "rho": 0.9}, 8.3205241519636)]

TORCH = [
    ({}, "RMSprop", {}),
    ({"rho": 0.8, "eps": 0.1}, "RMSprop", {"alpha": 0.8, "eps": 0.1}),
    ({"centered": True}, "RMSprop", {"centered": True}),
    ({"momentum": 0.9}, "RMSprop", {"momentum": 0.9}),
    ({"momentum": 0.9, "centered": True}, "RMSprop", {"momentum": 0.9, "centered": True}),
]
TORCH_STATES = {"v": "square_avg", "m": "grad_avg", "b": "momentum_buffer"}


def test_nan_passes_the_variance_that_is_never_negative():
    opt = reference.RMSprop(centered=True)
    for g in (1.0, np.nan, 1.0):
        p = np.ones(2, f32)
        opt.step(p, f32([1.0, g]))
    assert np.isnan(opt.state[0]["v"]).tolist() == [False, True]
    assert np.isnan(p).tolist() == [False, True]


def test_centered_variance_is_never_negative():
    g = np.linspace(0.1, 9.7, 1000, dtype=f32)
    opt, negative = reference.RMSprop(lr=1.0, rho=0.9, eps=0.5, centered=True), 0
    for _ in range(200):
        p = np.zeros_like(g)
        opt.step(p, g)
        v, m = opt.state[0]["v"], opt.state[0]["m"]
        below = v < m * m
        negative += below.sum()
        assert p[below].tobytes() == (-g / f32(0.5))[below].tobytes()
        assert np.isfinite(p).all()
    assert negative > 0
