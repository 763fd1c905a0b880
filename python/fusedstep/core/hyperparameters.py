"""What a hyperparameter may be, and the values that a rule takes, made of the hyperparameters of a class."""

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from .arrays import as_array, is_on_gpu, to_host

__all__ = [
    "CLIPS",
    "INF",
    "RANGES",
    "Bounds",
    "Range",
    "Recipe",
    "Scheduled",
    "arguments",
    "check",
    "check_clips",
    "declared",
    "evaluated",
    "integer",
    "on_host",
    "plain",
    "range_of",
    "rational_power",
    "recipes",
    "shown",
]

Scheduled: TypeAlias = float | Callable[[int], float]  # a number, or a function of the number of finished updates
Bounds: TypeAlias = tuple[float | None, float | None]  # from the first to the second number; None is no bound

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, each end of which may be part of them or not."""

    low: float
    high: float
    with_low: bool = True
    with_high: bool = False

    def __contains__(self, x: float) -> bool:
        return (self.low < x or (self.with_low and x == self.low)) and (
            x < self.high or (self.with_high and x == self.high)
        )

    def text(self, name: str) -> str:
        """Return the condition that a number called `name` is in the range, as Python code."""
        return f"{self.low:g} {'<=' if self.with_low else '<'} {name} {'<=' if self.with_high else '<'} {self.high:g}"


_FINITE = Range(-INF, INF, with_low=False)
# Ranges of the usual hyperparameters, to which a class may add some. Without a range, any finite number will do.
RANGES: dict[str, Range] = {
    "lr": Range(0, INF),
    "momentum": Range(0, 1, with_high=True),
    "dampening": Range(0, 1, with_high=True),
    "rho": Range(0, 1),
    "beta1": Range(0, 1),
    "beta2": Range(0, 1),
    "eps": Range(0, INF),
    "initial_accumulator": Range(0, INF),
    "grad_scale": _FINITE,
    "clip_value": Range(0, INF, with_low=False),
    "clip_norm": Range(0, INF, with_low=False),
    "clip_global_norm": Range(0, INF, with_low=False, with_high=True),
    "l1": Range(0, INF),
    "weight_decay": Range(0, INF),
    "low": Range(-INF, INF),
    "high": Range(-INF, INF, with_low=False, with_high=True),
    "ema": Range(0, 1, with_high=True),
}
CLIPS = ("clip_value", "clip_norm", "clip_global_norm")
_OPTIONAL = {*CLIPS, "ema"}  # options that None switches off


def _declared(owner: Any) -> dict[str, Any]:
    """Return the type of each hyperparameter of a class: float, int, bool or a Literal of choices."""
    ranges = getattr(owner, "ranges", RANGES)
    found = {}
    for name, hint in get_type_hints(owner).items():
        if name in ranges or hint in (float, Scheduled):
            found[name] = float
        elif not name.startswith("_") and (hint in (bool, int, Bounds | None) or _choices(hint)):
            found[name] = hint
    return found


declared: Callable[[Any], dict[str, Any]] = lru_cache(_declared)


def _choices(hint: Any) -> tuple[str | bool, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def check(name: str, value: Any, hint: Any = float, label: str = "", ranges: Mapping[str, Range] = RANGES) -> Any:
    """
    Return `value` as the hyperparameter `name`, or refuse it under the name `label`.

    Raises
    ------
    TypeError
        If the value is not a number, an integer, a bool or a string, where `hint` asks for one.
    ValueError
        If the value is out of range, or not one of the choices.
    """
    label = label or name
    if hint is not float:
        return _check_choice(label, value, hint)
    if value is None and name in _OPTIONAL:
        return None
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (float, Real)):  # float first, to be fast
        raise TypeError(f"{label} is {shown(value)}, expected a number{' or None' if name in _OPTIONAL else ''}")
    try:
        x = float(number) + 0.0  # so that -0.0 is 0.0
    except OverflowError:
        x = NAN
    allowed = range_of(name, ranges)
    if x not in allowed:
        raise ValueError(f"{label} is {number!r}, expected {allowed.text(name)}")
    return x


def plain(value: Any) -> Any:
    """Return the number that an array without dimensions holds, of whatever library, and anything else as it is."""
    if isinstance(value, (float, Real)) or getattr(value, "shape", None) != ():
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", "f")  # only NumPy's dtypes have one
    return value.item() if kind in "fiuV" and hasattr(value, "item") else value  # V is bfloat16


def shown(value: Any) -> str:
    """Return what a wrong value is, for a message: never the elements of an array or a container."""
    if isinstance(value, (str, int, float, np.generic)) or value is None:
        return repr(value)
    if (shape := getattr(value, "shape", None)) is not None:
        return f"an array of dtype {getattr(value, 'dtype', None)} and shape {tuple(shape)}"
    return f"of type {type(value).__name__}" if hasattr(value, "__iter__") else repr(value)


def _check_choice(label: str, value: Any, hint: Any) -> Any:
    if hint == Bounds | None:
        return None if value is None else _check_bounds(label, value)
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{label} is {value!r}, expected True or False")
        return value
    if hint is int:
        if integer(label, value, 0) >= 2**53:
            raise ValueError(f"{label} is {value!r}, expected an integer below 2**53")
        return int(value)
    choices = _choices(hint)
    if not isinstance(value, tuple({type(choice) for choice in choices})):
        raise TypeError(f"{label} is {value!r}, expected one of {', '.join(map(repr, choices))}")
    if value not in choices:
        raise ValueError(f"{label} is {value!r}, expected one of {', '.join(map(repr, choices))}")
    return value


def _check_bounds(label: str, value: Any) -> Bounds:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{label} is {value!r}, expected None or two numbers (low, high)")
    low = -INF if value[0] is None else check("low", value[0], float, f"{label}[0]")
    high = INF if value[1] is None else check("high", value[1], float, f"{label}[1]")
    if low > high:
        raise ValueError(f"{label} is {value!r}, expected low <= high")
    return None if low == -INF else low, None if high == INF else high


def range_of(name: str, ranges: Mapping[str, Range]) -> Range:
    """Return the range of a hyperparameter, by default all finite numbers."""
    return ranges.get(name, _FINITE)


def integer(name: str, value: Any, least: int) -> int:
    """Return an integer of any kind as int, or refuse a value that is none or too low."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}, expected an integer >= {least}")
    if value < least:
        raise ValueError(f"{name} is {value!r}, expected an integer >= {least}")
    return int(value)


def check_clips(values: Mapping[str, Any], label: str = "") -> None:
    """Refuse more than one way of clipping."""
    if len(chosen := [name for name in CLIPS if values.get(name) is not None]) > 1:
        raise ValueError(f"{label}{chosen[1]} stands beside {chosen[0]}, expected one of them to be None")


def on_host(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters with the present values of those that are on a GPU."""

    def read(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: read(some) for key, some in value.items()}
        return to_host(as_array(value, "hyperparameter")).item() if is_on_gpu(value) else value

    return {name: read(value) for name, value in values.items()}


def evaluated(values: Mapping[str, Any], done: int, ranges: Mapping[str, Range] = RANGES) -> dict[str, Any]:
    """Return hyperparameters with the values that schedules have at the update that follows `done` others."""
    found = {}
    for name, value in values.items():
        if callable(value):
            label, value = f"{name}({done})", value(done)
            if value is None:  # allowed as a fixed value, where None switches an option off
                raise TypeError(f"{label} is None, expected a number")
            value = check(name, value, float, label, ranges)
        found[name] = value
    return found


class Recipe(NamedTuple):
    """How a rule's hyperparameter follows from those of a class."""

    fields: tuple[str, ...]  # the hyperparameters of the class that have a part in it
    value: Callable[[Mapping[str, Any]], Any]  # takes the hyperparameters by name; what is on a GPU stays there


def recipes(
    names: tuple[str, ...], known: Collection[str], derived: Mapping[str, Callable[..., float]]
) -> tuple[Recipe, ...]:
    """
    Return the recipes of the hyperparameters that a rule calls `names`.

    Parameters
    ----------
    names : tuple of str
        A dialect of a rule is a hyperparameter too: `eps_inside` is eps where `eps_mode` is "inside" and otherwise 0,
        `velocity_step` is 1 where `velocity` is "step" and otherwise 0.
    known : collection of str
        The hyperparameters of the class.
    derived : mapping
        Name -> a function that computes the value from hyperparameters of the class, which its arguments name.
    """
    return tuple(_recipe(name, known, derived) for name in names)


def _recipe(name: str, known: Collection[str], derived: Mapping[str, Callable[..., float]]) -> Recipe:
    if name == "clip_global_norm":
        return Recipe((name,), lambda values: _limit(values[name]))
    if name in known:
        return Recipe((name,), lambda values: _plain(values[name]))
    if name in ("low", "high"):
        return Recipe(("bounds",), lambda values: _bound(name, values["bounds"]))
    if name == "master":
        numbers = {False: 0.0, True: 1.0, "split": 2.0}
        return Recipe(("master_weights",), lambda values: numbers[values["master_weights"]])
    if name in derived:
        fields = arguments(derived[name])
        return Recipe(fields, lambda values: derived[name](*(values[field] for field in fields)))
    field, _, choice = name.rpartition("_")
    mode = f"{field}_mode"
    if mode not in known:
        return Recipe((field,), lambda values: float(values[field] == choice))
    return Recipe((field, mode), lambda values: _plain(values[field]) if values[mode] == choice else 0.0)


def _bound(name: str, bounds: Bounds | None) -> float:
    """Return the lower or upper bound of parameters; one that is off is infinite."""
    low, high = bounds or (None, None)
    if name == "low":
        return -INF if low is None else low
    return INF if high is None else high


def _limit(value: Any) -> Any:
    """Return a limit of the norm, which is measured for an infinite one too: the engine's infinity measures nothing."""
    return sys.float_info.max if isinstance(value, float) and value == INF else _plain(value)


def arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the arguments of a function that is written in Python."""
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def _plain(value: Any) -> Any:
    """Return a number as the engine takes it: None, which switches an option off, is infinity."""
    if value is None:
        return INF
    return float(value) if isinstance(value, (int, float)) else value


@lru_cache
def rational_power(x: float, y: float) -> float:
    """Return x**y for x >= 0 to 50 digits, rounded once: libm's pow differs between platforms."""
    import decimal  # loaded late: few programs need it

    if x == 0 or (x < 1 and math.isinf(y)):
        return 0.0
    with decimal.localcontext(decimal.Context(prec=50)):
        return float((decimal.Decimal(y) * decimal.Decimal(x).ln()).exp())
