"""AdamW: Adam whose weight decay is always decoupled. Its rules are those of Adam."""

from tests.rules import adam
from tests.rules.adam import DEFAULTS, FAMILY, RULES, TORCH_STATES, formula

__all__ = ["CASES", "DEFAULTS", "FAMILY", "OPTIONS", "ORDER", "ROUNDED", "RULES", "TORCH", "TORCH_STATES", "formula"]

OPTIONS = {"weight_decay": 0.01, "decoupled": True}

CASES = [
    {},
    {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": "hat"},
    {"beta1": 0.7, "beta2": 0.6, "eps": 0.1, "eps_mode": "inside", "amsgrad": True},
]

ORDER = [({"weight_decay": 0.0} | arguments, *rest) for arguments, *rest in adam.ORDER]
ROUNDED = [({}, "v", 1 - 0.999)]

TORCH = [
    ({}, "AdamW", {}),
    ({"weight_decay": 0.3, "amsgrad": True}, "AdamW", {"weight_decay": 0.3, "amsgrad": True}),
]
