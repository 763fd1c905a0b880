"""Schedules as plain values, and back: what a checkpoint holds of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from .combined import product
from .plateau import dictionary, expect_keys, plateau
from .schedule import Schedule, arguments, sequence

__all__ = ["adopt", "describe", "rebuild"]

CLASSES: dict[str, Any] = {cls.__name__: cls for cls in Schedule.__subclasses__()}


def describe(schedule: Schedule) -> dict[str, Any]:
    """
    Return a schedule as plain values that JSON can hold, with the memory of each `plateau` in it.

    Parameters
    ----------
    schedule : Schedule
        One of this module, whose parts are too.

    Returns
    -------
    dict
        The name under "schedule", the arguments under theirs, schedules among them in the same way.

    Raises
    ------
    TypeError
        If it, or a part of it, is a function or class of somebody else.
    """
    cls = type(schedule)
    if CLASSES.get(cls.__name__) is not cls:
        raise TypeError(f"schedule is {schedule!r}, expected one of fusedstep.schedules: others cannot be stored")
    description = {"schedule": cls.__name__}
    description |= {name: _plain(getattr(schedule, name)) for name in arguments(cls)}
    if isinstance(schedule, plateau):
        description["memory"] = schedule._memory()
    return description


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, (float, int, str)) else describe(value)


def rebuild(description: Mapping[str, Any]) -> Schedule:
    """
    Return the schedule that `describe` has described.

    Parameters
    ----------
    description : mapping
        What `describe` returns, also after a way through JSON. It may come from anywhere: nothing but the schedules of
        this module is made of it.

    Returns
    -------
    Schedule
        An equal one, with equal memory.

    Raises
    ------
    TypeError
        If the description, or something in it, has a wrong type.
    ValueError
        If there is no such schedule, if it has other arguments, or if one is out of range.
    """
    values = dictionary("description", description)
    name = values.pop("schedule", None)
    cls = CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"schedule is {name!r}, expected one of {', '.join(CLASSES)}")
    expect_keys(cls.__name__, values, [*arguments(cls), *(["memory"] if cls is plateau else [])])
    memory = values.pop("memory", None)
    values = {key: _schedules_in(value) for key, value in values.items()}
    schedule: Schedule = product(*sequence("schedules", values["schedules"])) if cls is product else cls(**values)
    if isinstance(schedule, plateau):
        schedule._recall(memory)
    return schedule


def _schedules_in(value: Any) -> Any:
    if isinstance(value, list):
        return [_schedules_in(part) for part in value]
    return rebuild(value) if isinstance(value, Mapping) else value


def adopt(present: Any, new: Any) -> Any:
    """
    Return `present` with the memory of `new` where the two are equal schedules, and otherwise `new`.

    So a `plateau` that the caller holds goes on working after a checkpoint has been loaded.

    Parameters
    ----------
    present : Any
        The schedule or number in use; its memory is overwritten in place.
    new : Any
        The schedule or number that was loaded.

    Returns
    -------
    Any
        `present` or `new`.
    """
    if not isinstance(present, Schedule) or present != new:
        return new
    for mine, other in zip(_plateaus(present), _plateaus(new), strict=False):
        mine._remember(**other._memory())
    return present


def _plateaus(schedule: Schedule) -> Iterator[plateau]:
    if isinstance(schedule, plateau):
        yield schedule
    for value in vars(schedule).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Schedule):
                yield from _plateaus(part)
