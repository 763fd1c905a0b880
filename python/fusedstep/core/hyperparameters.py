"""What a hyperparameter may be, and the numbers that a rule makes of it."""

import decimal
import math
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from numbers import Integral, Real
from operator import le, lt
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

from .arrays import as_array, is_on_gpu, to_host

__all__ = [
    "CLIPS",
    "NEVER_ON_GPU",
    "Layer",
    "Scheduled",
    "Settings",
    "at",
    "check",
    "check_clips",
    "declared",
    "integer",
    "numbers",
    "settled",
]

Scheduled: TypeAlias = float | Callable[[int], float]  # a number, or a function of the number of finished updates

INF = math.inf
_BELOW: TypeAlias = Callable[[float, float], bool]
# name: lowest value, and how it may be met; how the highest may be met, and that value
RANGES: dict[str, tuple[float, _BELOW, _BELOW, float]] = {
    "lr": (0, le, lt, INF),
    "momentum": (0, le, le, 1),
    "dampening": (0, le, le, 1),
    "rho": (0, le, lt, 1),
    "beta1": (0, le, lt, 1),
    "beta2": (0, le, lt, 1),
    "eps": (0, le, lt, INF),
    "initial_accumulator": (0, le, lt, INF),
    "schedule_decay": (0, le, le, INF),
    "grad_scale": (-INF, lt, lt, INF),
    "clip_value": (0, lt, lt, INF),
    "clip_norm": (0, lt, lt, INF),
    "clip_global_norm": (0, lt, lt, INF),
    "l1": (0, le, lt, INF),
    "weight_decay": (0, le, lt, INF),
    "ema": (0, le, le, 1),
}
_SIGN: dict[_BELOW, str] = {le: "<=", lt: "<"}
CLIPS = ("clip_value", "clip_norm", "clip_global_norm")
_OPTIONAL = {*CLIPS, "ema"}  # None switches them off
NEVER_ON_GPU = {"initial_accumulator", "schedule_decay"}  # but needed by the host


def _declared(owner: Any) -> dict[str, Any]:
    """Return the type of each hyperparameter of a class or function: float, int, bool or a Literal of choices."""
    hints = get_type_hints(owner)
    return {
        name: float if name in RANGES else hint
        for name, hint in hints.items()
        if name in RANGES or hint is bool or name == "seed" or _choices(hint)
    }


declared: Callable[[Any], dict[str, Any]] = lru_cache(_declared)


def _choices(hint: Any) -> tuple[str | bool, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def check(name: str, value: Any, hint: Any = float, label: str = "") -> Any:
    """
    Return `value` as the hyperparameter `name`, or refuse it under the name `label`.

    Raises
    ------
    TypeError
        If it is not a number, an integer, a bool or a string, where `hint` asks for one.
    ValueError
        If it is out of range, or not one of the choices.
    """
    label = label or name
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{label} is {value!r}, expected True or False")
        return value
    if hint is int:
        if integer(label, value, 0) >= 2**53:
            raise ValueError(f"{label} is {value!r}, expected an integer below 2**53")
        return int(value)
    if choices := _choices(hint):
        if not isinstance(value, tuple({type(choice) for choice in choices})):
            raise TypeError(f"{label} is {value!r}, expected one of {', '.join(map(repr, choices))}")
        if value not in choices:
            raise ValueError(f"{label} is {value!r}, expected one of {', '.join(map(repr, choices))}")
        return value
    if value is None and name in _OPTIONAL:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} is {value!r}, expected a number{' or None' if name in _OPTIONAL else ''}")
    low, above, below, high = RANGES[name]
    try:
        number = float(value) + 0.0  # so that -0.0 is 0.0
    except OverflowError:
        number = INF
    if not (above(low, number) and below(number, high)):
        wanted = f"{low:g} {_SIGN[above]} {name} {_SIGN[below]} {high:g}"
        raise ValueError(f"{label} is {value!r}, expected {wanted}")
    return number


def integer(name: str, value: Any, least: int) -> int:
    """Return an integer of any kind as int, or refuse what is none or too low."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}, expected an integer >= {least}")
    if value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer >= {least}")
    return int(value)


def check_clips(values: Mapping[str, Any], label: str = "") -> None:
    """Refuse more than one way of clipping."""
    if len(chosen := [name for name in CLIPS if values.get(name) is not None]) > 1:
        raise ValueError(f"{label}{chosen[1]} stands beside {chosen[0]}, expected one of them to be None")


def settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters with the numbers that are on a GPU as they are now."""

    def now(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: now(some) for key, some in value.items()}
        return to_host(as_array(value, "hyperparameter")).item() if is_on_gpu(value) else value

    return {name: now(value) for name, value in values.items()}


def numbers(names: tuple[str, ...], values: Mapping[str, Any]) -> list[Any]:
    """
    Return the numbers that a rule calls `names`, from the hyperparameters of a class or function.

    A dialect is a number too: `eps_inside` is eps where eps_mode is "inside" and otherwise 0, and `velocity_step` is
    1 where velocity is "step" and otherwise 0. `decay_base` is Nadam's 0.96**schedule_decay. What is None is infinite.
    A number on a GPU stays there.
    """
    return [_number(name, values) for name in names]


def _number(name: str, values: Mapping[str, Any]) -> Any:
    if name in values:
        return INF if values[name] is None else _plain(values[name])
    if name == "master":
        return {False: 0.0, True: 1.0, "split": 2.0}[values["master_weights"]]
    if name == "decay_base":
        return rational_power(0.96, values["schedule_decay"])
    field, choice = name.split("_")
    mode = values.get(f"{field}_mode")
    if mode is None:
        return float(values[field] == choice)
    return _plain(values[field]) if mode == choice else 0.0


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float)) else value


@lru_cache
def rational_power(x: float, y: float) -> float:
    """Return x**y for x >= 0 to 50 digits, rounded once: libm's pow differs between platforms."""
    if x == 0 or (x < 1 and math.isinf(y)):
        return 0.0
    with decimal.localcontext(decimal.Context(prec=50)):
        return float((decimal.Decimal(y) * decimal.Decimal(x).ln()).exp())


class Settings(NamedTuple):
    """The hyperparameters as they were at one moment, which is that of a step."""

    values: dict[str, Any]
    overrides: Mapping[Hashable, Mapping[str, Any]]
    rule: str

    def of(self, combination: tuple[Hashable, ...]) -> dict[str, Any]:
        """Return them under some of the overrides, the strongest last."""
        return self.values | {name: v for key in combination for name, v in self.overrides[key].items()}


class Layer:
    """The hyperparameters under a combination of overrides, as the numbers that their rule calls `names`."""

    def __init__(self, settings: Settings, combination: tuple[Hashable, ...], names: tuple[str, ...]) -> None:
        self.combination, self.values = combination, settings.of(combination)
        check_clips(self.values, f"overrides {', '.join(map(repr, combination))}: ")
        self._names = names
        self.scheduled = {name: value for name, value in self.values.items() if callable(value)}
        self._fixed = [] if self.scheduled else numbers(self._names, self.values)

    def at(self, done: int) -> list[Any]:
        """Return the numbers of the update that follows `done` others."""
        return self._fixed or numbers(self._names, self.values | at(self.scheduled, done))


def at(values: Mapping[str, Any], done: int) -> dict[str, Any]:
    """Return what functions say at the update that follows `done` others."""
    found = {}
    for name, value in values.items():
        if callable(value):
            label, value = f"{name}({done})", value(done)
            if value is None:  # which would switch something off
                raise TypeError(f"{label} is None, expected a number")
            value = check(name, value, float, label)
        found[name] = value
    return found
