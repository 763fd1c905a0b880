"""SGD: gradient descent, without a state."""

from functools import partial

from tests.rules.keras2 import sgd as keras2_sgd
from tests.rules.keras2 import slowing
from tests.rules.notation import f32, fused

DEFAULTS = {"lr": 0.01}
RULES = {"sgd": {}}
FAMILY = "gradient, its mean, or the mean's sign"


def formula(g, lr):
    return lr[-1] * g[-1]


CASES = [{}]

ORDER = [
    ({"lr": 0.1}, "p", lambda p, g, s, n: p - f32(0.1) * g, lambda p, g, s, n: fused(-f32(0.1), g, p)),
    (
        {"lr": 0.1, "weight_decay": 0.3},
        "p",
        lambda p, g, s, n: p - f32(0.1) * (g + f32(0.3) * p),
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.1 * 0.3) * p),
    ),
    (
        {"lr": 0.1, "weight_decay": 0.3, "decoupled": True},
        "p",
        lambda p, g, s, n: p - (f32(0.1) * g + f32(0.1 * 0.3) * p),
        lambda p, g, s, n: (p - f32(0.1 * 0.3) * p) - f32(0.1) * g,
    ),
]

LOOPS = [(partial(keras2_sgd, momentum=0.0), {"lr": slowing})]
PARABOLA = [({"lr": 0.1}, 1.0737418240000003)]

TORCH = [({"lr": 1e-3}, "SGD", {})]
TORCH_STATES = {}
