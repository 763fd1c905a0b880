"""NAG: Nesterov's accelerated gradient."""

from functools import partial

import numpy as np
import pytest

import fusedstep
from fusedstep import reference
from tests.rules.keras2 import sgd as keras2_sgd
from tests.rules.keras2 import slowing
from tests.rules.notation import f32, fading, products

DEFAULTS = {"lr": 0.01, "momentum": 0.9, "velocity": "grad"}
RULES = {"nag": {}}
FAMILY = "gradient, its mean, or the mean's sign"


def formula(g, lr, momentum, velocity):
    past = products(lr, g) if velocity == "step" else g
    ahead = past[-1] + momentum * fading(momentum, past)
    return ahead if velocity == "step" else lr[-1] * ahead


CASES = [{}, {"velocity": "step"}, {"momentum": 0.0}, {"momentum": 1.0, "velocity": "step"}]

ORDER = [
    (
        {"lr": 0.1},
        "p",
        lambda p, g, s, n: p - f32(0.1) * (g + f32(0.9) * n.b),
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.1) * (f32(0.9) * n.b)),
    ),
    (
        {"lr": 0.1, "velocity": "step"},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.9) * n.b),
        lambda p, g, s, n: (p - f32(0.1) * g) - f32(0.9) * n.b,
    ),
]

LOOPS = [(partial(keras2_sgd, nesterov=True), {"lr": slowing, "velocity": "step"})]

TORCH = [({"momentum": 0.8}, "SGD", {"lr": 0.01, "momentum": 0.8, "nesterov": True})]
TORCH_STATES = {"b": "momentum_buffer"}


@pytest.mark.parametrize("classes", [reference, fusedstep], ids=["reference", "fusedstep"])
def test_nesterov_looks_ahead(classes):
    mu, lr = 0.8, 0.05
    textbook, v = 3.0, 0.0
    p, opt = np.array([3.0]), classes.NAG(lr=lr, momentum=mu, velocity="step")
    for _ in range(12):
        ahead = textbook + mu * v
        v = mu * v - lr * (ahead**3 + ahead)
        textbook = textbook + v
        opt.step(p, p**3 + p)
        assert p.item() == pytest.approx(textbook + mu * v, rel=1e-12)
        assert (p + mu * opt.state[0]["b"]).item() == pytest.approx(textbook, rel=1e-12)
