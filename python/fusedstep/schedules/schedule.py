"""The base of all schedules: what the arguments of schedules may be, and `constant`, which a number stands for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Real
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from fusedstep.core.hyperparameters import check, integer, plain, shown

__all__ = ["Boundary", "Member", "Schedule", "arguments", "constant", "number", "one_more", "real", "sequence"]

Member = float | Callable[[int], float]
Boundary = Literal["first", "last"]


class Schedule:
    """
    A function of the number of finished updates.

    Raises
    ------
    TypeError
        If an argument is no number, no integer, no sequence or no schedule where one is expected.
    ValueError
        If an argument is negative or not finite, if a count of updates is 0, if boundaries do not increase, or, when
        called, if the number of finished updates is negative.
    """

    lowest: ClassVar = {"steps": 1, "every": 1, "t_mul": 1}  # least values; all other arguments may be 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in arguments(type(self)):
            least = self.lowest.get(name, 0)
            object.__setattr__(self, name, _checked(name, getattr(self, name), hints[name], least))

    def __call__(self, done: int) -> float:
        """Return the value for the next update after `done` finished ones."""
        if done < 0:
            raise ValueError(f"done is {done}, expected an integer >= 0")
        return self._at(done)

    def _at(self, done: int) -> float:
        raise NotImplementedError


def arguments(cls: Any) -> list[str]:
    """Return the names of the arguments of a schedule."""
    return [f.name for f in fields(cls) if f.init]


def _checked(name: str, value: Any, hint: Any, least: int = 0) -> Any:
    """Return the argument `name` as the type `hint`, or refuse its value."""
    if hint is float:
        return number(name, value, least)
    if hint is int:
        return integer(name, value, least)
    if hint == Member:
        return _member(name, value)
    if get_origin(hint) is not Sequence:
        return check(name, value, hint)
    (kind,) = get_args(hint)
    members = tuple(_checked(f"{name}[{i}]", part, kind) for i, part in enumerate(sequence(name, value)))
    if kind is int and any(b <= a for a, b in pairwise(members)):
        raise ValueError(f"{name} is {members}, expected increasing numbers")
    return members


def real(name: str, value: Any, expected: str = "a number") -> float:
    """Return any number as a float, or refuse any other value."""
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, Real):
        raise TypeError(f"{name} is {shown(value)}, expected {expected}")
    try:
        return float(found) + 0.0  # so that -0.0 is 0.0
    except OverflowError:
        return -math.inf if found < 0 else math.inf


def number(name: str, value: Any, least: int = 0) -> float:
    """Return a finite number that is not too low, or refuse the value."""
    found = real(name, value)
    if not least <= found < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a finite number >= {least}")
    return found


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    """Return the elements of a sequence, or refuse any other value."""
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected a sequence") from None


def _member(name: str, value: Any) -> Callable[[int], float]:
    if callable(value):
        called: Callable[[int], float] = value
        return called
    real(name, value, "a schedule, a function or a number")
    return constant(number(name, value))


def one_more(name: str, members: Sequence[Any], boundaries_name: str, boundaries: Sequence[int]) -> None:
    """Refuse a sequence that does not have one member more than there are boundaries."""
    if len(members) != len(boundaries) + 1:
        wanted = f"{len(boundaries) + 1}, one more than {boundaries_name}"
        raise ValueError(f"{name} has {len(members)} elements, expected {wanted}")


@dataclass(frozen=True)
class constant(Schedule):
    r"""
    Stay at one value.

    .. math:: lr

    Parameters
    ----------
    lr : float
        The value, at least 0.
    """

    lr: float

    def _at(self, done: int) -> float:
        del done
        return self.lr
