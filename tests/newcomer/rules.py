"""Drift, an optimizer of the tests alone, as large as a rule may be."""

import math

import numpy as np
import pytest

import fusedstep
from fusedstep import functional, reference
from tests.rules.notation import GRADIENTS, f32, fading, mean, prefixes, squares

DEFAULTS = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.99,
    "rho": 0.95,
    "momentum": 0.5,
    "eps": 1e-8,
    "eps_mode": "outside",
    "share": 0.25,
    "floor": 0.0,
}
RULES = {"drift": {}}
FAMILY = "mean, each coordinate scaled"


def formula(g, lr, beta1, beta2, rho, momentum, eps, eps_mode, share, floor):
    inner, outer = (eps, 0) if eps_mode == "inside" else (0, eps)
    means = [mean(beta1, some) for some in prefixes(g)]
    weight = fading(momentum, [1 for _ in g])
    sizes = [abs(x) + floor + outer for x in g]
    largest = max(rho**age * x if age else x for age, x in enumerate(reversed(sizes)))
    length = (1 - share) * means[-1] / (1 - beta1 ** len(g)) + share * fading(momentum, means) / weight
    return lr[-1] * length / max((mean(beta2, squares(g)) + inner).sqrt(), largest)


CASES = [
    {},
    *(
        {"beta1": 0.7, "beta2": 0.1, "rho": 0.4, "momentum": mu, "eps": 0.1, "eps_mode": mode, "share": s, "floor": f}
        for mode in ("outside", "inside")
        for mu, s, f in ((0.3, 0.5, 0.2), (1.0, 1.0, 0.0), (0.0, 0.0, 0.3))
    ),
    {"beta1": 0.0, "eps": 0.1},
    {"beta2": 0.0, "rho": 0.0, "eps": 0.1},
]

M_GAIN, X_GAIN = 0.1 * (1 - 0.25) / (1 - 0.9 * 0.9), 0.1 * 0.25 / (0.5 * 1 + 1)  # factors in the second update
ORDER = [
    (
        {"lr": 0.1, "eps": 0.01},
        "p",
        lambda p, g, s, n: p - (f32(M_GAIN) * n.m + f32(X_GAIN) * n.x) / np.maximum(np.sqrt(n.v), n.w),
        lambda p, g, s, n: p - (n.m * f32(M_GAIN / X_GAIN) + n.x) * f32(X_GAIN) / np.maximum(np.sqrt(n.v), n.w),
    ),
    (
        {},
        "x",
        lambda p, g, s, n: f32(0.5) * s.x + n.m,
        lambda p, g, s, n: f32(0.5) * s.x + f32(0.9) * s.m + f32(1 - 0.9) * g,
    ),
]
ROUNDED = [({"beta1": 0.99}, "m", 1 - 0.99), ({"beta2": 0.999}, "v", 1 - 0.999)]


def plain_loop(p=1.0, lr=0.1, beta1=0.9, beta2=0.99, rho=0.95, momentum=0.5, share=0.25, eps=1e-8):
    m = v = w = x = weight = 0.0
    for t, g in enumerate(GRADIENTS, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = max(rho * w, abs(g) + eps)
        x, weight = momentum * x + m, momentum * weight + 1
        p = p - lr * ((1 - share) * m / (1 - beta1**t) + share * x / weight) / max(math.sqrt(v), w)
        yield p


LOOPS = [(plain_loop, {"lr": 0.1})]
TORCH = None
TORCH_STATES = {
    "m": "exp_avg",
    "v": "exp_avg_sq",
    "w": "exp_inf",
    "x": "momentum_buffer",
    "product": "beta_product",
    "weight": "momentum_weight",
}


def test_two_numbers_are_kept_between_the_steps():
    opt, judge = fusedstep.Drift(beta1=0.75), reference.Drift(beta1=0.75)
    p, q = np.ones(3), np.ones(3)
    for _ in range(3):
        opt.step(p, np.ones(3))
        judge.step(q, np.ones(3))
    assert opt.state_dict()["memory"] == {0: judge.memory[0]} == {0: {"product": 0.75**3, "weight": 1.75}}
    again = fusedstep.Drift()
    again.load_state_dict(opt.state_dict())
    again.step(p, np.ones(3))
    judge.step(q, np.ones(3))
    assert p.tobytes() == q.tobytes()
    with pytest.raises(ValueError, match=r"memory\[0\]\['product'\] is 2.0, expected"):
        again.load_state_dict(opt.state_dict() | {"memory": {0: {"product": 2.0, "weight": 1.75}}})


def test_the_function_takes_and_returns_both_numbers():
    p, q, g = np.ones(3), np.ones(3), np.full(3, 0.5)
    states, judge = [np.zeros(3) for _ in "mvwx"], reference.Drift(lr=0.1)
    product = weight = 0.0
    for t in range(1, 4):
        product, weight = functional.drift(p, g, *states, t=t, product=product, weight=weight, lr=0.1)
        judge.step(q, g)
    assert p.tobytes() == q.tobytes()
    assert {"product": product, "weight": weight} == judge.memory[0]
