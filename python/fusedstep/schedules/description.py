"""Schedules as plain values, as a checkpoint holds them, and back."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .combined import product
from .plateau import dictionary, expect_keys, plateau
from .schedule import Schedule, arguments, sequence

__all__ = ["Plateaus", "describe", "differences", "rebuild", "remember"]

CLASSES: dict[str, Any] = {cls.__name__: cls for cls in Schedule.__subclasses__()}


class Found(NamedTuple):
    """A plateau that stands for one in descriptions."""

    schedule: plateau  # the caller's, which goes on working, or the one that was described
    saved: plateau  # the one that was described
    memory: dict[str, Any]  # what `schedule` will remember


Plateaus = dict[int, Found]  # by the number that plateaus have in descriptions


def describe(schedule: Any, seen: list[plateau]) -> dict[str, Any]:
    """
    Return a schedule as plain values that JSON can hold, with the memory of each `plateau` in it.

    Parameters
    ----------
    schedule : callable
        A schedule of this package. Of a function of the caller's own, the description only says that it was there.
    seen : list of plateau
        The plateaus that have been described so far, to which this function adds. A plateau that stands in two places
        has one number, its place in this list.

    Returns
    -------
    dict
        "schedule": the name of the class, or None for a function of the caller's own. All arguments under their names,
        schedules among them described likewise. Of a plateau also "number", and "memory": its attributes.
    """
    cls = type(schedule)
    if CLASSES.get(cls.__name__) is not cls:
        return {"schedule": None}
    description = {"schedule": cls.__name__}
    description |= {name: _plain(getattr(schedule, name), seen) for name in arguments(cls)}
    if isinstance(schedule, plateau):
        if not any(schedule is other for other in seen):
            seen.append(schedule)
        place = next(i for i, other in enumerate(seen) if schedule is other)
        description |= {"number": place, "memory": schedule._memory()}
    return description


def _plain(value: Any, seen: list[plateau]) -> Any:
    if isinstance(value, tuple):
        return [_plain(part, seen) for part in value]
    return value if isinstance(value, (float, int, str)) else describe(value, seen)


def rebuild(description: Mapping[str, Any], present: Any, made: Plateaus) -> Any:
    """
    Return the schedule that `describe` has described; plateaus get their memory later, by `remember`.

    Parameters
    ----------
    description : mapping
        What `describe` returns, also after a way through JSON. A description may come from anywhere: nothing but
        schedules of this package is made of it.
    present : Any
        What stands in the same place now. An equal schedule stays, and so does a plateau, even if its arguments are
        others, so that plateaus that the caller holds go on working; a function of the caller's own stays in any case.
    made : dict
        The plateaus of this and of other descriptions by number, to which this function adds. A plateau in several
        places may have to be the caller's in one of them: then everything has to be rebuilt once more.

    Returns
    -------
    callable
        An equal schedule.

    Raises
    ------
    TypeError
        If the description, or a part of it, has a wrong type.
    ValueError
        If there is no schedule of this name, if it has other arguments, if an argument is out of range, or if a
        function of the caller's own is missing.
    """
    values = dictionary("description", description)
    name = values.pop("schedule", "")
    if name is None and not values:
        if not callable(present):
            raise ValueError("schedule was a function that cannot be saved, expected the same function to be there")
        return present
    cls = CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(f"schedule is {name!r}, expected one of {', '.join(CLASSES)}")
    expect_keys(cls.__name__, values, [*arguments(cls), *(["number", "memory"] if cls is plateau else [])])
    place, memory = values.pop("number", None), values.pop("memory", None)
    parts = {key: getattr(present, key) if type(present) is cls else None for key in values}
    values = {key: _rebuilt(value, parts[key], made) for key, value in values.items()}
    new = product(*sequence("schedules", values["schedules"])) if cls is product else cls(**values)
    if cls is plateau:
        return _plateau(new, present, place, memory, made)
    same = present == new and all(a is b for a, b in zip(_plateaus(present), _plateaus(new), strict=True))
    return present if same else new


def _rebuilt(value: Any, present: Any, made: Plateaus) -> Any:
    if isinstance(value, list):
        parts = list(present) if isinstance(present, tuple) else []
        return [_rebuilt(v, parts[i] if i < len(parts) else None, made) for i, v in enumerate(value)]
    return rebuild(value, present, made) if isinstance(value, Mapping) else value


def _plateau(new: Any, present: Any, place: Any, memory: Any, made: Plateaus) -> plateau:
    """Return the plateau with a number: the caller's, if there is one in any place that has been seen, else the new."""
    new._recall(memory)
    memory = new._memory()
    if not isinstance(place, int):
        raise TypeError(f"number is {place!r}, expected an integer")
    known = made.get(place, Found(new, new, memory))
    if known.saved != new or known.memory != memory:
        raise ValueError(f"number is {place}, which is another plateau, expected equal ones")
    is_free = isinstance(present, plateau) and not any(present is other.schedule for other in made.values())
    if known.schedule is known.saved and is_free:
        known = known._replace(schedule=present)
    made[place] = known
    return known.schedule


def remember(made: Plateaus) -> None:
    """Give each plateau the memory from its description."""
    for schedule, saved, memory in made.values():
        if schedule.mode != saved.mode:  # the best of one mode says nothing in the other
            memory = memory | {"best": schedule.best, "bad": schedule.bad}
        schedule._remember(**memory)


def differences(made: Plateaus) -> list[str]:
    """Tell which plateaus of the caller stay in place of others."""
    return [
        f"{found.schedule!r} stays, with the memory of the {found.saved!r} that was saved"
        for found in made.values()
        if found.schedule != found.saved
    ]


def _plateaus(schedule: Schedule) -> Iterator[plateau]:
    if isinstance(schedule, plateau):
        yield schedule
    for value in vars(schedule).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Schedule):
                yield from _plateaus(part)
