"""What a hyperparameter may be, and the numbers that a rule makes of it."""

import decimal
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["check", "declared", "numbers"]

INF = math.inf
# name: lowest value, highest value, whether the highest itself is allowed
RANGES: dict[str, tuple[float, float, bool]] = {
    "lr": (0, INF, False),
    "momentum": (0, 1, True),
    "dampening": (0, 1, True),
    "rho": (0, 1, False),
    "beta1": (0, 1, False),
    "beta2": (0, 1, False),
    "eps": (0, INF, False),
    "initial_accumulator": (0, INF, False),
    "schedule_decay": (0, INF, True),
    "weight_decay": (0, INF, False),
}


def _declared(owner: Any) -> dict[str, Any]:
    """Return the type of each hyperparameter of a class or function: float, bool or a Literal of choices."""
    hints = get_type_hints(owner)
    return {
        name: float if name in RANGES else hint
        for name, hint in hints.items()
        if name in RANGES or hint is bool or _choices(hint)
    }


declared: Callable[[Any], dict[str, Any]] = lru_cache(_declared)


def _choices(hint: Any) -> tuple[str, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def check(name: str, value: Any, hint: Any, label: str = "") -> Any:
    """
    Return `value` as the hyperparameter `name`, or refuse it under the name `label`.

    Raises
    ------
    TypeError
        If it is not a number, not a bool, or not a string, where `hint` asks for one.
    ValueError
        If it is out of range, or not one of the choices.
    """
    label = label or name
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{label} is {value!r}, expected True or False")
        return value
    if choices := _choices(hint):
        if not isinstance(value, str):
            raise TypeError(f"{label} is {value!r}, expected one of {', '.join(map(repr, choices))}")
        if value not in choices:
            raise ValueError(f"{label} is {value!r}, expected one of {', '.join(map(repr, choices))}")
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} is {value!r}, expected a number")
    low, high, closed = RANGES[name]
    try:
        number = float(value) + 0.0  # so that -0.0 is 0.0
    except OverflowError:
        number = INF
    if not (low <= number < high or (closed and number == high)):
        raise ValueError(f"{label} is {value!r}, expected {low:g} <= {name} {'<=' if closed else '<'} {high:g}")
    return number


def numbers(names: tuple[str, ...], values: Mapping[str, Any]) -> list[float]:
    """
    Return the numbers that a rule calls `names`, from the hyperparameters of a class or function.

    A dialect is a number too: `eps_inside` is eps where eps_mode is "inside" and otherwise 0, and `velocity_step` is
    1 where velocity is "step" and otherwise 0. `decay_base` is Nadam's 0.96**schedule_decay.
    """
    return [_number(name, values) for name in names]


def _number(name: str, values: Mapping[str, Any]) -> float:
    if name in values:
        return float(values[name])
    if name == "decay_base":
        return rational_power(0.96, values["schedule_decay"])
    field, choice = name.split("_")
    mode = values.get(f"{field}_mode")
    if mode is None:
        return float(values[field] == choice)
    return float(values[field]) if mode == choice else 0.0


@lru_cache
def rational_power(x: float, y: float) -> float:
    """Return x**y for x >= 0 to 50 digits, rounded once: libm's pow differs between platforms."""
    if x == 0 or (x < 1 and math.isinf(y)):
        return 0.0
    with decimal.localcontext(decimal.Context(prec=50)):
        return float((decimal.Decimal(y) * decimal.Decimal(x).ln()).exp())
